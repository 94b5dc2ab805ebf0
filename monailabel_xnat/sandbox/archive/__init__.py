"""What an archive holds, and the handlers that list, show, change and delete its contents."""
