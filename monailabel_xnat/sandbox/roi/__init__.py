"""The plugin of the OHIF viewer: collections of regions of interest (ROIs)."""
