"""When what is kept here was last compared with what XNAT lists, and what must be compared anew."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable, Iterable
from typing import NamedTuple

# After a comparison that failed, what is here is given for so long before XNAT is asked again.
_PAUSE = 30.0


class Comparison(NamedTuple):
    """A comparison that was begun: its place in the order of events, and when (seconds since 1970)."""

    number: int
    begun: float


_NEVER = Comparison(0, 0.0)


class _Noted(NamedTuple):
    comparison: Comparison
    state: str


class Comparisons:
    """Knows what is due for comparison with XNAT; may be used from any thread.

    The listing of a project shows how many files a resource has, and their size together. Files of the same number
    and size show only in the list of the files, which holds their MD5 digests: it is asked for once for each training
    run, after a refresh, and otherwise once within a time.

    Parameters
    ----------
    max_age : float
        That time, in seconds (setting ``verify_age``).
    """

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._lock = threading.Lock()
        self._order = itertools.count(1)
        self._expired = _NEVER
        self._expired_keys: dict[Hashable, Comparison] = {}
        self._noted: dict[Hashable, _Noted] = {}
        self._failed: dict[Hashable, tuple[float, Exception]] = {}

    def expire(self, keys: Iterable[Hashable] | None = None) -> None:
        """Make some things due for comparison at their next use; all, if none are named."""
        with self._lock:
            now = self.begin()
            if keys is None:
                self._expired = now
                self._expired_keys.clear()
                self._failed.clear()
                return
            for key in keys:
                self._expired_keys[key] = now
                self._failed.pop(key, None)

    def begin(self) -> Comparison:
        """Begin a comparison, before XNAT is asked; what is expired meanwhile is compared once more."""
        return Comparison(next(self._order), time.time())

    def note(self, key: Hashable, state: str, comparison: Comparison) -> None:
        """Note what a comparison has found."""
        with self._lock:
            self._noted[key] = _Noted(comparison, state)
            self._failed.pop(key, None)

    def postpone(self, key: Hashable, error: Exception) -> None:
        """Note that XNAT could not be asked, and why: what is here is used for a while."""
        with self._lock:
            self._failed[key] = (time.monotonic() + _PAUSE, error)

    def failures(self) -> dict[Hashable, Exception]:
        """Return why the last comparison failed, of what could not be compared since."""
        with self._lock:
            return {key: error for key, (_, error) in self._failed.items()}

    def is_due(self, key: Hashable, state: str, compared: float, *, within: float | None = None) -> bool:
        """Return whether something must be compared before it is used.

        Parameters
        ----------
        key : hashable
            What it is.
        state : str
            What is here of it.
        compared : float
            When that was last compared, as far as noted on this disk: seconds since 1970.
        within : float or None
            The longest time since, where it is less than usual.
        """
        max_age = self._max_age if within is None else min(within, self._max_age)
        with self._lock:
            if key in self._failed and time.monotonic() < self._failed[key][0]:
                return False
            noted = self._noted.get(key)
            expired = max(self._expired, self._expired_keys.get(key, _NEVER))
        if noted is not None and noted.comparison.begun >= compared:
            if noted.state != state or noted.comparison.number < expired.number:
                return True
            compared = noted.comparison.begun
        elif compared <= expired.begun:  # what another process has compared since counts as well
            return True
        # A clock that was set back makes it due.
        return not 0 <= time.time() - compared < max_age
