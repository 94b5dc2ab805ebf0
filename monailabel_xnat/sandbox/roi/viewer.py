"""The calls that the XNAT-OHIF viewer sends before it shows a session (OhifViewerApi, OhifViewerConfigApi)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

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

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer ``/xapi/viewer/projects/P/experiments/E[/exists]`` with the contents of a session.

        The answer is made anew at every call.

        Raises
        ------
        HTTPError
            403 without the right; 404 for another path, and for a session that is not in the project; 405 for another
            method; 422 if the experiment is not an image session.
        """
        names = [unquote(word) for word in words]
        if (
            [*names[:1], *names[2:3]] != ["projects", "experiments"]
            or names[4:] not in ([], ["exists"])
            or not names[3:]
        ):
            raise HTTPError(404)
        if request.method not in ("GET", "HEAD") and (request.method != "POST" or len(names) == 5):
            raise HTTPError(405)
        project = names[1]
        is_allowed = self._may.may_edit if request.method == "POST" else self._may.may_read
        if not is_allowed(project):
            raise HTTPError(403, f"Project {project} is not accessible")
        session = self._archive.experiment(names[3])
        if session is None or session.session_id:
            raise HTTPError(422, f"Unknown image session: {names[3]}")
        if project != session.project and project not in self._archive.shares(session.id):
            raise HTTPError(404)
        if request.method == "POST" or len(names) == 5:
            return text()
        return as_json({"transactionId": session.id, "studies": self._studies(session)})

    def settings(self, request: Request, words: list[str]) -> Reply:
        """Answer ``/xapi/viewerConfig/projects/P[/roipreset]`` as a site does where nobody has set anything."""
        if words[:1] != ["projects"] or not words[1:] or words[2:] not in ([], ["roipreset"]):
            raise HTTPError(404)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        if not self._may.may_read(unquote(words[1])):
            raise HTTPError(403)
        wanted = request.query.get("type", "").upper()
        if not words[2:] or wanted not in ("", *_PRESETS):
            raise HTTPError(422 if words[2:] else 404)
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
            metadata = {element.keyword: _value(element) for element in header if _is_shown(element)}
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
                if resource.label in ("DICOM", "secondary") or resource.format == "DICOM":
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


def _is_shown(element: DataElement) -> bool:
    return bool(element.keyword) and element.VR not in _LEFT_OUT


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
