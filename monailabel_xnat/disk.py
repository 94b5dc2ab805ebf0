"""Files on this disk: written whole, readable by this user only, known by their digest, locked between processes."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet, WeakValueDictionary

import filelock

from monailabel_xnat.errors import CacheError, XNATDatastoreError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
# Waiting threads are woken at once by the lock in memory; only other processes need to look again and again.
_POLL_SECONDS = 0.02
# Network and user-space file systems answer so that do not know this call for folders.
_NO_SUCH_CALL = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)

_thread_locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_thread_locks_guard = threading.Lock()
_process_locks: WeakSet[ProcessLock] = WeakSet()
# A forked child must not release what it shares with its parent, not even by collecting it as garbage.
_of_parents: list[ProcessLock] = []


@contextmanager
def must_work(task: str, hint: str) -> Iterator[None]:
    """Turn an error of the disk into a CacheError.

    Parameters
    ----------
    task : str
        What is being done, to follow "cannot": ``"write the manifest to /data"``.
    hint : str
        What the user can do about it.

    Raises
    ------
    CacheError
        If an OSError is raised inside that is none of our own errors.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, XNATDatastoreError):
            raise
        raise CacheError(f"cannot {task}: {error.strerror or error}", hint=hint) from error


def private_folder(folder: Path) -> Path:
    """Make a folder, and those above it that are missing, that only this user can look into (mode 0700).

    Raises
    ------
    CacheError
        If it is there and is not this user's alone; see :func:`require_private`.
    """
    # Path.mkdir(parents=True) would give the folders above the mode that the umask leaves.
    for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    require_private(folder)
    return folder


def require_private(folder: Path) -> None:
    """Refuse a folder of patients' data into which others may have put something; one that is not there passes.

    A folder of this user that others may only read is closed to them (mode 0700).

    Raises
    ------
    CacheError
        If it is a symbolic link, belongs to another user, or may be written by others.
    """
    try:
        found = folder.lstat()
    except OSError:
        return
    if os.name == "nt":  # Windows keeps who may read a folder elsewhere.
        return
    another = "choose another folder with the settings cache_path and data_path"
    if stat.S_ISLNK(found.st_mode):
        raise CacheError(f"{folder} is a symbolic link, and is not used", hint=f"put a folder there, or {another}")
    if found.st_uid != os.geteuid():
        raise CacheError(f"{folder} belongs to another user (uid {found.st_uid}), and is not used", hint=another)
    if found.st_mode & 0o022:
        raise CacheError(
            f"others may write to {folder}, and it is not used",
            hint=f"see that all in it is yours, then close it with `chmod 700 {folder}`, or {another}",
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
        logger.warning("others could read %s; it is closed to them now", folder)


def private_opener(path: str, flags: int) -> int:
    """Open a file as ``open(..., opener=private_opener)`` does, so that a new one is for this user only (mode 0600)."""
    return os.open(path, flags, 0o600)


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Put a file under its name in one step, once it is complete.

    Parameters
    ----------
    path : Path
        Where the file is to be; a file that is there is replaced.
    durable : bool
        Whether the file and its name must survive a power cut after this has returned.

    Yields
    ------
    Path
        A new name in the same folder, to which the caller writes. Nothing of it stays after an error.
    """
    temporary = path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        flush(path.parent)


def write_whole(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a small file for this user only, complete or not at all; see :func:`whole`."""
    with whole(path, durable=durable) as temporary, open(temporary, "xb", opener=private_opener) as stream:
        stream.write(content)


def flush(path: Path) -> None:
    """Write a file, or the list of names in a folder, to the disk itself (fsync)."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows does this by itself and has no call for it.
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in _NO_SUCH_CALL:
            raise
    finally:
        os.close(handle)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's content, by default SHA-256."""
    # usedforsecurity: XNAT lists MD5, and some systems refuse it otherwise.
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text, whatever characters XNAT has put into it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock file, against the other threads of this process and the other processes of this machine.

    Parameters
    ----------
    path : Path
        The lock file; it is made if it is missing, and never removed.
    timeout : float
        Seconds to wait for others to release it. With -1 there is no limit, and with 0 no wait.

    Yields
    ------
    bool
        Whether the lock is held; always True without a limit.
    """
    thread_lock = _thread_lock(str(path))
    if not thread_lock.acquire(timeout=timeout):
        yield False
        return
    try:
        file_lock = filelock.FileLock(str(path), timeout=timeout, mode=0o600)
        try:
            file_lock.acquire(poll_interval=_POLL_SECONDS)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            file_lock.release()
    finally:
        thread_lock.release()


class ProcessLock:
    """A lock file that this process holds until it releases it, or ends in whatever way.

    A forked child does not hold it, and cannot release that of its parent.

    Parameters
    ----------
    path : Path
        The lock file; it is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(str(path), mode=0o600)
        self._lock.acquire()
        self._process = os.getpid()
        _process_locks.add(self)

    @property
    def is_held(self) -> bool:
        """Whether this process holds it."""
        return self._process == os.getpid() and self._lock.is_locked

    def release(self) -> bool:
        """Release it, and return whether this process held it."""
        was_held = self.is_held
        if was_held:
            self._lock.release()
        return was_held


def _thread_lock(name: str) -> threading.Lock:
    with _thread_locks_guard:
        return _thread_locks.setdefault(name, threading.Lock())


def _start_as_child() -> None:
    """Start with free locks in a forked child: the threads that held them exist only in its parent."""
    global _thread_locks_guard
    _thread_locks_guard = threading.Lock()
    _thread_locks.clear()
    _of_parents.extend(_process_locks)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_as_child)
