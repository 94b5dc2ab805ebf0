"""What headers say: the destination of a study, the fields of sessions and scans; and anonymised copies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.datatypes import DataTypes
from monailabel_xnat.sandbox.archive.model import Experiment, Fields, Scan
from monailabel_xnat.sandbox.archive.resources import Resources, owner_of
from monailabel_xnat.sandbox.dicom.naming import scan_xsi_type, xnat_label
from monailabel_xnat.sandbox.dicom.series import CT_PARAMETERS, SeriesFiles, element_text, read_series, without_warnings
from monailabel_xnat.sandbox.http.messages import HTTPError, Request

# XNAT looks in these elements for "Project:P Subject:S Session:E", in this order.
_COMMENTS = ("PatientComments", "StudyComments", "AdditionalPatientHistory")
# XNAT looks in these elements for the plain ID of a project.
_PROJECT_FIELDS = ("StudyDescription", "AccessionNumber")


@dataclass(frozen=True)
class Route:
    """A destination. A part is empty if the headers do not name it."""

    project: str = ""
    subject: str = ""
    session: str = ""
    may_be_project: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """The place where a study is filed. Labels that are empty are made from its headers.

    `moment` and `folder` are the parts of an address in the prearchive, if the request named one.
    """

    project: str
    subject: str = ""
    session: str = ""
    moment: str = ""
    folder: str = ""


def read_route(path: Path) -> Route:
    """Return the destination that the header of a file names.

    Returns
    -------
    Route
        Its `may_be_project` holds values that are the ID of a project if such a project exists.
    """
    with without_warnings():
        header = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=[*_COMMENTS, *_PROJECT_FIELDS]
        )
        comments = [element_text(header, name) for name in _COMMENTS]
        plain = tuple(element_text(header, name) for name in _PROJECT_FIELDS)
    return Route(
        project=_assigned("Project", comments),
        subject=xnat_label(_assigned("Subject", comments)),
        session=xnat_label(_assigned("Session", comments)),
        may_be_project=tuple(value for value in plain if value),
    )


def _assigned(name: str, comments: Iterable[str]) -> str:
    """Return the value of ``Name: value`` in a comment. It ends at a blank, a comma or a semicolon."""
    for comment in comments:
        found = re.search(rf"(?:^|[\s,;]){name}:\s*([\w-]+)(?=[\s,;]|$)", comment, re.IGNORECASE)
        if found:
            return found.group(1)
    return ""


def anonymised(series: Sequence[SeriesFiles], place: Place, folder: Path) -> list[SeriesFiles]:
    """Write anonymised copies of the files of a study.

    Parameters
    ----------
    series
        All series of one study.
    place
        The place where the study is filed. Study Description becomes the project's ID, Patient's Name the label of the
        subject, and Patient ID the label of the session.
    folder
        An empty folder for the copies.

    Returns
    -------
    list of SeriesFiles
        The same series, but of the copies.
    """
    values = {"StudyDescription": place.project, "PatientName": place.subject, "PatientID": place.session}
    found: list[SeriesFiles] = []
    for number, item in enumerate(series):
        copies = [replace(file, path=folder / f"{number:05d}-{at:07d}") for at, file in enumerate(item.files)]
        for file, copy in zip(item.files, copies, strict=True):
            _write(file.path, copy.path, values)
        found.append(
            replace(
                item,
                files=tuple(copies),
                study_description=place.project,
                patient_name=place.subject,
                patient_id=place.session,
            )
        )
    return found


def _write(path: Path, copy: Path, values: dict[str, str]) -> None:
    with without_warnings():
        dataset = pydicom.dcmread(path, force=True)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(copy)


Read = Callable[[SeriesFiles], str]


def detail(keyword: str, place: int | None = None) -> Read:
    """Return a function that reads an element; `place` chooses one of its values."""

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
            # XNAT since 1.10 writes extracted numbers in this way: 1200, and not 1200.0.
            return f"{float(read(series)):.10g}"
        except ValueError:
            return ""

    return written


def _thickness(series: SeriesFiles) -> str:
    return detail("SliceThickness")(series) or detail("SpacingBetweenSlices")(series)


def _orientation(series: SeriesFiles) -> str:
    """Return the plane that is nearest to the slices: ``Sag``, ``Cor`` or ``Tra``."""
    try:
        a, b, c, d, e, f = (float(text) for text in detail("ImageOrientationPatient")(series).split("\\"))
    except ValueError:
        return ""
    normal = {"Sag": b * f - c * e, "Cor": c * d - a * f, "Tra": a * e - b * d}
    return max(normal, key=lambda plane: abs(normal[plane]))


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
    "start_date": lambda series: series.series_date,
    "operator": detail("OperatorsName"),
    "protocolName": detail("ProtocolName"),
    "bodyPartExamined": detail("BodyPartExamined"),
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
    "parameters/orientation": _orientation,
    **{f"parameters/{path}": detail(keyword) for path, keyword in CT_PARAMETERS.items()},
}


def header_fields(types: DataTypes, kind: str, series: SeriesFiles, table: dict[str, Read]) -> dict[str, str]:
    """Return those fields of a table that a data type has and the headers have values for."""
    found = {path: read(series) for path, read in table.items() if types.has_field(kind, path)}
    # XNAT keeps each backslash between several values doubled.
    return {path: _stored(types, kind, path, value).replace("\\", "\\\\") for path, value in found.items() if value}


def _stored(types: DataTypes, kind: str, path: str, value: str) -> str:
    """Return a value in the form in which a field of its type stores it."""
    try:
        typed = types.typed(kind, path, value)
    except ValueError:
        return value
    return repr(typed) if isinstance(typed, float) else value


# A person may have set these fields of a scan. They do not change, unless they are empty.
_KEPT = ("type", "quality")
_SAYS_NOTHING = ("", "Unknown")


class HeaderActions:
    """The actions that read headers, on an archive."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def run(self, request: Request, session: Experiment, scan: Scan | None = None) -> None:
        """Do the actions that the request asks for, on one scan or on a session with all its scans."""
        if request.flag("pullDataFromHeaders"):
            self._pull(session, scan)
        if request.flag("fixScanTypes") and scan is None:
            self._fix_types(session)

    def _pull(self, session: Experiment, only: Scan | None) -> None:
        found: list[SeriesFiles] = []
        types = self._archive.types
        for scan in [only] if only else self._archive.scans(session.id):
            for resource in self._resources.of(owner_of(self._archive, scan)):
                folder = self._resources.folder(resource)
                if resource.is_dicom and folder.is_dir():
                    series = read_series(folder)
                    found += series
                    for item in series[:1]:
                        if only is not None:
                            _require_same_type(scan, item)
                        fields = header_fields(types, scan.xsi_type, item, SCAN_FIELDS)
                        self._archive.set_fields(scan, _kept(scan, fields))
        if not found:
            raise HTTPError(500, "Unable to locate DICOM or ECAT files")
        if only is None:
            fields = header_fields(types, session.xsi_type, found[0], SESSION_FIELDS)
            self._archive.set_fields(session, fields)

    def _fix_types(self, session: Experiment) -> None:
        """Set the type of scans that have none: that of similar scans in the project, else the series description."""
        known: dict[str, Counter[str]] = {}
        rows = self._archive.store.all(_TYPES, (session.project,))
        for row in rows:
            known.setdefault(_plain(row["description"]), Counter())[row["type"]] += 1
        for scan in self._archive.scans(session.id):
            description = str(scan.fields.get("series_description") or "")
            if description and not scan.fields.get("type"):
                types = known.get(_plain(description))
                found = types.most_common(1)[0][0] if types else description
                self._archive.set_fields(scan, {"type": found})


_TYPES = (
    "SELECT json_extract(scans.fields, '$.series_description') AS description, json_extract(scans.fields, '$.type') AS"
    " type FROM scans JOIN experiments ON experiments.id = scans.experiment"
    " WHERE experiments.project = ? AND description IS NOT NULL AND type IS NOT NULL ORDER BY scans.pk"
)


def _require_same_type(scan: Scan, series: SeriesFiles) -> None:
    """Refuse files from which XNAT would make a scan of another type (PullScanDataFromHeaders)."""
    kind = scan_xsi_type(series)
    if kind != scan.xsi_type:
        raise HTTPError(500, f"Modification of scan modality ({scan.xsi_type} to {kind}) not supported.")


def _kept(scan: Scan, fields: dict[str, str]) -> Fields:
    return {
        name: value
        for name, value in fields.items()
        if name not in _KEPT or str(scan.fields.get(name) or "") in _SAYS_NOTHING
    }


def _plain(description: str) -> str:
    """Return a description in the form that XNAT compares: only letters and digits, in one case."""
    return "".join(letter for letter in description.upper() if letter.isalnum())
