"""Conversion of DICOM series to NIfTI volumes, and of label maps from and to files, without network and MONAI."""

from monailabel_xnat.convert.contours.aim import read_aim
from monailabel_xnat.convert.contours.rtstruct import read_rtstruct
from monailabel_xnat.convert.dicom.conversion import ConvertedVolume, dicom_to_nifti
from monailabel_xnat.convert.dicom.objects import References, rtstruct_references, seg_references
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.labelfile import read_label, write_label
from monailabel_xnat.convert.labelmap import LabelMap, Segment, to_grid
from monailabel_xnat.convert.seg.read import read_seg
from monailabel_xnat.convert.seg.write import write_seg

__all__ = [
    "ConvertedVolume",
    "dicom_to_nifti",
    "Grid",
    "LabelMap",
    "References",
    "Segment",
    "read_aim",
    "read_label",
    "read_rtstruct",
    "read_seg",
    "rtstruct_references",
    "seg_references",
    "to_grid",
    "write_label",
    "write_seg",
]
