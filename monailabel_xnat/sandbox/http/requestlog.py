"""The log of the requests that the sandbox served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

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
