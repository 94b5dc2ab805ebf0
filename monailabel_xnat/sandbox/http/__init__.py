"""Requests, answers and paths: the way from the socket to the handler."""
