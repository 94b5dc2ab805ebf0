"""What XNAT's answers mean: from HTTP statuses, pages and network failures to our errors."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import requests
from xnat.exceptions import XNATResponseError

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
    504: (ServerTimeoutError, "XNAT may still be working; look before repeating"),
}


def is_page(response: requests.Response) -> bool:
    """Return whether a web page was answered where data was asked for, as by a sign-on page before XNAT.

    HTML files that are stored in XNAT come as what they are. XNAT reports duplicates of an upload as JSON labelled
    ``text/html``, so that for writes the type alone does not tell.
    """
    if not response.headers.get("Content-Type", "").lower().startswith("text/html"):
        return False
    if response.request.method in ("GET", "HEAD"):
        return not is_html_file(response)
    return response.content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))


def is_html_file(response: requests.Response) -> bool:
    """Return whether what was asked for is an HTML file that is stored in XNAT, by its name."""
    path = unquote(urlsplit(response.url).path).lower()
    return "/files/" in path and path.endswith((".html", ".htm", ".xhtml"))


def failure(response: requests.Response) -> ServerError:
    """Make the error for an answer that is not a success."""
    return _failure(response.request.method or "", response.url, response.status_code, response.text, response)


def failure_of_transfer(error: XNATResponseError, url: str) -> ServerError:
    """Make the error for an answer that xnatpy has refused: it keeps the status and the text of it."""
    return _failure("GET", url, error.status_code, error.text, None)


def _failure(method: str, url: str, status: int, text: str, response: requests.Response | None) -> ServerError:
    path = _address(url)
    kind, hint = _BY_STATUS.get(status, (ServerError, "see the log of the XNAT server"))
    reason = response.reason if response is not None else ""
    if response is not None and response.is_redirect:
        hint = f"if XNAT has moved to {_address(response.headers['Location'])}, give that address"
    message = f"XNAT answered {status} to {method} {path}: {_words_of(text) or reason or 'no explanation'}"
    return kind(message, hint=hint, url=path, status=status)


def page_failure(response: requests.Response) -> ServerError:
    """Make the error for a web page where data was expected."""
    path = _address(response.url)
    return ServerError(
        f"XNAT answered {response.request.method} {path} with a web page instead of data",
        hint="check that the address is that of the XNAT site itself and that no sign-on page stands before it",
        url=path,
        status=response.status_code,
    )


def network_failure(error: requests.RequestException, url: str) -> ServerError:
    """Make the error for a request that got no answer, or half of one."""
    path = _address(url)
    if isinstance(error, requests.exceptions.SSLError):
        return ServerError(
            f"the certificate of {path} was not accepted",
            hint="give your site's certificate authority with the setting ca_bundle",
            url=path,
        )
    if isinstance(error, requests.Timeout):
        return ServerTimeoutError(f"no answer from {path} in time", hint="is XNAT overloaded or away?", url=path)
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)):
        return TransferError(f"the transfer from {path} broke off", hint="try again", url=path)
    return ServerError(
        f"cannot reach {path}: {type(error).__name__}",
        hint="check the address and that XNAT is running and reachable from here",
        url=path,
    )


def as_request_error(error: XNATDatastoreError) -> XNATDatastoreError:
    """Make an error of ours one of requests' as well, for what stands above a transport adapter expects those."""
    if isinstance(error, requests.RequestException):
        return error
    kind = next((kind for kind in _REQUEST_ERRORS if isinstance(error, kind.__mro__[1])), None)
    if kind is None:
        return error
    result = kind(error.message, hint=error.hint)
    result.__dict__.update(error.__dict__, request=None, response=None)
    return result


def plain(error: XNATDatastoreError) -> XNATDatastoreError:
    """Make the error of ours alone from one of :func:`as_request_error`."""
    if not isinstance(error, _REQUEST_ERRORS):
        return error
    kind: type[XNATDatastoreError] = type(error).__mro__[1]
    result = kind(error.message, hint=error.hint)
    kept = {name: value for name, value in error.__dict__.items() if name not in ("request", "response")}
    result.__dict__.update(kept)
    return result


class _LoginRequestError(LoginError, requests.RequestException):
    """A login that cannot be had, as requests' error."""


class _AccessRequestError(AccessDeniedError, requests.RequestException):
    """A refusal, as requests' error."""


class _NotInArchiveRequestError(NotInArchiveError, requests.RequestException):
    """Something that is not there, as requests' error."""


class _TimeoutRequestError(ServerTimeoutError, requests.Timeout):
    """An answer that did not come in time, as requests' error."""


class _TransferRequestError(TransferError, requests.ConnectionError):
    """A transfer that broke off, as requests' error."""


class _ServerRequestError(ServerError, requests.ConnectionError):
    """A server that cannot be reached, as requests' error."""


# The most special first.
_REQUEST_ERRORS: tuple[type[XNATDatastoreError], ...] = (
    _LoginRequestError,
    _AccessRequestError,
    _NotInArchiveRequestError,
    _TimeoutRequestError,
    _TransferRequestError,
    _ServerRequestError,
)


def _address(url: str) -> str:
    """Cut a URL down to what may be shown: no query, which may hold anything."""
    return url.partition("?")[0]


def _words_of(text: str) -> str:
    match = _MESSAGE.search(text)
    words = match.group(1) if match else "" if "<html" in text.lower() else text
    return " ".join(words.split())[:_LONGEST_MESSAGE]
