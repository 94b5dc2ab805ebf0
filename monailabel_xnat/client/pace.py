"""When requests are sent: how many at a time and a second, none while XNAT wants rest, and when once more."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from monailabel_xnat.errors import ServerError

# What proxies and overloaded servers answer for a moment; every other status is an answer to be believed.
TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})
# Repeating these does no harm: our PUTs carry unique names or say overwrite.
REPEATABLE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
# A server that asks for a longer pause is treated as away: MONAI Label's event loop waits with us.
LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with jitter.

    Parameters
    ----------
    attempts : int
        How often a request is sent at most.
    first_pause : float
        Seconds before the second attempt; doubles from then on.
    sleep : callable
        Waits for a number of seconds.
    """

    attempts: int = 4
    first_pause: float = 0.5
    sleep: Callable[[float], None] = time.sleep

    def pauses(self) -> Iterator[float]:
        """Give the pauses between the attempts, in seconds."""
        for attempt in range(self.attempts - 1):
            # Jitter keeps many workers from coming back in step; it guards nothing.
            yield min(self.first_pause * 2**attempt * random.uniform(0.75, 1.25), LONGEST_PAUSE)  # noqa: S311


def requested_pause(retry_after: str | None, date: str | None = None) -> float | None:
    """Read a ``Retry-After`` header (RFC 9110, 10.2.3).

    Parameters
    ----------
    retry_after : str or None
        The header: a number of seconds, or the time at which to come back.
    date : str or None
        The ``Date`` header of the same answer: that clock counts, ours may differ.

    Returns
    -------
    float or None
        Seconds to wait, None if the header says nothing usable.
    """
    text = (retry_after or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        then, now = _time_of(text), _time_of(date or "") or datetime.now(timezone.utc)
        return max(0.0, (then - now).total_seconds()) if then else None
    return seconds if 0 <= seconds < float("inf") else None


def _time_of(text: str) -> datetime | None:
    try:
        time_of = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return time_of if time_of.tzinfo else time_of.replace(tzinfo=timezone.utc)


class Slot:
    """One request under way, from before it is sent to the end of its answer's body.

    A body that nobody reads must not block the other requests for ever: once the answer has begun, a slot whose body
    has not been read for ``idle_limit`` seconds no longer counts.
    """

    def __init__(self, pace: Pace, *, counts: bool) -> None:
        self._pace = pace
        self._idle_ends = float("inf")
        self.thread = threading.current_thread()
        self.counts = counts

    def touch(self) -> None:
        """Note that the answer is being read."""
        self._idle_ends = self._pace.idle_ends()

    def is_idle(self, now: float) -> bool:
        """Return whether the body has been left unread for too long."""
        return now >= self._idle_ends

    @property
    def idle_ends(self) -> float:
        """When the slot stops to count, on the clock of its pace; never before the answer has begun."""
        return self._idle_ends

    def release(self) -> None:
        """Let the next request go; may be called more than once."""
        if self.counts:
            self.counts = False
            self._pace.leave(self)


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
    idle_limit : float
        Seconds after which an answer that is not being read no longer counts as under way.
    """

    def __init__(
        self,
        connections: int,
        rate_limit: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        idle_limit: float = 120.0,
    ) -> None:
        self._connections = connections
        self._rate_limit = rate_limit
        self._sleep = sleep
        self._clock = clock
        self._idle_limit = idle_limit
        self.reset()

    def reset(self) -> None:
        """Start anew, as at the beginning; in a forked child locks and slots are those of the parent's threads."""
        self._lock = threading.Lock()
        # Reentrant: a response that the garbage collector finds releases its slot, in whichever thread that happens.
        self._changed = threading.Condition(threading.RLock())
        self._slots: set[Slot] = set()
        self._waiting: deque[object] = deque()
        self._next_start = 0.0
        self._rest_ends = 0.0
        self._rest_status = 0
        self._requests = self._repeated = 0
        self._heavy = threading.Lock()
        self._heavy_call = ""

    def take(self) -> Slot:
        """Wait, first come first served, until one of ``connections`` requests may be under way.

        A thread that has a slot already goes on with that one: it may ask something while it reads a download.
        """
        thread = threading.current_thread()
        with self._changed:
            if any(slot.thread is thread for slot in tuple(self._slots)):
                return Slot(self, counts=False)
            ticket = object()
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or not self._has_room():
                    self._changed.wait(self._until_next_idle())
                slot = Slot(self, counts=True)
                self._slots.add(slot)
                return slot
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def leave(self, slot: Slot) -> None:
        """Take back a slot; see :meth:`Slot.release`."""
        with self._changed:
            self._slots.discard(slot)
            self._changed.notify_all()

    def idle_ends(self) -> float:
        """Return until when an answer counts as under way if nobody reads it from now on."""
        return self._clock() + self._idle_limit

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Have one of ``connections`` requests under way within the block."""
        taken = self.take()
        try:
            yield
        finally:
            taken.release()

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
        """Return the limits, what was sent so far, and what goes on now."""
        with self._changed:
            under_way = len(self._slots)
        with self._lock:
            resting = self._rest_ends - self._clock()
            facts = {
                "connections": self._connections,
                "rate_limit": self._rate_limit,
                "requests": self._requests,
                "repeated": self._repeated,
                "under_way": under_way,
            }
        now = {"resting": round(max(resting, 0.0), 1), "heavy": self._heavy_call}
        return {**facts, **{key: value for key, value in now.items() if value}}

    def _has_room(self) -> bool:
        now = self._clock()
        self._slots = {slot for slot in tuple(self._slots) if not slot.is_idle(now)}
        return len(self._slots) < self._connections

    def _until_next_idle(self) -> float | None:
        ends = min((slot.idle_ends for slot in tuple(self._slots)), default=float("inf"))
        return None if ends == float("inf") else max(ends - self._clock(), 0.01)
