"""Everything that talks to XNAT; the only code that knows xnatpy and requests."""
