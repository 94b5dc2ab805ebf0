"""The pace of requests: how many at a time and per second, the pauses that XNAT asks for, and those before repeats."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from monailabel_xnat.client.answers import http_time
from monailabel_xnat.errors import ServerError, ServerTimeoutError

# A request that gets one of these is repeated after a short pause; every other status is XNAT's answer. 504 is not
# among them: the proxy has stopped waiting, but XNAT may still be working on the request. Such a request may work later
# (see ServerError.may_pass_later), but is not repeated now.
MAY_BE_REPEATED_NOW = frozenset({429, 502, 503})
# Repeating these does no harm: our PUTs use unique names, or say that an existing file is to be overwritten.
REPEATABLE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
# A server that asks for a longer pause counts as unreachable, because MONAI Label's event loop waits with us.
LONGEST_PAUSE = 30.0
# After XNAT did not answer in time, the next requests wait for one third of the usual time, but at least two seconds.
# If XNAT does not answer these either, it gets no request for up to ten seconds.
_SHARE_OF_A_LOOK, _SHORTEST_LOOK = 3, 2.0
_LEFT_ALONE = 10.0
# The background gets one of this many slots, even if people wait for all of them.
_BACKGROUND_SHARE = 4

_of_thread = threading.local()


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with jitter.

    Parameters
    ----------
    attempts : int
        How often a request is sent at most, the first time included.
    first_pause : float
        Seconds before the second attempt; each further pause is twice as long.
    sleep : callable
        Waits for a number of seconds.
    """

    attempts: int = 4
    first_pause: float = 0.5
    sleep: Callable[[float], None] = time.sleep

    def pauses(self) -> Iterator[float]:
        """Yield the pauses between the attempts, in seconds."""
        for attempt in range(self.attempts - 1):
            # Jitter keeps many workers from coming back at the same moments; it is not security-relevant.
            yield min(self.first_pause * 2**attempt * random.uniform(0.75, 1.25), LONGEST_PAUSE)  # noqa: S311


def requested_pause(retry_after: str | None, date: str | None = None) -> float | None:
    """Return the pause that a ``Retry-After`` header asks for (RFC 9110, 10.2.3).

    Parameters
    ----------
    retry_after : str or None
        The header: a number of seconds, or the time at which to come back.
    date : str or None
        The ``Date`` header of the same answer. The time to come back is compared with this clock, as ours may differ.

    Returns
    -------
    float or None
        Seconds to wait; None if the header cannot be used.
    """
    text = (retry_after or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        then, now = http_time(text), http_time(date or "") or datetime.now(timezone.utc)
        return max(0.0, (then - now).total_seconds()) if then else None
    return seconds if 0 <= seconds < float("inf") else None


@contextmanager
def background_work() -> Iterator[None]:
    """Mark the requests of this thread within the block as background work: those for a waiting person come first."""
    before, _of_thread.is_background = is_background(), True
    try:
        yield
    finally:
        _of_thread.is_background = before


def is_background() -> bool:
    """Return whether this thread is within :func:`background_work`."""
    return getattr(_of_thread, "is_background", False)


class Slot:
    """The place of one request among those under way: from before it is sent until the end of its answer's body.

    A body that nobody reads must not block other requests for ever. Once the answer has begun, a slot no longer counts
    if its body has not been read for ``idle_limit`` seconds.
    """

    def __init__(self, pace: Pace, *, counts: bool) -> None:
        self._pace = pace
        self.is_background = is_background()
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
        """When the slot stops counting, in seconds of its pace's clock; infinity until the answer has begun."""
        return self._idle_ends

    def release(self) -> None:
        """Free the slot for the next request. It may be called more than once."""
        if self.counts:
            self.counts = False
            self._pace.leave(self)


class Pace:
    """Limits on the requests that this process sends to an XNAT site; all its threads share them.

    Parameters
    ----------
    connections : int
        How many requests may be under way at a time, transfers included.
    rate_limit : float
        How many requests may be started per second, evenly spaced; 0: no limit.
    sleep : callable
        Waits for a number of seconds.
    clock : callable
        Returns seconds that never decrease.
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
        """Set everything to its initial state. A forked child does this: it has the locks and slots of its parent."""
        self._lock = threading.Lock()
        # This lock is reentrant: the garbage collector may release a slot in any thread, also in one that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._slots: set[Slot] = set()
        self._people: deque[object] = deque()
        self._background: deque[object] = deque()
        self._people_in_a_row = 0
        self._next_start = 0.0
        self._rest_ends = 0.0
        self._rest_status = 0
        self._requests = self._repeated = 0
        self._answered = self._silent_at = float("-inf")
        self._silences = 0
        self._alone_for = 0.0
        self._heavy = threading.Lock()
        self._heavy_call = ""

    def take(self) -> Slot:
        """Wait until one more request may be under way, and return its slot.

        Requests for which a person waits come first, in their order. While both kinds wait, the background gets one of
        four slots. Its transfers may take long, so it never gets all slots, unless there is only one.

        If the thread already has a slot, the result is one that does not count: a thread may ask something while it
        reads a download.
        """
        thread = threading.current_thread()
        with self._changed:
            if any(slot.thread is thread for slot in tuple(self._slots)):
                return Slot(self, counts=False)
            ticket = object()
            queue = self._background if is_background() else self._people
            queue.append(ticket)
            try:
                while queue[0] is not ticket or not self._has_room() or queue is not self._turn():
                    self._changed.wait(self._until_next_idle())
                self._people_in_a_row = self._people_in_a_row + 1 if queue is self._people and self._background else 0
                slot = Slot(self, counts=True)
                self._slots.add(slot)
                return slot
            finally:
                queue.remove(ticket)
                self._changed.notify_all()

    def leave(self, slot: Slot) -> None:
        """Remove a slot from those under way; see :meth:`Slot.release`."""
        with self._changed:
            self._slots.discard(slot)
            self._changed.notify_all()

    def idle_ends(self) -> float:
        """Return the time, on this pace's clock, at which an answer stops counting if nobody reads it from now on."""
        return self._clock() + self._idle_limit

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the ``connections`` slots for a request within the block."""
        taken = self.take()
        try:
            yield
        finally:
            taken.release()

    @contextmanager
    def heavy(self, call: str) -> Iterator[None]:
        """Send a very expensive request within the block, such as a listing of a whole project; only one at a time."""
        with self._heavy, self.hard():
            self._heavy_call = call
            try:
                yield
            finally:
                self._heavy_call = ""

    @contextmanager
    def hard(self) -> Iterator[None]:
        """Mark the requests of this thread within the block as hard work for XNAT.

        XNAT gets more time for them. They are not repeated if the connection breaks after a while, when XNAT may still
        be working on them.
        """
        before, _of_thread.is_hard = self.is_hard, True
        try:
            yield
        finally:
            _of_thread.is_hard = before

    @property
    def is_hard(self) -> bool:
        """Whether this thread is within :meth:`hard`."""
        return getattr(_of_thread, "is_hard", False)

    def admit(self) -> None:
        """Wait until the next request may be started, and count it.

        Raises
        ------
        ServerError
            If XNAT asked for a pause that has more than ``LONGEST_PAUSE`` seconds left.
        ServerTimeoutError
            If XNAT did not answer the last two requests that waited for it, a moment ago.
        """
        with self._lock:
            now = self._clock()
            if self._silences > 1 and now < self._silent_at + self._alone_for:
                raise ServerTimeoutError(
                    "XNAT was silent twice in a row a moment ago, so it is not asked again yet",
                    hint="XNAT may be overloaded or down; what is stored on this machine can still be used",
                )
            rest = self._rest_ends - now
            if rest > LONGEST_PAUSE:
                raise ServerError(
                    f"XNAT asked not to be called again for another {rest:.0f} s",
                    hint="it is overloaded or being maintained; what is stored on this machine can still be used",
                    status=self._rest_status,
                )
            start = max(now, self._rest_ends, self._next_start)
            self._next_start = start + (1 / self._rate_limit if self._rate_limit else 0.0)
            self._requests += 1
        if start > now:
            self._sleep(start - now)

    def answered(self) -> None:
        """Note that XNAT has answered, or sent more of an answer."""
        self._answered = self._clock()
        self._silences = 0

    def was_silent(self, since: float) -> None:
        """Note that a request was given up because XNAT did not answer.

        If a server is unreachable, only one of many requests should wait for the full time, and not one after the
        other. So a request counts only if it was started after the last answer and the last silence.

        Parameters
        ----------
        since : float
            When the request was started, on the clock of this pace.
        """
        with self._lock:
            now = self._clock()
            if since >= max(self._answered, self._silent_at):
                self._silences += 1
                self._silent_at = now
                self._alone_for = min(_LEFT_ALONE, now - since)

    def patience(self, seconds: float) -> float:
        """Return how many of the given seconds to wait without progress: fewer if XNAT did not answer last time."""
        if not self._silences:
            return seconds
        return max(seconds / _SHARE_OF_A_LOOK, min(seconds, _SHORTEST_LOOK))

    def now(self) -> float:
        """Return the time on the clock of this pace."""
        return self._clock()

    def rest(self, seconds: float, status: int) -> None:
        """Start no request for some seconds, because XNAT asked for that in an answer with this status."""
        with self._lock:
            self._rest_ends = max(self._rest_ends, self._clock() + seconds)
            self._rest_status = status

    def repeat(self) -> None:
        """Count a request that is sent again after a failure that may pass."""
        with self._lock:
            self._repeated += 1

    def summary(self) -> dict[str, Any]:
        """Return the limits, the number of requests so far, and what is happening now.

        ``resting`` is the number of seconds for which XNAT wants no request, ``heavy`` the name of an expensive request
        that is under way. Both are left out if there is nothing to say.
        """
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

    def _turn(self) -> deque[object] | None:
        """Return the queue that gets the next slot; None if only the background waits, and it has enough slots."""
        of_background = sum(slot.is_background for slot in self._slots)
        may_be_background = bool(self._background) and of_background < max(self._connections - 1, 1)
        if may_be_background and (not self._people or self._people_in_a_row >= _BACKGROUND_SHARE - 1):
            return self._background
        return self._people or None

    def _has_room(self) -> bool:
        now = self._clock()
        self._slots = {slot for slot in tuple(self._slots) if not slot.is_idle(now)}
        return len(self._slots) < self._connections

    def _until_next_idle(self) -> float | None:
        ends = min((slot.idle_ends for slot in tuple(self._slots)), default=float("inf"))
        return None if ends == float("inf") else max(ends - self._clock(), 0.01)
