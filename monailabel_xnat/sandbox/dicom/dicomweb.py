"""DICOMweb as in a plugin for XNAT: the studies and series of a project, and the headers of a series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydicom

from monailabel_xnat.sandbox.archive.model import Experiment, Scan
from monailabel_xnat.sandbox.archive.resources import owner_of
from monailabel_xnat.sandbox.dicom.series import without_warnings
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, as_json
from monailabel_xnat.sandbox.http.router import Handlers

_JSON = "application/dicom+json"
_STUDY, _PATIENT, _SERIES, _MODALITY = "0020000D", "00100020", "0020000E", "00080060"
_FILTERS = {"StudyInstanceUID": _STUDY, "SeriesInstanceUID": _SERIES, "PatientID": _PATIENT, "Modality": _MODALITY}
_VRS = {_STUDY: "UI", _SERIES: "UI", _PATIENT: "LO", _MODALITY: "CS"}


class DicomWeb(Handlers):
    """The calls below ``/xapi/dicomweb/projects/P``. Each answers 403 if the user may not read the project."""

    def answer(self, method: str, request: Request, names: dict[str, str]) -> Reply:
        """Answer a request for a project that the user may read."""
        if not self._may.may_read(names["project"]):
            raise HTTPError(403, f"Project {names['project']} is not accessible")
        return super().answer(method, request, names)

    def studies(self, request: Request, project: str) -> Reply:
        """Answer with the studies of a project."""
        studies = {session.id: self._study(session) for session, _ in self._scans(project)}
        return _listed(request, list(studies.values()))

    def series(self, request: Request, project: str, study: str) -> Reply:
        """Answer with the series of a study."""
        return _listed(request, [self._series(session, scan) for session, scan in self._scans(project, study)])

    def metadata(self, request: Request, project: str, study: str, series: str) -> Reply:
        """Answer with the headers of a series, or with 404 if there is no such series."""
        scans = [scan for _, scan in self._scans(project, study) if scan.fields.get("UID") == series]
        headers = [header for scan in scans for header in self._headers(scan)]
        if not headers:
            raise HTTPError(404)
        return _listed(request, headers)

    def _scans(self, project: str, study: str = "") -> Iterator[tuple[Experiment, Scan]]:
        """Yield the scans with a UID of a project or of one study in it, each with its session."""
        for session in self._archive.experiments_of("project", project):
            for scan in self._archive.scans(session.id):
                if scan.fields.get("UID") and study in ("", session.fields.get("UID")):
                    yield session, scan

    def _study(self, session: Experiment) -> dict[str, Any]:
        subject = self._archive.subject(session.subject_id or "")
        return _attributes({_STUDY: session.fields.get("UID"), _PATIENT: subject.label if subject else ""})

    def _series(self, session: Experiment, scan: Scan) -> dict[str, Any]:
        own = _attributes({_SERIES: scan.fields.get("UID"), _MODALITY: scan.fields.get("modality")})
        return {**self._study(session), **own}

    def _headers(self, scan: Scan) -> Iterator[dict[str, Any]]:
        for resource in self._resources.of(owner_of(self._archive, scan)):
            if resource.label == "DICOM":
                for entry in self._resources.files(resource):
                    with without_warnings():
                        header = pydicom.dcmread(self._resources.path(entry), stop_before_pixels=True)
                        found = dict(header.to_json_dict())
                    yield found


def _attributes(values: dict[str, Any]) -> dict[str, Any]:
    return {tag: {"vr": _VRS[tag], **({"Value": [value]} if value else {})} for tag, value in values.items()}


def _listed(request: Request, objects: list[dict[str, Any]]) -> Reply:
    """Answer with the objects that match the query, or with 204 if there are none."""
    wanted = {_FILTERS[name]: value for name, value in request.query.items() if name in _FILTERS}
    found = [
        item for item in objects if all(item.get(tag, {}).get("Value") == [value] for tag, value in wanted.items())
    ]
    reply = as_json(found)
    reply.media_type = _JSON
    return reply if found else Reply(b"", 204, "")
