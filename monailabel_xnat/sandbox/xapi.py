"""The site's calls below ``/xapi``, the schema files, and the pages that browsers see."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable
from urllib.parse import unquote

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.datatypes import schema_name
from monailabel_xnat.sandbox.gate import LOGIN_PAGE
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.projects import ROLE_NAMES
from monailabel_xnat.sandbox.replies import HTTPError, Reply, as_json, html, text
from monailabel_xnat.sandbox.request import Request

VERSION = "1.9.2"
_STARTED = time.time()
_GUEST = '<span id="user_info">Logged in as: <span style="color:red;">Guest</span></span>'


class Xapi:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, may: Permissions) -> None:
        self._archive = archive
        self._may = may

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer ``/xapi/...``, apart from what has a module of its own.

        Raises
        ------
        HTTPError
            404 for an unknown path, 405 for anything but GET.
        """
        path = "/".join(unquote(word) for word in words)
        handlers: dict[str, Callable[[], Reply]] = {
            "siteConfig/buildInfo": lambda: as_json(build_info()),
            "siteConfig/uptime": lambda: as_json(uptime(time.time() - _STARTED)),
            "schemas": lambda: as_json(self._archive.types.names()),
            "users/username": lambda: self._username(),
            "access/projects": lambda: as_json(self._access()),
        }
        if path not in handlers and not path.startswith("schemas/"):
            raise HTTPError(404)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, f"Request method '{request.method}' not supported", [("Allow", "GET, HEAD")])
        return handlers[path]() if path in handlers else self._schema(path[len("schemas/") :])

    def schema_file(self, request: Request, words: list[str]) -> Reply:
        """Answer ``/schemas/NAME.xsd``, where XNAT keeps the same files for browsers."""
        path = Path(*(unquote(word) for word in words))
        if path.suffix != ".xsd" or request.method not in ("GET", "HEAD"):
            raise HTTPError(404)
        return self._schema(schema_name(path))

    def _schema(self, name: str) -> Reply:
        document = self._archive.types.document(name)
        if document is None:
            raise HTTPError(404)
        return Reply(document, media_type="application/xml")

    def _username(self) -> Reply:
        if self._may.user.is_guest:
            raise HTTPError(401, headers=[("WWW-Authenticate", "Basic")])
        return text(self._may.user.login)

    def _access(self) -> list[dict[str, str]]:
        """List the projects in which the user has a group; public ones without are not among them."""
        rows = []
        for project in self._archive.projects():
            role = self._may.granted_role(project.id)
            if role:
                names = ("secondary_ID", "name", "description")
                rows.append(
                    {
                        "ID": project.id,
                        **{name: str(project.fields.get(name, "")) for name in names},
                        "URI": f"/data/projects/{project.id}",
                        "role": ROLE_NAMES[role],
                        "group_id": f"{project.id}_{role}",
                    }
                )
        return rows


def build_info() -> dict[str, str]:
    """Give what the server says about itself."""
    return {
        "version": VERSION,
        "buildNumber": "0",
        "buildDate": "2026-01-01 00:00:00",
        "sha": "0",
        "dirty": "false",
        "timestamp": "0",
        "hostname": "sandbox",
        "displayHostName": "never",
        "nodeId": "",
    }


def uptime(seconds: float) -> dict[str, Any]:
    """Give the time since the start as XNAT writes it."""
    minutes, rest = divmod(int(seconds), 60)
    return {
        "Days": str(minutes // 1440),
        "Hours": str(minutes // 60 % 24),
        "Minutes": str(minutes % 60),
        "Seconds": f"{rest}.0",
    }


def front_page(request: Request, *, is_open: bool) -> Reply:
    """Answer a page for browsers: a guest's, which xnatpy looks for, the log-in form, or that of who is logged in."""
    if request.user.is_guest and not is_open:
        return html(LOGIN_PAGE)
    who = _GUEST if request.user.is_guest else f'<span id="user_info">Logged in as: {request.user.login}</span>'
    return html(f"<html><body>{who}</body></html>")
