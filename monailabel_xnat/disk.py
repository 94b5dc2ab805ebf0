"""Files on this disk: how they are written whole, kept private, identified by a digest, and locked."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import stat
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet, WeakValueDictionary

import filelock

from monailabel_xnat.errors import CacheError, XNATDatastoreError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_BLOCKS_AHEAD = 8
# How often a process looks whether another one has released a lock file. The threads of one process do not poll: the
# lock in memory wakes them at once.
_POLL_SECONDS = 0.02
# Some network and user-space file systems cannot fsync a folder, and answer with one of these.
_NO_SUCH_CALL = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)

_thread_locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_thread_locks_guard = threading.Lock()
_process_locks: WeakSet[ProcessLock] = WeakSet()
# Locks of the parent, as seen in a forked child. The child shares their files and must not release them. This list
# keeps the garbage collector from doing that.
_of_parents: list[ProcessLock] = []


@contextmanager
def must_work(task: str, hint: str) -> Iterator[None]:
    """Turn an error of the disk within the block into a CacheError.

    Parameters
    ----------
    task : str
        What is being done; the message puts "cannot" before it: ``"write the manifest to /data"``.
    hint : str
        What the user can do about it.

    Raises
    ------
    CacheError
        If an OSError is raised inside that is not one of this library's own errors.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, XNATDatastoreError):
            raise
        raise CacheError(f"cannot {task}: {error.strerror or error}", hint=hint) from error


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can look into (mode 0700), and return it.

    Folders above it that are missing are made with the same mode.

    Their names survive a power cut, as what is put into them with ``durable`` does.

    Raises
    ------
    CacheError
        If the folder exists and other users may have put something into it; see :func:`require_private`.
    """
    # Path.mkdir(parents=True) would ignore the mode for the folders above, and use the umask.
    for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
        with suppress(OSError):  # where we may not read the folder above, its names cannot be flushed
            flush(missing.parent)
    require_private(folder)
    return folder


def require_private(folder: Path) -> None:
    """Refuse a folder for patients' data if other users may have put something into it.

    A folder that does not exist passes. If others can read this user's folder but not write to it, its mode is set to
    0700. So is the mode of a folder that Kubernetes has opened to the group of a volume (``fsGroup``), as it does with
    all folders in the volume whenever it is mounted: members of that group are the containers that whoever set the
    group trusts with the volume. On Windows nothing is checked.

    Raises
    ------
    CacheError
        If it is a symbolic link, belongs to another user, or may be written by others.
    """
    try:
        found = folder.lstat()
    except OSError:
        return
    if os.name == "nt":  # On Windows the mode does not show who may read a folder.
        return
    another = "choose another folder with the settings cache_path and data_path"
    if stat.S_ISLNK(found.st_mode):
        raise CacheError(f"{folder} is a symbolic link, and is not used", hint=f"put a folder there, or {another}")
    if found.st_uid != os.geteuid():
        raise CacheError(f"{folder} belongs to another user (uid {found.st_uid}), and is not used", hint=another)
    if found.st_mode & 0o022 and not _is_opened_by_volume(folder, found):
        raise CacheError(
            f"others may write to {folder}, and it is not used",
            hint=f"see that all in it is yours, then close it with `chmod 700 {folder}`, or {another}",
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
        # Kubernetes opens it again and again, and nobody need do anything about that.
        level = logging.INFO if found.st_mode & 0o022 else logging.WARNING
        logger.log(level, "others could look into %s; it is closed to them now", folder)


def _is_opened_by_volume(folder: Path, found: os.stat_result) -> bool:
    """Return whether a folder looks as Kubernetes leaves it: for a group of ours, as what is above it, and only for it.

    What we make has mode 0700, and nobody but us and root can have changed that.
    """
    is_for_group = found.st_mode & stat.S_ISGID and not found.st_mode & 0o002
    groups = {os.getegid(), *os.getgroups()}
    return bool(is_for_group and found.st_gid in groups and folder.parent.stat().st_gid == found.st_gid)


def require_own_place(folder: Path) -> None:
    """Refuse a folder for patients' data as :func:`require_private` does, or because everybody may replace it.

    Other users who may write to the folder above cannot look into this one, and what they put in its place is found to
    be theirs. But everybody must not be able to. A volume of a container, which is often open to everybody, passes,
    because nobody else is in the container.

    Raises
    ------
    CacheError
        Also if everybody may write to the folder above, and it has no sticky bit.
    """
    above = folder.parent
    mode = above.stat().st_mode if above.exists() else 0
    if os.name != "nt" and mode & 0o002 and not mode & stat.S_ISVTX and not above.is_mount():
        raise CacheError(
            f"everybody may write to {above}, and could replace {folder.name} in it",
            hint=f"`chmod o-w {above}` or `chmod +t {above}`, or choose another folder with cache_path and data_path",
        )
    require_private(folder)


def private_opener(path: str, flags: int) -> int:
    """Return a descriptor for ``open(..., opener=private_opener)``: only this user can read a new file (mode 0600)."""
    return os.open(path, flags, 0o600)


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Rename a file to its final name in one step, once the block has written all of it.

    Parameters
    ----------
    path : Path
        The final path; a file that is there already is replaced.
    durable : bool
        Whether the file and its name must survive a power cut that happens after the block.

    Yields
    ------
    Path
        A temporary path in the same folder, to which the caller writes. After an error this file is removed.
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
    """Write a small file that only this user can read, completely or not at all; see :func:`whole`."""
    with whole(path, durable=durable) as temporary, open(temporary, "xb", opener=private_opener) as stream:
        stream.write(content)


def flush(path: Path) -> None:
    """Write a file, or the list of names in a folder, to the disk itself (fsync)."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows writes folders by itself and has no call for it.
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
    # Not security-relevant: XNAT lists MD5 digests, and some systems allow MD5 only with this argument.
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class DigestedFile(io.RawIOBase):
    """A new file whose SHA-256 is taken while it is written, by a thread of its own. What is written must not change.

    Parameters
    ----------
    path : Path
        The file, which must not exist.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("xb", buffering=_BLOCK)
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="xnat-digest")
        self._waiting: deque[Future[None]] = deque()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Write some bytes, and have them added to the digest."""
        self._wait(_BLOCKS_AHEAD)
        try:
            self._waiting.append(self._pool.submit(self._digest.update, data))
        except RuntimeError:  # Python is ending and starts no threads any more, but this file is still completed
            self._wait()
            self._digest.update(data)
        self._file.write(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._pool.shutdown()
            self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        """The hexadecimal digest of all that has been written."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self, most: int = 1) -> None:
        """Wait until fewer than ``most`` blocks wait for the digest."""
        while len(self._waiting) >= most:
            self._waiting.popleft().result()


def text_digest(text: str) -> str:
    """Return the hexadecimal SHA-256 digest of a text, also of one that is not valid Unicode."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock file within the block, so that only one thread on this machine is in such a block at a time.

    Parameters
    ----------
    path : Path
        The lock file. It is made if it is missing, and never removed.
    timeout : float
        Seconds to wait until others release it. -1 means no limit, 0 means not to wait.

    Yields
    ------
    bool
        Whether the lock is held. The block also runs if it is not; without a limit it is always held.
    """
    with _thread_locks_guard:
        thread_lock = _thread_locks.setdefault(str(path), threading.Lock())
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
    """A lock file that this process holds until it releases it or ends, also by a crash.

    A forked child does not hold the lock of its parent and cannot release it.

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
        """Whether this process holds the lock."""
        return self._process == os.getpid() and self._lock.is_locked

    def release(self) -> bool:
        """Release the lock, and return whether this process held it."""
        was_held = self.is_held
        if was_held:
            self._lock.release()
        return was_held


def _start_as_child() -> None:
    """Reset all locks in a forked child: the threads that hold them exist only in its parent."""
    global _thread_locks_guard
    _thread_locks_guard = threading.Lock()
    _thread_locks.clear()
    _of_parents.extend(_process_locks)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_as_child)
