"""What holds below xnatpy: one transport adapter through which every request of a session goes.

An unmodified xnatpy session, its objects and its transfers stand above it, and need not know that XNAT had forgotten
the login, was busy, or dropped the connection. They are one requests session: the adapter is the only place where all
that they send comes by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

# XNAT's login page, and pages that sites made of it, send what is typed to an address that ends so.
_LOGIN_FORM = re.compile(
    rb"""<form\b[^>]*\baction\s*=\s*["']?[^"'\s>]*\b(?:login|j_spring_security_check)["'\s>]""", re.IGNORECASE
)
_LOGIN_ADDRESS = re.compile(r"/(login|login\.vm)$", re.IGNORECASE)


class Renewable(Protocol):
    """What the guard needs to know of a login."""

    @property
    def cookies(self) -> RequestsCookieJar:
        """The cookies that go with each request."""

    @property
    def token(self) -> str:
        """The id of the session at XNAT."""

    def check(self) -> None:
        """See that there is a login, before a request."""

    def was_used(self) -> None:
        """Note that XNAT has just answered."""

    def is_lost(self, response: requests.Response, token: str) -> bool:
        """Return whether an answer shows that XNAT no longer knows who asks."""

    def renew(self, token: str) -> None:
        """Log in anew in place of a login that was lost."""


class Guard(BaseAdapter):
    """A requests transport adapter that keeps the login, and all that :class:`PatientAdapter` does.

    Its errors are those of this package, and :class:`requests.RequestException` as well.

    Parameters
    ----------
    patient : PatientAdapter
        Sends.
    pace : Pace
        How many requests may be under way.
    login : Renewable
        Who asks.
    """

    def __init__(self, patient: PatientAdapter, pace: Pace, login: Renewable) -> None:
        super().__init__()
        self._patient = patient
        self._pace = pace
        self._login = login

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
            If there is no answer, or the login cannot be had; also a :class:`requests.RequestException`.
        """
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
        """Do nothing: whoever made the inner adapter closes it."""

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
        """Write the cookies into a request that was prepared with those of an earlier login, or with none."""
        token = self._login.token
        if token and token in str(request.headers.get("Cookie", "")):
            return
        request.headers.pop("Cookie", None)
        request.prepare_cookies(self._login.cookies)


def is_redirect_by_design(response: requests.Response) -> bool:
    """Return whether XNAT answers a request that it has carried out with a redirect to what came out of it.

    It does so where a session of the prearchive was archived or moved: 301, and the body is the new address. Whoever
    follows it gets the page of that session in place of its address.
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
