"""When to ask XNAT again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

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
