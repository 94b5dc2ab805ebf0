"""Who asks, and whether they are let in: cookies, Basic credentials, guests, browsers, CSRF (XnatSecureGuard)."""

from __future__ import annotations

import base64
import binascii
import re
import time
from urllib.parse import parse_qs

from monailabel_xnat.sandbox.accounts import ANONYMOUS, Accounts, Session, Sessions
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, html
from monailabel_xnat.sandbox.http.request import Request

# Settings of the site that anybody may read.
PUBLIC = frozenset(("siteId",))
LOGIN_PATH = "/app/template/Login.vm"
_BROWSERS = re.compile("MSIE|Mozilla|AppleWebKit|Opera")
_COOKIE = re.compile(r"(?:^|;)\s*JSESSIONID=([0-9A-Za-z]+)")
_DATA = ("data", "REST", "fs", "xapi")
_CHALLENGE = ("WWW-Authenticate", 'Basic realm="XNAT Protected Area"')
_LARGEST_FORM = 65536


class Gate:
    """The way in.

    Parameters
    ----------
    accounts, sessions
        Users, and who is logged in.
    require_login
        False: an open site, where who is not logged in is a guest.
    """

    def __init__(self, accounts: Accounts, sessions: Sessions, require_login: bool) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._require_login = require_login

    def admit(self, request: Request) -> Reply | None:
        """Set the user and the session of a request; give an answer where it is not let in.

        Raises
        ------
        HTTPError
            401 for wrong credentials, on every path; 403 where a browser comes without its CSRF token.
        """
        session = self._session(request)
        if session is not None:
            request.session, request.user = session, session.user
        if request.user.is_guest and self._is_closed_to_guests(request):
            return self._turned_away(request)
        if request.session is None and not self._require_login:
            # The container starts an anonymous session for whom it does not know.
            request.session = self._sessions.open(ANONYMOUS)
        self._check_csrf(request)
        return None

    def cookies(self, request: Request) -> list[tuple[bytes, bytes]]:
        """Return the ``Set-Cookie`` headers that go with every answer."""
        now, timeout = int(time.time() * 1000), int(self._sessions.timeout * 1000)
        # The container quotes the value because of its comma, and xnatpy knows it only so.
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
        """Refuse what another site may have made a browser send; scripts, by their User-Agent, are exempt."""
        if request.method not in ("POST", "PUT", "DELETE") or not request.session:
            return
        if not _BROWSERS.search(request.headers.get("user-agent", "")) or request.words[1:3] == ["services", "auth"]:
            return
        if request.session.csrf not in (request.query.get("XNAT_CSRF"), _form_token(request)):
            raise HTTPError(403, "INVALID CSRF")


def _cookie(request: Request) -> str:
    found = _COOKIE.search(request.headers.get("cookie", ""))
    return found.group(1) if found else ""


def _credentials(request: Request) -> tuple[str, str] | None:
    """Read the Basic header; None where there is none."""
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


def _form_token(request: Request) -> str | None:
    if request.content_type != "application/x-www-form-urlencoded":
        return None
    form = parse_qs(request.body.read(_LARGEST_FORM).decode("utf-8", "replace"))
    request.body.seek(0)
    return form.get("XNAT_CSRF", [None])[0]
