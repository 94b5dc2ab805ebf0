"""A report about the work on projects: facts are gathered and summed up, and shown on one self-contained page."""
