"""The calls that the XNAT-OHIF viewer sends before it shows a session (OhifViewerApi, OhifViewerConfigApi)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pydicom
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from monailabel_xnat.sandbox.archive.model import Experiment
from monailabel_xnat.sandbox.archive.resources import owner_of
from monailabel_xnat.sandbox.dicom.series import element_text, without_warnings
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, as_json, text
from monailabel_xnat.sandbox.http.router import Handlers

_STUDY = ("StudyInstanceUID", "StudyDescription", "StudyDate", "StudyTime", "PatientName", "PatientID")
_SERIES = ("SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "SeriesDate", "SeriesTime", "Modality")
_NUMBERS = frozenset(("US", "SS", "UL", "SL", "FL", "FD", "IS", "DS"))
# The viewer does not need large values and lists of items to show an image.
_LEFT_OUT = frozenset(("OB", "OW", "OF", "OD", "OL", "UN", "SQ"))
_PRESETS = ("AIM", "SEG", "MEAS")


class Viewer(Handlers):
    """The handlers of the calls below ``/xapi/viewer`` and ``/xapi/viewerConfig``, for the user of one request."""

    def contents(self, request: Request, project: str, session_id: str) -> Reply:
        """Answer with the contents of a session, which are read anew at every call.

        Raises
        ------
        HTTPError
            403 without the right; 404 for a session that is not in the project; 422 if the experiment is not an image
            session. This holds for all calls about a session.
        """
        session = self._session(project, session_id, self._may.may_read)
        return as_json({"transactionId": session.id, "studies": self._studies(session)})

    def exists(self, request: Request, project: str, session_id: str) -> Reply:
        """Answer that the contents of a session can be had."""
        self._session(project, session_id, self._may.may_read)
        return text()

    def refresh(self, request: Request, project: str, session_id: str) -> Reply:
        """Answer the order to read the contents of a session again, which needs nothing here."""
        self._session(project, session_id, self._may.may_edit)
        return text()

    def _session(self, project: str, session_id: str, is_allowed: Callable[[str], bool]) -> Experiment:
        if not is_allowed(project):
            raise HTTPError(403, f"Project {project} is not accessible")
        session = self._archive.experiment(session_id)
        if session is None or session.session_id:
            raise HTTPError(422, f"Unknown image session: {session_id}")
        if project != session.project and project not in self._archive.shares(session.id):
            raise HTTPError(404)
        return session

    def settings(self, request: Request, project: str) -> Reply:
        """Answer as a site does where nobody has set anything for the project."""
        raise HTTPError(404 if self._may.may_read(project) else 403)

    def presets(self, request: Request, project: str) -> Reply:
        """Answer with the presets of ROIs, of which there are none."""
        if not self._may.may_read(project):
            raise HTTPError(403)
        wanted = request.query.get("type", "").upper()
        if wanted not in ("", *_PRESETS):
            raise HTTPError(422)
        return as_json({name: [] for name in _PRESETS if wanted in ("", name)})

    def _studies(self, session: Experiment) -> list[dict[str, Any]]:
        studies: dict[str, dict[str, Any]] = {}
        series: dict[str, dict[str, Any]] = {}
        for address, header in self._headers(session):
            study_uid, series_uid = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
            if study_uid not in studies:
                studies[study_uid] = {**{name: element_text(header, name) for name in _STUDY}, "series": []}
            if series_uid not in series:
                series[series_uid] = {**{name: element_text(header, name) for name in _SERIES}, "instances": []}
                studies[study_uid]["series"].append(series[series_uid])
            metadata = {
                element.keyword: _value(element)
                for element in header
                if element.keyword and element.VR not in _LEFT_OUT
            }
            metadata.setdefault("NumberOfFrames", 1)
            series[series_uid]["instances"].append({"metadata": metadata, "url": address})
        return list(studies.values())

    def _headers(self, session: Experiment) -> Iterator[tuple[str, pydicom.Dataset]]:
        """Yield the address and the header of every image of a session."""
        subject = self._archive.subject(session.subject_id or "")
        base = f"/data/archive/projects/{session.project}/subjects/{subject.id if subject else ''}"
        found = defaultdict(list)
        for scan in self._archive.scans(session.id):
            for resource in self._resources.of(owner_of(self._archive, scan)):
                if resource.is_dicom:
                    found[scan.id].append(resource)
        for scan_id, resources in found.items():
            for resource in resources:
                for entry in self._resources.files(resource):
                    header = _image_header(self._resources.folder(resource) / entry.path)
                    if header is not None:
                        place = f"scans/{scan_id}/resources/{resource.label}/files/{entry.path}"
                        yield f"{base}/experiments/{session.id}/{place}", header


def _image_header(path: Any) -> pydicom.Dataset | None:
    """Return the header of an image, or None if the viewer cannot show it: it is not DICOM, or has no picture."""
    with without_warnings():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # noqa: BLE001  # a damaged file can raise anything in the parser
            return None
    has_ids = "StudyInstanceUID" in header and "SeriesInstanceUID" in header
    return header if has_ids and "Rows" in header and header.get("Modality") != "SEG" else None


def _value(element: DataElement) -> Any:
    """Return a value as in naturalised DICOM JSON: numbers as numbers, and several values as a list."""
    value = element.value
    if isinstance(value, MultiValue):
        return [_plain(part, element.VR) for part in value]
    return _plain(value, element.VR)


def _plain(value: Any, kind: str) -> Any:
    if value is None or value == "":
        return None
    if isinstance(value, PersonName):
        return {"Alphabetic": str(value)}
    if kind in _NUMBERS:
        number = float(value)
        return int(number) if number.is_integer() else number
    return str(value)
