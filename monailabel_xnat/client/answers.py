"""What XNAT's answers mean: from HTTP statuses, pages and network failures to our errors."""

from __future__ import annotations

import re

import requests

from monailabel_xnat.errors import (
    AccessDeniedError,
    LoginError,
    NotInArchiveError,
    ServerError,
    ServerTimeoutError,
    TransferError,
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
    """Tell whether XNAT answered with a web page, as it does for a lost login, where data was asked for.

    XNAT reports duplicates of an upload as JSON labelled ``text/html``, so the type alone does not tell for writes.
    """
    if not response.headers.get("Content-Type", "").lower().startswith("text/html"):
        return False
    if response.request.method in ("GET", "HEAD"):
        return True
    return response.content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))


def failure(response: requests.Response) -> ServerError:
    """Make the error for an answer that is not a success."""
    path = _address(response.url)
    kind, hint = _BY_STATUS.get(response.status_code, (ServerError, "see the log of the XNAT server"))
    message = f"XNAT answered {response.status_code} to {response.request.method} {path}: {_words_of(response)}"
    return kind(message, hint=hint, url=path, status=response.status_code)


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


def _address(url: str) -> str:
    """Cut a URL down to what may be shown: no query, which may hold anything."""
    return url.partition("?")[0]


def _words_of(response: requests.Response) -> str:
    text = response.text
    match = _MESSAGE.search(text)
    words = match.group(1) if match else "" if "<html" in text.lower() else text
    return " ".join(words.split())[:_LONGEST_MESSAGE] or response.reason or "no explanation"
