"""The OHIF viewer's plugin: collections of regions of interest."""
