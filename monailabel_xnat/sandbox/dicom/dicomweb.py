"""DICOMweb as in a plugin for XNAT: the studies and series of a project, and the headers of a series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
    """The handlers of the calls below ``/xapi/dicomweb/projects``, for the user of one request."""

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer ``studies``, ``studies/UID/series`` and ``studies/UID/series/UID/metadata`` of a project.

        Raises
        ------
        HTTPError
            403 if the user may not read the project, 404 if the study, series or path does not exist.
        """
        project, *rest = [unquote(word) for word in words] or [""]
        if not self._may.may_read(project):
            raise HTTPError(403, f"Project {project} is not accessible")
        found = [(session, scan) for session, scan in self._scans(project) if scan.fields.get("UID")]
        if rest == ["studies"]:
            studies = {session.id: self._study(session) for session, _ in found}
            return _listed(request, list(studies.values()))
        if len(rest) not in (3, 5) or rest[0] != "studies" or rest[2] != "series":
            raise HTTPError(404)
        found = [(session, scan) for session, scan in found if session.fields.get("UID") == rest[1]]
        if len(rest) == 3:
            return _listed(request, [self._series(session, scan) for session, scan in found])
        headers = [header for _, scan in found if scan.fields.get("UID") == rest[3] for header in self._headers(scan)]
        if rest[4] != "metadata" or not headers:
            raise HTTPError(404)
        return _listed(request, headers)

    def _scans(self, project: str) -> Iterator[tuple[Experiment, Scan]]:
        for session in self._archive.experiments_of("project", project):
            for scan in self._archive.scans(session.id):
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
                    yield _header(self._resources.path(entry))


def _header(path: Path) -> dict[str, Any]:
    with without_warnings():
        return dict(pydicom.dcmread(path, stop_before_pixels=True).to_json_dict())


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
