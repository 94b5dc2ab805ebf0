"""Who is let in, what each user may do, and what belongs to the site and its projects besides data."""
