"""The way of each path to its handler: the table in which to look for the answer to a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monailabel_xnat.sandbox.access.accounts import Accounts, Sessions
from monailabel_xnat.sandbox.access.gate import Permissions, Site
from monailabel_xnat.sandbox.access.xapi import Preferences, Xapi, front_page
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.catalogs import CatalogRefresh
from monailabel_xnat.sandbox.archive.fields import CustomFields
from monailabel_xnat.sandbox.archive.files import Files
from monailabel_xnat.sandbox.archive.objects import Objects
from monailabel_xnat.sandbox.archive.resources import Resources
from monailabel_xnat.sandbox.archive.searching import SearchCalls
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request
from monailabel_xnat.sandbox.http.paths import Finder

if TYPE_CHECKING:
    from monailabel_xnat.sandbox.roi.viewer import Viewer

Handler = Callable[[Request, list[str]], Reply]
"""Answers a request; the words are those of its path after what is in the table."""

# The same handlers under each of these, and most of them below /data/archive as well.
_DATA = ("data", "REST", "fs")
_BELOW_ARCHIVE = ("projects", "subjects", "experiments", "scanners", "scan_types")


@dataclass(frozen=True)
class Parts:
    """What handlers work with."""

    archive: Archive
    resources: Resources
    accounts: Accounts
    sessions: Sessions
    preferences: Preferences
    require_login: bool
    roi_plugin: bool


class Router:
    """Finds the handler of a request, for one request's user.

    Handlers that read DICOM are imported when first asked for: pydicom takes half of the sandbox's start otherwise.
    """

    def __init__(self, parts: Parts, may: Permissions) -> None:
        self._parts = parts
        self._may = may
        self._data = (parts.archive, parts.resources, may)
        self._table: dict[str, Callable[[], Handler]] = {
            "": lambda: self._front_page,
            "app": lambda: self._front_page,
            "schemas": lambda: self._xapi().schema_file,
            "xapi": lambda: self._xapi().handle,
            "xapi/custom-fields": lambda: CustomFields(parts.archive, may).handle,
            "xapi/roi": self._roi,
            "xapi/viewer": lambda: self._viewer().handle,
            "xapi/viewerConfig": lambda: self._viewer().settings,
            "xapi/dicomweb/projects": self._dicomweb,
            **{f"data/{name}": self._site for name in ("JSESSION", "auth", "users", "scanners", "scan_types")},
            "data/search": lambda: SearchCalls(parts.archive, may).handle,
            "data/services/auth": self._site,
            "data/services/tokens": self._site,
            "data/services/import": self._import,
            "data/services/archive": self._archive_service,
            "data/services/prearchive": self._prearchive_service,
            "data/services/refresh/catalog": lambda: _alone(CatalogRefresh(*self._data).handle),
            "data/services/dicomdump": self._dicomdump,
            "data/prearchive": self._prearchive,
            **{f"data/{name}": lambda: self._objects for name in ("projects", "subjects", "experiments")},
        }

    def answer(self, request: Request) -> Reply:
        """Answer a request.

        Raises
        ------
        HTTPError
            404 for a path that the sandbox does not have, and whatever the handler raises.
        """
        words = _plain(request.words)
        for length in range(len(words), -1, -1):
            found = self._table.get("/".join(words[:length]))
            if found is not None and (length or not words):
                return found()(request, words[length:])
        raise HTTPError(404)

    def _front_page(self, request: Request, words: list[str]) -> Reply:
        return front_page(request, is_open=not self._parts.require_login)

    def _xapi(self) -> Xapi:
        parts = self._parts
        return Xapi(
            parts.archive, parts.accounts, parts.sessions, parts.preferences, self._may, roi_plugin=parts.roi_plugin
        )

    def _site(self) -> Handler:
        parts = self._parts
        return Site(parts.archive, parts.accounts, parts.sessions, self._may).handle

    def _roi(self) -> Handler:
        if not self._parts.roi_plugin:
            raise HTTPError(404)
        from monailabel_xnat.sandbox.roi.collections import RoiCollections

        return RoiCollections(*self._data).handle

    def _viewer(self) -> Viewer:
        if not self._parts.roi_plugin:
            raise HTTPError(404)
        from monailabel_xnat.sandbox.roi.viewer import Viewer

        return Viewer(*self._data)

    def _dicomweb(self) -> Handler:
        from monailabel_xnat.sandbox.dicom.dicomweb import DicomWeb

        return DicomWeb(*self._data).handle

    def _import(self) -> Handler:
        from monailabel_xnat.sandbox.dicom.services import Import

        return _alone(Import(*self._data).handle)

    def _dicomdump(self) -> Handler:
        from monailabel_xnat.sandbox.dicom.services import DicomDump

        return _alone(DicomDump(*self._data).handle)

    def _prearchive(self) -> Handler:
        from monailabel_xnat.sandbox.dicom.prearchive_calls import PrearchiveCalls

        return PrearchiveCalls(*self._data).handle

    def _archive_service(self) -> Handler:
        from monailabel_xnat.sandbox.dicom.prearchive_calls import PrearchiveCalls

        return _alone(lambda request: PrearchiveCalls(*self._data).service(request, "archive"))

    def _prearchive_service(self) -> Handler:
        from monailabel_xnat.sandbox.dicom.prearchive_calls import PrearchiveCalls

        return lambda request, words: PrearchiveCalls(*self._data).service(request, "/".join(words))

    def _objects(self, request: Request, words: list[str]) -> Reply:
        """Answer for the objects of the archive, their resources and files."""
        target = Finder(self._parts.archive, self._may).find(_plain(request.words)[1:])
        if target.files or target.resource is not None or target.collection == "resources":
            return Files(*self._data).handle(request, target)
        return Objects(*self._data).handle(request, target)


def _plain(words: list[str]) -> list[str]:
    """Return a path in the one of its spellings that is in the table."""
    if words[:1] and words[0] in _DATA:
        words = ["data", *words[1:]]
        if words[1:2] == ["archive"] and words[2:3] and words[2] in _BELOW_ARCHIVE:
            words = ["data", *words[2:]]
    return words


def _alone(handle: Callable[[Request], Reply]) -> Handler:
    """Return the handler of a path that nothing may follow."""

    def answer(request: Request, words: list[str]) -> Reply:
        if words:
            raise HTTPError(404)
        return handle(request)

    return answer
