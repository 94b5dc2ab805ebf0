"""The header of a scan's first file as a table (DicomDump)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import unquote

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.errors import InvalidDicomError

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Scan
from monailabel_xnat.sandbox.archive.resources import Resources, owner_of
from monailabel_xnat.sandbox.dicom.prearchive import Prearchive
from monailabel_xnat.sandbox.dicom.series import without_warnings
from monailabel_xnat.sandbox.http import tables
from monailabel_xnat.sandbox.http.paths import locate
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply
from monailabel_xnat.sandbox.http.request import Request

_LONGEST_VALUE = 1024


class DicomDump:
    """The service, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._resources = resources
        self._may = may

    def handle(self, request: Request) -> Reply:
        """Answer ``GET /data/services/dicomdump``.

        Raises
        ------
        HTTPError
            400 without ``src`` or for an unknown field, 404 where there is no DICOM.
        """
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        words = [word for word in request.query.get("src", "").split("/") if word]
        words = words[1:] if words[:1] == ["data"] else words
        if words[:1] not in (["archive"], ["prearchive"]):
            raise HTTPError(400, "The parameter src names a scan or session below /archive or /prearchive.")
        wanted = {_tag(name) for name in request.values("field")}
        path = self._waiting_file(words) if words[0] == "prearchive" else self._archived_file(words[1:])
        if path is None:
            raise HTTPError(404, "Unable to find a DICOM file.")
        with without_warnings():
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
                rows = list(_rows([*header.file_meta, *header], wanted))
            except (InvalidDicomError, OSError) as error:
                raise HTTPError(404, "Unable to find a DICOM file.") from error
        return tables.answer(rows, request.query)

    def _archived_file(self, words: list[str]) -> Path | None:
        target = locate(self._archive, self._may, words)
        scans: list[Scan] = target.scans
        if not scans and target.experiment is not None:
            scans = self._archive.scans(target.experiment.id)
        for scan in scans:
            for resource in self._resources.of(owner_of(self._archive, scan)):
                entries = self._resources.files(resource)
                if resource.label in ("DICOM", "secondary") and entries:
                    return self._resources.path(entries[0])
        return None

    def _waiting_file(self, words: list[str]) -> Path | None:
        names = [unquote(word) for word in words]
        prearchive = Prearchive(self._archive)
        waiting = prearchive.find(*names[2:5]) if len(names) >= 5 else None
        allowed = waiting is not None and (self._may.may_edit(waiting.project) or self._may.user.is_admin)
        if waiting is None or not allowed:
            return None
        scans = [scan for scan in prearchive.scans(waiting) if names[6:7] in ([], [scan.id])]
        return scans[0].series.files[0].path if scans else None


def _tag(name: str) -> int:
    found = int(name, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else tag_for_keyword(name)
    if found is None:
        raise HTTPError(400, f"Unknown field: {name}")
    return found


def _rows(elements: Collection[DataElement], wanted: Collection[int]) -> Iterator[dict[str, str]]:
    for element in elements:
        if wanted and element.tag not in wanted:
            continue
        yield _row(element, "")
        if element.VR == "SQ":
            for item in element.value:
                for inner in item:
                    yield _row(inner, str(element.tag))


def _row(element: DataElement, outer: str) -> dict[str, str]:
    tag = _written(str(element.tag))
    value = "" if element.VR == "SQ" else str(element.value)[:_LONGEST_VALUE]
    return {
        "tag1": _written(outer) or tag,
        "tag2": tag if outer else "",
        "vr": str(element.VR),
        "value": value,
        "desc": element.name,
    }


def _written(tag: str) -> str:
    """Write a tag as XNAT does, ``(0008,0060)``."""
    return tag.replace(" ", "").upper()
