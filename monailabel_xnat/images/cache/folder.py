"""The folder of images on this disk. A lock lets only one thread of one process make an image, whole or not at all.

::

    <folder>/                      only this user can read it and all that is in it
        .locks/<key>.lock          is locked while an image is made or removed
        .leases/                   which images each process holds
        .sources/<name>            which DICOM images the slices of an image were made of
        <key>/                     one folder for each image
            <name>                 a file, or a folder of DICOM files
            <name>.json            its record; it is written last, and an image without a record does not count
            .part/                 an image that is being made; the next process clears what a killed one left here
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import locked, private_folder, require_private, write_whole
from monailabel_xnat.errors import CacheError
from monailabel_xnat.images.cache.entry import (
    SOURCES_FOLDER,
    CachedImage,
    files_of,
    paths_in,
    read_record,
    record_of,
    records_in,
    remove,
    seal,
    write_record,
)
from monailabel_xnat.images.cache.leases import Leases

logger = logging.getLogger(__name__)

_LOCKS = ".locks"
_LEASES = ".leases"
_PART = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The time of the last use is written to the disk at most this often (seconds), because most uses should not write.
_USE_NOTED_EVERY = 30.0
# The folder is listed again after this time (seconds), so that asking for each of 20000 images in a row is cheap.
_LOOKED_EVERY = 0.05
# A folder that was changed less than this long ago (nanoseconds) is listed again; `Cache._look` says why.
_FRESH_NS = 10**9
# The sizes of all images, also of other processes, are summed up at most this often (seconds) below the budget.
_COUNTED_EVERY = 60.0
# An image and the files that it is made from are on the disk at the same time, and have about the same size.
_MADE_PER_NEED = 2
# An image that was replaced in XNAT stays this long (seconds), because somebody may still work with it.
_REPLACED_STAYS = 3600.0
_GIGABYTE = 10**9


class Cache:
    """A folder of images.

    Parameters
    ----------
    folder : Path
        The folder; it is made with the first image, for this user only, so that a server that never answered leaves
        none.
    budget : int or None
        Bytes that all images together may take. Beyond that the least recently used ones are removed, but never one
        that is in use.
    beside : Path or None
        Folder with the folders of all servers, in which `folder` is one level below that of its server; the images of
        all of them share the budget. None: the budget is for `folder` alone.

    Raises
    ------
    CacheError
        If the folder could not be made or written.
    """

    def __init__(self, folder: Path, *, budget: int | None = None, beside: Path | None = None) -> None:
        self.folder = folder
        self.budget = budget
        self._beside = beside
        self._leases = Leases(folder / _LEASES)
        self._noted: dict[Path, float] = {}
        self._size = 0
        self._counted = float("-inf")
        self._eviction = renewed_in_children(self, "_eviction", threading.Lock)
        self._keys: frozenset[str] = frozenset()
        self._looked = float("-inf")
        self._keys_of = 0
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        with self._errors("make"):
            require_private(folder)
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @classmethod
    def of(cls, settings: Settings) -> Cache:
        """Return the cache for the images of a server.

        Parameters
        ----------
        settings : Settings
            The ``server_folder`` and the ``cache_budget`` (in units of 10**9 bytes) in it are used. The budget holds
            for the images of all servers below one cache folder.
        """
        server = settings.server_folder
        return cls(server / "images", budget=int(settings.cache_budget * _GIGABYTE) or None, beside=server.parent)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Wait until no other thread or process has the lock of an image, and hold it until the block ends.

        Raises
        ------
        CacheError
            If the folder cannot be made.
        """
        with self._errors("make"):
            private_folder(self.folder)
            private_folder(self.folder / _LOCKS)
        with locked(self._lock_file(key)):
            yield

    def may_hold(self, key: str) -> bool:
        """Return quickly whether there may be an image. An image that another process just added may be missed."""
        now = time.monotonic()
        if now - self._looked > _LOOKED_EVERY:
            self._look()
            self._looked = now
        return key in self._keys

    def find(self, key: str, form: str) -> list[CachedImage]:
        """Return the complete entries of an image in one form, most recently used first."""
        entries = map(read_record, records_in(self.folder / key))
        found = [entry for entry in entries if entry and entry.form == form]
        return sorted(found, key=lambda entry: entry.last_use, reverse=True)

    def is_there(self, entry: CachedImage) -> bool:
        """Return whether the image of an entry that is known from before still exists."""
        try:
            os.stat(entry.path)  # noqa: PTH116 - takes a third of the time of Path.stat, at each use of a cached image
        except OSError:
            return False
        return True

    def use(self, entry: CachedImage) -> None:
        """Note that an entry is used now. It is in use until this thread gets another one."""
        self._leases.use(entry.key)
        now = time.monotonic()
        if now - self._noted.get(entry.path, float("-inf")) > _USE_NOTED_EVERY:
            self._noted[entry.path] = now
            with suppress(OSError):
                os.utime(entry.record)

    def hold(self, keys: Iterable[str]) -> None:
        """Protect images from eviction while this process lives; images that were held before are not held any more."""
        with self._errors("write to"):
            self._leases.hold(keys)

    @contextmanager
    def making(self, key: str, need: int = 0) -> Iterator[Path]:
        """Yield an empty folder to make an image in. Afterwards the folder is removed with all that is left in it.

        The caller holds the lock of the image.

        Parameters
        ----------
        key : str
            The key of the image.
        need : int
            How many bytes its files take, as far as it is known.

        Raises
        ------
        CacheError
            If the disk is full or the folder cannot be written.
        """
        part = self.folder / key / _PART
        with self._errors("write to", need):
            remove(part)
            private_folder(part)
        try:
            self._make_room(need, sparing=key)
            yield part
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(need) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):
                part.parent.rmdir()  # it fails, and does nothing, unless the folder is empty

    def put(self, made: Path, entry: CachedImage, sources: bytes = b"") -> CachedImage:
        """Put an image that was made into the cache; the caller holds the lock of the image.

        Parameters
        ----------
        made : Path
            A file or folder in the folder that :meth:`making` yielded.
        entry : CachedImage
            The entry for it; its size, and its digest if it has none, are filled in here.
        sources : bytes
            Which DICOM images its slices were made of; empty if that is not known.

        Returns
        -------
        CachedImage
            The complete entry.
        """
        with self._errors("write to"):
            size, digest = seal(made, entry.sha256)
            entry = replace(entry, size=size, sha256=digest)
            remove(entry.record)
            remove(entry.path)
            remove(entry.sources)
            made.rename(entry.path)
            if sources:
                private_folder(entry.sources.parent)
                write_whole(entry.sources, sources, durable=True)
            write_record(entry)
            self._retire_replaced(entry)
        self._size += size
        self.evict(sparing=entry.key)
        return entry

    def renew(self, entry: CachedImage, seen: str, compared: float) -> CachedImage:
        """Note that an entry still matches XNAT, although the listing may look different; the caller holds the lock.

        Parameters
        ----------
        entry : CachedImage
            The entry.
        seen : str
            The resource as the listing shows it now.
        compared : float
            When its files were compared with XNAT's list, in seconds since 1970.

        Returns
        -------
        CachedImage
            The entry with these two facts.
        """
        renewed = replace(entry, seen=seen, compared=compared)
        with self._errors("write to"):
            write_record(renewed)
        return renewed

    def remove(self, entry: CachedImage) -> None:
        """Remove an entry, beginning with its record; the caller holds the lock of the image."""
        with self._errors("remove from"):
            remove(entry.record)
            remove(entry.path)
            remove(entry.sources)
        self._size -= entry.size
        for parent in (entry.path.parent, entry.sources.parent):
            with suppress(OSError):
                parent.rmdir()

    def entries(self) -> list[CachedImage]:
        """Return all complete entries, least recently used first."""
        # Not with glob, which raises an error if another process removes an image at the same time.
        entries = (read_record(record) for folder in paths_in(self.folder) for record in records_in(folder))
        return sorted((entry for entry in entries if entry), key=lambda entry: entry.last_use)

    def size_of_all(self) -> int:
        """Return the bytes of all images that share the budget, those of other servers included."""
        return sum(entry.size for _, entry in self._entries_of_all())

    def evict(self, sparing: str = "") -> int:
        """Remove the least recently used images, of whichever server, until the rest is within the budget.

        Parameters
        ----------
        sparing : str
            Key of an image that must stay.

        Returns
        -------
        int
            How many bytes were freed.
        """
        if self.budget is None:
            return 0
        with self._eviction:
            if self._size <= self.budget and time.monotonic() - self._counted < _COUNTED_EVERY:
                return 0
            entries = self._entries_of_all()
            self._size = sum(entry.size for _, entry in entries)
            self._counted = time.monotonic()
            return self._evict(entries, self._size - self.budget, sparing)

    def verify(self, *, remove_damaged: bool = False) -> list[CachedImage]:
        """Read all images, and return the entries whose images have changed since they were made.

        Parameters
        ----------
        remove_damaged : bool
            Whether to remove these; they are downloaded again at their next use.
        """
        damaged = [entry for entry in self.entries() if not entry.is_intact()]
        for entry in damaged if remove_damaged else ():
            self._remove_if_idle(entry)
        return damaged

    def prune(self) -> int:
        """Remove files that killed processes left behind, and images beyond the budget.

        Returns
        -------
        int
            How many bytes were freed.
        """
        freed = 0
        for folder in paths_in(self.folder):
            if folder.name == SOURCES_FOLDER:
                _clear_sources(folder)
            elif folder.is_dir() and folder.name not in (_LOCKS, _LEASES):
                with locked(self._lock_file(folder.name), timeout=0) as idle:
                    freed += _clear_leftovers(folder) if idle else 0
        self._counted = float("-inf")
        return freed + self.evict()

    def close(self) -> None:
        """Hold no images any more."""
        self._leases.close()

    def _look(self) -> None:
        """List the images again if the folder has changed, or may have changed without a new time."""
        with suppress(OSError):
            changed = self.folder.stat().st_mtime_ns
            if changed != self._keys_of:
                self._keys = frozenset(os.listdir(self.folder))  # noqa: PTH208 - thousands of names, nothing else
                # Two changes within one tick of the disk's clock have the same time, so a fresh time proves nothing.
                self._keys_of = changed if time.time_ns() - changed > _FRESH_NS else 0

    def _make_room(self, need: int, sparing: str) -> None:
        """Make room on the disk for an image, because the budget may be larger than the disk."""
        missing = need * _MADE_PER_NEED - shutil.disk_usage(self.folder).free
        if missing > 0:
            with self._eviction:
                self._evict(self._entries_of_all(), missing, sparing)
        if need > shutil.disk_usage(self.folder).free:
            raise self._full(need)

    def _entries_of_all(self) -> list[tuple[Cache, CachedImage]]:
        """Return all entries that share the budget, each with the cache of its server, least recently used first."""
        caches = [self]
        for server in paths_in(self._beside) if self._beside else ():
            folder = server / self.folder.name
            if server != self.folder.parent and folder.is_dir():
                with suppress(CacheError):  # a folder that others may write to is none of ours
                    caches.append(Cache(folder))
        entries = [(cache, entry) for cache in caches for entry in cache.entries()]
        return sorted(entries, key=lambda found: found[1].last_use)

    def _evict(self, entries: list[tuple[Cache, CachedImage]], excess: int, sparing: str) -> int:
        freed = 0
        if excess > 0:
            kept = {cache: cache._leases.in_use() for cache in {cache for cache, _ in entries}}
            for cache, entry in entries:
                is_kept = entry.key in kept[cache] or (cache is self and entry.key == sparing)
                if freed < excess and not is_kept and entry.size and cache._remove_if_idle(entry):
                    freed += entry.size
                    if cache is not self:
                        self._size -= entry.size
            if freed < excess:
                logger.warning("the image cache takes %s too much, all in use", _megabytes(excess - freed))
        return freed

    def _remove_if_idle(self, entry: CachedImage) -> bool:
        with locked(self._lock_file(entry.key), timeout=0) as idle:
            if not idle:
                return False
            try:
                self.remove(entry)
            except CacheError as error:  # on Windows a file that is open cannot be removed
                logger.debug("not evicted: %s", error)
                return False
            return True

    def _retire_replaced(self, new: CachedImage) -> None:
        """Remove earlier entries of the image, unless somebody may still work with them."""
        for entry in self.find(new.key, new.form):
            if entry.path != new.path and time.time() - entry.last_use > _REPLACED_STAYS:
                self.remove(entry)

    def _lock_file(self, key: str) -> Path:
        return self.folder / _LOCKS / f"{key}.lock"

    @contextmanager
    def _errors(self, verb: str, need: int = 0) -> Iterator[None]:
        try:
            yield
        except CacheError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(need) from error
            raise CacheError(
                f"cannot {verb} the image cache {self.folder}: {error.strerror or type(error).__name__}",
                hint="set cache_path to a folder that this user can write to",
            ) from error

    def _full(self, need: int) -> CacheError:
        needed = f", at least {_megabytes(need)} needed" if need else ""
        return CacheError(
            f"no space left for images in {self.folder}{needed}",
            hint="free some, set a smaller cache_budget, or a cache_path on another disk",
        )


def _clear_sources(folder: Path) -> None:
    """Remove the lists of sources of images that do not exist any more."""
    names = {path.name for image in paths_in(folder.parent) if image != folder for path in paths_in(image)}
    for path in paths_in(folder):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _clear_leftovers(folder: Path) -> int:
    """Remove all files from an image's folder that have no record; the caller holds the lock of the image."""
    whole = {entry.path for entry in map(read_record, records_in(folder)) if entry}
    kept = whole | {record_of(path) for path in whole}
    freed = 0
    for path in set(paths_in(folder)) - kept:
        freed += sum(file.lstat().st_size for file in files_of(path))
        remove(path)
    with suppress(OSError):
        folder.rmdir()
    return freed


def _megabytes(size: int) -> str:
    return f"{max(size / 1e6, 0.1):.1f} MB"
