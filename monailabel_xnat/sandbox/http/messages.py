"""What handlers get and what they answer: requests with their files and fields, answers, and XNAT's error pages.

XNAT's errors below ``/data`` are Restlet's HTML status page, with the message in ``<h3>``; below ``/xapi``, plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree

from monailabel_xnat.sandbox.access.accounts import Session, User

if TYPE_CHECKING:
    from python_multipart.multipart import File

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
        The bytes, or an iterable of blocks, which is sent chunked unless `length` is given.
    media_type
        ``Content-Type``; empty for none.
    length
        Number of bytes of an iterable body, if it is known before.
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
        """Return the answer to HEAD, which has only the headers."""
        length = len(self.body) if isinstance(self.body, bytes) else self.length
        return replace(self, body=iter(()), length=length)

    def header_list(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as ASGI expects them, with lower-case names."""
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]
        if self.media_type:
            headers.append((b"content-type", self.media_type.encode("latin-1")))
        length = len(self.body) if isinstance(self.body, bytes) else self.length
        if length is not None:
            headers.append((b"content-length", str(length).encode("ascii")))
        return headers


class HTTPError(Exception):
    """A refusal. The application makes XNAT's error page of it or, below ``/xapi``, plain text.

    Parameters
    ----------
    status
        HTTP status.
    message
        XNAT's message. If it is empty, the standard description of the status is used.
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
    """Return the number of a status's paragraph in RFC 2616 section 10, to which Restlet links."""
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


MEDIA_TYPES = {"json": "application/json", "html": "text/html", "xml": "text/xml", "csv": "text/csv"}
_LARGEST_FORM = 1 << 20
FORMATS_OF_ALL = frozenset(("json", "html", "xml"))


@dataclass
class Request:
    """One request.

    Parameters
    ----------
    method, path
        As the client sent them. The path is still percent-encoded.
    query
        The decoded parameters.
    headers
        The headers, by lower-case name.
    body
        The body. A large body is on disk.
    length
        The length of the body, or None if it came chunked.
    user, session
        Who sends the request.
    began
        The count of changes of catalogs when the request arrived. A later change was made by another writer.
    is_stale
        Whether to act as if another writer changed each catalog before this request does.
    context
        The path below which the site is deployed. `path` starts after it.
    is_inside
        Whether the path lies within the site.
    pairs
        The parameters in order, also those that come several times.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: BinaryIO
    length: int | None
    user: User
    session: Session | None = None
    began: int = 0
    is_stale: bool = False
    context: str = ""
    is_inside: bool = True
    pairs: Sequence[tuple[str, str]] = ()

    @property
    def words(self) -> list[str]:
        """The segments of the path, still percent-encoded, without empty ones at the end."""
        words = self.path.split("/")[1:]
        while words and not words[-1]:
            words.pop()
        return words

    @property
    def content_type(self) -> str:
        """The media type of the body, without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def flag(self, name: str) -> bool:
        """Return a boolean parameter. Any value except ``false`` and ``0`` is true (SecureResource)."""
        value = self.query.get(name)
        return value is not None and value.lower() not in ("false", "0")

    def form(self) -> dict[str, str]:
        """Return the parameters in a URL-encoded body."""
        if self.content_type != "application/x-www-form-urlencoded":
            return {}
        text = self.body.read(_LARGEST_FORM).decode("utf-8", "replace")
        self.body.seek(0)
        return {name: escaped(value) for name, value in parse_qsl(text, keep_blank_values=True)}

    def values(self, name: str) -> list[str]:
        """Return every value of a parameter that may come several times."""
        return [value for key, value in self.pairs if key == name]

    def format(self, offered: Sequence[str]) -> str:
        """Return the format of the answer: ``format=``, else what ``Accept`` prefers, else the first one offered.

        Raises
        ------
        HTTPError
            406 if the client accepts none of the formats offered.
        """
        asked = self.query.get("format", "")
        if asked in MEDIA_TYPES:
            return asked if asked in FORMATS_OF_ALL or asked in offered else offered[0]
        ranges = _media_ranges(self.headers.get("accept", "*/*"))
        scores = [(_quality(MEDIA_TYPES[name], ranges), -place, name) for place, name in enumerate(offered)]
        quality, _, best = max(scores)
        if quality <= 0:
            raise HTTPError(406)
        return best


def _media_ranges(header: str) -> dict[str, float]:
    found = {}
    for part in header.split(","):
        name, *parameters = [word.strip() for word in part.split(";")]
        weights = [word[2:] for word in parameters if word.startswith("q=")]
        try:
            found[name.lower()] = float(weights[0]) if weights else 1.0
        except ValueError:
            found[name.lower()] = 0.0
    return found


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    names = [media_type, f"{media_type.partition('/')[0]}/*", "*/*"]
    if media_type == "text/xml":
        names.insert(1, "application/xml")
    return next((ranges[name] for name in names if name in ranges), 0.0)


def text_of(segment: str) -> str:
    """Return a segment of a path, decoded. XNAT escapes what it receives, as in HTML."""
    return escaped(unquote(segment))


def escaped(text: str) -> str:
    """Escape ``&``, ``<``, ``>`` and ``"``, as XNAT does with what it receives (``TurbineUtils.escapeParam``)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def parsed_xml(document: bytes, status: int = 400, of_doctype: int = 0) -> ElementTree.Element:
    """Return the root of an XML document that a client sent.

    Raises
    ------
    HTTPError
        With the status, if it is not XML; with `of_doctype`, if it has a document type declaration, which could define
        entities.
    """
    if b"<!DOCTYPE" in document:
        raise HTTPError(of_doctype or status, "A document type declaration is refused")
    try:
        return ElementTree.fromstring(document)  # noqa: S314 - entities need the declaration refused above
    except ElementTree.ParseError as error:
        raise HTTPError(status, f"Not an XML document: {error}") from None


MULTIPART = "multipart/form-data"


@contextmanager
def form_files(request: Request, name: str = "") -> Iterator[list[tuple[str, BinaryIO]]]:
    """Yield the name and the content of each file of a request.

    Parameters
    ----------
    request
        The request.
    name
        The name of the file, if it is to have another name than in the form.

    Raises
    ------
    HTTPError
        400 for a damaged form, or one without a file.
    """
    if request.content_type != MULTIPART:
        yield [(name, request.body)]
        return
    # Imported here, because this import would make the start 0.05 seconds longer.
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_form

    files: list[File] = []
    header = {"Content-Type": request.headers["content-type"].encode("latin-1")}
    with ExitStack() as stack:
        try:
            parse_form(header, request.body, None, files.append)
        except FormParserError as error:
            raise HTTPError(400, f"The form is damaged: {error}") from error
        found = []
        for file in files:
            stack.callback(file.close)
            file.file_object.seek(0)
            own_name = (file.file_name or b"").decode("utf-8", "replace")
            found.append((name or own_name, cast("BinaryIO", file.file_object)))
        if not found:
            raise HTTPError(400, "The form has no file.")
        yield found
