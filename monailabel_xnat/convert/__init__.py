"""DICOM series to NIfTI volumes, and label maps in and out. No network, no MONAI."""

from monailabel_xnat.convert.conversion import ConvertedVolume, dicom_to_nifti

__all__ = ["ConvertedVolume", "dicom_to_nifti"]
