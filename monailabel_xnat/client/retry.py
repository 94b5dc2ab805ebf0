"""When to ask XNAT again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


def requested_pause(retry_after: str | None) -> float | None:
    """Read a ``Retry-After`` header.

    Parameters
    ----------
    retry_after : str or None
        The header; its date form is not used by XNAT or common proxies and counts as absent.

    Returns
    -------
    float or None
        Seconds to wait, None if the header says nothing usable.
    """
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
