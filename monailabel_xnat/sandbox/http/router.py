"""Which handler answers which path. Look in this table for the code that answers a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request

if TYPE_CHECKING:
    from monailabel_xnat.sandbox.access.accounts import Accounts, Sessions
    from monailabel_xnat.sandbox.access.gate import Permissions
    from monailabel_xnat.sandbox.access.xapi import Preferences
    from monailabel_xnat.sandbox.archive.archive import Archive
    from monailabel_xnat.sandbox.archive.resources import Resources

Handler = Callable[[Request, list[str]], Reply]
"""Answers a request. The words are those that follow the table's entry in the path, still percent-encoded."""

# Each of these has the same handlers below it, and most of them also answer below /data/archive.
_DATA = ("data", "REST", "fs")
_BELOW_ARCHIVE = ("projects", "subjects", "experiments", "scanners", "scan_types")
_HERE = "monailabel_xnat.sandbox"


@dataclass(frozen=True)
class Visit:
    """The parts of the site that one request works with, and `may`: what its user may do."""

    archive: Archive
    resources: Resources
    accounts: Accounts
    sessions: Sessions
    preferences: Preferences
    may: Permissions
    require_login: bool
    roi_plugin: bool


class Handlers:
    """A group of handlers, made for one request. `Route` says which of its methods answers which path."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._archive = visit.archive
        self._resources = visit.resources
        self._may = visit.may


@dataclass(frozen=True)
class Route:
    """The handler of a path.

    Parameters
    ----------
    handler
        ``module:Class.method``. It is imported when it is first needed, because else the import of pydicom would take
        half of the time that the sandbox needs to start.
    methods
        The methods that are allowed; empty if the handler decides. HEAD is allowed where GET is.
    most
        How many words may follow the path; None for any number.
    of_plugin
        Whether the path exists only with the OHIF viewer's plugin.
    """

    handler: str
    methods: str = ""
    most: int | None = None
    of_plugin: bool = False

    def load(self) -> tuple[type[Handlers], str]:
        """Return the class of the handler, and the name of its method."""
        module, _, name = self.handler.partition(":")
        group, _, method = name.partition(".")
        kind: type[Handlers] = getattr(import_module(f"{_HERE}.{module}"), group)
        return kind, method

    def answer(self, request: Request, visit: Visit, words: list[str]) -> Reply:
        """Answer a request. The words are those that follow this route's path."""
        if (self.of_plugin and not visit.roi_plugin) or (self.most is not None and len(words) > self.most):
            raise HTTPError(404)
        allowed = self.methods.replace("GET", "GET HEAD").split()
        if allowed and request.method not in allowed:
            message = f"Request method '{request.method}' not supported" if request.words[:1] == ["xapi"] else ""
            raise HTTPError(405, message, [("Allow", ", ".join(allowed))])
        kind, method = self.load()
        handle: Handler = getattr(kind(visit), method)
        return handle(request, words)


ROUTES = {
    "": Route("access.xapi:Xapi.front_page", most=0),
    "app": Route("access.xapi:Xapi.front_page"),
    "schemas": Route("access.xapi:Xapi.schema_file"),
    "xapi": Route("access.xapi:Xapi.schema_file"),
    "xapi/access": Route("access.xapi:Xapi.access", "GET", most=1),
    "xapi/anonymize": Route("access.xapi:Xapi.anonymize", "GET PUT", most=2),
    "xapi/custom-fields": Route("archive.fields:CustomFields.handle"),
    "xapi/dicomweb/projects": Route("dicom.dicomweb:DicomWeb.handle", "GET"),
    "xapi/plugins": Route("access.xapi:Xapi.plugins", "GET", most=1),
    "xapi/roi": Route("roi.collections:RoiCollections.handle", of_plugin=True),
    "xapi/schemas": Route("access.xapi:Xapi.schemas", "GET", most=9),
    "xapi/siteConfig": Route("access.xapi:Xapi.site_config", "GET POST", most=2),
    "xapi/users": Route("access.xapi:Xapi.users", "GET DELETE", most=3),
    "xapi/viewer": Route("roi.viewer:Viewer.handle", of_plugin=True),
    "xapi/viewerConfig": Route("roi.viewer:Viewer.settings", "GET", of_plugin=True),
    "data": Route("archive.objects:Objects.handle"),
    "data/JSESSION": Route("access.gate:SiteCalls.jsession", "GET POST DELETE"),
    "data/auth": Route("access.gate:SiteCalls.auth", "GET"),
    "data/prearchive": Route("dicom.prearchive_calls:PrearchiveCalls.handle"),
    "data/scan_types": Route("access.gate:SiteCalls.scan_types", "GET"),
    "data/scanners": Route("access.gate:SiteCalls.scanners", "GET"),
    "data/search": Route("archive.searching:SearchCalls.run", "POST", most=0),
    "data/search/elements": Route("archive.searching:SearchCalls.elements", "GET", most=1),
    "data/services/archive": Route("dicom.prearchive_calls:PrearchiveCalls.archive", "POST", most=0),
    "data/services/auth": Route("access.gate:SiteCalls.log_in", "PUT POST"),
    "data/services/dicomdump": Route("dicom.services:DicomDump.handle", "GET", most=0),
    "data/services/import": Route("dicom.services:Import.handle", "POST", most=0),
    "data/services/prearchive": Route("dicom.prearchive_calls:PrearchiveCalls.service", "POST", most=1),
    "data/services/refresh/catalog": Route("archive.catalogs:CatalogRefresh.handle", "POST", most=0),
    "data/services/tokens": Route("access.gate:SiteCalls.tokens", "GET"),
    "data/users": Route("access.gate:SiteCalls.users", "GET"),
}
"""The handlers by path. The longest entry with which a path begins has its handler."""


def answer(request: Request, visit: Visit) -> Reply:
    """Answer a request.

    Raises
    ------
    HTTPError
        404 for a path that the sandbox does not have, 405 for a method, and all errors of the handler.
    """
    words = _plain(request.words)
    for length in range(len(words), 0, -1):
        route = ROUTES.get("/".join(words[:length]))
        if route is not None:
            return route.answer(request, visit, words[length:])
    return ROUTES[""].answer(request, visit, words)


def _plain(words: list[str]) -> list[str]:
    """Return a path in the spelling that is in the table."""
    if words[:1] and words[0] in _DATA:
        words = ["data", *words[1:]]
        if words[1:2] == ["archive"] and words[2:3] and words[2] in _BELOW_ARCHIVE:
            words = ["data", *words[2:]]
    return words
