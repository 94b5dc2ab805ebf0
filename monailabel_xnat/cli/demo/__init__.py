"""The whole loop on one computer: an XNAT, MONAI Label on it, annotate, train, and segment better than before."""
