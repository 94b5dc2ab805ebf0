"""All code that talks to XNAT. Only this code uses xnatpy and requests."""
