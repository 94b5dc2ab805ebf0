"""DICOM SEG objects: segmentations, frame by frame."""
