"""What exists: one snapshot of all images, renewed in the background and corrected by our own writes at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from monailabel_xnat.client.roi import RoiCollection
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import UnknownImageError, XNATDatastoreError
from monailabel_xnat.ids import EXPECTED_FORM, ImageId
from monailabel_xnat.listing import Resource, Scan, list_projects, list_scans, list_shared_scans
from monailabel_xnat.roi_references import RoiReferences
from monailabel_xnat.selection import drawn_labels, is_image

__all__ = ["Catalog", "Resource", "Scan"]

logger = logging.getLogger(__name__)

# Sessions shared in are looked for at each explicit refresh; in the background only where there were some, or
# once in this many seconds.
_SHARES_ASKED_EVERY = 600.0


@dataclass(frozen=True)
class _Snapshot:
    """The scans that are images, and how else than by canonical id they may be named."""

    scans: dict[ImageId, Scan]
    by_series: dict[str, ImageId] = field(default_factory=dict)
    by_session: dict[tuple[str, str], ImageId] = field(default_factory=dict)

    @classmethod
    def of(cls, scans: list[Scan]) -> _Snapshot:
        snapshot = cls({scan.image_id: scan for scan in scans})
        for image, scan in snapshot.scans.items():
            snapshot.by_session[image.experiment, image.scan] = image
            if scan.series_uid:
                snapshot.by_series.setdefault(scan.series_uid, image)
        return snapshot


class Catalog:
    """The images of the configured projects.

    The first use asks XNAT; later ones answer from memory. Older than ``max_age``, the snapshot is renewed in the
    background while the old one is served; if that fails, the old one stays and :attr:`problem` says why. Between
    two renewals only our own writes are known, which :meth:`put_resource`, :meth:`drop_resource`,
    :meth:`drop` and :meth:`renew` tell.

    Parameters
    ----------
    session : Session
        The connection; its settings say which projects and which scans.
    clock : callable
        Seconds that only grow.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._settings = session.settings
        self._clock = clock
        self._lock = threading.RLock()
        self._renewal = threading.Lock()
        self._snapshot: _Snapshot | None = None
        self._taken = 0.0
        self._changes: list[tuple[float, Callable[[_Snapshot], None]]] = []
        self._background: threading.Thread | None = None
        self._shares_asked: float | None = None
        self._has_shares = False
        self._rois = RoiReferences(session, self._renew_in_background)
        self._drawn = 0
        self.problem = ""

    def scans(self) -> list[Scan]:
        """List the images, in the order of their ids as XNAT listed them."""
        self._be_ready()
        with self._lock:
            return list(self._known().scans.values())

    def scan(self, image: ImageId | str) -> Scan:
        """Find an image by its id.

        Parameters
        ----------
        image : ImageId or str
            Canonical, or with labels for accession ids, or with a project that the session is shared into, or
            the scan's SeriesInstanceUID alone.

        Raises
        ------
        InvalidIdError
            If it is no id at all.
        UnknownImageError
            If no image has it.
        """
        self._be_ready()
        with self._lock:
            snapshot = self._known()
            if isinstance(image, str) and image in snapshot.by_series:
                return snapshot.scans[snapshot.by_series[image]]
            wanted = _parsed(image)
            found = snapshot.scans.get(wanted) or _by_other_names(snapshot, wanted)
        if found is None:
            raise UnknownImageError(
                f"no image {str(wanted)!r} on {self._settings.server}",
                hint="it may be left out by the filters in the settings, have no image files, or not be visible to "
                "this user; refresh() shows what is new",
            )
        return found

    def put_resource(self, image: ImageId, resource: Resource) -> None:
        """Note that we wrote to a resource of a scan."""

        def change(snapshot: _Snapshot) -> None:
            scan = snapshot.scans.get(image)
            if scan is not None:
                others = tuple(other for other in scan.resources if other.label != resource.label)
                snapshot.scans[image] = scan._replace(resources=(*others, resource))

        self._apply(change)

    def drop_resource(self, image: ImageId, label: str) -> None:
        """Note that we removed a resource of a scan, or its last file."""

        def change(snapshot: _Snapshot) -> None:
            scan = snapshot.scans.get(image)
            if scan is not None:
                others = tuple(other for other in scan.resources if other.label != label)
                snapshot.scans[image] = scan._replace(resources=others)

        self._apply(change)

    def put_collection(self, image: ImageId, collection: RoiCollection) -> None:
        """Note that we stored a ROI collection of a scan."""

        def change(snapshot: _Snapshot) -> None:
            scan = snapshot.scans.get(image)
            if scan is not None:
                others = tuple(other for other in scan.collections if other.id != collection.id)
                snapshot.scans[image] = scan._replace(collections=(*others, collection))

        self._apply(change)

    def drop_collection(self, image: ImageId, collection: RoiCollection) -> None:
        """Note that we deleted a ROI collection of a scan."""

        def change(snapshot: _Snapshot) -> None:
            scan = snapshot.scans.get(image)
            if scan is not None:
                others = tuple(other for other in scan.collections if other.id != collection.id)
                snapshot.scans[image] = scan._replace(collections=others)

        self._apply(change)

    def drop(self, image: ImageId) -> None:
        """Note that we removed a scan."""

        def change(snapshot: _Snapshot) -> None:
            scan = snapshot.scans.pop(image, None)
            snapshot.by_session.pop((image.experiment, image.scan), None)
            if scan is not None:
                snapshot.by_series.pop(scan.series_uid, None)

        self._apply(change)

    def renew(self) -> None:
        """Ask XNAT again, now.

        Raises
        ------
        NotInArchiveError
            If a configured project does not exist or may not be seen.
        ServerError
            If XNAT fails; the old snapshot stays.
        """
        self._shares_asked = None
        self._rois.ask_again()
        with self._renewal:
            self._take_snapshot()

    def _be_ready(self) -> None:
        """Have a snapshot: wait for the first one, start the renewal of an old one."""
        if self._snapshot is None:
            with self._renewal:
                if self._snapshot is None:
                    self._take_snapshot()
        elif self._clock() - self._taken > self._settings.max_age:
            self._renew_in_background()

    def _known(self) -> _Snapshot:
        assert self._snapshot is not None  # noqa: S101 - _be_ready has seen to it, and none is ever taken away
        return self._snapshot

    def _renew_in_background(self) -> None:
        if self._background is None or not self._background.is_alive():
            self._background = threading.Thread(target=self._try_to_renew, name="xnat-catalog", daemon=True)
            self._background.start()

    def _try_to_renew(self) -> None:
        try:
            with self._renewal:
                self._take_snapshot()
        except XNATDatastoreError as error:
            self.problem = str(error)
            logger.warning("the listing of XNAT could not be renewed, the old one is used: %s", error)
            with self._lock:
                self._taken = self._clock()

    def _take_snapshot(self) -> None:
        """Ask XNAT for everything; the caller holds the renewal lock, never the other one."""
        started = self._clock()
        scans = self._list()
        if self._lost_some(scans) and not self._session.verify_login():
            # On an open site an expired login reads as a guest, who sees less and is told nothing.
            scans = self._list()
        snapshot = _Snapshot.of(scans)
        with self._lock:
            self._changes = [change for change in self._changes if change[0] >= started]
            for _, change in self._changes:
                change(snapshot)
            self._snapshot, self._taken, self.problem = snapshot, self._clock(), ""
        logger.info("listed %d images", len(snapshot.scans))
        self._tell_of_drawn(scans)

    def _list(self) -> list[Scan]:
        projects = list(self._settings.project) or list_projects(self._session)
        if not projects:
            logger.warning("XNAT shows this user no project")
            return []
        tasks = [list_scans] * len(projects)
        ask_for_shares = self._shares_are_due()
        with ThreadPoolExecutor(min(self._settings.connections, len(projects))) as pool:
            owned = list(pool.map(lambda task, project: task(self._session, project), tasks, projects))
            shared = list(pool.map(lambda p: list_shared_scans(self._session, p), projects)) if ask_for_shares else []
        if ask_for_shares:
            self._has_shares = any(shared)
            self._shares_asked = self._clock()
        scans = self._selected([*owned, *shared], projects)
        return self._with_collections(scans, projects) if self._settings.roi_tag else scans

    def _with_collections(self, scans: list[Scan], projects: list[str]) -> list[Scan]:
        """Join the ROI collections to the scans that they were drawn on; those of a shared session are its owner's."""
        found = self._rois.by_series([*projects, *(scan.owner for scan in scans)])
        if not found:
            return scans
        keys = ((scan.image_id.experiment, scan.series_uid) for scan in scans)
        return [scan._replace(collections=found[key]) if key in found else scan for scan, key in zip(scans, keys)]

    def _tell_of_drawn(self, scans: list[Scan]) -> None:
        drawn = sum(len(drawn_labels(scan, self._settings)) for scan in scans)
        if drawn and not self._drawn:
            logger.info(
                "%d ROI collections saved in the viewer count as labels with tag %r (settings roi_tag, roi_label)",
                drawn,
                self._settings.roi_tag,
            )
        self._drawn = drawn

    def _shares_are_due(self) -> bool:
        if self._has_shares or self._shares_asked is None:
            return True
        return self._clock() - self._shares_asked > _SHARES_ASKED_EVERY

    def _selected(self, listings: list[list[Scan]], projects: list[str]) -> list[Scan]:
        """Keep the images, each once: under its owning project where that is listed, else where it is shared into."""
        selected: dict[tuple[str, str], Scan] = {}
        for scans in listings:
            for scan in scans:
                owned_elsewhere = scan.owner != scan.image_id.project and scan.owner in projects
                if not owned_elsewhere and is_image(scan, self._settings):
                    selected.setdefault((scan.image_id.experiment, scan.image_id.scan), scan)
        return list(selected.values())

    def _lost_some(self, scans: list[Scan]) -> bool:
        before = self._snapshot
        return before is not None and not before.scans.keys() <= {scan.image_id for scan in scans}

    def _apply(self, change: Callable[[_Snapshot], None]) -> None:
        """Change the snapshot, and the one that a renewal under way will bring."""
        with self._lock:
            self._changes.append((self._clock(), change))
            if self._snapshot is not None:
                change(self._snapshot)
            if not self._renewal.locked():
                self._changes.clear()


def _parsed(image: ImageId | str) -> ImageId:
    if isinstance(image, ImageId):
        return image
    if isinstance(image, str) and image and "/" not in image:
        raise UnknownImageError(f"no image {image!r}", hint=f"expected {EXPECTED_FORM}, or a SeriesInstanceUID")
    return ImageId.parse(image)


def _by_other_names(snapshot: _Snapshot, wanted: ImageId) -> Scan | None:
    """Find by accession ids whatever the project (they are unique on a site), or by labels within the project."""
    image = snapshot.by_session.get((wanted.experiment, wanted.scan))
    if image is not None:
        scan = snapshot.scans[image]
        return scan if wanted.subject in (image.subject, scan.subject_label) else None
    for scan in snapshot.scans.values():
        if (
            scan.image_id.scan == wanted.scan
            and scan.session_label == wanted.experiment
            and wanted.subject in (scan.subject_label, scan.image_id.subject)
            and wanted.project in (scan.image_id.project, scan.owner)
        ):
            return scan
    return None
