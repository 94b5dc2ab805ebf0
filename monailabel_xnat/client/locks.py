"""One writer at a time for each XNAT resource, across the threads and processes of this machine.

XNAT rewrites a resource's catalog whole with each file, so that of two writers at once one fails with 500 or loses its
entry. Other machines are not held off by this; what they lose for us is noticed when a write is read back.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import filelock

from monailabel_xnat.config import Settings
from monailabel_xnat.errors import CacheError, ServerTimeoutError

# Few files for any number of resources; two resources that share one only wait for each other now and then.
_STRIPES = 64
# An addition moves a whole image, and several of them may wait for their turn: so many times the usual patience.
_LONGEST_ADDITION = 10

_ABOVE_EXPERIMENT = re.compile(r"^/data/projects/[^/]+/subjects/[^/]+/experiments/")

_held = threading.local()


@contextmanager
def writing(settings: Settings, resource: str) -> Iterator[None]:
    """Hold off the other writers of a resource; may be nested for the same resource.

    Parameters
    ----------
    settings : Settings
        Tell the folder for the locks and, by ``timeout``, how long to wait.
    resource : str
        Path of the resource.

    Raises
    ------
    ServerTimeoutError
        If another writer does not finish.
    CacheError
        If the folder cannot be used.
    """
    # A session has one path below each of its projects, and one without a project.
    place = _ABOVE_EXPERIMENT.sub("/data/experiments/", resource)
    with _holding(_lock_file(settings, "", place), resource, settings.timeout):
        yield


@contextmanager
def adding(settings: Settings, *places: str) -> Iterator[None]:
    """Hold off whoever adds images to the same places; a resource may be written to inside, but not the reverse.

    Parameters
    ----------
    settings : Settings
        Tell the folder for the locks and, by ``timeout``, how long to wait.
    *places : str
        Texts that stand for what must not be added to by two at once.

    Raises
    ------
    ServerTimeoutError
        If another one does not finish.
    CacheError
        If the folder cannot be used.
    """
    with ExitStack() as held:
        # Everybody takes them in the same order, so that no two wait for each other.
        for path in sorted({_lock_file(settings, "add-", place) for place in places}):
            held.enter_context(_holding(path, places[0], _LONGEST_ADDITION * settings.timeout))
        yield


def _lock_file(settings: Settings, prefix: str, place: str) -> Path:
    stripe = int(hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest(), 16) % _STRIPES
    return private_folder(settings.server_folder / "locks") / f"{prefix}{stripe:02d}.lock"


@contextmanager
def _holding(path: Path, place: str, timeout: float) -> Iterator[None]:
    paths = _held.__dict__.setdefault("paths", set())
    if path in paths:
        yield
        return
    lock = filelock.FileLock(str(path), timeout=timeout)
    with _acquired(lock, place):
        paths.add(path)
        try:
            yield
        finally:
            paths.discard(path)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can look into, unless it is there.

    Raises
    ------
    CacheError
        If it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"cannot use the folder {path}: {error.strerror}", hint="choose another with the setting cache_path"
        ) from error
    return path


@contextmanager
def _acquired(lock: filelock.BaseFileLock, resource: str) -> Iterator[None]:
    try:
        lock.acquire(poll_interval=0.02)
    except filelock.Timeout as error:
        raise ServerTimeoutError(
            f"another process of this machine has been writing to {resource} for too long",
            hint="end it if it hangs, and try again",
            url=resource,
        ) from error
    try:
        yield
    finally:
        lock.release()
