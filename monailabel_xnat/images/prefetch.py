"""Images fetched before they are asked for: many at once, or the likely next ones in the background."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.util import Finalize
from typing import Protocol

from monailabel_xnat.background import Background
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.values import Secret

logger = logging.getLogger(__name__)

# The likely next images must not push out what is being worked on.
_SHARE_OF_BUDGET = 0.25
# A converted image takes about as much as its files, which are on the disk at the same time.
_BYTES_PER_BYTE = 2

_of_this_worker: dict[Settings, ImageSource] = {}
_of_this_worker_guard = threading.Lock()
# By server and user. Workers that were forked have it as well; it never travels in a task.
_passwords: dict[tuple[str, str], Secret] = {}


class ImageSource(Protocol):
    """What gives images; :class:`monailabel_xnat.images.images.Images` does."""

    def path(self, scan: Scan) -> object:
        """Fetch an image unless it is here."""

    def local(self, scan: Scan) -> object | None:
        """Return an image that is here."""

    def elsewhere(self) -> Callable[[Scan], None]:
        """Return what does the same as ``path`` in another process or machine; can be pickled."""


@dataclass(frozen=True)
class Progress:
    """What is told after each image.

    Parameters
    ----------
    done, total : int
        Images dealt with so far, failed ones included, and in all.
    image_id : str
        The image just dealt with.
    error : str
        Why it failed; empty if it did not.
    """

    done: int
    total: int
    image_id: str
    error: str


@dataclass(frozen=True)
class PrefetchReport:
    """What came of a prefetch.

    Parameters
    ----------
    already_here : tuple of str
        Ids of images that were in the cache.
    fetched : tuple of str
        Ids of images that were fetched now.
    failed : dict of str to str
        Why the others were not, by id.
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
    """Fetch many images, several at a time; one that fails does not keep the others from coming.

    Parameters
    ----------
    images : Images
        Where to fetch them.
    scans : iterable of Scan
        Whose images.
    workers : int
        How many at a time, where no executor is given. At most ``connections`` of them download at once.
    progress : callable or None
        Called after each image, in this thread.
    executor : Executor or None
        Does the work instead of threads of this process: a ProcessPoolExecutor, or one that leads to other machines
        that share the cache folder, such as a Client of Dask. It is not shut down. Its workers open connections of
        their own. No password is sent to them: they log in with the environment of their own process or ``~/.netrc``,
        and workers that were forked from this process with what it knows.

    Returns
    -------
    PrefetchReport
        The ids stand in the order of the scans.

    Raises
    ------
    ValueError
        If there are to be no workers.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers cannot fetch anything: give at least 1")
    wanted = list(dict.fromkeys(scans))
    here = [scan for scan in wanted if images.local(scan) is not None]
    missing = [scan for scan in wanted if scan not in set(here)]
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
    """Return a task for workers, which fetches an image with a connection of their own and holds no password."""
    login = (settings.server, settings.username)
    _passwords[login] = settings.password
    return partial(fetch_in_worker, replace(settings, password=Secret("")))


def fetch_in_worker(settings: Settings, scan: Scan) -> None:
    """Fetch an image in a worker, which keeps one connection for all that it is given.

    Parameters
    ----------
    settings : Settings
        Without the password.
    scan : Scan
        Whose image.

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
            # Runs in children of multiprocessing too, which atexit does not.
            Finalize(None, session.close, exitpriority=10)
    images.path(scan)


class BackgroundPrefetch:
    """Fetches the likely next images one after the other, while nobody waits for them.

    Parameters
    ----------
    images : Images
        Where to fetch them.
    budget : int or None
        Bytes that the cache may take; what is fetched at a time stays within a quarter of it.
    """

    def __init__(self, images: ImageSource, budget: int | None = None) -> None:
        self._images = images
        self._budget = budget
        self._wake = threading.Condition()
        self._choose: Callable[[], Sequence[Scan]] | None = None
        self._expected: list[Scan] = []
        self._thread = Background("xnat-prefetch", self._run)
        self._closed = False

    def expect(self, choose: Callable[[], Sequence[Scan]]) -> None:
        """Expect other images than before; returns at once.

        Parameters
        ----------
        choose : callable
            Gives the images that are likely next, best first; called in the background, for it may look at all.
        """
        with self._wake:
            if self._closed:
                return
            self._choose, self._expected = choose, []
            self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Start nothing more; an image that is under way is not waited for."""
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
            except Exception as error:  # noqa: BLE001 - whoever really asks for the image gets it
                logger.debug("an image was not prefetched: %s", error)

    def _adopt(self, chosen: list[Scan]) -> None:
        with self._wake:
            if self._choose is None and not self._closed:
                self._expected = chosen


def _ids(scans: Sequence[Scan]) -> tuple[str, ...]:
    return tuple(str(scan.image_id) for scan in scans)


class _Teller:
    """Counts, and tells the caller."""

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
    """Fetch, and give each scan with what went wrong, in the order in which they are done."""
    if executor is not None:
        # A Client of Dask gives futures of its own, and an executor of the standard library when it is asked for one.
        get_executor = getattr(executor, "get_executor", None)
        yield from _done_by(get_executor() if get_executor else executor, images.elsewhere(), scans)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="xnat-prefetch") as pool:
        yield from _done_by(pool, images.path, scans)


def _done_by(executor: Executor, task: Callable[[Scan], object], scans: Sequence[Scan]) -> Iterable[tuple[Scan, str]]:
    futures: dict[Future[object], Scan] = {}
    try:
        for scan in scans:
            try:
                futures[executor.submit(task, scan)] = scan
            except RuntimeError as error:  # it was shut down, or its workers have died
                yield scan, _reason(error)
        for future in as_completed(futures):
            failure = CancelledError("it was cancelled") if future.cancelled() else future.exception()
            yield futures[future], _reason(failure) if failure else ""
    finally:
        for future in futures:
            future.cancel()


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
