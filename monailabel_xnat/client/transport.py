"""The requests sessions that send everything, and their cookies: our own, or one that shares an xnatpy login."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from http.cookiejar import Cookie, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import xnat
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar, create_cookie
from requests.utils import get_environ_proxies

from monailabel_xnat.client.answers import tls_reason
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import SettingsError

SESSION_COOKIE = "JSESSIONID"


class _SessionIdIsOurs(DefaultCookiePolicy):
    """A cookie policy that accepts no session id from an answer: a server that has forgotten us sends a guest's."""

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        return cookie.name != SESSION_COOKIE and super().set_ok(cookie, request)


def own_cookies() -> RequestsCookieJar:
    """Return a new cookie jar in which only :func:`adopt` sets the session id."""
    return RequestsCookieJar(policy=_SessionIdIsOurs())


def session_id(jar: RequestsCookieJar) -> str:
    """Return the session id in a cookie jar; empty if there is none."""
    return next((cookie.value or "" for cookie in jar if cookie.name == SESSION_COOKIE), "")


def adopt(jar: RequestsCookieJar, found: RequestsCookieJar, token: str, server: str) -> None:
    """Put the cookies of a login into a jar; each replaces the cookies of the same name.

    Otherwise two cookies of one name, with different domain or path, would be sent, and XNAT answers that with 401.

    Parameters
    ----------
    jar : RequestsCookieJar
        The jar to change.
    found : RequestsCookieJar
        The cookies that came with the login: the session id, and for example the cookie of a load balancer.
    token : str
        The session id.
    server : str
        Address of the site. If the answer set no cookie for the session id, one is made for this address.
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
    """Remove the session id from a jar."""
    for cookie in [cookie for cookie in jar if cookie.name == SESSION_COOKIE]:
        jar.clear(cookie.domain, cookie.path, cookie.name)


def _cookie_for(token: str, server: str) -> Any:
    """Return the cookie that the server would have set; http.cookiejar calls hosts without a dot ``<host>.local``."""
    host = urlsplit(server).hostname or ""
    domain = host if "." in host or ":" in host else f"{host}.local"
    return create_cookie(  # type: ignore[no-untyped-call]
        SESSION_COOKIE, token, domain=domain, path=urlsplit(server).path or "/"
    )


class Transport(requests.Session):
    """A requests session that follows no redirect after a write, because requests would send a GET or no body then."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect; None if it must not be followed."""
        return super().get_redirect_target(resp) if resp.request.method in ("GET", "HEAD") else None

    def mount_everywhere(self, adapter: BaseAdapter) -> None:
        """Send everything through one adapter."""
        self.mount("https://", adapter)
        self.mount("http://", adapter)


def _authorities(settings: Settings) -> bool | str:
    """Return the file or folder with the certificate authorities to trust; True means those that requests has."""
    named = settings.ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return str(named) if named else True


def _load_authorities(tls: ssl.SSLContext, file: str) -> None:
    tls.load_verify_locations(**{"capath" if Path(file).is_dir() else "cafile": file})


def _load_certificate(tls: ssl.SSLContext, file: str) -> None:
    # Without this, OpenSSL asks for the password of a key at the terminal, and a server would wait for ever.
    tls.load_cert_chain(file, password=lambda: "")


def _require_usable(setting: str, file: str, load: Callable[[ssl.SSLContext, str], None], expected: str) -> None:
    """Raise a SettingsError with the reason if a file with certificates is missing or OpenSSL cannot use it."""
    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), file)
    except ssl.SSLError as error:
        raise SettingsError(
            f"setting {setting}: OpenSSL cannot use {file}: {tls_reason(error)}",
            hint=f"give one file in PEM form with {expected}",
        ) from None
    except OSError as error:
        raise SettingsError(
            f"setting {setting}: {file} cannot be read: {error.strerror}", hint="check the path and who may read it"
        ) from None


def own_transport(settings: Settings) -> Transport:
    """Return a new requests session for the settings; the caller mounts an adapter.

    It is made here because ``xnat.connect`` takes neither certificate authorities nor a client certificate.

    Raises
    ------
    SettingsError
        If a file with certificates is missing or cannot be used.
    """
    transport = Transport()
    transport.auth = without_credentials
    transport.headers["User-Agent"] = f"monailabel-xnat xnatpy/{xnat.__version__}"
    transport.cookies = own_cookies()
    # Read the environment once, here. requests would search it at each request, and its certificate authorities would
    # override our settings.
    transport.trust_env = False
    transport.proxies.update(get_environ_proxies(settings.server))
    authorities = _authorities(settings)
    transport.verify = authorities if settings.verify_tls else False
    if settings.client_certificate:
        transport.cert = str(settings.client_certificate)
        expected = "a client certificate and its key, which is not encrypted"
        _require_usable("client_certificate", transport.cert, _load_certificate, expected)
    # A file that only the environment names is checked only if https needs it: reading it takes longer than a listing.
    needed = settings.ca_bundle or settings.server.startswith("https:")
    if isinstance(transport.verify, str) and needed:
        _require_usable("ca_bundle", transport.verify, _load_authorities, "the certificate authorities to trust")
    return transport


def twin_of(session: requests.Session, cookies: RequestsCookieJar | None = None) -> Transport:
    """Return a new requests session that connects as another one does; the caller mounts an adapter.

    Parameters
    ----------
    session : requests.Session
        The other session. The new one shares its TLS settings, proxies, headers and authentication.
    cookies : RequestsCookieJar or None
        The cookies to use; None: those of the other session.
    """
    twin = Transport()
    twin.cookies = session.cookies if cookies is None else cookies
    twin.headers = session.headers
    twin.auth = session.auth
    twin.proxies = session.proxies
    twin.params = session.params
    twin.verify = session.verify
    twin.cert = session.cert
    twin.trust_env = session.trust_env
    return twin


def without_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return a request unchanged: used as ``auth``, it keeps requests from adding the credentials of ~/.netrc.

    With credentials, XNAT would open a new session for every request.
    """
    return request
