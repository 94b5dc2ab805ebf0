"""The calls below ``/xapi`` (settings, schemas, users, plugins), and the pages that browsers see."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from monailabel_xnat.sandbox.access.accounts import User
from monailabel_xnat.sandbox.access.gate import PUBLIC, USERS_FOR_ADMINS
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.datatypes import schema_name
from monailabel_xnat.sandbox.archive.model import ROLE_NAMES
from monailabel_xnat.sandbox.archive.store import SITE_ID
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, as_json, html, text
from monailabel_xnat.sandbox.http.router import Handlers, Visit

FOR_USERS = PUBLIC | {
    "enableSitewideAnonymizationScript",
    "requireLogin",
    "sessionTimeout",
    "siteDescriptionText",
    "siteUrl",
    "sitewidePetTracers",
    "uiAllowNonAdminProjectCreation",
    "uiDefaultCompressedUploaderImporter",
}
_ANONYMISING = "enableSitewideAnonymizationScript"


class Preferences:
    """The settings of a site. Changes last until the server ends.

    Parameters
    ----------
    archive
        Knows whether the anonymisation script is on, and makes IDs that begin with the site's.
    require_login
        Whether the site is closed to guests.
    """

    def __init__(self, archive: Archive, require_login: bool) -> None:
        self._archive = archive
        self._require_login = require_login
        self._changed: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        """Return every setting."""
        return {
            "siteId": SITE_ID,
            "siteUrl": "",
            "siteDescriptionText": "A sandbox for demos and tests",
            "adminEmail": "admin@sandbox.invalid",
            "requireLogin": self._require_login,
            "sessionTimeout": "15 minutes",
            "passwordComplexityMessage": "",
            USERS_FOR_ADMINS: True,
            "sitewidePetTracers": "",
            "enableCsrfToken": True,
            "uiAllowNonAdminProjectCreation": True,
            "uiDefaultCompressedUploaderImporter": "DICOM-zip",
            "useSopInstanceUidToUniquelyIdentifyDicom": True,
            **self._changed,
            _ANONYMISING: self._archive.is_anonymising,
        }

    def change(self, values: Mapping[str, Any]) -> None:
        """Change some settings."""
        if _ANONYMISING in values:
            self._archive.is_anonymising = str(values[_ANONYMISING]).lower() == "true"
        if "siteId" in values:
            # New IDs begin with it, without what does not belong into an address.
            self._archive.site_id = re.sub(r"\W", "", str(values["siteId"])) or SITE_ID
        self._changed.update(values)

    def reset(self) -> None:
        """Undo all changes."""
        self._changed.clear()
        self._archive.site_id = SITE_ID


LOGIN_PAGE = (
    '<!DOCTYPE html>\n<html><body><form name="form1" method="post" action="/login">Log in to XNAT</form></body></html>'
)
VERSION = "1.9.2"
_STARTED = time.time()
_GUEST = '<span id="user_info">Logged in as: <span style="color:red;">Guest</span></span>'
_ROI_PLUGIN = {
    "ohifViewerPlugin": {
        "id": "ohifViewerPlugin",
        "name": "XNAT OHIF Viewer Plugin",
        "version": "3.6.0",
        "description": "",
        "beanName": "ohifViewerPlugin",
        "pluginClass": "",
        "namespace": "",
        "logConfigurationFile": "",
        "entityPackages": [],
        "dataModelBeans": [],
        "extendedAttributes": {},
    },
}
_NAMES = ("secondary_ID", "name", "description")


class Xapi(Handlers):
    """The calls below ``/xapi`` about the site and its users."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._accounts = visit.accounts
        self._sessions = visit.sessions
        self._preferences = visit.preferences
        self._plugins = _ROI_PLUGIN if visit.roi_plugin else {}

    # Schemas

    def schema_names(self, request: Request) -> Reply:
        """Answer ``GET /xapi/schemas``."""
        return as_json(self._archive.types.names())

    def data_types(self, request: Request) -> Reply:
        """Answer ``GET /xapi/schemas/datatypes``."""
        return as_json(self._archive.types.all())

    def schema(self, request: Request, words: list[str]) -> Reply:
        """Answer ``GET /xapi/schemas/NAME``."""
        return _schema(self._archive, "/".join(map(unquote, words)))

    # The site

    def settings(self, request: Request) -> Reply:
        """Answer ``GET /xapi/siteConfig``."""
        return as_json(self._readable_settings())

    def setting(self, request: Request, name: str) -> Reply:
        """Answer ``GET /xapi/siteConfig/NAME``."""
        found = self._readable_settings()
        if name not in found:
            self._require_admin()
            raise HTTPError(404)
        value = found[name]
        return Reply((value if isinstance(value, str) else json.dumps(value)).encode(), media_type="application/json")

    def _readable_settings(self) -> dict[str, Any]:
        user = self._may.user
        shown = PUBLIC if user.is_guest else FOR_USERS
        return {name: value for name, value in self._preferences.all().items() if user.is_admin or name in shown}

    def change_settings(self, request: Request, name: str = "") -> Reply:
        """Answer ``POST /xapi/siteConfig[/NAME]``."""
        self._require_admin()
        self._preferences.change(_posted(request, name))
        return text()

    def build_info(self, request: Request, name: str) -> Reply:
        """Answer ``GET /xapi/siteConfig/buildInfo[/NAME]``."""
        return _report(build_info(), name)

    def uptime(self, request: Request, name: str) -> Reply:
        """Answer ``GET /xapi/siteConfig/uptime[/NAME]``."""
        return _report(uptime(time.time() - _STARTED), name)

    def is_anonymising(self, request: Request) -> Reply:
        """Answer whether the site's anonymisation script is on."""
        return as_json(self._archive.is_anonymising)

    def anonymise(self, request: Request) -> Reply:
        """Switch the site's anonymisation script on or off."""
        self._require_admin()
        self._archive.is_anonymising = request.query.get("enable", "true").lower() == "true"
        return text()

    def plugins(self, request: Request, name: str) -> Reply:
        """Answer ``GET /xapi/plugins[/ID]``."""
        if name and name not in self._plugins:
            raise HTTPError(404)
        return as_json(self._plugins[name] if name else self._plugins)

    # Users

    def username(self, request: Request) -> Reply:
        """Answer with the login of the user."""
        return text(self._named("current").login)

    def logins(self, request: Request) -> Reply:
        """Answer with the logins of all users, for administrators."""
        self._require_admin()
        return as_json([each.login for each in self._accounts.all()])

    def profiles(self, request: Request) -> Reply:
        """Answer with the profiles of all users, for administrators."""
        self._require_admin()
        return as_json([_profile(each) for each in self._accounts.all()])

    def active(self, request: Request) -> Reply:
        """Answer with the sessions of all users, for administrators."""
        self._require_admin()
        found = {each.login: self._sessions.of(each) for each in self._accounts.all()}
        return as_json({login: {"sessions": ids, "count": len(ids)} for login, ids in found.items() if ids})

    def active_of(self, request: Request, login: str) -> Reply:
        """Answer with the sessions of a user."""
        return as_json(self._sessions.of(self._named(login)))

    def log_out(self, request: Request, login: str) -> Reply:
        """End the sessions of a user."""
        return as_json(self._sessions.close_of(self._named(login)))

    def profile(self, request: Request, login: str) -> Reply:
        """Answer with the profile of a user."""
        return as_json(_profile(self._named(login)))

    def groups(self, request: Request, login: str) -> Reply:
        """Answer with the groups of a user, such as ``P_owner``."""
        roles = self._archive.roles(self._named(login))
        return as_json([f"{project}_{role}" for project, role in roles.items()])

    def roles(self, request: Request, login: str) -> Reply:
        """Answer with the roles of a user on the site."""
        return as_json(["Administrator"] if self._named(login).is_admin else [])

    def _named(self, login: str) -> User:
        """Return a user. Everyone may ask about oneself, and administrators about everyone."""
        user = self._may.user
        if user.is_guest or login not in (user.login, "current"):
            self._require_admin()
        found = self._accounts.get(user.login if login == "current" else login)
        if found is None:
            raise HTTPError(404)
        return found

    def _require_admin(self) -> None:
        if self._may.user.is_guest:
            raise _unauthorized()
        if not self._may.user.is_admin:
            raise HTTPError(403)

    def access(self, request: Request) -> Reply:
        """List the projects in which the user has a group, so not the public projects in which the user has none."""
        rows = [
            {
                "ID": project.id,
                **{name: str(project.fields.get(name, "")) for name in _NAMES},
                "URI": f"/data/projects/{project.id}",
                "role": ROLE_NAMES[role],
                "group_id": f"{project.id}_{role}",
            }
            for project in self._archive.projects()
            if (role := self._may.granted_role(project.id))
        ]
        return as_json(rows)


class Pages(Handlers):
    """The pages that browsers see, and all paths below ``/xapi`` that nobody else answers."""

    def front_page(self, request: Request, words: Sequence[str] = ()) -> Reply:
        """Answer with a page for browsers.

        A guest gets a guest's page, which xnatpy looks for, or the log-in form if the site is closed; a user who is
        logged in gets a page that says so. The viewers read ``csrfToken`` out of the page before they save.
        """
        if request.user.is_guest and self._visit.require_login:
            return html(LOGIN_PAGE)
        who = _GUEST if request.user.is_guest else f'<span id="user_info">Logged in as: {request.user.login}</span>'
        token = request.session.csrf if request.session else ""
        return html(f"<html><head><script>var csrfToken = '{token}';</script></head><body>{who}</body></html>")

    def schema_file(self, request: Request, words: list[str]) -> Reply:
        """Answer ``/schemas/NAME.xsd`` and ``/xapi/NAME.xsd``, where XNAT keeps the same files for browsers."""
        path = Path(*map(unquote, words))
        if path.suffix != ".xsd" or request.method not in ("GET", "HEAD"):
            raise HTTPError(404)
        return _schema(self._archive, schema_name(path))


def _schema(archive: Archive, name: str) -> Reply:
    document = archive.types.document(name)
    if document is None:
        raise HTTPError(404)
    return Reply(document, media_type="application/xml")


def _unauthorized() -> HTTPError:
    return HTTPError(401, headers=[("WWW-Authenticate", "Basic")])


def _posted(request: Request, name: str) -> dict[str, Any]:
    """Return the settings in the body: a JSON object, or the value of the setting that the path names."""
    body = request.body.read().decode("utf-8", "replace")
    try:
        given = json.loads(body)
    except ValueError:
        given = body
    if name:
        return {name: given}
    if not isinstance(given, dict):
        raise HTTPError(400, "The settings are a JSON object.")
    return given


def _profile(user: User) -> dict[str, Any]:
    return {
        "id": user.number,
        "username": user.login,
        "firstName": user.firstname,
        "lastName": user.lastname,
        "email": user.email,
        "admin": user.is_admin,
        "enabled": True,
        "verified": True,
        "secured": True,
    }


def _report(found: Mapping[str, str], name: str) -> Reply:
    """Answer with a report, or with one of its values."""
    if name and name not in found:
        raise HTTPError(404)
    return text(found[name]) if name else as_json(found)


def build_info() -> dict[str, str]:
    """Return the facts about the build that the server reports."""
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


def uptime(seconds: float) -> dict[str, str]:
    """Return the time since the start as XNAT writes it."""
    minutes, rest = divmod(int(seconds), 60)
    return {
        "Days": str(minutes // 1440),
        "Hours": str(minutes // 60 % 24),
        "Minutes": str(minutes % 60),
        "Seconds": f"{rest}.0",
    }
