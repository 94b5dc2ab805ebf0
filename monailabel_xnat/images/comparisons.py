"""When things that are kept on this machine were last compared with XNAT, and which must be compared again."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from monailabel_xnat.background import renewed_in_children

# After a comparison failed, XNAT is not asked again for this time (seconds), and the kept state is used.
_PAUSE = 30.0


class Comparison(NamedTuple):
    """A comparison that was begun: its number in the order of events, and its time (seconds since 1970)."""

    number: int
    begun: float


_NEVER = Comparison(0, 0.0)


class _Noted(NamedTuple):
    comparison: Comparison
    state: str


class Comparisons:
    """Knows which things must be compared with XNAT. Any thread may use it.

    The listing of a project shows only the number of files in a resource and their total size. If files are replaced by
    others of the same number and size, only the list of the files shows it, by their MD5 digests. That list is read
    once for each training run, after a refresh, and otherwise once within a certain time.

    Parameters
    ----------
    max_age : float
        This time, in seconds (setting ``verify_age``).
    """

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._order = itertools.count(1)
        self._expired = _NEVER
        self._expired_keys: dict[Hashable, Comparison] = {}
        self._noted: dict[Hashable, _Noted] = {}
        self._failed: dict[Hashable, tuple[float, Exception]] = {}

    def expire(self, keys: Iterable[Hashable] | None = None) -> None:
        """Mark some things, or all (None), so that they are compared at their next use."""
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
        """Begin a comparison, before XNAT is asked. A thing that expires in the meantime is compared again."""
        return Comparison(next(self._order), time.time())

    def note(self, key: Hashable, state: str, comparison: Comparison) -> None:
        """Note the state that a comparison has found."""
        with self._lock:
            self._noted[key] = _Noted(comparison, state)
            self._failed.pop(key, None)

    def postpone(self, key: Hashable, error: Exception) -> None:
        """Note that XNAT could not be asked, and why. The state that is kept here is used for a while."""
        with self._lock:
            self._failed[key] = (time.monotonic() + _PAUSE, error)

    def failures(self) -> dict[Hashable, Exception]:
        """Return the errors of the things whose last comparison failed."""
        with self._lock:
            return {key: error for key, (_, error) in self._failed.items()}

    def is_due(self, key: Hashable, state: str, compared: float, *, within: float | None = None) -> bool:
        """Return whether something must be compared before it is used.

        Parameters
        ----------
        key : hashable
            The key of the thing.
        state : str
            The state of it that is kept here.
        compared : float
            When that state was last compared, as far as it is noted on this disk, in seconds since 1970.
        within : float or None
            The longest time since then, if it is shorter than usual.
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
        elif compared <= expired.begun:  # a later comparison by another process counts as well
            return True
        # If the clock was set back, it is due.
        return not 0 <= time.time() - compared < max_age
