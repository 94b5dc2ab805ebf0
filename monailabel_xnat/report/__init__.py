"""A report of the work on projects: facts are gathered and summed up, and one self-contained page is made of them."""
