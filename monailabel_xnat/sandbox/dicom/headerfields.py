"""The fields of sessions and scans that XNAT reads from DICOM headers (dicom-xnat-mx)."""

from __future__ import annotations

from typing import Callable

from monailabel_xnat.sandbox.archive.datatypes import DataTypes
from monailabel_xnat.sandbox.dicom.series import SeriesFiles

Read = Callable[[SeriesFiles], str]


def detail(keyword: str, place: int | None = None) -> Read:
    """Return what reads an element; `place` chooses one of its values."""

    def read(series: SeriesFiles) -> str:
        text = series.details.get(keyword, "")
        if place is None:
            return text
        values = text.split("\\")
        return values[place] if place < len(values) else ""

    return read


def _number(read: Read) -> Read:
    def written(series: SeriesFiles) -> str:
        try:
            # As XNAT since 1.10 writes what it extracts: 1200, and not 1200.0.
            return f"{float(read(series)):.10g}"
        except ValueError:
            return ""

    return written


def _thickness(series: SeriesFiles) -> str:
    return detail("SliceThickness")(series) or detail("SpacingBetweenSlices")(series)


SESSION_FIELDS: dict[str, Read] = {
    "UID": lambda series: series.study_uid,
    "date": lambda series: series.study_date,
    "time": lambda series: series.study_time,
    "modality": lambda series: series.modality,
    "acquisition_site": detail("InstitutionName"),
    "operator": detail("OperatorsName"),
    "dcmPatientId": lambda series: series.patient_id,
    "dcmPatientName": lambda series: series.patient_name,
    "dcmAccessionNumber": lambda series: series.accession_number,
    "study_id": lambda series: series.study_id,
    "session_type": lambda series: series.study_description,
    "scanner": detail("StationName"),
    "scanner/manufacturer": lambda series: series.manufacturer,
    "scanner/model": lambda series: series.model,
    "fieldStrength": _number(detail("MagneticFieldStrength")),
}

SCAN_FIELDS: dict[str, Read] = {
    "UID": lambda series: series.series_uid,
    "type": lambda series: series.series_description or series.modality,
    "series_description": lambda series: series.series_description,
    "modality": lambda series: series.modality,
    "quality": lambda series: "usable",
    "frames": lambda series: str(series.frames),
    "scanner": detail("StationName"),
    "scanner/manufacturer": lambda series: series.manufacturer,
    "scanner/model": lambda series: series.model,
    "startTime": lambda series: series.series_time,
    "coil": detail("ReceiveCoilName"),
    "fieldStrength": _number(detail("MagneticFieldStrength")),
    "parameters/voxelRes/x": _number(detail("PixelSpacing", 1)),
    "parameters/voxelRes/y": _number(detail("PixelSpacing", 0)),
    "parameters/voxelRes/z": _number(_thickness),
    "parameters/fov/x": detail("Columns"),
    "parameters/fov/y": detail("Rows"),
    "parameters/tr": _number(detail("RepetitionTime")),
    "parameters/te": _number(detail("EchoTime")),
    "parameters/ti": _number(detail("InversionTime")),
    "parameters/flip": _number(detail("FlipAngle")),
    "parameters/sequence": detail("SequenceName"),
    "parameters/imageType": detail("ImageType"),
    "parameters/scanSequence": detail("ScanningSequence"),
    "parameters/seqVariant": detail("SequenceVariant"),
    "parameters/scanOptions": detail("ScanOptions"),
    "parameters/acqType": detail("MRAcquisitionType"),
    "parameters/pixelBandwidth": _number(detail("PixelBandwidth")),
    "parameters/kvp": _number(detail("KVP")),
    "parameters/gantryTilt": _number(detail("GantryDetectorTilt")),
    "parameters/exposureTime": _number(detail("ExposureTime")),
    "parameters/xrayTubeCurrent": _number(detail("XRayTubeCurrent")),
    "parameters/convolutionKernel": detail("ConvolutionKernel"),
}


def header_fields(types: DataTypes, kind: str, series: SeriesFiles, table: dict[str, Read]) -> dict[str, str]:
    """Return the fields of a table that a data type has and the headers fill."""
    found = {path: read(series) for path, read in table.items() if types.has_field(kind, path)}
    return {path: _stored(types, kind, path, value) for path, value in found.items() if value}


def _stored(types: DataTypes, kind: str, path: str, value: str) -> str:
    """Return a value as a field of its type holds it."""
    try:
        typed = types.typed(kind, path, value)
    except ValueError:
        return value
    return repr(typed) if isinstance(typed, float) else value
