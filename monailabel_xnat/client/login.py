"""Logging in to XNAT: from settings to an xnatpy session that knows who we are."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import MutableMapping
from typing import Any

import requests
import xnat
from requests.utils import get_environ_proxies
from xnat.session import BaseXNATSession

from monailabel_xnat.client.answers import failure, is_page, network_failure, page_failure
from monailabel_xnat.client.pace import Pace, PacedAdapter
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LoginError, ServerError

logger = logging.getLogger(__name__)

SESSION_COOKIE = "JSESSIONID"
GUEST = "guest"

_ALIAS_TOKEN = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LOGGED_IN = re.compile(r"User '([^']*)' is logged in")


class _XnatpyLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """What xnatpy expects of a logger; its messages carry URLs with ids, so they stay at DEBUG."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def verbose(self, message: str, *args: object) -> None:
        self.debug(message, *args)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


class _Connection(BaseXNATSession):  # type: ignore[misc]
    """xnatpy's session without its heartbeat: where one fails, it ends for good, so that we renew what has expired."""

    def heartbeat(self) -> None:
        """Ask nothing: the login has just been proved, and is again before it is relied on."""


def _without_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep requests from adding ~/.netrc's credentials: with them every call would open an XNAT session."""
    return request


def log_in(settings: Settings, pace: Pace) -> BaseXNATSession:
    """Log in and make the xnatpy session.

    ``xnat.connect`` is not used: it cannot be given a certificate authority or a client certificate, takes
    credentials from the environment behind the settings' back, and may prompt for a password.

    Parameters
    ----------
    settings : Settings
        Where, and as whom.
    pace : Pace
        Tells when each request may be sent, now and later.

    Raises
    ------
    LoginError
        If XNAT does not accept the credentials.
    ServerError
        If the server cannot be reached or is not an XNAT.
    """
    transport = _transport(settings, pace)
    try:
        token = _open_session(transport, settings)
        if transport.cookies.get(SESSION_COOKIE) is None:
            transport.cookies.set(SESSION_COOKIE, token)
        user = who_am_i(transport, settings.server, settings.timeout)
        if settings.username and user == GUEST:
            raise LoginError(
                f"{settings.server} took user {settings.username!r} for a guest",
                hint="check user name and password",
                url=settings.server,
            )
        return _Connection(
            server=settings.server,
            logger=_XnatpyLogger(logger, {}),
            interface=transport,
            logged_in_user=user,
            default_timeout=settings.timeout,
            jsession=token,
            keepalive=False,
        )
    except requests.RequestException as error:
        transport.close()
        raise network_failure(error, settings.server) from error
    except BaseException:
        transport.close()
        raise


def who_am_i(transport: requests.Session, server: str, timeout: float) -> str:
    """Ask XNAT whom it takes us for; ``guest`` for a session without login.

    Raises
    ------
    LoginError
        If XNAT wants a login.
    ServerError
        If the answer is not XNAT's.
    """
    response = transport.get(f"{server}/data/auth", timeout=timeout)
    if response.status_code != requests.codes.ok:
        raise failure(response)
    match = _LOGGED_IN.search(response.text)
    if match:
        return match.group(1)
    if response.text.strip().lower().startswith(GUEST):
        return GUEST
    raise page_failure(response)


def _transport(settings: Settings, pace: Pace) -> requests.Session:
    transport = requests.Session()
    transport.auth = _without_credentials
    transport.headers["User-Agent"] = f"monailabel-xnat xnatpy/{xnat.__version__}"
    # What the environment says is taken once: requests would look through all of it at each request, and let the
    # certificate authorities it names override our settings.
    transport.trust_env = False
    transport.proxies.update(get_environ_proxies(settings.server))
    transport.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    if settings.ca_bundle or not settings.verify_tls:
        transport.verify = str(settings.ca_bundle) if settings.verify_tls else False
    if settings.client_certificate:
        transport.cert = str(settings.client_certificate)
    adapter = PacedAdapter(pace, pool_maxsize=2 * settings.connections + 4)
    transport.mount("https://", adapter)
    transport.mount("http://", adapter)
    return transport


def _open_session(transport: requests.Session, settings: Settings) -> str:
    """Open a server session as the user, by alias token, or as guest; give its id."""
    server, timeout = settings.server, settings.timeout
    if not settings.username:
        response = transport.get(f"{server}/data/JSESSION", timeout=timeout)
    elif _ALIAS_TOKEN.fullmatch(settings.username):
        login = (settings.username, settings.password.reveal())
        response = transport.get(f"{server}/data/JSESSION", timeout=timeout, auth=login)
    else:
        form = {"username": settings.username, "password": settings.password.reveal()}
        response = transport.put(f"{server}/data/services/auth", data=form, timeout=timeout)
    return _session_id(response, settings)


def _session_id(response: requests.Response, settings: Settings) -> str:
    if response.status_code in (401, 403):
        raise LoginError(
            _refusal(settings), hint=_login_hint(settings), url=settings.server, status=response.status_code
        )
    if response.status_code == requests.codes.not_found:
        raise ServerError(
            f"there is no XNAT at {settings.server}: it answered 404 to the login",
            hint="check the address; if the site lives below a path, the path belongs to it",
            url=settings.server,
            status=404,
        )
    if response.status_code != requests.codes.ok:
        raise failure(response)
    if is_page(response) or "<" in response.text:
        raise page_failure(response)
    return response.text.partition(";")[0].strip()


def _refusal(settings: Settings) -> str:
    if settings.username:
        return f"{settings.server} refused the login of user {settings.username!r}"
    return f"{settings.server} does not let guests in"


def _login_hint(settings: Settings) -> str:
    if settings.username:
        return "check user name and password (MONAI_LABEL_XNAT_USERNAME and MONAI_LABEL_XNAT_PASSWORD, or ~/.netrc)"
    return "set MONAI_LABEL_XNAT_USERNAME and MONAI_LABEL_XNAT_PASSWORD, or add the server to ~/.netrc"
