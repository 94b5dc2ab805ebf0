"""Which images are in use: by a thread that works with one, or by a process that needs a whole set."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import filelock

from monailabel_xnat.images.cache.entry import private_folder
from monailabel_xnat.images.cache.locks import locked

_LOCK_SUFFIX = ".lock"
_NAMES_SUFFIX = ".json"

# A forked child must not release the lock it shares with its parent, not even by collecting it as garbage.
_of_parents: list[filelock.BaseFileLock] = []


class Leases:
    """Tells images that are in use, by key.

    A thread uses the image it was given last, until it is given another. What a process holds stands in a file beside
    a lock file, which the system releases when the process ends in whatever way.

    Parameters
    ----------
    folder : Path
        Where processes leave their files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._by_thread: dict[int, str] = {}
        self._held: frozenset[str] = frozenset()
        self._name = ""
        self._lock: filelock.BaseFileLock | None = None
        self._process = os.getpid()

    def use(self, key: str) -> None:
        """Note that this thread now works with an image, and no longer with the one before."""
        self._by_thread[threading.get_ident()] = key

    def hold(self, keys: Iterable[str]) -> None:
        """Keep a set of images for as long as this process lives, instead of the set held before."""
        with self._guard:
            self._held = frozenset(keys)
            self._own_lease()
            temporary = self._folder / f"{self._name}.new"
            temporary.write_text(json.dumps(sorted(self._held)), encoding="utf-8")
            temporary.replace(self._folder / (self._name + _NAMES_SUFFIX))

    def in_use(self) -> set[str]:
        """Give the images that are in use by this process or held by another."""
        alive = {thread.ident for thread in threading.enumerate()}
        current = {key for thread, key in list(self._by_thread.items()) if thread in alive}
        for thread in set(self._by_thread) - alive:
            self._by_thread.pop(thread, None)
        return current | self._held | self._held_elsewhere()

    def close(self) -> None:
        """Hold nothing more."""
        with self._guard:
            self._held = frozenset()
            if self._lock is not None and self._process == os.getpid():
                self._lock.release()
                _remove_lease(self._folder, self._name)
            self._lock = None

    def _own_lease(self) -> None:
        if self._lock is not None and self._process == os.getpid():
            return
        if self._lock is not None:
            _of_parents.append(self._lock)
        private_folder(self._folder)
        self._name = uuid.uuid4().hex
        self._process = os.getpid()
        self._lock = filelock.FileLock(str(self._folder / (self._name + _LOCK_SUFFIX)), mode=0o600)
        self._lock.acquire()

    def _held_elsewhere(self) -> set[str]:
        keys: set[str] = set()
        for path in self._folder.glob(f"*{_NAMES_SUFFIX}"):
            name = path.name[: -len(_NAMES_SUFFIX)]
            if self._lock is not None and name == self._name:
                continue
            with locked(self._folder / (name + _LOCK_SUFFIX), wait=False) as ended:
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
