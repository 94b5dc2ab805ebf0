"""Which images are in use: a thread uses the image that it works with, and a process can hold a whole set."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.disk import ProcessLock, locked, private_folder, write_whole

_LOCK_SUFFIX = ".lock"
_NAMES_SUFFIX = ".json"


class Leases:
    """Knows which images are in use, by key.

    A thread uses the image that it got last, until it gets another one. The set that a process holds is written to a
    file beside a lock file. The system releases the lock when the process ends, even after a crash.

    Parameters
    ----------
    folder : Path
        The folder for the files of all processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = renewed_in_children(self, "_guard", threading.Lock)
        self._by_thread: dict[int, str] = {}
        self._held: frozenset[str] = frozenset()
        self._name = ""
        self._lock: ProcessLock | None = None

    def use(self, key: str) -> None:
        """Note that this thread now works with an image, and not any more with the one before."""
        self._by_thread[threading.get_ident()] = key

    def hold(self, keys: Iterable[str]) -> None:
        """Keep a set of images for as long as this process lives, instead of the set held before."""
        with self._guard:
            self._held = frozenset(keys)
            if self._lock is None or not self._lock.is_held:  # a forked child does not hold its parent's lock
                private_folder(self._folder)
                self._name = uuid.uuid4().hex
                self._lock = ProcessLock(self._folder / (self._name + _LOCK_SUFFIX))
            write_whole(self._folder / (self._name + _NAMES_SUFFIX), json.dumps(sorted(self._held)).encode())

    def in_use(self) -> set[str]:
        """Return the keys of images that this process uses or holds, or that another process holds."""
        alive = {thread.ident for thread in threading.enumerate()}
        current = {key for thread, key in list(self._by_thread.items()) if thread in alive}
        for thread in set(self._by_thread) - alive:
            self._by_thread.pop(thread, None)
        return current | self._held | self._held_elsewhere()

    def close(self) -> None:
        """Hold no images any more."""
        with self._guard:
            self._held = frozenset()
            if self._lock is not None and self._lock.release():
                _remove_lease(self._folder, self._name)
            self._lock = None

    def _held_elsewhere(self) -> set[str]:
        keys: set[str] = set()
        for path in self._folder.glob(f"*{_NAMES_SUFFIX}"):
            name = path.name[: -len(_NAMES_SUFFIX)]
            if self._lock is not None and name == self._name:
                continue
            with locked(self._folder / (name + _LOCK_SUFFIX), timeout=0) as ended:
                if ended:
                    _remove_lease(self._folder, name)
                    continue
            with suppress(OSError, ValueError):
                keys.update(json.loads(path.read_bytes()))
        return keys


def _remove_lease(folder: Path, name: str) -> None:
    for suffix in (_NAMES_SUFFIX, _LOCK_SUFFIX):
        with suppress(OSError):
            (folder / (name + suffix)).unlink(missing_ok=True)
