"""The end of requests that make no progress.

Time limits of sockets hold for each piece that arrives: a server that sends one byte now and then passes them for
ever, in the middle of the headers as well as in a body. So a thread looks after all requests of a session, and shuts
the connection of one that moves too slowly. Two things it cannot end, for there is no connection yet: the resolution
of the host's name, which is the operating system's, and connecting to one after the other of a host's addresses, each
of which has :data:`LONGEST_CONNECT` seconds.
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
"""Bytes that must have moved each time the seconds of a deadline are over."""

# How often the deadlines are looked at, and after how many looks without any the thread ends.
_TICK = 0.1
_IDLE_TICKS = 20

_of_thread = threading.local()


class Watch:
    """Ends requests whose deadline is over, from a thread that runs while there are requests."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew, as in a forked child, where the thread does not run."""
        self._lock = threading.Lock()
        self._running: set[Deadline] = set()
        self._is_watching = False

    def add(self, deadline: Deadline) -> None:
        """Look after a request."""
        self._running.add(deadline)
        if not self._is_watching:
            with self._lock:
                if not self._is_watching:
                    self._is_watching = Background("xnat-deadlines", self._watch).start()

    def discard(self, deadline: Deadline) -> None:
        """Look after a request no more."""
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
    """The time that one request may take: so many seconds, and as many anew for each :data:`ENOUGH` bytes that move.

    Parameters
    ----------
    seconds : float
        How long nothing may move.
    watch : Watch
        Ends the request.
    on_progress : callable
        Called whenever something has come.
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
        """Let the time run within the block, in which this thread sends or reads.

        Raises
        ------
        requests.Timeout
            If it is over, or a time limit of the socket is.
        """
        # Between two blocks the time stands still: then whoever reads is at work, not the server.
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
        if self._is_over:  # what has no announced length ends with the connection
            raise requests.ReadTimeout(f"less than {ENOUGH} bytes came in {self.seconds:g} s")

    def take(self, connected: socket.socket) -> None:
        """End this connection at the deadline; the request has no other from now on."""
        # For what is sent, urllib3 would keep to the time in which a connection must be made.
        connected.settimeout(self.seconds)
        # A second handle, for the first one may be detached by TLS, or closed in another thread.
        handle = socket.socket(fileno=socket.dup(connected.fileno()))
        with self._lock:
            before, self._socket = self._socket, handle
        if before is not None:
            before.close()

    def let_go(self) -> None:
        """Leave the connection to whoever uses it next."""
        with self._lock:
            handle, self._socket = self._socket, None
        if handle is not None:
            handle.close()

    def sent(self, count: int) -> None:
        """Note within the block that so many bytes were sent; the network has taken them, if not yet the server."""
        self._ends = min(time.monotonic() + self.seconds, self._ends + self.seconds * count / ENOUGH)

    def received(self, count: int) -> None:
        """Note within the block that so many bytes have come."""
        self.sent(count)
        if count:
            self._on_progress()

    def answered(self) -> None:
        """Note within the block that XNAT has begun to answer."""
        self._ends = time.monotonic() + self.seconds
        self._on_progress()

    def end_if_over(self) -> None:
        """Shut the connection if the time is over; whoever waits for it goes on with an error."""
        if time.monotonic() < self._ends:
            return
        self._is_over = True
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


class TimedBody:
    """Stands for the raw body of an answer, and is read under the deadline of its request.

    Everything else is that of the raw body.
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
        """Read from the body, a piece at a time, so that it shows when it moves."""
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
        """Read the body in parts, which may be smaller than what is asked for."""
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
    """An adapter of requests whose connections tell the deadline of a request what they are connected by."""

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
    """A connection that tells the deadline of the request about itself, and how much it has sent."""

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
    """Return whether an error comes of a time limit, whatever requests and urllib3 have made of it."""
    known, waiting = set(), [error]
    while waiting:
        found = waiting.pop()
        if id(found) in known:
            continue
        known.add(id(found))
        timed_out = isinstance(found, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError))
        # An old urllib3 makes an error of time out of a connection that was refused.
        if timed_out and not isinstance(found, urllib3.exceptions.NewConnectionError):
            return True
        linked = (*found.args, getattr(found, "reason", None), found.__cause__)
        waiting += [other for other in linked if isinstance(other, BaseException)]
    return False
