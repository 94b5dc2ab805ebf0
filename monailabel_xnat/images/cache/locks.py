"""One lock per image, across the threads of this process and the processes of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import filelock

_by_name: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_guard = threading.Lock()


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file.

    Parameters
    ----------
    path : Path
        The lock file, made if need be and never removed.
    wait : bool
        Whether to wait until others have released it.

    Yields
    ------
    bool
        Whether the lock is held; always, after waiting.
    """
    # Between threads a lock in memory comes first: it wakes a waiter at once, while a lock file is polled.
    thread_lock = _lock_of(str(path))
    if not thread_lock.acquire(blocking=wait):
        yield False
        return
    try:
        file_lock = filelock.FileLock(str(path), timeout=-1 if wait else 0, mode=0o600)
        try:
            file_lock.acquire()
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            file_lock.release()
    finally:
        thread_lock.release()


def _lock_of(name: str) -> threading.Lock:
    with _guard:
        return _by_name.setdefault(name, threading.Lock())


def _forget() -> None:
    """Start anew in a forked child: the threads that held the locks are not in it."""
    global _guard
    _guard = threading.Lock()
    _by_name.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
