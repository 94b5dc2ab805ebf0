"""DICOM images: their headers, their pixels, and the volume that the images of a series make."""
