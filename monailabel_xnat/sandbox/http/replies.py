"""What a handler answers: a status, a body, headers; and XNAT's error pages.

XNAT's ``/data`` errors are Restlet's HTML status page, with the message in ``<h3>``; ``/xapi`` errors are plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

STANDARD_MESSAGES = {
    400: "The request could not be understood by the server due to malformed syntax",
    401: "The request requires user authentication",
    403: "The server understood the request, but is refusing to fulfill it",
    404: "The server has not found anything matching the request URI",
    405: "The method specified in the request is not allowed for the resource identified by the request URI",
    406: "The resource identified by the request is only capable of generating response entities which have "
    "content characteristics not acceptable according to the accept headers sent in the request",
    409: "The request could not be completed due to a conflict with the current state of the resource",
    416: "The request includes a Range request-header field and the selected resource is too small",
    417: "The expectation given in the Expect request-header could not be met by this server",
    422: "The server understands the content type of the request entity and the syntax is correct, "
    "but was unable to process the contained instructions",
    500: "The server encountered an unexpected condition which prevented it from fulfilling the request",
}


@dataclass
class Reply:
    """One HTTP answer.

    Parameters
    ----------
    body
        The bytes, or an iterable of blocks (sent chunked unless `length` is given).
    media_type
        ``Content-Type``; empty for none.
    length
        Number of bytes of an iterable body where it is known beforehand.
    """

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    media_type: str = "text/plain; charset=UTF-8"
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | None = None

    def blocks(self) -> Iterator[bytes]:
        """Return the body block by block."""
        return iter((self.body,)) if isinstance(self.body, bytes) else iter(self.body)

    def head(self) -> Reply:
        """Return the answer to HEAD: the headers alone."""
        length = len(self.body) if isinstance(self.body, bytes) else self.length
        return replace(self, body=iter(()), length=length)

    def header_list(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as ASGI wants them, lower-cased names."""
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]
        if self.media_type:
            headers.append((b"content-type", self.media_type.encode("latin-1")))
        length = len(self.body) if isinstance(self.body, bytes) else self.length
        if length is not None:
            headers.append((b"content-length", str(length).encode("ascii")))
        return headers


class HTTPError(Exception):
    """A refusal; the application turns it into XNAT's error page or, under ``/xapi``, into plain text.

    Parameters
    ----------
    status
        HTTP status.
    message
        What XNAT says; the standard description of the status when empty.
    headers
        Further headers, such as ``WWW-Authenticate``.
    """

    def __init__(self, status: int, message: str = "", headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message or STANDARD_MESSAGES.get(status, HTTPStatus(status).phrase))
        self.status = status
        self.headers = list(headers)

    def page(self) -> Reply:
        """Return Restlet's status page."""
        text = (
            "<html>\n<head>\n<title>Status page</title>\n</head>\n<body>\n"
            f"<h3>{self}</h3><p>You can get technical details "
            f'<a href="http://www.w3.org/Protocols/rfc2616/rfc2616-sec10.html#sec10.{_section(self.status)}">here</a>.<br>\n'
            'Please continue your visit at our <a href="/">home page</a>.\n</p>\n</body>\n</html>\n'
        )
        return html(text, self.status, self.headers)

    def text(self) -> Reply:
        """Return the message alone, as ``/xapi`` does."""
        return Reply(str(self).encode(), self.status, headers=list(self.headers))


def _section(status: int) -> str:
    """Return the place of a status in RFC 2616 section 10, as Restlet links it."""
    return f"{status // 100}.{status % 100 + 1}"


def text(body: str = "", status: int = 200) -> Reply:
    """Return a plain text answer."""
    return Reply(body.encode(), status)


def html(body: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """Return an HTML answer."""
    return Reply(body.encode(), status, "text/html; charset=UTF-8", list(headers))


def as_json(value: Any, status: int = 200) -> Reply:
    """Return a JSON answer."""
    return Reply(json.dumps(value).encode(), status, "application/json")


def xml(body: str, status: int = 200) -> Reply:
    """Return an XML answer."""
    return Reply(body.encode(), status, "text/xml; charset=UTF-8")
