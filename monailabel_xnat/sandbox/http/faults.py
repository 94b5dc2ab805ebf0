"""What tests ask of the server: failures, a number of times, and the log of its requests."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One failure.

    Parameters
    ----------
    path
        Regular expression that the request's path must hold.
    method
        HTTP method; empty for all.
    query
        Regular expression that a value of the request's query must hold.
    times
        How often it happens; None: always.
    skip
        How many matching requests pass before.
    status
        Answer this status instead.
    retry_after
        ``Retry-After`` header that goes with it.
    delay
        Seconds to wait before the request is handled.
    drop_after
        Cut the connection after so many bytes of the answer's body.
    truncate
        Leave out the last so many bytes of the answer's body, and end it properly.
    login_page
        Answer XNAT's login page with status 200.
    json
        Answer this JSON, a text, with status 200.
    lose
        Answer 200 to a write, without doing it.
    expire
        End all sessions before the request is handled.
    stale
        Let a file PUT find its catalog changed by another writer: 500, the bytes on disk, no entry.
    """

    path: str = ""
    method: str = ""
    query: str = ""
    times: int | None = 1
    skip: int = 0
    status: int = 0
    retry_after: str = ""
    delay: float = 0.0
    drop_after: int | None = None
    truncate: int = 0
    login_page: bool = False
    json: str = ""
    lose: bool = False
    expire: bool = False
    stale: bool = False

    def spoil(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Return the blocks of an answer's body, cut where the failure says so."""
        if self.truncate:
            blocks = _without_end(blocks, self.truncate)
        return _first(blocks, self.drop_after) if self.drop_after is not None else iter(blocks)


def _without_end(blocks: Iterable[bytes], length: int) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        held += block
        yield held[:-length]
        held = held[-length:]


def _first(blocks: Iterable[bytes], length: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[:length]
        length -= len(block)
        if length <= 0:
            return


@dataclass
class Faults:
    """The failures that are set."""

    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: str = "", **what: object) -> Fault:
        """Set a failure; the parameters are those of :class:`Fault`."""
        fault = Fault(path, **what)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Take all failures back."""
        with self._lock:
            self._faults.clear()

    def due(self, method: str, path: str, query: Collection[str] = ()) -> Fault | None:
        """Return the failure that happens to a request now, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.method not in ("", method) or not re.search(fault.path, path):
                    continue
                if fault.query and not any(re.search(fault.query, value) for value in query):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.times is None:
                    return fault
                if fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


_LENGTH = 100_000


@dataclass
class Served:
    """One request that was answered; `bytes_out` and `seconds` are there once all is sent."""

    method: str
    path: str
    query: dict[str, str]
    user: str
    status: int
    bytes_in: int
    bytes_out: int = 0
    seconds: float = 0.0


class RequestLog:
    """The requests served, oldest first, the last 100,000; safe to read while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: deque[Served] = deque(maxlen=_LENGTH)

    def append(self, served: Served) -> None:
        """Note a request."""
        with self._lock:
            self._served.append(served)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._served.clear()

    def __iter__(self) -> Iterator[Served]:
        with self._lock:
            return iter(list(self._served))

    def __len__(self) -> int:
        with self._lock:
            return len(self._served)
