"""Images of scans as local files: read in the mounted archive or downloaded, converted, and kept in the cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from monailabel_xnat.catalog.read_cache import ReadCache
from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.catalog.selection import image_resources
from monailabel_xnat.client.files import RemoteFile, list_files
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import (
    AccessDeniedError,
    ImageError,
    LoginError,
    NoImageError,
    NotInArchiveError,
    ServerError,
    TransferError,
)
from monailabel_xnat.ids import ImageId
from monailabel_xnat.images.cache import Cache, CachedImage
from monailabel_xnat.images.cache.entry import packed
from monailabel_xnat.images.comparisons import Comparison, Comparisons
from monailabel_xnat.images.fetcher import DICOM, Fetcher
from monailabel_xnat.images.imagefile import ending, usual_ending
from monailabel_xnat.images.mounted import state_of
from monailabel_xnat.images.no_volumes import NoVolumes, with_few_names
from monailabel_xnat.images.prefetch import BackgroundPrefetch, PrefetchReport, Progress, prefetch, worker_task

if TYPE_CHECKING:
    from monailabel_xnat.convert.grid import Grid, Sources

# Modules that need SimpleITK are imported where they are used: a datastore and a cached image work without it.

logger = logging.getLogger(__name__)

# This number is noted with each image. Raise it if the same files must give another image than before.
_CONVERSION = 2
# Seconds for which an image counts as unchanged if XNAT's listing shows neither the number nor the size of its files.
_BELIEVED_FOR = 600.0


class Images:
    """The images of scans.

    Each image is fetched once. Later callers, in any thread or process, get the same file without a request. The files
    are compared with XNAT's list when the listing shows another number or size, and otherwise once in a while
    (:class:`Comparisons`). If they changed, the image is fetched again under another name. XNAT's list holds names,
    sizes and MD5 digests. If XNAT keeps no digests, a file with the same name and size counts as unchanged.

    Parameters
    ----------
    session : Session
        The connection.
    settings : Settings
        The settings: the folder for the images, and their form.
    read_cache : ReadCache or None
        Keeps which scans are not a volume: the read cache of the catalog, if there is one. None makes a new one.

    Raises
    ------
    CacheError
        If the folder for the images cannot be made.
    """

    def __init__(self, session: Session, settings: Settings, read_cache: ReadCache | None = None) -> None:
        self._session = session
        self._settings = settings
        self.cache = Cache.of(settings)
        self._fetcher = Fetcher(session, settings)
        self._background = BackgroundPrefetch(self, self.cache.budget)
        self._file_form = "nii.gz" if settings.compress else "nii"
        # The settings that also decide which image is made from the same files.
        self._way = f"conversion {_CONVERSION}, gantry_tilt {settings.gantry_tilt}"
        self._known: dict[tuple[ImageId, str], CachedImage] = {}
        self._comparisons = Comparisons(settings.verify_age)
        self._notes: dict[str, str] = {}
        self._no_volumes = NoVolumes(settings, read_cache or ReadCache(settings))

    @property
    def is_stacked(self) -> bool:
        """Whether slices of a tilted gantry are stacked straight (setting ``gantry_tilt``)."""
        return self._settings.gantry_tilt == "stack"

    @property
    def notes(self) -> dict[str, str]:
        """What is doubtful about the images that were used, by image id."""
        return dict(self._notes)

    def no_volumes(self, find: Callable[[str], Scan | None]) -> dict[str, str]:
        """Return the listed scans that turned out not to be an image, with the reasons; makes no request."""
        return self._no_volumes.reasons(self._form, find)

    def path(self, scan: Scan) -> Path:
        """Return the path of the image, which is fetched if need be.

        It is a NIfTI file, another file that MONAI reads, or the DICOM folder (with ``image_format="dicom"``).

        Raises
        ------
        NoImageError
            If the scan holds no image.
        ImageError
            If its files do not make one image, or cannot be read.
        ServerError
            If XNAT fails, or sends other files than it lists (TransferError).
        CacheError
            If the disk is full or cannot be written.
        """
        return self._entry(scan, self._form).path

    def local(self, scan: Scan) -> Path | None:
        """Return the path of the image if it is here and need not be compared with XNAT; makes no request."""
        resources = image_resources(scan, self._settings)
        entry = self._current(scan, resources[0], self._form) if resources else None
        return entry.path if entry else None

    def compare_anew(self, scans: Iterable[Scan] | None = None) -> None:
        """Mark some images, or all (None), to be compared with XNAT's list of their files when next used."""
        if scans is None:
            self._no_volumes.look_again()
        self._comparisons.expire(None if scans is None else [scan.image_id for scan in scans])

    def require_compared(self, scan: Scan) -> None:
        """Refuse an image if XNAT could not be asked whether it is still the same when :meth:`path` returned it.

        Raises
        ------
        ServerError
            The error that XNAT answered with.
        """
        failure = self._comparisons.failures().get(scan.image_id)
        if failure is not None:
            raise failure

    def checksum(self, scan: Scan) -> str | None:
        """Return ``SHA256:<hex>`` of the image's file if it is here already, else None; makes no request."""
        resources = image_resources(scan, self._settings)
        entry = self._stored(scan, resources[0], self._form) if resources else None
        return entry.checksum if entry else None

    def facts(self, scan: Scan) -> dict[str, str]:
        """Return what is known about the image's file; makes no request.

        ``name`` is its name, or the likely name if the image is not here yet. ``path`` and ``checksum`` follow if it is
        here and need not be compared with XNAT first. ``image_note`` says what is doubtful about it. An image that
        another process has fetched at this moment may be missed.
        """
        resources = image_resources(scan, self._settings)
        stem = scan.image_id.file_stem
        entry = None
        if resources and ((scan.image_id, self._form) in self._known or self.cache.may_hold(stem)):
            entry = self._stored(scan, resources[0], self._form)
        if entry is None:
            label = resources[0].label if resources else ""
            return {"name": stem if self._form == DICOM else stem + usual_ending(label, f".{self._file_form}")}
        facts = {"name": entry.path.name, **({"image_note": entry.note} if entry.note else {})}
        if resources[0].is_counted and self._is_due(scan, resources[0], entry):
            return facts
        return {**facts, "path": str(entry.path), **({"checksum": entry.checksum} if entry.checksum else {})}

    def grid(self, scan: Scan) -> Grid:
        """Return the voxel grid (shape, affine to RAS in mm) of the image's file, which is fetched if need be.

        Raises
        ------
        ImageError, ServerError, CacheError
            As for :meth:`path`.
        """
        entry = self._entry(scan, self._file_form)
        others = tuple(np.array(affine) for affine in entry.others)
        shear = np.array(entry.shear) if entry.shear else None
        return replace(_grid(entry.path), sources=partial(self._sources, scan, entry), others=others, shear=shear)

    def dicom_folder(self, scan: Scan) -> Path:
        """Return a folder with the DICOM files of the scan's series, which are fetched if need be.

        Raises
        ------
        NoImageError
            If the scan's image is not stored as DICOM.
        ServerError, CacheError
            As for :meth:`path`.
        """
        entry = self._entry(scan, DICOM)
        if not entry.path.is_dir():
            raise NoImageError(f"the image {entry.image_id} is not stored as DICOM")
        return entry.path

    def open(self, scan: Scan) -> BinaryIO:
        """Return the image's file, open for reading; for a folder, a zip of it.

        Raises
        ------
        ImageError, ServerError, CacheError
            As for :meth:`path`.
        """
        path = self.path(scan)
        return packed(path) if path.is_dir() else path.open("rb")

    def hold(self, scans: Iterable[Scan]) -> None:
        """Protect images from eviction while this process lives, and release the images that it held before."""
        self.cache.hold(scan.image_id.file_stem for scan in scans)

    def discard(self, scan: Scan) -> None:
        """Remove an image from the cache in all its forms; the next use fetches it again.

        Raises
        ------
        CacheError
            If it cannot be removed.
        """
        key = scan.image_id.file_stem
        with self.cache.lock(key):
            for form in (DICOM, "nii", "nii.gz"):
                self._known.pop((scan.image_id, form), None)
                for entry in self.cache.find(key, form):
                    self.cache.remove(entry)

    def prefetch(
        self,
        scans: Iterable[Scan],
        *,
        workers: int = 4,
        progress: Callable[[Progress], None] | None = None,
        executor: Executor | None = None,
    ) -> PrefetchReport:
        """Fetch many images, several at a time, and return which failed and why; see :func:`prefetch`."""
        if executor is not None and self._session.owner is not None and not self._settings.username:
            raise LoginError(
                "an executor cannot use the xnatpy session that was given as connection: its workers log in themselves",
                hint="leave the executor out, or give username and password beside connection",
                url=self._settings.server,
            )
        return prefetch(self, scans, workers=workers, progress=progress, executor=executor)

    def elsewhere(self) -> Callable[[Scan], None]:
        """Return a task that fetches an image in another process, with a connection of its own."""
        return worker_task(self._settings)

    def expect(self, choose: Callable[[int], Sequence[Scan]]) -> None:
        """Fetch in the background the images that are likely to be next, as many as the setting ``prefetch`` says.

        Parameters
        ----------
        choose : callable
            Returns at most the given number of images, best first; it is called in the background.
        """
        count = self._settings.prefetch
        if count:
            self._background.expect(lambda: choose(count))

    def close(self) -> None:
        """End the background work and release the images that this process holds."""
        self._background.close()
        self.cache.close()
        self._no_volumes.close()

    @property
    def _form(self) -> str:
        return DICOM if self._settings.image_format == DICOM else self._file_form

    def _entry(self, scan: Scan, form: str) -> CachedImage:
        resource = self._resource(scan)
        entry = self._current(scan, resource, form)
        if entry is None:
            self._no_volumes.refuse(scan, resource, form)
            try:
                entry = self._fetched(scan, resource, form)
            except ImageError as error:
                raise self._no_volumes.note(scan, resource, form, error) from error
            self._no_volumes.forget(scan, form)
        self.cache.use(entry)
        if entry.note:
            self._notes[entry.image_id] = entry.note
        elif self._notes:
            self._notes.pop(entry.image_id, None)
        return entry

    def _sources(self, scan: Scan, entry: CachedImage) -> Sources:
        """Return which DICOM images the slices were made of; the files are read if an earlier release kept no list."""
        from monailabel_xnat.convert.dicom.volume import decode_sources, read_sources

        with suppress(OSError, ValueError):
            return decode_sources(entry.sources.read_bytes())
        try:
            folder = self.dicom_folder(scan)
        except NoImageError:
            return {}
        try:
            return read_sources(folder, scan.series_uid or None)
        except NoImageError:  # the files were anonymised in the archive, so their series UID differs from XNAT's
            return read_sources(folder, None)

    def _resource(self, scan: Scan) -> Resource:
        resources = image_resources(scan, self._settings)
        if not resources:
            found = ", ".join(resource.label for resource in scan.resources) or "none"
            raise NoImageError(
                f"scan {scan.image_id} has no image; its resources: {found}",
                hint=f"looked for {', '.join(self._settings.image_resource)} (setting image_resource)",
            )
        return resources[0]

    def _current(self, scan: Scan, resource: Resource, form: str) -> CachedImage | None:
        """Return the cached entry that matches XNAT as far as it is known, without a request; None if there is none."""
        entry = self._stored(scan, resource, form)
        if entry is not None and self._is_due(scan, resource, entry):
            self._known.pop((scan.image_id, form), None)  # another process may have compared it
            entry = self._stored(scan, resource, form)
            return None if entry is None or self._is_due(scan, resource, entry) else entry
        return entry

    def _is_due(self, scan: Scan, resource: Resource, entry: CachedImage) -> bool:
        if resource.is_counted:
            return self._comparisons.is_due(scan.image_id, entry.fingerprint, entry.compared)
        return self._comparisons.is_due(scan.image_id, entry.fingerprint, 0.0, within=_BELIEVED_FOR)

    def _stored(self, scan: Scan, resource: Resource, form: str) -> CachedImage | None:
        """Return the cached entry that was made, or compared, when the listing was the same as now."""
        seen = self._as_seen(resource)
        entry = self._known.get((scan.image_id, form))
        if entry is None or entry.seen != seen or not self.cache.is_there(entry):
            found = (entry for entry in self.cache.find(scan.image_id.file_stem, form) if entry.seen == seen)
            entry = next(found, None)
            if entry:
                self._known[scan.image_id, form] = entry
        return entry

    def _fetched(self, scan: Scan, resource: Resource, form: str) -> CachedImage:
        """Compare with XNAT's list, then fetch and convert if need be. A lock lets only one thread here do this."""
        key = scan.image_id.file_stem
        with self.cache.lock(key):
            entry = self._current(scan, resource, form) or self._made(scan, resource, form)
        self._known[scan.image_id, form] = entry
        return entry

    def _made(self, scan: Scan, resource: Resource, form: str) -> CachedImage:
        path = resource_path(scan.path, resource.label)
        comparison = self._comparisons.begin()
        try:
            files = list_files(self._session, path)
        except (AccessDeniedError, NotInArchiveError):  # it may have been withdrawn
            raise
        except ServerError as error:
            entry = self._stored(scan, resource, form)
            if entry is None:
                raise
            self._comparisons.postpone(scan.image_id, error)
            logger.warning("an image could not be compared with XNAT, the one here is used: %s", type(error).__name__)
            return entry
        if not files:
            raise NoImageError(f"resource {resource.label} of scan {scan.image_id} holds no files")
        for entry in self._alike(scan, form, files):
            renewed = self.cache.renew(entry, self._as_seen(resource), comparison.begun)
            self._comparisons.note(scan.image_id, entry.fingerprint, comparison)
            return renewed
        try:
            return self._make(scan, resource, files, form, comparison)
        except TransferError as error:
            comparison = self._comparisons.begin()
            try:
                anew = list_files(self._session, path)
            except ServerError:
                raise error from None
            if self._fingerprint(anew) == self._fingerprint(files):
                raise
        logger.info("files of an image changed in XNAT while they came; fetching them anew")
        return self._make(scan, resource, anew, form, comparison)

    def _make(
        self, scan: Scan, resource: Resource, files: Sequence[RemoteFile], form: str, comparison: Comparison
    ) -> CachedImage:
        key, fingerprint = scan.image_id.file_stem, self._fingerprint(files)
        started = time.monotonic()
        kept = next((entry.path for entry in self._alike(scan, DICOM, files)), None)
        with self.cache.making(key, sum(file.size or 0 for file in files)) as part:
            try:
                made = self._fetcher.fetch(scan, resource, files, form, part, kept)
            except ImageError as error:
                raise with_few_names(error, (file.path.rpartition("/")[2] for file in files)) from error
            name = f"{key}_{fingerprint[:12]}{'' if made.path.is_dir() else ending(made.path.name)}"
            new = CachedImage(
                path=self.cache.folder / key / name,
                form=form,
                image_id=str(scan.image_id),
                fingerprint=fingerprint,
                seen=self._as_seen(resource),
                size=0,
                sha256=made.sha256,
                compared=comparison.begun,
                origin=str(made.origin.folder) if made.origin else "",
                origin_state=made.origin.state if made.origin else "",
                note=made.note,
                others=made.others,
                shear=made.shear,
            )
            entry = self.cache.put(made.path, new, made.sources)
        self._comparisons.note(scan.image_id, fingerprint, comparison)
        logger.info("fetched an image of %d files in %.1f s", len(files), time.monotonic() - started)
        return entry

    def _as_seen(self, resource: Resource) -> str:
        return f"{resource.label}|{resource.file_count}|{resource.file_size}|{self._way}"

    def _fingerprint(self, files: Sequence[RemoteFile]) -> str:
        """Return a digest of the files that XNAT lists, and of the settings that decide what is made from them."""
        lines = sorted(f"{file.path}\0{file.size}\0{file.md5}" for file in files)
        return text_digest("\n".join([self._way, *lines]))

    def _alike(self, scan: Scan, form: str, files: Sequence[RemoteFile]) -> Iterator[CachedImage]:
        """Return the cached entries that were made from exactly these files, and whose origin has not changed."""
        fingerprint = self._fingerprint(files)
        for entry in self.cache.find(scan.image_id.file_stem, form):
            if entry.fingerprint == fingerprint and self._is_sound(entry, files):
                yield entry

    def _is_sound(self, entry: CachedImage, files: Sequence[RemoteFile]) -> bool:
        if entry.origin:
            return state_of(Path(entry.origin), files, as_a_whole=entry.path.is_dir()) == entry.origin_state
        # Earlier releases read a mounted archive without a proof, and noted neither the archive nor a comparison.
        return bool(entry.compared) or (not entry.path.is_symlink() and self._settings.asset_path is None)


def _grid(path: Path) -> Grid:
    from monailabel_xnat.convert.grid import Grid

    try:
        return Grid.of_image(path)
    except ValueError as error:
        raise ImageError(f"{path.name} cannot be read as an image: {error}") from error
