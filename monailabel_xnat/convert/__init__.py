"""DICOM series to NIfTI volumes, and label maps in and out. No network, no MONAI."""

from monailabel_xnat.convert.conversion import ConvertedVolume, dicom_to_nifti
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.labelmap import LabelMap, read_label, to_grid, write_label
from monailabel_xnat.convert.segments import Segment

__all__ = [
    "ConvertedVolume",
    "dicom_to_nifti",
    "Grid",
    "LabelMap",
    "Segment",
    "read_label",
    "to_grid",
    "write_label",
]
