"""How DICOM comes into the archive: series, headers, imports and the prearchive."""

from monailabel_xnat.sandbox.dicom.naming import scan_ids, scan_xsi_type, session_xsi_type, xnat_label
from monailabel_xnat.sandbox.dicom.series import DicomFile, SeriesFiles, read_series

__all__ = [
    "DicomFile",
    "SeriesFiles",
    "read_series",
    "scan_ids",
    "scan_xsi_type",
    "session_xsi_type",
    "xnat_label",
]
