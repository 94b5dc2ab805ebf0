"""Who sends a request, whether it is let in, what its user may do; and the calls below ``/data`` about that.

Letting in follows XnatSecureGuard: cookies, Basic credentials, guests, browsers and CSRF. The calls are for logging
in, tokens and users.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from monailabel_xnat.sandbox.access.accounts import ANONYMOUS, PROVIDER, Accounts, Session, Sessions, User
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Project, Subject
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, as_json, html, text
from monailabel_xnat.sandbox.http.router import Handlers, Visit
from monailabel_xnat.sandbox.http.tables import Row, Table

Owned = Subject | Experiment

ACTIVE = "active"


class Permissions:
    """What one user may do in an archive."""

    def __init__(self, archive: Archive, user: User) -> None:
        self._archive = archive
        self.user = user

    @cached_property
    def _roles(self) -> dict[str, str]:
        return {} if self.user.is_guest else self._archive.roles(self.user)

    @cached_property
    def _accessibility(self) -> dict[str, str]:
        return self._archive.accessibility()

    def granted_role(self, project: str) -> str | None:
        """Return the role that the user was given in a project."""
        return self._roles.get(project)

    def role(self, project: str) -> str | None:
        """Return the role in which the user acts. Administrators own all projects."""
        return "owner" if self.user.is_admin else self._roles.get(project)

    def may_see(self, project: Project) -> bool:
        """Return whether the user may read the project itself; its data is another question."""
        return self.may_see_id(project.id)

    def may_see_id(self, project: str) -> bool:
        """Return whether the user may read the project with this ID; its data is another question."""
        return bool(self.role(project)) or self._accessibility.get(project) in ("public", "protected")

    def may_read(self, project: str) -> bool:
        """Return whether the user may read the data of a project."""
        return bool(self.role(project)) or self._accessibility.get(project) == "public"

    def may_edit(self, project: str) -> bool:
        """Return whether the user may create and change data of a project."""
        return self.role(project) in ("owner", "member")

    def may_delete(self, project: str) -> bool:
        """Return whether the user may delete data of a project. Members may not."""
        return self.role(project) == "owner"

    def require_edit(self, project: str) -> None:
        """Refuse with 403 a user who may not create and change data of a project."""
        if not self.may_edit(project):
            raise HTTPError(403)

    def require_delete(self, project: str) -> None:
        """Refuse with 403 a user who may not delete data of a project."""
        if not self.may_delete(project):
            raise HTTPError(403)

    def may_read_item(self, item: Owned) -> bool:
        """Return whether the user may read a subject or experiment.

        The right comes from its project, or from a project that it is shared into.
        """
        return self.may_read(item.project) or any(self.may_read(project) for project in self._archive.shares(item.id))

    def may_edit_item(self, item: Owned) -> bool:
        """Return whether the user may change a subject or experiment.

        The right comes from its own project only, and it must be active.
        """
        return self.may_edit(item.project) and (isinstance(item, Subject) or item.status == ACTIVE)

    def readable(self) -> set[str]:
        """Return the IDs of the projects whose data the user may read."""
        return {project for project in self._accessibility if self.may_read(project)}


# The settings of the site that everybody may read.
PUBLIC = frozenset(("siteId",))
USERS_FOR_ADMINS = "restrictUserListAccessToAdmins"
LOGIN_PATH = "/app/template/Login.vm"
_BROWSERS = re.compile("MSIE|Mozilla|AppleWebKit|Opera")
_COOKIE = re.compile(r"(?:^|;)\s*JSESSIONID=([0-9A-Za-z]+)")
_DATA = ("data", "REST", "fs", "xapi")
_CHALLENGE = ("WWW-Authenticate", 'Basic realm="XNAT Protected Area"')
_LARGEST_FORM = 65536


class Gate:
    """Lets requests in, or refuses them.

    Parameters
    ----------
    accounts, sessions
        The users, and who is logged in.
    require_login
        False makes an open site: a user who is not logged in is a guest.
    """

    def __init__(self, accounts: Accounts, sessions: Sessions, require_login: bool) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._require_login = require_login

    def admit(self, request: Request) -> Reply | None:
        """Set the user and the session of a request. Return an answer if the request is not let in, else None.

        Raises
        ------
        HTTPError
            401 for wrong credentials, on every path; 403 if a browser comes without its CSRF token.
        """
        session = self._session(request)
        if session is not None:
            request.session, request.user = session, session.user
        if request.user.is_guest and self._is_closed_to_guests(request):
            return self._turned_away(request)
        if request.session is None and not self._require_login:
            # The container starts an anonymous session for a client that it does not know.
            request.session = self._sessions.open(ANONYMOUS)
        self._check_csrf(request)
        return None

    def cookies(self, request: Request) -> list[tuple[bytes, bytes]]:
        """Return the ``Set-Cookie`` headers that go with every answer."""
        now, timeout = int(time.time() * 1000), int(self._sessions.timeout * 1000)
        # The container quotes the value because of its comma, and xnatpy reads only the quoted form.
        cookies = [f'SESSION_EXPIRATION_TIME="{now},{timeout}"; Path={request.context}/']
        if request.session is not None and request.session.id != _cookie(request):
            cookies.append(f"JSESSIONID={request.session.id}; Path={request.context or '/'}; HttpOnly")
        return [(b"set-cookie", cookie.encode("latin-1")) for cookie in cookies]

    def _session(self, request: Request) -> Session | None:
        session = self._sessions.touch(_cookie(request))
        credentials = _credentials(request)
        if credentials is None or (session is not None and session.opened_as == credentials[0]):
            return session
        user = self._accounts.check(*credentials)
        session = self._sessions.open(user, credentials[0]) if user else None
        if session is None:
            raise _unauthorized()
        return session

    def _is_closed_to_guests(self, request: Request) -> bool:
        words = request.words
        is_public = words in (["xapi", "siteConfig", name] for name in PUBLIC)
        if is_public or words[:3] == ["data", "services", "auth"] or words[:1] == ["app"]:
            return False
        return self._require_login and (not words or words[0] in _DATA or words[0] == "schemas")

    @staticmethod
    def _turned_away(request: Request) -> Reply:
        is_browser = _BROWSERS.search(request.headers.get("user-agent", ""))
        if is_browser or not request.words:
            return html("", 302, [("Location", request.context + LOGIN_PATH)])
        raise _unauthorized()

    def _check_csrf(self, request: Request) -> None:
        """Refuse a request that another site may have made a browser send. Scripts, known by User-Agent, are exempt."""
        if request.method not in ("POST", "PUT", "DELETE") or not request.session:
            return
        if not _BROWSERS.search(request.headers.get("user-agent", "")) or request.words[1:3] == ["services", "auth"]:
            return
        if request.session.csrf not in (request.query.get("XNAT_CSRF"), request.form().get("XNAT_CSRF")):
            raise HTTPError(403, "INVALID CSRF")


def _cookie(request: Request) -> str:
    found = _COOKIE.search(request.headers.get("cookie", ""))
    return found.group(1) if found else ""


def _credentials(request: Request) -> tuple[str, str] | None:
    """Return the login and password of the Basic header, or None if there is no such header."""
    kind, _, encoded = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        login, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise _unauthorized() from None
    return login, password


def _unauthorized() -> HTTPError:
    return HTTPError(401, headers=[_CHALLENGE])


class SiteCalls(Handlers):
    """The calls below ``/data`` about the site itself."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._accounts = visit.accounts
        self._sessions = visit.sessions

    # Sessions

    def jsession(self, request: Request, session_id: str) -> Reply:
        """Answer ``GET /data/JSESSION`` with the ID of the session."""
        session = _opened(request)
        return text(session.id + _csrf(request, session))

    def end_session(self, request: Request, session_id: str) -> Reply:
        """Answer ``DELETE /data/JSESSION[/ID]``."""
        session = _opened(request)
        self._sessions.close_of(session.user, session_id or session.id)
        return text()

    def auth(self, request: Request) -> Reply:
        """Answer ``GET /data/auth`` with the user who is logged in."""
        session = _opened(request)
        if request.user.is_guest:
            return text("guest")
        return text(f"User '{request.user.login}' is logged in{_csrf(request, session)}")

    def log_in(self, request: Request) -> Reply:
        """Answer ``PUT /data/services/auth``, a form with name and password, with a new session."""
        pairs = parse_qsl(request.body.read(_LARGEST_FORM).decode("utf-8", "replace"), keep_blank_values=True)
        providers = [value for name, value in pairs if name == "provider"]
        if len(providers) > 1 or providers not in ([], [PROVIDER]):
            raise HTTPError(400, "Unknown or repeated authentication provider.")
        form = dict(pairs)
        user = self._accounts.check(form.get("username", ""), form.get("password", ""))
        session = self._sessions.open(user) if user else None
        if session is None:
            raise HTTPError(401, "Authentication failed.")
        request.session, request.user = session, session.user
        return text(session.id)

    # Tokens

    def answer(self, method: str, request: Request, names: dict[str, str]) -> Reply:
        """Answer a request. Guests have no tokens."""
        if method.endswith(("_token", "_tokens")) and request.user.is_guest:
            raise HTTPError(403)
        return super().answer(method, request, names)

    def issue_token(self, request: Request, login: str) -> Reply:
        """Answer ``/data/services/tokens/issue[/user/NAME]``."""
        return as_json(self._accounts.issue_token(self._token_user(request, login)))

    def show_tokens(self, request: Request, login: str) -> Reply:
        """Answer ``/data/services/tokens/show[/user/NAME]``."""
        return as_json(self._accounts.tokens(self._token_user(request, login)))

    def validate_token(self, request: Request, alias: str, secret: str) -> Reply:
        """Answer ``/data/services/tokens/validate/ALIAS/SECRET``."""
        self._token(alias)
        user = self._accounts.check(alias, secret)
        return as_json({"valid": user.login} if user else {})

    def invalidate_token(self, request: Request, alias: str, secret: str) -> Reply:
        """Answer ``/data/services/tokens/invalidate/ALIAS[/SECRET]``."""
        if self._token(alias)["login"] != request.user.login and not request.user.is_admin:
            raise HTTPError(403)
        self._accounts.drop_token(alias)
        return as_json({"result": "OK"})

    def _token_user(self, request: Request, login: str) -> User:
        """Return the user whose tokens are meant: oneself or, for administrators, the user who is named."""
        if not login:
            return request.user
        if not request.user.is_admin:
            raise HTTPError(403, "Only an admin may ask for the tokens of another user.")
        found = self._accounts.get(login)
        if found is None:
            raise HTTPError(404)
        return found

    def _token(self, alias: str) -> dict[str, Any]:
        token = self._accounts.token(alias)
        if token is None:
            raise HTTPError(404, f"Unknown alias: {alias}")
        return token

    # Tables

    def users(self, request: Request) -> Reply:
        """Answer ``GET /data/users``."""
        if not request.user.is_admin and self._visit.preferences.all()[USERS_FOR_ADMINS]:
            raise HTTPError(403)
        names = ("login", "firstname", "lastname", "email")
        rows = [
            {"xdat_user_id": str(user.number), **{name: getattr(user, name) for name in names}}
            for user in self._accounts.all()
        ]
        return Table(("xdat_user_id", *names), rows).answer(request)

    def scanners(self, request: Request) -> Reply:
        """Answer ``GET /data/scanners``."""
        return self._distinct(request, "scanner")

    def scan_types(self, request: Request) -> Reply:
        """Answer ``GET /data/scan_types``."""
        return self._distinct(request, "type")

    def _distinct(self, request: Request, field: str) -> Reply:
        """Answer with the values that a field of the scans has in the projects that the user may read."""
        rows: list[Row] = [{field: value} for value in self._archive.scan_values(field, self._may.readable())]
        return Table((field,), rows).answer(request)


def _opened(request: Request) -> Session:
    """Return the session of a request."""
    if request.session is None:
        raise HTTPError(401)
    return request.session


def _csrf(request: Request, session: Session) -> str:
    return f"; XNAT_CSRF={session.csrf}" if request.flag("CSRF") else ""
