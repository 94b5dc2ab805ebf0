"""What stands beside the methods of the datastore: how it is opened, and what clients are shown."""
