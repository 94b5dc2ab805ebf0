"""Reading what XNAT tells of many things, each once, in parallel and in the background; what fails is asked again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from monailabel_xnat.background import Background
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.errors import ServerError

Item = TypeVar("Item")
Found = TypeVar("Found")

# What cannot be read is asked for again after this, twice as long each time.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_NOT_YET = "it has not been read yet"


class _Failure(NamedTuple):
    """Why something could not be read, how often that was tried, and when it is tried again."""

    reason: str
    attempts: int
    again_at: float


class BackgroundReader(Generic[Item, Found]):
    """Reads items by their keys.

    Parameters
    ----------
    workers : int
        How many are read at a time.
    read : callable
        Reads an item; it raises ServerError where that is to be tried again later.
    keep : callable
        Is given what was read, by key.
    on_late : callable
        Called, from another thread, when items were read that :meth:`read` did not wait for.
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
        self._lock = threading.Lock()
        self._failures: dict[str, _Failure] = {}
        self._under_way: set[str] = set()
        self._batches: list[Background] = []

    def ask_again(self) -> None:
        """Read again, at the next look, everything that could not be read."""
        with self._lock:
            self._failures = {key: failure._replace(again_at=0.0) for key, failure in self._failures.items()}

    def wait(self) -> bool:
        """Wait until the items are read that are just being read; return whether there were any."""
        running = [batch for batch in self._batches if batch.is_running]
        for batch in running:
            batch.join(_LONGEST_PAUSE)
        return bool(running)

    def why(self, key: str) -> str:
        """Return why an item is not known."""
        failure = self._failures.get(key)
        return failure.reason if failure else _NOT_YET

    def has_failed(self, reason: str) -> bool:
        """Return whether a reason is that of a failure, and not that nobody has read it yet."""
        return reason != _NOT_YET

    def read(self, items: Mapping[str, Item], patience: float) -> bool:
        """Read items, but for those that are just being read or have failed a moment ago.

        Parameters
        ----------
        items : mapping
            What is not known yet, by key.
        patience : float
            Seconds to wait for it; the rest is read in the background.

        Returns
        -------
        bool
            Whether it has all been tried by now.
        """
        now = time.monotonic()
        done, late = threading.Event(), threading.Event()
        with self._lock:
            self._batches = [batch for batch in self._batches if batch.is_running]
            if not self._batches:  # after a fork, nobody in the child reads what its parent was reading
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
        # Daemon threads, unlike those of a pool: the end of a process does not wait for thousands of items.
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
