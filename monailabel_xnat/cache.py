"""Images on this disk: made once, by one thread of one process, whole or not at all.

::

    <folder>/                      only for this user, as everything below
        .locks/<key>.lock          held while an image is being made or removed
        <key>/                     one per image
            <name>                 a file, or a folder of DICOM files
            <name>.json            its record; written last, so that nothing counts without one
            .part/                 what is being made; left over by a killed process, and then cleared by the next
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import filelock

from monailabel_xnat.errors import CacheError

logger = logging.getLogger(__name__)

_LOCKS = ".locks"
_PART = ".part"
_RECORD_SUFFIX = ".json"
_RECORD_VERSION = 1
_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The time of last use is noted on disk no more often than this: a warm hit should not write.
_USE_NOTED_EVERY = 30.0

_thread_locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_thread_locks_guard = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One image in the cache, whole.

    Parameters
    ----------
    path : Path
        The file, or folder of files.
    form : str
        What was asked for: ``nii``, ``nii.gz`` or ``dicom``.
    image_id : str
        Whose image it is.
    fingerprint : str
        Digest of names, sizes and digests of the files in XNAT that it was made from.
    seen : str
        The resource as the listing showed it when the fingerprint was last compared.
    size : int
        Bytes on disk.
    sha256 : str
        Digest of the file; of the names and contents of all files for a folder.
    """

    path: Path
    form: str
    image_id: str
    fingerprint: str
    seen: str
    size: int
    sha256: str

    @property
    def record(self) -> Path:
        """The file that says that this entry is whole."""
        return self.path.with_name(self.path.name + _RECORD_SUFFIX)


class Cache:
    """A folder of images.

    Parameters
    ----------
    folder : Path
        Made if it does not exist, for this user only.
    budget : int or None
        Bytes that the images may take together; the least recently used go first, never one that is in use.

    Raises
    ------
    CacheError
        If the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, budget: int | None = None) -> None:
        self.folder = folder
        self.budget = budget
        self._noted: dict[Path, float] = {}
        with self._errors("make"):
            private_folder(folder / _LOCKS)
            folder.chmod(0o700)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Keep an image to oneself, across threads and processes; waits until others are done."""
        with _thread_lock(str(self.folder / key)), self._file_lock(key):
            yield

    def find(self, key: str, form: str) -> list[Entry]:
        """Give the whole entries of an image in one form, most recently used first."""
        try:
            records = [path for path in (self.folder / key).iterdir() if path.name.endswith(_RECORD_SUFFIX)]
        except OSError:
            return []
        entries = [entry for entry in map(_read_record, records) if entry and entry.form == form]
        return sorted(entries, key=_last_use, reverse=True)

    def is_there(self, entry: Entry) -> bool:
        """Tell whether an entry known from before is still there, and note its use."""
        try:
            os.stat(entry.path)  # noqa: PTH116 - a third of the time of Path.stat, on the path of every warm hit
        except OSError:
            return False
        now = time.monotonic()
        if now - self._noted.get(entry.path, 0.0) > _USE_NOTED_EVERY:
            self._noted[entry.path] = now
            with suppress(OSError):
                os.utime(entry.record)
        return True

    @contextmanager
    def making(self, key: str, need: int = 0) -> Iterator[Path]:
        """Give an empty folder to make an image in; whatever is left in it afterwards goes.

        The caller holds the lock of the image.

        Parameters
        ----------
        key : str
            Which image.
        need : int
            Bytes that making it takes, as far as known.

        Raises
        ------
        CacheError
            If the disk is full or the folder cannot be written.
        """
        part = self.folder / key / _PART
        with self._errors("write to", need):
            _remove(part)
            private_folder(part)
            if need > shutil.disk_usage(part).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            yield part
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(need) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):
                part.parent.rmdir()  # only where nothing was made

    def put(self, key: str, made: Path, name: str, **facts: str) -> Entry:
        """Take in what was made; the caller holds the lock of the image.

        Parameters
        ----------
        key : str
            Which image.
        made : Path
            A file or folder below what :meth:`making` gave.
        name : str
            The name to give out.
        **facts : str
            The other fields of the entry.
        """
        path = self.folder / key / name
        with self._errors("write to"):
            size, digest = _sealed(made)
            entry = Entry(path=path, size=size, sha256=digest, **facts)
            _remove(entry.record)
            _remove(path)
            made.rename(path)
            _write_record(entry)
            _sync(path.parent)
        self.evict(sparing=key)
        return entry

    def renew(self, entry: Entry, seen: str) -> Entry:
        """Note that an entry is what XNAT has, although the listing looks different; the caller holds the lock."""
        renewed = Entry(**{**_facts(entry), "path": entry.path, "seen": seen})
        with self._errors("write to"):
            _write_record(renewed)
        return renewed

    def remove(self, entry: Entry) -> None:
        """Remove an entry, its record first."""
        with self._errors("remove from"):
            _remove(entry.record)
            _remove(entry.path)
            with suppress(OSError):
                entry.path.parent.rmdir()

    def entries(self) -> list[Entry]:
        """Give all whole entries, least recently used first."""
        entries = map(_read_record, self.folder.glob(f"*/*{_RECORD_SUFFIX}"))
        return sorted((entry for entry in entries if entry), key=_last_use)

    def evict(self, sparing: str = "") -> int:
        """Remove least recently used images until the budget holds.

        Parameters
        ----------
        sparing : str
            Key of an image that stays in any case.

        Returns
        -------
        int
            The bytes freed.
        """
        if self.budget is None:
            return 0
        entries = self.entries()
        excess = sum(entry.size for entry in entries) - self.budget
        freed = 0
        for entry in entries:
            if freed >= excess:
                break
            if entry.path.parent.name != sparing and self._remove_if_idle(entry):
                freed += entry.size
        if freed < excess:
            logger.warning("the image cache holds %d bytes more than its budget, all in use", excess - freed)
        return freed

    def verify(self) -> list[Entry]:
        """Read every entry and give those that are not as they were made."""
        return [entry for entry in self.entries() if not _is_intact(entry)]

    def prune(self) -> int:
        """Remove what killed processes left behind and what exceeds the budget.

        Returns
        -------
        int
            The bytes freed.
        """
        freed = 0
        for folder in self.folder.iterdir():
            if folder.name != _LOCKS and folder.is_dir():
                with self._idle(folder.name) as idle:
                    freed += _clear_leftovers(folder) if idle else 0
        return freed + self.evict()

    def _remove_if_idle(self, entry: Entry) -> bool:
        with self._idle(entry.path.parent.name) as idle:
            if idle:
                self.remove(entry)
            return idle

    @contextmanager
    def _idle(self, key: str) -> Iterator[bool]:
        """Take the lock of an image if nobody has it."""
        thread_lock = _thread_lock(str(self.folder / key))
        if not thread_lock.acquire(blocking=False):
            yield False
            return
        try:
            with self._file_lock(key, timeout=0):
                yield True
        except filelock.Timeout:
            yield False
        finally:
            thread_lock.release()

    def _file_lock(self, key: str, timeout: float = -1) -> Any:
        return filelock.FileLock(str(self.folder / _LOCKS / f"{key}.lock"), timeout=timeout, mode=0o600)

    @contextmanager
    def _errors(self, verb: str, need: int = 0) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(need) from error
            raise CacheError(
                f"cannot {verb} the image cache {self.folder}: {error.strerror or type(error).__name__}",
                hint="set cache_path to a folder that this user can write to",
            ) from error

    def _full(self, need: int) -> CacheError:
        needed = f", {_megabytes(need)} needed" if need else ""
        return CacheError(
            f"no space left for images in {self.folder}{needed}",
            hint="free some, set a smaller cache_budget, or a cache_path on another disk",
        )


def private_folder(folder: Path) -> Path:
    """Make a folder, and those above it that are missing, for this user only."""
    for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    return folder


def _thread_lock(name: str) -> threading.Lock:
    """Give the lock between the threads of this process; it wakes a waiter at once, while lock files are polled."""
    with _thread_locks_guard:
        return _thread_locks.setdefault(name, threading.Lock())


def _facts(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if key != "path"}


def _write_record(entry: Entry) -> None:
    temporary = entry.record.with_name(entry.record.name + ".new")
    with open(temporary, "w", encoding="utf-8", opener=_private) as stream:
        json.dump({"version": _RECORD_VERSION, **_facts(entry)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(entry.record)


def _read_record(path: Path) -> Entry | None:
    data = path.with_name(path.name[: -len(_RECORD_SUFFIX)])
    try:
        facts = json.loads(path.read_bytes())
        if facts.pop("version") != _RECORD_VERSION or not data.exists():
            return None
        return Entry(path=data, **facts)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def _last_use(entry: Entry) -> float:
    try:
        return entry.record.stat().st_mtime
    except OSError:
        return 0.0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sealed(made: Path) -> tuple[int, str]:
    """Bring a file or folder to the disk itself; give its size on this disk and its digest.

    A link leads to somebody else's files: they are neither touched, nor read as a whole, nor counted.
    """
    if made.is_symlink():
        return 0, ""
    size = 0
    for path in _files(made):
        path.chmod(0o600)
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())
        size += path.stat().st_size
    return size, _digest(made)


def _digest(path: Path) -> str:
    """Give the SHA-256 of a file; of a folder that of its files' names and digests, in order."""
    if not path.is_dir():
        return _file_digest(path)
    lines = (f"{_file_digest(file)} {file.relative_to(path).as_posix()}" for file in _files(path))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _sync(folder: Path) -> None:
    """Bring a folder's own list of names to the disk, where the system knows such a thing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_intact(entry: Entry) -> bool:
    try:
        return not entry.sha256 or _digest(entry.path) == entry.sha256
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _clear_leftovers(folder: Path) -> int:
    """Remove from an image's folder what no record vouches for; the caller holds its lock."""
    whole = {entry.path for entry in map(_read_record, folder.glob(f"*{_RECORD_SUFFIX}")) if entry}
    kept = whole | {path.with_name(path.name + _RECORD_SUFFIX) for path in whole}
    freed = 0
    for path in set(folder.iterdir()) - kept:
        freed += sum(file.lstat().st_size for file in _files(path))
        _remove(path)
    with suppress(OSError):
        folder.rmdir()
    return freed


def _megabytes(size: int) -> str:
    return f"{max(size / 1e6, 0.1):.1f} MB"


def _forget_thread_locks() -> None:
    """Start anew in a forked child: the threads that held the locks are not in it."""
    global _thread_locks_guard
    _thread_locks_guard = threading.Lock()
    _thread_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread_locks)
