"""Which handler answers which path. Look in `ROUTES` for the code that answers a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request

if TYPE_CHECKING:
    from monailabel_xnat.sandbox.access.accounts import Accounts, Sessions
    from monailabel_xnat.sandbox.access.gate import Permissions
    from monailabel_xnat.sandbox.access.xapi import Preferences
    from monailabel_xnat.sandbox.archive.archive import Archive
    from monailabel_xnat.sandbox.archive.resources import Resources

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
    """A group of handlers, made for one request. `ROUTES` says which of its methods answers which path."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._archive = visit.archive
        self._resources = visit.resources
        self._may = visit.may

    def answer(self, method: str, request: Request, names: dict[str, Any]) -> Reply:
        """Answer a request with one of the methods. The names are those that the path has for the words in braces."""
        reply: Reply = getattr(self, method)(request, **names)
        return reply


_SESSION = "/data/prearchive/projects/{project}/{moment}/{folder}"
_STUDIES = "/xapi/dicomweb/projects/{project}/studies"
_ROI = "/xapi/roi/projects/{project}"
_VIEWER = "/xapi/viewer/projects/{project}/experiments/{session_id}"

ROUTES: dict[str, dict[str, str]] = {
    "access.xapi:Xapi": {
        "/xapi/access/projects": "GET access",
        "/xapi/anonymize/site/enabled": "GET is_anonymising, PUT anonymise",
        "/xapi/plugins[/{name}]": "GET plugins",
        "/xapi/schemas": "GET schema_names",
        "/xapi/schemas/datatypes": "GET data_types",
        "/xapi/schemas/{*words}": "GET schema",
        "/xapi/siteConfig": "GET settings, POST change_settings",
        "/xapi/siteConfig/buildInfo[/{name}]": "GET build_info",
        "/xapi/siteConfig/uptime[/{name}]": "GET uptime",
        "/xapi/siteConfig/{name}": "GET setting, POST change_settings",
        "/xapi/users": "GET logins",
        "/xapi/users/username": "GET username",
        "/xapi/users/profiles": "GET profiles",
        "/xapi/users/active": "GET active",
        "/xapi/users/active/{login}": "GET active_of, DELETE log_out",
        "/xapi/users[/profile]/{login}": "GET profile",
        "/xapi/users/{login}/groups": "GET groups",
        "/xapi/users/{login}/roles": "GET roles",
    },
    "access.gate:SiteCalls": {
        "/data/JSESSION[/{session_id}]": "GET jsession, POST jsession, DELETE end_session",
        "/data/auth": "GET auth",
        "/data/services/auth": "PUT log_in, POST log_in",
        "/data/services/tokens/issue[/user/{login}]": "GET issue_token",
        "/data/services/tokens/show[/user/{login}]": "GET show_tokens",
        "/data/services/tokens/validate/{alias}/{secret}": "GET validate_token",
        "/data/services/tokens/invalidate/{alias}[/{secret}]": "GET invalidate_token",
        "/data/users": "GET users",
        "/data/scanners": "GET scanners",
        "/data/scan_types": "GET scan_types",
    },
    "archive.fields:CustomFields": {
        "/xapi/custom-fields/{*words}/fields": "GET get, PUT put",
        "/xapi/custom-fields/{*words}/fields/{name}": "GET get_one, DELETE delete",
    },
    "archive.searching:SearchCalls": {
        "/data/search": "POST run",
        "/data/search/elements": "GET elements",
        "/data/search/elements/{name}": "GET fields",
    },
    "archive.catalogs:CatalogRefresh": {"/data/services/refresh/catalog": "POST refresh"},
    "dicom.services:Import": {"/data/services/import": "POST receive"},
    "dicom.services:DicomDump": {"/data/services/dicomdump": "GET dump"},
    "dicom.prearchive_calls:PrearchiveCalls": {
        "/data/services/archive": "POST archive",
        "/data/services/prearchive/{action}": "POST service",
        "/data/prearchive[/projects[/{project}]]": "GET sessions",
        _SESSION: "GET session, POST act, DELETE remove",
        _SESSION + "/scans": "GET scans",
        _SESSION + "/scans/{scan_id}": "GET scan",
        _SESSION + "/scans/{scan_id}/resources": "GET resources",
        _SESSION + "/scans/{scan_id}/resources/{label}[/files]": "GET files",
        _SESSION + "/scans/{scan_id}/resources/{label}/files/{name}": "GET file",
    },
    "dicom.dicomweb:DicomWeb": {
        _STUDIES: "GET studies",
        _STUDIES + "/{study}/series": "GET series",
        _STUDIES + "/{study}/series/{series}/metadata": "GET metadata",
    },
    "roi.collections:RoiCollections": {
        _ROI + "/permissions/{name}": "GET permissions",
        _ROI + "/collections/{name}": "GET get, DELETE delete",
        _ROI + "/rois/{name}": "GET rois",
        _ROI + "/exists/{name}": "GET exists",
        _ROI + "/sessions/{session_id}/collections/{label}": "PUT store",
    },
    "roi.viewer:Viewer": {
        _VIEWER: "GET contents, POST refresh",
        _VIEWER + "/exists": "GET exists",
        "/xapi/viewerConfig/projects/{project}": "GET settings",
        "/xapi/viewerConfig/projects/{project}/roipreset": "GET presets",
    },
    # All other paths. Objects.handle follows those of projects, subjects, experiments, scans, resources and files.
    "archive.objects:Objects": {"/data/{*words}": "* handle"},
    "access.xapi:Pages": {
        "/": "* front_page",
        "/app[/{*words}]": "* front_page",
        "/schemas/{*words}": "* schema_file",
        "/xapi/{*words}": "* schema_file",
    },
}
"""Classes, as ``module:Class``, with the methods of theirs that answer a path. The first path that fits counts.

In a path, ``{name}`` is one word, which the method gets decoded. ``{*words}`` are all words that follow, which it gets
as a list, still encoded, because XNAT decodes the names of files in its own way. What is in brackets may be missing.
HEAD is allowed where GET is; ``*`` stands for any method. The room ``roi`` answers only with the viewer's plugin.
"""


def answer(request: Request, visit: Visit) -> Reply:
    """Answer a request.

    Raises
    ------
    HTTPError
        404 for a path that the sandbox does not have, 405 for a method, and all errors of the handler.
    """
    path = "/" + "/".join(_plain(request.words))
    for group, rows in ROUTES.items():
        for route, methods in rows.items():
            found = _pattern(route).fullmatch(path)
            if found and (visit.roi_plugin or not group.startswith("roi.")):
                names = {name: _decoded(name, text) for name, text in found.groupdict("").items()}
                return handlers_of(group)(visit).answer(_chosen(request, methods), request, names)
    raise HTTPError(404)


def handlers_of(group: str) -> type[Handlers]:
    """Return a class of handlers.

    The module is imported when it is first needed, because else the import of pydicom would take half of the time that
    the sandbox needs to start.
    """
    module, _, name = group.partition(":")
    kind: type[Handlers] = getattr(import_module(f"{_HERE}.{module}"), name)
    return kind


def methods_of(row: str) -> dict[str, str]:
    """Return the name of the handler by the method of the request, for a row of `ROUTES`."""
    return dict(part.split() for part in row.split(", "))


def _chosen(request: Request, row: str) -> str:
    """Return the handler for the method of a request."""
    handlers = methods_of(row)
    found = handlers.get("GET" if request.method == "HEAD" else request.method) or handlers.get("*")
    if found is None:
        allowed = ", ".join(handlers).replace("GET", "GET, HEAD")
        message = f"Request method '{request.method}' not supported" if request.words[:1] == ["xapi"] else ""
        raise HTTPError(405, message, [("Allow", allowed)])
    return found


@cache
def _pattern(route: str) -> re.Pattern[str]:
    pattern = route.replace("[", "(?:").replace("]", ")?")
    pattern = re.sub(r"\{\*(\w+)\}", r"(?P<\1>.+)", pattern)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))


def _decoded(name: str, text: str) -> Any:
    return text.split("/") if name == "words" else unquote(text)


def _plain(words: list[str]) -> list[str]:
    """Return a path in the spelling that is in the table."""
    if words[:1] and words[0] in _DATA:
        words = ["data", *words[1:]]
        if words[1:2] == ["archive"] and words[2:3] and words[2] in _BELOW_ARCHIVE:
            words = ["data", *words[2:]]
    return words
