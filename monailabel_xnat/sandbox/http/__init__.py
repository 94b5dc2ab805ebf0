"""Requests, answers and paths: from the socket to the handler."""
