"""DICOM images: their headers, their pixels, and the volume that a series makes."""
