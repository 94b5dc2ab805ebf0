"""The guard: one transport adapter through which every request of a session goes.

Above it stands an unmodified xnatpy session with its objects and transfers. They need not know that XNAT had forgotten
the login, was busy, or dropped the connection. They all use one requests session, and its adapter is the only place
through which all their requests pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar

from monailabel_xnat.client.answers import as_request_error, is_html_file, network_failure, page_failure
from monailabel_xnat.client.body import beginning, hold
from monailabel_xnat.client.pace import Pace
from monailabel_xnat.client.patience import REDIRECTS, PatientAdapter, rewound
from monailabel_xnat.errors import LoginError, XNATDatastoreError

# The form of XNAT's login page, also of one that a site has changed, is sent to an address with such an end.
_LOGIN_FORM = re.compile(
    rb"""<form\b[^>]*\baction\s*=\s*["']?[^"'\s>]*\b(?:login|j_spring_security_check)["'\s>]""", re.IGNORECASE
)
_READING = ("GET", "HEAD", "OPTIONS")
_LOGIN_ADDRESS = re.compile(r"/(login|login\.vm)$", re.IGNORECASE)


class Renewable(Protocol):
    """The part of a login that the guard uses."""

    @property
    def cookies(self) -> RequestsCookieJar:
        """The cookies that go with each request."""

    @property
    def token(self) -> str:
        """The id of the session at XNAT."""

    def check(self) -> None:
        """Make sure, before a request, that there is a login."""

    def was_used(self) -> None:
        """Note that XNAT has just answered."""

    def is_lost(self, response: requests.Response, token: str) -> bool:
        """Return whether an answer shows that XNAT no longer knows who asks."""

    def renew(self, token: str) -> None:
        """Log in again, in place of a login that was lost."""


class Guard(BaseAdapter):
    """A requests transport adapter that logs in, and logs in again when XNAT has forgotten the login.

    It sends through a :class:`PatientAdapter`. Its errors are errors of this package, and also
    :class:`requests.RequestException`.

    Parameters
    ----------
    patient : PatientAdapter
        Sends the requests, and repeats them if needed.
    pace : Pace
        Limits how many requests are under way.
    login : Renewable
        The login that is used.
    require_writable : callable
        Called before each request that changes XNAT, with what is sent and where to; it raises if that is not wanted.
    """

    def __init__(
        self, patient: PatientAdapter, pace: Pace, login: Renewable, require_writable: Callable[[str, str], None]
    ) -> None:
        super().__init__()
        self._patient = patient
        self._pace = pace
        self._login = login
        self._require_writable = require_writable

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request as the user, and return the answer.

        Raises
        ------
        ServerError
            If there is no answer, or the login fails. The error is also a :class:`requests.RequestException`.
        ReadOnlyError
            If the request changes XNAT and the settings do not allow that; then nothing is sent.
        """
        if request.method not in _READING:
            size = request.headers.get("Content-Length", "0")
            detail = f" to {urlsplit(str(request.url)).path}" + ("" if size == "0" else f" of {size} bytes")
            self._require_writable(f"send a {request.method}", detail)
        options = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
        slot = self._pace.take()
        try:
            response = self._send_as_user(request, options)
            hold(response, slot)
            return response
        except BaseException as error:
            slot.release()
            if isinstance(error, XNATDatastoreError):
                raise as_request_error(error) from error.__cause__
            if isinstance(error, requests.RequestException):
                raise as_request_error(network_failure(error, request.url or "")) from error
            raise

    def close(self) -> None:
        """Do nothing: the owner of the inner adapter closes it."""

    def _send_as_user(self, request: requests.PreparedRequest, options: Mapping[str, Any]) -> requests.Response:
        self._login.check()
        self._set_cookies(request)
        may_log_in = True
        while True:
            token = self._login.token
            response = self._patient.send(request, **options)
            self._login.was_used()
            is_page = _is_login_page(response)
            if may_log_in and (is_page or self._login.is_lost(response, token)):
                may_log_in = False
                response.close()
                self._login.renew(token)
                if not rewound(request):
                    raise LoginError(
                        f"the login had expired while {request.method} {_address(request)} was sent",
                        hint="there is a new login now, but what was sent cannot be read again: do it once more",
                        url=_address(request),
                    )
                self._set_cookies(request)
                continue
            if is_page and not is_html_file(response):
                raise page_failure(response)
            return response

    def _set_cookies(self, request: requests.PreparedRequest) -> None:
        """Put the present cookies into a request that was prepared with those of an earlier login, or without any."""
        token = self._login.token
        if token and token in str(request.headers.get("Cookie", "")):
            return
        request.headers.pop("Cookie", None)
        request.prepare_cookies(self._login.cookies)


def is_redirect_by_design(response: requests.Response) -> bool:
    """Return whether a redirect is XNAT's normal answer to a request that succeeded.

    After archiving or moving a session of the prearchive XNAT answers 301, and the body is the new address. It must
    not be followed: that would return the page of the session instead of its address.
    """
    return response.request.method == "POST" and response.status_code == requests.codes.moved_permanently


def _is_login_page(response: requests.Response) -> bool:
    if response.status_code in REDIRECTS:
        return bool(_LOGIN_ADDRESS.search(urlsplit(response.headers.get("Location", "")).path))
    if response.status_code != requests.codes.ok:
        return False
    if not response.headers.get("Content-Type", "").lower().startswith("text/html"):
        return False
    return bool(_LOGIN_FORM.search(beginning(response)))


def _address(request: requests.PreparedRequest) -> str:
    return str(request.url).partition("?")[0]
