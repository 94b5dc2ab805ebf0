"""Fetching images before anybody asks for them: many at once, or the likely next ones in the background."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.util import Finalize
from typing import Protocol

from monailabel_xnat.background import Background, completed, renewed_in_children
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Secret, Settings

logger = logging.getLogger(__name__)

# Images that are fetched ahead must not push out the images that people work on.
_SHARE_OF_BUDGET = 0.25
# A converted image takes about as much space as its files, and both are on the disk at the same time.
_BYTES_PER_BYTE = 2

_of_this_worker: dict[Settings, ImageSource] = {}
_of_this_worker_guard = threading.Lock()
# Passwords by server and user. Forked workers have a copy; a password is never a part of a task.
_passwords: dict[tuple[str, str], Secret] = {}


class ImageSource(Protocol):
    """An object that fetches images, such as :class:`monailabel_xnat.images.images.Images`."""

    def path(self, scan: Scan) -> object:
        """Return an image, which is fetched unless it is here."""

    def local(self, scan: Scan) -> object | None:
        """Return an image if it is here, else None."""

    def elsewhere(self) -> Callable[[Scan], None]:
        """Return a task that does the same as ``path`` in another process or machine; it can be pickled."""


@dataclass(frozen=True)
class Progress:
    """How far a prefetch has come, reported after each image.

    Parameters
    ----------
    done, total : int
        How many images are done, failed ones included, and how many there are in all.
    image_id : str
        The image that was done last.
    error : str
        Why it failed; empty if it did not fail.
    """

    done: int
    total: int
    image_id: str
    error: str


@dataclass(frozen=True)
class PrefetchReport:
    """The result of a prefetch.

    Parameters
    ----------
    already_here : tuple of str
        Ids of images that were in the cache.
    fetched : tuple of str
        Ids of images that were fetched now.
    failed : dict of str to str
        Why the other images could not be fetched, by id.
    """

    already_here: tuple[str, ...]
    fetched: tuple[str, ...]
    failed: dict[str, str]


def prefetch(
    images: ImageSource,
    scans: Iterable[Scan],
    *,
    workers: int = 4,
    progress: Callable[[Progress], None] | None = None,
    executor: Executor | None = None,
) -> PrefetchReport:
    """Fetch many images, several at a time. If one fails, the others are still fetched.

    Parameters
    ----------
    images : Images
        Fetches the images.
    scans : iterable of Scan
        The scans whose images are wanted.
    workers : int
        How many images are fetched at a time, if no executor is given. At most ``connections`` download at once.
    progress : callable or None
        Called after each image, in this thread.
    executor : Executor or None
        Does the work instead of threads of this process. It may be a ProcessPoolExecutor, or lead to other machines
        that share the cache folder, such as a Client of Dask. It is not shut down. Its workers open their own
        connections. No password is sent to them: they log in with the environment of their own process or
        ``~/.netrc``. Workers that were forked from this process know its password.

    Returns
    -------
    PrefetchReport
        The ids are in the order of the scans.

    Raises
    ------
    ValueError
        If ``workers`` is less than 1.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers cannot fetch anything: at least 1 is needed")
    wanted = list(dict.fromkeys(scans))
    here = [scan for scan in wanted if images.local(scan) is not None]
    held = set(here)
    missing = [scan for scan in wanted if scan not in held]
    tell = _Teller(progress, len(wanted))
    for scan in here:
        tell(scan, "")
    errors: dict[Scan, str] = {}
    for scan, error in _fetched(images, missing, workers, executor):
        tell(scan, error)
        errors[scan] = error
    for scan in [scan for scan, error in errors.items() if not error and images.local(scan) is None]:
        errors[scan] = "removed again to make room: cache_budget is too small for all of them"
    fetched = [scan for scan in missing if not errors[scan]]
    failed = {str(scan.image_id): errors[scan] for scan in missing if errors[scan]}
    logger.info("prefetched %d images; %d were here, %d failed", len(fetched), len(here), len(failed))
    return PrefetchReport(_ids(here), _ids(fetched), failed)


def worker_task(settings: Settings) -> Callable[[Scan], None]:
    """Return a task for workers, which fetches an image over the worker's own connection and holds no password."""
    login = (settings.server, settings.username)
    _passwords[login] = settings.password
    return partial(fetch_in_worker, replace(settings, password=Secret("")))


def fetch_in_worker(settings: Settings, scan: Scan) -> None:
    """Fetch an image in a worker, which keeps one connection for all its tasks.

    Parameters
    ----------
    settings : Settings
        The settings without the password.
    scan : Scan
        The scan whose image is wanted.

    Raises
    ------
    SettingsError
        If this process knows no password for the user.
    XNATDatastoreError
        As :meth:`Images.path`.
    """
    from monailabel_xnat.images.images import Images  # it imports this module

    with _of_this_worker_guard:
        images = _of_this_worker.get(settings)
        if images is None:
            known = _passwords.get((settings.server, settings.username))
            session = Session(replace(settings, password=known) if known else settings.with_login(os.environ))
            images = _of_this_worker[settings] = Images(session, session.settings)
            # Unlike atexit, this also runs in child processes of multiprocessing.
            Finalize(None, session.close, exitpriority=10)
    images.path(scan)


class BackgroundPrefetch:
    """Fetches the images that are likely to be next, one after the other, in a background thread.

    Parameters
    ----------
    images : Images
        Fetches the images.
    budget : int or None
        Bytes that the cache may take. The images that are fetched ahead take at most a quarter of it.
    """

    def __init__(self, images: ImageSource, budget: int | None = None) -> None:
        self._images = images
        self._budget = budget
        self._wake = renewed_in_children(self, "_wake", threading.Condition)
        self._choose: Callable[[], Sequence[Scan]] | None = None
        self._expected: list[Scan] = []
        self._thread = Background("xnat-prefetch", self._run)
        self._closed = False

    def expect(self, choose: Callable[[], Sequence[Scan]]) -> None:
        """Fetch other images than before, and return at once.

        Parameters
        ----------
        choose : callable
            Returns the images that are likely to be next, best first. It is called in the background, because it may
            take long.
        """
        with self._wake:
            if self._closed:
                return
            self._choose, self._expected = choose, []
            self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Start no further image. An image that is being fetched now is not waited for."""
        with self._wake:
            self._closed = True
            self._choose, self._expected = None, []
            self._wake.notify()

    def _within_budget(self, scans: Sequence[Scan]) -> list[Scan]:
        if self._budget is None:
            return list(scans)
        left = self._budget * _SHARE_OF_BUDGET
        chosen = []
        for scan in scans:
            left -= _BYTES_PER_BYTE * max((resource.file_size or 0 for resource in scan.resources), default=0)
            if left < 0:
                break
            chosen.append(scan)
        return chosen

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._choose or self._expected or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
                choose, self._choose = self._choose, None
                scan = None if choose else self._expected.pop(0)
            try:
                with background_work():
                    if choose:
                        self._adopt(self._within_budget(choose()))
                    elif scan and self._images.local(scan) is None:
                        self._images.path(scan)
            except Exception as error:  # noqa: BLE001 - a caller who asks for the image will get the error
                logger.debug("an image was not prefetched: %s", error)

    def _adopt(self, chosen: list[Scan]) -> None:
        with self._wake:
            if self._choose is None and not self._closed:
                self._expected = chosen


def _ids(scans: Sequence[Scan]) -> tuple[str, ...]:
    return tuple(str(scan.image_id) for scan in scans)


class _Teller:
    """Counts the images that are done, and reports each to the caller."""

    def __init__(self, progress: Callable[[Progress], None] | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def __call__(self, scan: Scan, error: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(Progress(self._done, self._total, str(scan.image_id), error))


def _fetched(
    images: ImageSource, scans: Sequence[Scan], workers: int, executor: Executor | None
) -> Iterable[tuple[Scan, str]]:
    """Fetch images, and return each scan with its error ("" if there is none), in the order in which they are done."""
    if executor is not None:
        for scan, done in completed(executor, images.elsewhere(), scans):
            yield scan, done.reason
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="xnat-prefetch") as pool:
        for scan, done in completed(pool, images.path, scans):
            yield scan, done.reason
