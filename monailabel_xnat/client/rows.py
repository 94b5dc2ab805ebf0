"""The rows of XNAT's listings, read while they arrive, or collected session by session if XNAT cannot list them."""

from __future__ import annotations

import codecs
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from monailabel_xnat.client.answers import whole_number
from monailabel_xnat.client.items import Fields, list_session_names, read_anywhere, read_subject
from monailabel_xnat.client.session import Query, Session, quoted
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, ServerError, TransferError

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Result = TypeVar("Result")

_BLOCK = 1 << 16
# The order of keys in XNAT's answer is not fixed: other keys may stand before or behind the rows. This text cannot be
# found within a value, because there the quotes would be escaped.
_START_OF_ROWS = re.compile(r'"Result"\s*:\s*\[')
_END_OF_ROW = "},"
_SECONDS_BETWEEN_NEWS = 10.0
_SCAN = "xnat:imagescandata/"
# The columns of a scan in the joined listing (without _SCAN), and the names of these values in the item of a session.
_OF_SCAN = {
    "id": "ID",
    "type": "type",
    "series_description": "series_description",
    "quality": "quality",
    "modality": "modality",
    "uid": "UID",
    "frames": "frames",
    "note": "note",
}
# The same for a resource of a scan; here both names are equal.
_OF_RESOURCE = ("label", "file_count", "file_size")


def read_listing(session: Session, path: str, query: Query, read: Callable[[Iterable[Row]], Result]) -> Result:
    """GET the listing of a whole project, and return what a function makes of its rows while they arrive.

    If the listing breaks off, it is read again from the beginning. Only one such listing is read at a time.

    Parameters
    ----------
    session : Session
        The connection.
    path : str
        Path below the site's address, percent-encoded.
    query : mapping
        Query parameters; ``format=json`` is added.
    read : callable
        Gets the rows, each a dictionary of texts, and returns the result. After a failure it is called again.

    Raises
    ------
    TransferError
        If the listing breaks off in each attempt.
    ServerError
        If XNAT fails, or its answer is not a listing.
    """
    pauses = session.backoff.pauses()
    while True:
        try:
            with session.pace.heavy("listing"), session.stream(path, {"format": "json", **query}) as response:
                return read(rows_of(response.iter_content(_BLOCK), path))
        except TransferError as error:
            pause = next(pauses, None)
            if pause is None:
                raise
            session.wait(pause, type(error).__name__)


def read_sessions(session: Session, query: Query, read: Callable[[Iterable[Row]], Result], project: str = "") -> Result:
    """Read the listing of the sessions in a project, or without one of all on the site; see :func:`read_listing`."""
    above = ("projects", project) if project else ()
    return read_listing(session, quoted("data", *above, "experiments"), query, read)


def rows_of(blocks: Iterable[bytes], path: str) -> Iterator[Row]:
    """Yield the rows of a result set, ``{"ResultSet": {"Result": [...], ...}}``, one by one.

    Parameters
    ----------
    blocks : iterable of bytes
        The JSON in UTF-8, cut into blocks at any place.
    path : str
        Path of the listing, for errors.

    Raises
    ------
    TransferError
        If it is not JSON, is cut off, or has another number of rows than XNAT counted. Some rows may have been yielded
        before that.
    ServerError
        If it is JSON, but not a result set.
    """
    text = _Arriving(blocks)
    start = text.find(_START_OF_ROWS)
    if start is None:
        _require_result_set(text.rest(), path)
        return
    before = text.take(start)
    given = 0
    while text.more():
        end = text.text.rfind(_END_OF_ROW) + 1
        try:
            rows = json.loads(f"[{text.text[:end]}]")
        except ValueError:  # this is not the end of a row: it stands within a text, or behind the rows
            continue
        if end:
            yield from _dictionaries(rows, path)
            given += len(rows)
            text.take(end + 1)
    last = "[" + text.rest()
    try:
        rows, end = json.JSONDecoder().raw_decode(last)
    except ValueError:
        raise _broken(path) from None
    yield from _dictionaries(rows, path)
    _require_result_set(before + last[end - 1 :], path, given + len(rows))


def _dictionaries(rows: list[Any], path: str) -> list[Row]:
    if not {dict}.issuperset(map(type, rows)):
        raise _no_listing(path)
    return rows


class _Arriving:
    """A text that arrives in blocks. ``text`` is the part that has arrived and has not been taken yet."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.text = ""

    def more(self) -> bool:
        """Fetch the next block, and return whether there was one."""
        block = next(self._blocks, None)
        if block is None:
            return False
        self.text += self._decoder.decode(block)
        return True

    def find(self, pattern: re.Pattern[str]) -> int | None:
        """Fetch blocks until a pattern is found, and return where it ends in ``text``; None if it never comes."""
        while True:
            found = pattern.search(self.text)
            if found:
                return found.end()
            if not self.more():
                return None

    def take(self, length: int) -> str:
        """Remove some characters from the beginning, and return them."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def rest(self) -> str:
        """Fetch all that is left, remove it and return it."""
        while self.more():
            pass
        return self.take(len(self.text))


def _require_result_set(envelope: str, path: str, rows: int = 0) -> None:
    """Raise an error unless the JSON around the rows is complete, and XNAT counted as many rows."""
    try:
        answer = json.loads(envelope)
    except ValueError:
        raise _broken(path) from None
    if not isinstance(answer, dict) or not isinstance(answer.get("ResultSet"), dict):
        raise _no_listing(path)
    if not isinstance(answer["ResultSet"].get("Result"), list):
        raise _no_listing(path)
    counted = str(answer["ResultSet"].get("totalRecords", ""))
    if counted.isdecimal() and whole_number(counted) != rows:
        raise TransferError(
            f"XNAT answered GET {path} with {rows} rows and says that they are {counted}",
            hint="it may have broken off: try again",
            url=path,
        )


def _broken(path: str) -> TransferError:
    return TransferError(
        f"XNAT answered GET {path} with something that is not JSON", hint="it may have broken off: try again", url=path
    )


def _no_listing(path: str) -> ServerError:
    return ServerError(
        f"XNAT answered GET {path} with something that is not a listing",
        hint="try again; if it stays, look for a proxy or sign-on page that changes answers",
        url=path,
    )


def walk(session: Session, project: str) -> Iterator[Row]:
    """Yield the rows that the joined listing of a project would have, one per session x scan x resource.

    Each session takes one request, because its item contains its scans and their resources. xnatpy's objects would
    need further requests for each scan and each of its resources. The log shows the progress.

    Parameters
    ----------
    session : Session
        The connection.
    project : str
        ID of the project; sessions that are shared into it are included.

    Raises
    ------
    TransferError
        If XNAT describes a session in an unknown form.
    ServerError
        If XNAT fails.
    """
    names = list_session_names(session, project)
    logger.info("XNAT cannot list the scans of a project at once: asking for each of its %d sessions", len(names))
    next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS

    @cache
    def subject_label(subject: str) -> str:
        """Return the label that its owner gave to the subject of a shared session; "" if this user may not see it."""
        try:
            return str(read_subject(session, subject)["items"][0]["data_fields"].get("label") or "")
        except (NotInArchiveError, AccessDeniedError):
            return ""

    def rows_of(name: Fields) -> list[Row]:
        try:
            item = read_anywhere(session, name["ID"])["items"][0]
        except (NotInArchiveError, AccessDeniedError):  # it was deleted, or the user may not see its type
            return []
        fields = item["data_fields"]
        is_own = fields.get("project") == project
        own_label = name.get("subject_label") or ""
        label = own_label if is_own else subject_label(str(fields.get("subject_ID") or "")) or own_label
        return list(_rows(item, label, name.get("insert_date") or ""))

    with ThreadPoolExecutor(session.settings.connections, thread_name_prefix="xnat-walk") as pool:
        try:
            for number, rows in enumerate(pool.map(rows_of, names), 1):
                yield from rows
                if time.monotonic() > next_news:
                    logger.info("%d of %d sessions of the project are read", number, len(names))
                    next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS
        except (KeyError, IndexError, TypeError, AttributeError):
            raise TransferError("XNAT described a session in an unknown form", hint="try again") from None


def _rows(item: Mapping[str, Any], subject_label: str, added: str) -> Iterator[Row]:
    fields = item["data_fields"]
    session = {
        "ID": fields["ID"],
        "xnat:imagesessiondata/subject_id": fields.get("subject_ID"),
        "project": fields.get("project"),
        "subject_label": subject_label,
        "label": fields.get("label"),
        "xsiType": item["meta"]["xsi:type"],
        "date": fields.get("date"),
        "insert_date": added,
        "UID": fields.get("UID"),
    }
    for scan in _children(item, "scans/scan"):
        of_scan = {_SCAN + name: scan["data_fields"].get(field) for name, field in _OF_SCAN.items()}
        for resource in [child["data_fields"] for child in _children(scan, "file")] or [{}]:
            of_resource = {f"{_SCAN}file/{name}": resource.get(name) for name in _OF_RESOURCE}
            row = {**session, **of_scan, **of_resource}
            yield {key: "" if value is None else str(value) for key, value in row.items()}


def _children(item: Mapping[str, Any], field: str) -> list[Any]:
    return [node for child in item.get("children", ()) if child["field"] == field for node in child["items"]]
