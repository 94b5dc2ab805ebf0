"""Reading what XNAT tells of many things, each once, in parallel and in the background; what fails is asked again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

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
    on_learned : callable
        Called, from another thread, when items were read that :meth:`read` did not wait for.
    """

    def __init__(
        self,
        workers: int,
        read: Callable[[Item], Found],
        keep: Callable[[dict[str, Found]], None],
        on_learned: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._read_item = read
        self._keep = keep
        self._on_learned = on_learned
        self._lock = threading.Lock()
        self._failures: dict[str, _Failure] = {}
        self._learning: set[str] = set()
        self._thread: threading.Thread | None = None

    def ask_again(self) -> None:
        """Have everything read that could not be."""
        with self._lock:
            self._failures = {key: failure._replace(again_at=0.0) for key, failure in self._failures.items()}

    def wait(self) -> bool:
        """Wait until the items are read that are just being read; return whether there were any."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return False
        thread.join(_LONGEST_PAUSE)
        return True

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
        with self._lock:
            left = self._learning | {key for key, failure in self._failures.items() if failure.again_at > now}
            new = {key: item for key, item in items.items() if key not in left}
            self._learning |= new.keys()
        if not new:
            return True
        thread = threading.Thread(target=self._read_all, args=(new,), name="xnat-roi", daemon=True)
        self._thread = thread
        thread.start()
        thread.join(patience)
        if not thread.is_alive():
            return True
        threading.Thread(target=self._tell_when_done, args=(thread,), name="xnat-roi-wait", daemon=True).start()
        return False

    def _tell_when_done(self, thread: threading.Thread) -> None:
        thread.join()
        self._on_learned()

    def _read_all(self, new: Mapping[str, Item]) -> None:
        queue: SimpleQueue[tuple[str, Item]] = SimpleQueue()
        for item in new.items():
            queue.put(item)
        found: dict[str, Found] = {}
        failed: dict[str, str] = {}
        count = min(self._workers, len(new))
        readers = [threading.Thread(target=self._read, args=(queue, found, failed), daemon=True) for _ in range(count)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        self._keep(found)
        with self._lock:
            self._failures = {key: failure for key, failure in self._failures.items() if key not in found}
            self._failures.update((key, self._failure(key, reason)) for key, reason in failed.items())
            self._learning -= new.keys()

    def _read(self, queue: SimpleQueue[tuple[str, Item]], found: dict[str, Found], failed: dict[str, str]) -> None:
        while True:
            try:
                key, item = queue.get_nowait()
            except Empty:
                return
            try:
                found[key] = self._read_item(item)
            except ServerError as error:  # it is asked again at a later renewal
                failed[key] = str(error)

    def _failure(self, key: str, reason: str) -> _Failure:
        before = self._failures.get(key)
        attempts = before.attempts + 1 if before else 1
        pause = min(_FIRST_PAUSE * 2 ** (attempts - 1), _LONGEST_PAUSE)
        return _Failure(reason, attempts, time.monotonic() + pause)
