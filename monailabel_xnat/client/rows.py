"""The rows of XNAT's listings, read while they arrive, so that a listing of any length takes little memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from monailabel_xnat.client.session import Query, Session, quoted
from monailabel_xnat.errors import ServerError, TransferError

Row = dict[str, Any]
Result = TypeVar("Result")

_BLOCK = 1 << 16
# XNAT fixes no order of keys: what stands around the rows may come before or after them. Within a text the quotes
# would be escaped, so that this is found nowhere else.
_START_OF_ROWS = re.compile(r'"Result"\s*:\s*\[')
_END_OF_ROW = "},"


def read_listing(session: Session, path: str, query: Query, read: Callable[[Iterable[Row]], Result]) -> Result:
    """GET the listing of a whole project and have its rows read as they arrive.

    One that breaks off is read again from the beginning. Of such listings one at a time is asked for.

    Parameters
    ----------
    session : Session
        The connection.
    path : str
        Below the site's address, already percent-encoded.
    query : mapping
        Query parameters; ``format=json`` is added.
    read : callable
        Is given the rows, each a dictionary of texts, and makes something of them.

    Raises
    ------
    TransferError
        If it breaks off again and again.
    ServerError
        If XNAT fails, or what it answers is not a listing.
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
    """Have the listing of the sessions in a project read, or of all on the site; see :func:`read_listing`."""
    above = ("projects", project) if project else ()
    return read_listing(session, quoted("data", *above, "experiments"), query, read)


def rows_of(blocks: Iterable[bytes], path: str) -> Iterator[Row]:
    """Give the rows of a result set, ``{"ResultSet": {"Result": [...], ...}}``, one by one.

    Parameters
    ----------
    blocks : iterable of bytes
        The JSON, UTF-8, cut anywhere.
    path : str
        Where it comes from, for errors.

    Raises
    ------
    TransferError
        If it is no JSON, or half of one, or has other rows than XNAT counted; the rows before that have been given.
    ServerError
        If it is something else than a result set.
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
        except ValueError:  # no end of a row, but what looks like one within a text, or behind the rows
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
    if not all(isinstance(row, dict) for row in rows):
        raise _no_listing(path)
    return rows


class _Arriving:
    """A text of which the beginning is here: what has been taken is forgotten, more is fetched on demand."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.text = ""

    def more(self) -> bool:
        """Fetch the next block; False if there is none."""
        block = next(self._blocks, None)
        if block is None:
            return False
        self.text += self._decoder.decode(block)
        return True

    def find(self, pattern: re.Pattern[str]) -> int | None:
        """Fetch until a pattern is here and give where it ends; None if it never comes."""
        while True:
            found = pattern.search(self.text)
            if found:
                return found.end()
            if not self.more():
                return None

    def take(self, length: int) -> str:
        """Give the beginning, and forget it."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def rest(self) -> str:
        """Give all that is left."""
        while self.more():
            pass
        return self.take(len(self.text))


def _require_result_set(envelope: str, path: str, rows: int = 0) -> None:
    """Require that what stood around the rows is whole, and that XNAT counted as many."""
    try:
        answer = json.loads(envelope)
    except ValueError:
        raise _broken(path) from None
    if not isinstance(answer, dict) or not isinstance(answer.get("ResultSet"), dict):
        raise _no_listing(path)
    if not isinstance(answer["ResultSet"].get("Result"), list):
        raise _no_listing(path)
    counted = str(answer["ResultSet"].get("totalRecords", ""))
    if counted.isdecimal() and int(counted) != rows:
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
    return ServerError(f"XNAT answered GET {path} with something that is not a listing", url=path)
