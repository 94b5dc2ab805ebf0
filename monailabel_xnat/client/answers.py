"""The meaning of XNAT's answers: how HTTP statuses, web pages and network failures become our errors."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

import requests
from xnat.exceptions import XNATResponseError

from monailabel_xnat.client.deadlines import is_timeout
from monailabel_xnat.errors import (
    AccessDeniedError,
    LoginError,
    NotInArchiveError,
    ServerError,
    ServerTimeoutError,
    TransferError,
    XNATDatastoreError,
)

_MESSAGE = re.compile(r"<h3>(.*?)</h3>", re.DOTALL)
_LONGEST_MESSAGE = 300

_BY_STATUS: dict[int, tuple[type[ServerError], str]] = {
    401: (LoginError, "check user name and password"),
    403: (AccessDeniedError, "ask an owner of the project for the permission"),
    404: (NotInArchiveError, "check the name, and that this user may see it"),
    413: (ServerError, "the file is larger than the server or a proxy before it takes; raise its limit"),
    407: (ServerError, "give user name and password in the address of the proxy (http_proxy, https_proxy)"),
    504: (ServerTimeoutError, "XNAT may still be working; look before repeating"),
}
# Hints for answers that come from a proxy before XNAT, and not from XNAT itself.
_BY_STATUS_OF_PROXY = {
    400: "check the address, https:// or http:// and port",
    413: "the file is larger than the proxy before XNAT takes; have its limit raised",
    414: "have the proxy's limit for the length of addresses raised, or shorten names",
    502: "the proxy does not reach XNAT: is it running?",
    503: "the proxy does not reach XNAT: is it running?",
    504: "XNAT may still be working; look before repeating",
}
_TITLE = re.compile(r"<(title|h1)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
# The title of error pages of Tomcat, the server in which XNAT runs: such a page is not one of a proxy.
_OF_TOMCAT = "HTTP Status"
_CERTIFICATE = "give the file with your site's certificate authority with the setting ca_bundle"
# Parts of the messages of OpenSSL, and what the user can do.
_BY_TLS_REASON = (
    ("expired", "have the certificate of the server renewed, and check the clock of this machine"),
    ("not yet valid", "check the clock of this machine"),
    ("mismatch", "give the address for which the certificate was issued"),
    ("doesn't match", "give the address for which the certificate was issued"),
    ("certificate verify failed", _CERTIFICATE),
    ("wrong_version_number", "nothing speaks TLS at that port: check http:// or https://, and the port"),
    ("http_request", "nothing speaks TLS at that port: check http:// or https://, and the port"),
    ("record layer failure", "nothing speaks TLS at that port: check http:// or https://, and the port"),
    ("certificate required", "give a certificate and its key with the setting client_certificate"),
    ("certificate_required", "give a certificate and its key with the setting client_certificate"),
    ("alert", "if the server wants a client certificate, give it with the setting client_certificate"),
    ("eof occurred", "if the server wants a client certificate, give it with the setting client_certificate"),
)
# No count, size or number in XNAT has more. Python refuses to read thousands of digits (ValueError).
_MOST_DIGITS = 18


def is_page(response: requests.Response) -> bool:
    """Return whether the answer is a web page where data was expected, for example a sign-on page before XNAT.

    An HTML file that is stored in XNAT is data. After a write the content type alone is not enough: XNAT reports
    duplicates of an upload as JSON with the type ``text/html``. So the beginning of the content is looked at as well.
    """
    if not response.headers.get("Content-Type", "").lower().startswith("text/html"):
        return False
    if response.request.method in ("GET", "HEAD"):
        return not is_html_file(response)
    return response.content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))


def is_html_file(response: requests.Response) -> bool:
    """Return whether the request was for an HTML file that is stored in XNAT; its name shows that."""
    path = unquote(urlsplit(response.url).path).lower()
    return "/files/" in path and path.endswith((".html", ".htm", ".xhtml"))


def failure(response: requests.Response) -> ServerError:
    """Return the error for an answer that is not a success."""
    return _failure(response.request.method or "", response.url, response.status_code, response.text, response)


def failure_of_transfer(error: XNATResponseError, url: str) -> ServerError:
    """Return the error for an answer that xnatpy has refused, by the status and text that xnatpy's error keeps."""
    return _failure("GET", url, error.status_code, error.text, None)


def _failure(method: str, url: str, status: int, text: str, response: requests.Response | None) -> ServerError:
    path = _address(url)
    kind, hint = _BY_STATUS.get(status, (ServerError, "see the log of the XNAT server"))
    reason = response.reason if response is not None else ""
    if response is not None and response.is_redirect:
        hint = f"if XNAT has moved to {_address(response.headers['Location'])}, give that address"
    who, words = "XNAT", _words_of(text)
    of_proxy = _words_of_page(text) if not words else ""
    if status == requests.codes.proxy_authentication_required:
        who = "the proxy on the way to XNAT"
    elif of_proxy and status in _BY_STATUS_OF_PROXY and not of_proxy.startswith(_OF_TOMCAT):
        who, hint = "a proxy before XNAT", _BY_STATUS_OF_PROXY[status]
    message = f"{who} answered {status} to {method} {path}: {words or of_proxy or reason or 'no explanation'}"
    return kind(message, hint=hint, url=path, status=status)


def page_failure(response: requests.Response) -> ServerError:
    """Return the error for a web page where data was expected."""
    path = _address(response.url)
    return ServerError(
        f"XNAT answered {response.request.method} {path} with a web page instead of data",
        hint="check that the address is that of the XNAT site itself and that no sign-on page stands before it",
        url=path,
        status=response.status_code,
    )


def network_failure(error: requests.RequestException, url: str) -> ServerError:
    """Return the error for a request that got no answer, or only a part of one."""
    path = _address(url)
    if isinstance(error, requests.exceptions.SSLError):
        reason = tls_reason(error)
        hint = next((hint for part, hint in _BY_TLS_REASON if part in reason.lower()), _CERTIFICATE)
        return ServerError(f"no secure connection to {path}: {reason}", hint=hint, url=path)
    if isinstance(error, requests.exceptions.ProxyError):
        wants_login = " 407 " in str(error)
        return ServerError(
            f"the proxy {_proxy_of(error)}on the way to {path} "
            + ("wants user name and password" if wants_login else "does not answer, or does not reach it"),
            hint=_BY_STATUS[407][1] if wants_login else "check http_proxy, https_proxy and no_proxy",
            url=path,
            status=407 if wants_login else None,
        )
    if is_timeout(error):
        return ServerTimeoutError(f"no answer from {path} in time", hint="XNAT may be overloaded or down", url=path)
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)):
        return TransferError(f"the transfer from {path} broke off", hint="try again", url=path)
    return ServerError(
        f"cannot reach {path}: {_why_unreachable(error)}",
        hint="check the address and that XNAT is running and reachable from here",
        url=path,
    )


def tls_reason(error: BaseException) -> str:
    """Return the reason why OpenSSL did not accept a connection or a file; without one, the type of the error."""
    for found in _errors_within(error):
        if isinstance(found, ssl.SSLError):
            verified = getattr(found, "verify_message", "")
            return (
                f"certificate verify failed: {verified}" if verified else str(found.reason or found.strerror or found)
            )
    return type(error).__name__


def _why_unreachable(error: requests.RequestException) -> str:
    """Return in plain words why no connection was made; if that is not known, the type of the error."""
    for found in _errors_within(error):
        if isinstance(found, socket.gaierror):
            return "the name of the host is not known"
        if isinstance(found, ConnectionRefusedError):
            return "the connection was refused"
        if isinstance(found, ConnectionError):  # also one without an answer (http.client.RemoteDisconnected)
            return "the connection was closed"
        if type(found) is OSError and found.strerror:
            return found.strerror
    return type(error).__name__


def _errors_within(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the one within it that was its reason, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        inner = [*found.args, getattr(found, "reason", None), found.__cause__]
        found = next((other for other in inner if isinstance(other, BaseException)), None)


def _proxy_of(error: requests.RequestException) -> str:
    """Return the address of the proxy that an error is about, with a blank after it; "" if it is not known.

    The address does not contain user name and password.
    """
    pool = getattr(error.args[0], "pool", None) if error.args else None
    proxy = getattr(pool, "proxy", None)
    return f"{proxy.scheme}://{proxy.host}:{proxy.port} " if proxy is not None else ""


def as_request_error(error: XNATDatastoreError) -> XNATDatastoreError:
    """Return an error that is also a ``requests.RequestException``: callers of a transport adapter expect these."""
    if isinstance(error, requests.RequestException):
        return error
    kind = next((kind for kind in _REQUEST_ERRORS if isinstance(error, kind.__mro__[1])), None)
    if kind is None:
        return error
    result = kind(error.message, hint=error.hint)
    result.__dict__.update(error.__dict__, request=None, response=None)
    return result


def plain(error: XNATDatastoreError) -> XNATDatastoreError:
    """Return the plain error of this library for an error of :func:`as_request_error`; others stay as they are."""
    if not isinstance(error, _REQUEST_ERRORS):
        return error
    kind: type[XNATDatastoreError] = type(error).__mro__[1]
    result = kind(error.message, hint=error.hint)
    kept = {name: value for name, value in error.__dict__.items() if name not in ("request", "response")}
    result.__dict__.update(kept)
    return result


class _LoginRequestError(LoginError, requests.RequestException):
    """A login that failed, as an error of requests."""


class _AccessRequestError(AccessDeniedError, requests.RequestException):
    """A refusal, as an error of requests."""


class _NotInArchiveRequestError(NotInArchiveError, requests.RequestException):
    """A missing object, as an error of requests."""


class _TimeoutRequestError(ServerTimeoutError, requests.Timeout):
    """An answer that did not come in time, as an error of requests."""


class _TransferRequestError(TransferError, requests.ConnectionError):
    """A transfer that broke off, as an error of requests."""


class _ServerRequestError(ServerError, requests.ConnectionError):
    """A server that cannot be reached, as an error of requests."""


# Subclasses stand before their base classes, because the first one that fits is taken.
_REQUEST_ERRORS: tuple[type[XNATDatastoreError], ...] = (
    _LoginRequestError,
    _AccessRequestError,
    _NotInArchiveRequestError,
    _TimeoutRequestError,
    _TransferRequestError,
    _ServerRequestError,
)


def _address(url: str) -> str:
    """Return a URL without its query, which may contain anything and must not be shown."""
    return url.partition("?")[0]


def _words_of_page(text: str) -> str:
    """Return the title of a web page; "" if the text is not one. This is for pages that XNAT did not make."""
    match = _TITLE.search(text) if "<html" in text.lower() else None
    return " ".join(_TAG.sub(" ", match.group(2)).split())[:_LONGEST_MESSAGE] if match else ""


def _words_of(text: str) -> str:
    match = _MESSAGE.search(text)
    words = match.group(1) if match else "" if "<html" in text.lower() else text
    return " ".join(words.split())[:_LONGEST_MESSAGE]


def whole_number(text: str) -> int | None:
    """Return the number that a text of decimal digits says; None for any other text, and for more than 18 digits."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def http_time(header: str) -> datetime | None:
    """Return the time in an HTTP header such as ``Last-Modified``, UTC; None if there is none (RFC 9110, 5.6.7)."""
    try:
        time_of = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    return time_of.astimezone(timezone.utc) if time_of.tzinfo else time_of.replace(tzinfo=timezone.utc)
