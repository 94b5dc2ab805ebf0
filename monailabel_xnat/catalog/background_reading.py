"""Reading many items from XNAT, each once, in parallel and in the background. Items that fail are read again later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.errors import ServerError

Item = TypeVar("Item")
Found = TypeVar("Found")

# Seconds after which an item that could not be read is tried again. The pause doubles each time, up to the longest.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_NOT_YET = "it has not been read yet"


class _Failure(NamedTuple):
    """Why an item could not be read, how often it was tried, and when it is tried again."""

    reason: str
    attempts: int
    again_at: float


class BackgroundReader(Generic[Item, Found]):
    """Reads items, each of which has a key.

    Parameters
    ----------
    workers : int
        How many items are read at a time.
    read : callable
        Returns what it has read for an item. It raises ServerError if the item is to be tried again later.
    keep : callable
        Gets what was read, by key.
    on_late : callable
        Called from another thread when items have been read for which :meth:`read` did not wait.
    """

    def __init__(
        self,
        workers: int,
        read: Callable[[Item], Found],
        keep: Callable[[dict[str, Found]], None],
        on_late: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._read_item = read
        self._keep = keep
        self._on_late = on_late
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._failures: dict[str, _Failure] = {}
        self._under_way: set[str] = set()
        self._batches: list[Background] = []

    def ask_again(self) -> None:
        """Try all items that could not be read again at the next call of :meth:`read`, without a further pause."""
        with self._lock:
            self._failures = {key: failure._replace(again_at=0.0) for key, failure in self._failures.items()}

    def wait(self) -> bool:
        """Wait for the items that are being read now, and return whether there were any."""
        running = [batch for batch in self._batches if batch.is_running]
        for batch in running:
            batch.join(_LONGEST_PAUSE)
        return bool(running)

    def why(self, key: str) -> str:
        """Return the reason why an item is not known."""
        failure = self._failures.get(key)
        return failure.reason if failure else _NOT_YET

    def has_failed(self, reason: str) -> bool:
        """Return whether a reason of :meth:`why` is a failure, and not only that the item has not been read yet."""
        return reason != _NOT_YET

    def read(self, items: Mapping[str, Item], patience: float) -> bool:
        """Read items, except those that are being read now or have failed a moment ago.

        Parameters
        ----------
        items : mapping
            The items that are not known yet, by key.
        patience : float
            Seconds to wait for them. What is not read by then is read in the background.

        Returns
        -------
        bool
            Whether this call has tried all items that it started; False if they are still read in the background.
        """
        now = time.monotonic()
        done, late = threading.Event(), threading.Event()
        with self._lock:
            self._batches = [batch for batch in self._batches if batch.is_running]
            if not self._batches:  # in a forked child, no thread reads what its parent was reading
                self._under_way.clear()
            left = self._under_way | {key for key, failure in self._failures.items() if failure.again_at > now}
            new = {key: item for key, item in items.items() if key not in left}
            if not new:
                return True
            batch = Background("xnat-drawings", partial(self._read_all, new, done, late))
            if not batch.start():
                return False
            self._batches.append(batch)
            self._under_way |= new.keys()
        if done.wait(patience):
            return True
        with self._lock:
            late.set()
            return done.is_set()

    def _read_all(self, new: Mapping[str, Item], done: threading.Event, late: threading.Event) -> None:
        queue: SimpleQueue[tuple[str, Item]] = SimpleQueue()
        for item in new.items():
            queue.put(item)
        found: dict[str, Found] = {}
        failed: dict[str, str] = {}
        # These are daemon threads, unlike those of a pool: a process that ends does not wait for thousands of items.
        readers = [
            Background("xnat-drawing", partial(self._read, queue, found, failed))
            for _ in range(min(self._workers, len(new)))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        try:
            self._keep(found)
        finally:
            with self._lock:
                self._failures = {key: failure for key, failure in self._failures.items() if key not in found}
                self._failures.update((key, self._failure(key, reason)) for key, reason in failed.items())
                self._under_way -= new.keys()
                done.set()
                is_late = late.is_set()
        if is_late:
            self._on_late()

    def _read(self, queue: SimpleQueue[tuple[str, Item]], found: dict[str, Found], failed: dict[str, str]) -> None:
        while True:
            try:
                key, item = queue.get_nowait()
            except Empty:
                return
            try:
                with background_work():
                    found[key] = self._read_item(item)
            except ServerError as error:  # it is asked again at a later renewal
                failed[key] = str(error)

    def _failure(self, key: str, reason: str) -> _Failure:
        before = self._failures.get(key)
        attempts = before.attempts + 1 if before else 1
        pause = min(_FIRST_PAUSE * 2 ** (attempts - 1), _LONGEST_PAUSE)
        return _Failure(reason, attempts, time.monotonic() + pause)
