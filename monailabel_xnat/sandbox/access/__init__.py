"""Who gets in, what he may do, and what belongs to the site and its projects besides data."""
