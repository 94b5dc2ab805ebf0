"""How hard this process works XNAT: how many requests at a time, how many a second, and none while XNAT wants rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from monailabel_xnat.client.retry import LONGEST_PAUSE
from monailabel_xnat.errors import ServerError


class Pace:
    """The pace of all threads of this process together.

    Parameters
    ----------
    connections : int
        How many requests may be under way at a time, transfers included.
    rate_limit : float
        How many requests may be started in a second, evenly spaced; 0: no limit.
    sleep : callable
        Waits for a number of seconds.
    clock : callable
        Seconds that only grow.
    """

    def __init__(
        self,
        connections: int,
        rate_limit: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connections = connections
        self._rate_limit = rate_limit
        self._sleep = sleep
        self._clock = clock
        self._slots = threading.BoundedSemaphore(connections)
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._rest_ends = 0.0
        self._rest_status = 0
        self._requests = self._repeated = self._under_way = 0
        self._heavy = threading.Lock()
        self._heavy_call = ""

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Have one of ``connections`` requests under way; a thread that has one already goes on with that."""
        if getattr(self._of_thread, "has_slot", False):
            yield
            return
        with self._slots:
            self._of_thread.has_slot = True
            with self._lock:
                self._under_way += 1
            try:
                yield
            finally:
                self._of_thread.has_slot = False
                with self._lock:
                    self._under_way -= 1

    @contextmanager
    def heavy(self, call: str) -> Iterator[None]:
        """Make a call that is hard work for XNAT, such as the listing of a whole project: one at a time."""
        with self._heavy:
            self._heavy_call = call
            try:
                yield
            finally:
                self._heavy_call = ""

    def admit(self) -> None:
        """Wait until the next request may be started, and count it.

        Raises
        ------
        ServerError
            If XNAT wants to be left alone for longer than anybody would wait for.
        """
        with self._lock:
            now = self._clock()
            rest = self._rest_ends - now
            if rest > LONGEST_PAUSE:
                raise ServerError(
                    f"XNAT asked not to be called again for another {rest:.0f} s",
                    hint="it is overloaded or being maintained; what can be answered from this machine still is",
                    status=self._rest_status,
                )
            start = max(now, self._rest_ends, self._next_start)
            self._next_start = start + (1 / self._rate_limit if self._rate_limit else 0.0)
            self._requests += 1
        if start > now:
            self._sleep(start - now)

    def rest(self, seconds: float, status: int) -> None:
        """Start no request for some seconds, as XNAT asked with an answer of this status."""
        with self._lock:
            self._rest_ends = max(self._rest_ends, self._clock() + seconds)
            self._rest_status = status

    def repeat(self) -> None:
        """Count a request that is sent again because it had failed for a passing reason."""
        with self._lock:
            self._repeated += 1

    def summary(self) -> dict[str, Any]:
        """Tell the limits, what was sent so far, and what goes on now."""
        with self._lock:
            resting = self._rest_ends - self._clock()
            facts = {
                "connections": self._connections,
                "rate_limit": self._rate_limit,
                "requests": self._requests,
                "repeated": self._repeated,
                "under_way": self._under_way,
            }
        now = {"resting": round(max(resting, 0.0), 1), "heavy": self._heavy_call}
        return {**facts, **{key: value for key, value in now.items() if value}}


class PacedAdapter(HTTPAdapter):
    """The one door for all requests of a connection, those of its login included.

    Parameters
    ----------
    pace : Pace
        Tells when each may be started.
    pool_maxsize : int
        How many connections are kept open.
    """

    def __init__(self, pace: Pace, pool_maxsize: int) -> None:
        super().__init__(pool_maxsize=pool_maxsize)
        self._pace = pace

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send a request when its time has come."""
        self._pace.admit()
        return super().send(request, *args, **options)
