"""DICOM files from any source, sorted into series.

The rules are those of XNAT's own importer (``dicom-xnat-sop`` and ``dicom-xnat-mx``). There is one scan for each
Series Instance UID. The SOP classes decide its ``xsiType``. The SOP classes, or else the modalities, decide the
session's; the strongest one wins. Reading is tolerant, as an archive's must be: a file needs no extension and no
preamble, and files that are not DICOM are skipped.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from monailabel_xnat.sandbox.dicom.naming import scan_rank

logger = logging.getLogger(__name__)

# The elements whose texts are attributes of a series, by the name of the attribute.
_TEXTS = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "study_uid": "StudyInstanceUID",
    "study_description": "StudyDescription",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "series_uid": "SeriesInstanceUID",
    "series_number": "SeriesNumber",
    "series_description": "SeriesDescription",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
}
_OTHER_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "InstanceNumber", "NumberOfFrames"),
    *("StudyDate", "SeriesDate", "StudyTime", "SeriesTime"),
)
# Parameters of a CT scan, and the element of each one (XNAT's CTScanAttributes).
CT_PARAMETERS = {
    "acquisitionNumber": "AcquisitionNumber",
    "options": "ScanOptions",
    "collectionDiameter": "DataCollectionDiameter",
    "distanceSourceToDetector": "DistanceSourceToDetector",
    "distanceSourceToPatient": "DistanceSourceToPatient",
    "tableHeight": "TableHeight",
    "rotationDirection": "RotationDirection",
    "exposure": "Exposure",
    "filter": "FilterType",
    "generatorPower": "GeneratorPower",
    "collimationWidth/single": "SingleCollimationWidth",
    "collimationWidth/total": "TotalCollimationWidth",
    "tableSpeed": "TableSpeed",
    "tableFeedPerRotation": "TableFeedPerRotation",
    "pitchFactor": "SpiralPitchFactor",
    "ctDIvol": "CTDIvol",
    "rescale/intercept": "RescaleIntercept",
    "rescale/slope": "RescaleSlope",
}
# Elements about the sequence, the station and its operator. `details` of a series holds their values; a list as "1\\2".
_DETAILS = (
    *("StationName", "InstitutionName", "OperatorsName", "PatientBirthDate", "ProtocolName", "BodyPartExamined"),
    *("ImageType", "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName"),
    *("SliceThickness", "SpacingBetweenSlices", "PixelSpacing", "Rows", "Columns", "ImageOrientationPatient"),
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "PixelBandwidth", "MagneticFieldStrength"),
    *("ReceiveCoilName", "KVP", "GantryDetectorTilt", "ExposureTime", "XRayTubeCurrent", "ConvolutionKernel"),
    *CT_PARAMETERS.values(),
)
_TAGS = ("SpecificCharacterSet", *_TEXTS.values(), *_OTHER_TAGS, *_DETAILS)

_WARNING_FILTERS = threading.Lock()
_PREAMBLE_LENGTH = 128
_BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")


@dataclass(frozen=True)
class DicomFile:
    """One DICOM instance on disk. `instance_number` is "" if the file has none."""

    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    instance_number: str


@dataclass(frozen=True)
class SeriesFiles:
    """One DICOM series: its files in acquisition order and what XNAT records about them.

    Texts are stripped, and "" if the files have none. Dates are ``YYYY-MM-DD``, times ``HH:MM:SS``. `sop_class_uid` is
    the class that decides the scan type. As in XNAT, `frames` counts images: each frame of a multi-frame file is one,
    and a file without frames (SR, RTSTRUCT) is one.
    """

    patient_id: str
    patient_name: str
    study_uid: str
    study_date: str
    study_time: str
    study_description: str
    accession_number: str
    study_id: str
    series_uid: str
    series_number: str
    series_description: str
    modality: str
    sop_class_uid: str
    frames: int
    manufacturer: str
    model: str
    series_date: str
    series_time: str
    details: Mapping[str, str]
    files: tuple[DicomFile, ...]


class _PassedOverError(Exception):
    """A file cannot be filed. The text says why."""


def read_series(folder: Path) -> list[SeriesFiles]:
    """Return the DICOM files below a folder, sorted into series.

    Files are recognised by content, with any name. A DICOMDIR and files that are not DICOM are skipped. The files of
    one series may be in several folders. If two files have the same SOP Instance UID, the first one by path is kept.

    Parameters
    ----------
    folder
        Folder that is searched with all its subfolders.

    Returns
    -------
    list of SeriesFiles
        Ordered by patient, study date and time, study, and series number. The same files have the same order in any
        folder.

    Raises
    ------
    NotADirectoryError
        If `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"There is no folder {folder} to read DICOM files from.")
    grouped: dict[tuple[str, str, str], list[SeriesFiles]] = {}
    seen: set[str] = set()
    passed_over: Counter[str] = Counter()
    for path in _walk(folder):
        try:
            single = _read_file(path)
            if single.files[0].sop_instance_uid in seen:
                raise _PassedOverError("its SOP Instance UID was there already")
        except _PassedOverError as exc:
            passed_over[str(exc)] += 1
            logger.debug("Passed over %s: %s.", path, exc)
        else:
            seen.add(single.files[0].sop_instance_uid)
            key = (single.patient_id, single.study_uid, single.series_uid)
            grouped.setdefault(key, []).append(single)
    for reason, count in passed_over.items():
        logger.info("Passed over %d files: %s.", count, reason)
    return sorted((_merge(parts) for parts in grouped.values()), key=_series_order)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, in a fixed order."""
    for parent, subfolders, names in os.walk(folder):
        subfolders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                yield path


def _read_file(path: Path) -> SeriesFiles:
    """Return one file as a series of one file."""
    try:
        dataset = _read_header(path)
    except (_PassedOverError, InvalidDicomError) as exc:
        raise _PassedOverError("not a DICOM file") from exc
    except OSError as exc:
        raise _PassedOverError(f"not readable ({exc.strerror or type(exc).__name__})") from exc
    except Exception as exc:  # a damaged file can raise anything in the parser
        raise _PassedOverError(f"damaged DICOM ({type(exc).__name__})") from exc
    return _describe(path, dataset)


def _read_header(path: Path) -> pydicom.Dataset:
    """Return the elements that are needed, read up to the pixel data."""
    with path.open("rb") as stream:
        start = stream.read(_PREAMBLE_LENGTH + 4)
    bare = start[_PREAMBLE_LENGTH:] != b"DICM"
    if bare and start[:2] not in _BARE_STARTS:
        raise _PassedOverError("not a DICOM file")
    with without_warnings():
        return pydicom.dcmread(path, stop_before_pixels=True, force=bare, specific_tags=[*_TAGS])


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence pydicom's warnings about single values.

    Warning filters belong to the whole process. If two threads saved and restored them in turn, they could stay off.
    """
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _describe(path: Path, dataset: pydicom.Dataset) -> SeriesFiles:
    """Return the series of one file that a header describes."""
    with without_warnings():
        texts = {name: element_text(dataset, keyword) for name, keyword in _TEXTS.items()}
        text = {keyword: element_text(dataset, keyword) for keyword in _OTHER_TAGS}
        details = {keyword: _all_values(dataset, keyword) for keyword in _DETAILS if keyword in dataset}
        meta = getattr(dataset, "file_meta", None)
        sop_class = text["SOPClassUID"] or element_text(meta, "MediaStorageSOPClassUID")
        instance = text["SOPInstanceUID"] or element_text(meta, "MediaStorageSOPInstanceUID")
    if sop_class == uid.MediaStorageDirectoryStorage:
        raise _PassedOverError("a DICOMDIR")
    if not (sop_class or instance):
        raise _PassedOverError("not a DICOM file")
    if not (instance and texts["study_uid"] and texts["series_uid"]):
        raise _PassedOverError("without Study, Series or SOP Instance UID")
    return SeriesFiles(
        **texts,
        study_date=iso_date(text["StudyDate"]),
        study_time=iso_time(text["StudyTime"]),
        series_date=iso_date(text["SeriesDate"]),
        series_time=iso_time(text["SeriesTime"]),
        modality=text["Modality"].upper(),
        sop_class_uid=sop_class,
        frames=max(1, _integer(text["NumberOfFrames"], default=1)),
        details={keyword: value for keyword, value in details.items() if value},
        files=(DicomFile(path, instance, sop_class, text["InstanceNumber"]),),
    )


def element_text(dataset: Any, keyword: str) -> str:
    """Return an element as text: its first value if it has several, its raw bytes if they do not fit its VR."""
    if dataset is None or keyword not in dataset:
        return ""
    value: Any = None
    for read in (dataset.__getitem__, dataset.get_item):
        try:
            value = read(Tag(keyword)).value
            break
        except Exception as exc:  # noqa: BLE001  # a damaged value can raise anything
            logger.debug("The value of %s is broken: %s", keyword, type(exc).__name__)
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if value else ""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return "" if value is None else str(value).strip(" \0\t\r\n")


def _all_values(dataset: Any, keyword: str) -> str:
    """Return an element as text, with a backslash between its values."""
    try:
        value = dataset[keyword].value
    except Exception:  # noqa: BLE001  # a damaged value can raise anything
        return ""
    if isinstance(value, pydicom.multival.MultiValue):
        return "\\".join(str(part).strip() for part in value)
    return "" if value is None else str(value).strip(" \0\t\r\n")


def _merge(parts: list[SeriesFiles]) -> SeriesFiles:
    """Return one series from its files. Each text is the first one that any file has."""
    parts = sorted(
        parts, key=lambda part: (_integer(part.files[0].instance_number, 2**31), part.files[0].sop_instance_uid)
    )
    merged = min(parts, key=lambda part: scan_rank(part.sop_class_uid))
    filled = {
        name: next((value for value in (getattr(part, name) for part in parts) if value), "")
        for name, value in vars(merged).items()
        if value == ""
    }
    files = tuple(part.files[0] for part in parts)
    details = {name: value for part in reversed(parts) for name, value in part.details.items()}
    frames = sum(part.frames for part in parts)
    return replace(merged, frames=frames, details=details, files=files, **filled)


def _series_order(item: SeriesFiles) -> tuple[str, str, str, str, int, str, str]:
    """Return a sort key for the order that a reader of the archive expects."""
    number = _integer(item.series_number, default=2**31)
    study = (item.patient_id, item.study_date, item.study_time, item.study_uid)
    return (*study, number, item.series_number, item.series_uid)


def _integer(text: str, default: int) -> int:
    """Return an IS value as a number, or `default` if it is not one."""
    match = re.fullmatch(r"[+-]?\d{1,12}", text)
    return int(text) if match else default


def iso_date(text: str) -> str:
    """Return a DA value (or the ACR-NEMA form with dots) as ``YYYY-MM-DD``, or "" if it is not a date."""
    match = re.fullmatch(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", text, re.ASCII)
    try:
        return date(*map(int, match.groups())).isoformat() if match else ""
    except ValueError:
        return ""


def iso_time(text: str) -> str:
    """Return a TM value as ``HH:MM:SS``, or "" if it is not a time."""
    match = re.fullmatch(r"([01]\d|2[0-3]):?([0-5]\d)?:?([0-5]\d|60)?(\.\d*)?", text, re.ASCII)
    return ":".join(part or "00" for part in match.groups()[:3]) if match else ""
