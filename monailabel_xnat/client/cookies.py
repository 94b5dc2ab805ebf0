"""The cookies of a login: there is one of each name, and a new login changes its value in place."""

from __future__ import annotations

from http.cookiejar import Cookie, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

from requests.cookies import RequestsCookieJar, create_cookie

SESSION_COOKIE = "JSESSIONID"


class _SessionIdIsOurs(DefaultCookiePolicy):
    """Takes no session id from an answer: a server that has forgotten us sends one of a guest."""

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        return cookie.name != SESSION_COOKIE and super().set_ok(cookie, request)


def own_cookies() -> RequestsCookieJar:
    """Make a jar in which only :func:`adopt` sets the session id."""
    return RequestsCookieJar(policy=_SessionIdIsOurs())


def session_id(jar: RequestsCookieJar) -> str:
    """Return the session id in a jar, empty if there is none."""
    return next((cookie.value or "" for cookie in jar if cookie.name == SESSION_COOKIE), "")


def adopt(jar: RequestsCookieJar, found: RequestsCookieJar, token: str, server: str) -> None:
    """Put the cookies of a login into a jar, each in place of the one of its name.

    A second cookie of the name would be sent as well, with another domain or path, and XNAT answers that with 401.

    Parameters
    ----------
    jar : RequestsCookieJar
        The jar to change.
    found : RequestsCookieJar
        What came with the answer to the login: beside the session id, what a load balancer sends its requests by.
    token : str
        The session id.
    server : str
        Address of the site, for which the session id is meant where the answer set no cookie.
    """
    if session_id(found) != token:
        found.set_cookie(_cookie_for(token, server))
    for cookie in found:
        same = [held for held in jar if held.name == cookie.name]
        if not same:
            jar.set_cookie(cookie)
            continue
        same[0].value, same[0].expires, same[0].discard = cookie.value, cookie.expires, cookie.discard
        for other in same[1:]:
            jar.clear(other.domain, other.path, other.name)


def drop_session_id(jar: RequestsCookieJar) -> None:
    """Take the session id out of a jar."""
    for cookie in [cookie for cookie in jar if cookie.name == SESSION_COOKIE]:
        jar.clear(cookie.domain, cookie.path, cookie.name)


def _cookie_for(token: str, server: str) -> Any:
    """Make the cookie that the server would have set; http.cookiejar calls hosts without a dot ``<host>.local``."""
    host = urlsplit(server).hostname or ""
    domain = host if "." in host or ":" in host else f"{host}.local"
    return create_cookie(  # type: ignore[no-untyped-call]
        SESSION_COOKIE, token, domain=domain, path=urlsplit(server).path or "/"
    )
