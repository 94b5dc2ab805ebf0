"""Deadlines that end requests which make no progress.

The time limit of a socket starts again with each piece that arrives. A server that sends one byte now and then never
exceeds it, neither in the headers nor in a body. So a thread watches all requests of a session, and shuts the
connection of a request that moves too slowly. It cannot end two steps, because there is no connection yet: the
operating system resolves the host's name, and the addresses of the host are tried one after the other, each for
:data:`LONGEST_CONNECT` seconds.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from monailabel_xnat.background import Background

LONGEST_CONNECT = 15.0
"""Seconds in which a connection must be made: networks repeat a lost packet after 1, 3 and 7 seconds."""
ENOUGH = 1 << 17
"""Bytes that must move within the seconds of a deadline."""

# Seconds between two looks at the deadlines, and the number of looks without any deadline after which the thread ends.
_TICK = 0.1
_IDLE_TICKS = 20

_of_thread = threading.local()


class Watch:
    """Ends requests whose deadline is over. Its thread runs while there are requests."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all requests, as a forked child must: the thread does not run there."""
        self._lock = threading.Lock()
        self._running: set[Deadline] = set()
        self._is_watching = False

    def add(self, deadline: Deadline) -> None:
        """Watch a request."""
        self._running.add(deadline)
        if not self._is_watching:
            with self._lock:
                if not self._is_watching:
                    self._is_watching = Background("xnat-deadlines", self._watch).start()

    def discard(self, deadline: Deadline) -> None:
        """Stop watching a request."""
        self._running.discard(deadline)

    def _watch(self) -> None:
        idle = 0
        while True:
            time.sleep(_TICK)
            for deadline in tuple(self._running):
                deadline.end_if_over()
            idle = 0 if self._running else idle + 1
            if idle > _IDLE_TICKS:
                with self._lock:
                    if not self._running:
                        self._is_watching = False
                        return


class Deadline:
    """The time that one request may take: some seconds, which start again when :data:`ENOUGH` bytes have moved.

    Fewer bytes lengthen the time in proportion, up to the full number of seconds.

    Parameters
    ----------
    seconds : float
        How long the request may make no progress.
    watch : Watch
        Ends the request when the time is over.
    on_progress : callable
        Called whenever bytes have arrived.
    """

    def __init__(self, seconds: float, watch: Watch, on_progress: Callable[[], None]) -> None:
        self.seconds = seconds
        self._watch = watch
        self._on_progress = on_progress
        self._left = seconds
        self._ends = 0.0
        self._is_over = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within the block, in which this thread sends or reads.

        Raises
        ------
        requests.Timeout
            If the time is over, or a time limit of the socket.
        """
        # Between two blocks the time does not count: then the reader is busy, and not the server.
        self._ends = time.monotonic() + self._left
        before = getattr(_of_thread, "deadline", None)
        _of_thread.deadline = self
        self._watch.add(self)
        try:
            yield
        except requests.Timeout:
            raise
        except Exception as error:
            if self._is_over or is_timeout(error):
                raise requests.ReadTimeout(error) from error
            raise
        finally:
            self._watch.discard(self)
            self._left = self._ends - time.monotonic()
            _of_thread.deadline = before
        if self._is_over:  # a body without an announced length simply ends when the connection is shut
            raise requests.ReadTimeout(f"less than {ENOUGH} bytes came in {self.seconds:g} s")

    def take(self, connected: socket.socket) -> None:
        """Set the connection that is shut at the deadline: the one that the request uses from now on."""
        # While urllib3 sends, it would still use the time limit for making a connection.
        connected.settimeout(self.seconds)
        # This is a second handle, because TLS may detach the first one, and another thread may close it.
        handle = socket.socket(fileno=socket.dup(connected.fileno()))
        with self._lock:
            before, self._socket = self._socket, handle
        if before is not None:
            before.close()

    def let_go(self) -> None:
        """Release the connection, so that the deadline no longer shuts it: the next request may use it."""
        with self._lock:
            handle, self._socket = self._socket, None
        if handle is not None:
            handle.close()

    def sent(self, count: int) -> None:
        """Count bytes that were sent within the block: the network has taken them, but perhaps not yet the server."""
        self._ends = min(time.monotonic() + self.seconds, self._ends + self.seconds * count / ENOUGH)

    def received(self, count: int) -> None:
        """Count bytes that have arrived within the block."""
        self.sent(count)
        if count:
            self._on_progress()

    def answered(self) -> None:
        """Note within the block that XNAT has begun to answer."""
        self._ends = time.monotonic() + self.seconds
        self._on_progress()

    def end_if_over(self) -> None:
        """Shut the connection if the time is over. The thread that waits for it gets an error."""
        if time.monotonic() < self._ends:
            return
        self._is_over = True
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


class TimedBody:
    """The raw body of an answer, wrapped so that each read counts against the deadline of its request.

    All other attributes are those of the raw body.
    """

    def __init__(self, raw: Any, deadline: Deadline) -> None:
        self._raw = raw
        self._deadline = deadline
        weakref.finalize(self, deadline.let_go)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def __iter__(self) -> Iterator[bytes]:
        return self.stream()

    def read(self, amt: int | None = None, **options: Any) -> bytes:
        """Return bytes of the body. They are read in pieces, so that the deadline sees the progress."""
        pieces: list[bytes] = []
        left = amt
        while left is None or left > 0:
            size = ENOUGH if left is None else min(left, ENOUGH)
            piece = self._timed(partial(self._raw.read, size, **options))
            if not piece:
                self._deadline.let_go()
                break
            pieces.append(piece)
            left = None if left is None else left - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stream(self, amt: int = 1 << 16, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body in parts, which may be smaller than ``amt`` bytes."""
        parts = self._raw.stream(min(amt, ENOUGH), decode_content=decode_content)
        while (part := self._timed(partial(next, parts, None))) is not None:
            yield part
        self._deadline.let_go()

    def _timed(self, read: Callable[[], bytes | None]) -> bytes | None:
        try:
            with self._deadline.running():
                part = read()
                self._deadline.received(len(part or b""))
        except BaseException:
            self.close()
            raise
        return part

    def close(self) -> None:
        """Close the body."""
        self._deadline.let_go()
        self._raw.close()

    def release_conn(self) -> None:
        """Return the connection to its pool."""
        self._deadline.let_go()
        release = getattr(self._raw, "release_conn", None)
        if release is not None:
            release()


class TimedAdapter(HTTPAdapter):
    """An adapter of requests whose connections pass their socket to the deadline of the request."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of connections."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pools of connections to a proxy."""
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager


class _Connection(HTTPConnection):
    """A connection that passes its socket, and the number of bytes it has sent, to the deadline of the request."""

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        _tell(connected)
        return connected

    def putrequest(self, *args: Any, **options: Any) -> None:
        if self.sock is not None:
            _tell(self.sock)
        super().putrequest(*args, **options)

    def send(self, data: Any) -> None:
        super().send(data)
        deadline: Deadline | None = getattr(_of_thread, "deadline", None)
        if deadline is not None:
            deadline.sent(len(data))


class _SecureConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


def _tell(connected: socket.socket) -> None:
    deadline: Deadline | None = getattr(_of_thread, "deadline", None)
    if deadline is not None:
        deadline.take(connected)


def is_timeout(error: BaseException) -> bool:
    """Return whether a time limit caused an error; the errors that requests and urllib3 wrapped are searched for it."""
    known, waiting = set(), [error]
    while waiting:
        found = waiting.pop()
        if id(found) in known:
            continue
        known.add(id(found))
        timed_out = isinstance(found, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError))
        # In old versions of urllib3 the error for a refused connection is a subclass of its timeout error.
        if timed_out and not isinstance(found, urllib3.exceptions.NewConnectionError):
            return True
        linked = (*found.args, getattr(found, "reason", None), found.__cause__)
        waiting += [other for other in linked if isinstance(other, BaseException)]
    return False
