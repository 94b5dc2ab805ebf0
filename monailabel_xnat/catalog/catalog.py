"""The catalog: an index of all images. It is renewed in the background, and our own writes correct it at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.catalog.drawn_collections import DrawnCollections
from monailabel_xnat.catalog.drawn_scans import DrawnScans
from monailabel_xnat.catalog.image_index import ImageIndex
from monailabel_xnat.catalog.kept_listing import REFUSED, KeptListing
from monailabel_xnat.catalog.projects import Listed, Projects, each_once
from monailabel_xnat.catalog.read_cache import ReadCache
from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.catalog.selection import Selection
from monailabel_xnat.catalog.shared_names import SharedNames, Sharing, by_session
from monailabel_xnat.client.drawn import Drawing
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import (
    AmbiguousNameError,
    InvalidIdError,
    ServerError,
    UnknownImageError,
    XNATDatastoreError,
    restored,
)
from monailabel_xnat.ids import EXPECTED_FORM, ImageId, LabelId, splits_of_label_id

__all__ = ["Catalog", "Resource", "Scan"]

logger = logging.getLogger(__name__)

# XNAT is asked again for an unknown name if the index is this many times as old as its listing took.
_LISTING_SHARE = 3.0

# A listing is renewed when it is this many times as old as the time that it took, so that listings take at most a
# twentieth of XNAT's time. It is never renewed sooner than after _SOONEST seconds.
_AGE_PER_COST = 20.0
_SOONEST = 5.0

# A function that returns a scan as it is after one of our writes; None if the write removed it.
_Edit = Callable[[Scan], Scan | None]


class _Found(NamedTuple):
    """The result of one renewal."""

    images: ImageIndex
    listed: Listed
    shared_into: Sharing
    filter_problem: str
    reading: float
    """Seconds that drawings took. In the first renewal most of this time is for reading them, which happens once."""


class Catalog:
    """The images of the configured projects.

    The first use asks XNAT. Later uses answer from memory. An old index is still used while it is renewed in the
    background; if that fails, it stays in use, and :attr:`problem` says why. The age at which it is renewed depends on
    how long a listing takes: ``max_age`` if it takes seconds, and much less for a quick one, so that changes by others
    appear soon. Between two renewals only our own writes are known: callers report them with :meth:`put_resource`,
    :meth:`put_drawing`, :meth:`drop_drawing` and :meth:`drop`.

    :attr:`read_cache` keeps, on this disk, what was read about the images and need not be read again.

    Parameters
    ----------
    session : Session
        The connection. Its settings name the projects and choose the scans.
    clock : callable
        Returns seconds that never decrease.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._settings = session.settings
        self._clock = clock
        self._lock = renewed_in_children(self, "_lock", threading.RLock)
        self._renewal = renewed_in_children(self, "_renewal", threading.Lock)
        self._selection = Selection(session.settings)
        self._index: ImageIndex | None = None
        self._taken = self._cost = 0.0
        self._edits: list[tuple[float, str, _Edit]] = []
        self._background = Background("xnat-catalog", background_work()(self._try_to_renew))
        self.read_cache = ReadCache(session.settings)
        self._projects = Projects(session, self.read_cache, clock)
        self._shared = SharedNames(session.settings, self._projects.listing)
        self._lost: dict[str, str] = {}
        self._rois = DrawnCollections(session, self.read_cache, self._renew_in_background)
        self.drawn = DrawnScans(session, self.read_cache, self._renew_in_background)
        self._listeners: list[Callable[[Collection[str]], None]] = []
        self._served = self.problem = self.filter_problem = ""
        self._kept: KeptListing | None = None
        self.absence: ServerError | None = None
        """Why XNAT has listed nothing since the start; None once it has."""

    def __len__(self) -> int:
        """Return the number of images; 0 while the first listing is still awaited."""
        return 0 if self._index is None and self.absence else len(self._current())

    def ids(self) -> list[str]:
        """Return the ids of the images, as texts, in the order in which XNAT listed them."""
        return self._current().ids()

    def scans(self) -> list[Scan]:
        """Return the images, in the same order."""
        return self._current().scans()

    def scan(self, image: ImageId | str, *, insist: bool = False) -> Scan:
        """Return an image by its id or by another name.

        Parameters
        ----------
        image : ImageId or str
            The canonical id; or one with labels in place of accession ids, or with a project into which the session is
            shared and the labels that it has there; or the scan's SeriesInstanceUID; or the name of an added image.
        insist : bool
            Whether XNAT is always asked again if the name is not known; otherwise only if the index is old enough.

        Raises
        ------
        InvalidIdError
            If the text does not have the form of an id.
        UnknownImageError
            If there is no such image.
        AmbiguousNameError
            If several images have the name.
        """
        try:
            found = self._current().find(image) or self._shared.find(image, self._current())
        except (UnknownImageError, AmbiguousNameError) as error:
            self.require_answer()
            if isinstance(error, AmbiguousNameError) or not self._list_anew_for(image, insist):
                raise
            found = self._current().find(image)
        if found is None or (insist and str(image) != str(found.image_id)):
            self.require_answer()  # an earlier run's listing proves neither that there is none, nor whose a name is now
        if found is None:
            raise UnknownImageError(
                f"no image {str(image)!r} on {self._settings.server}", hint=self._why_unknown(image)
            )
        return found

    def label(self, label: str) -> tuple[Scan, LabelId]:
        """Return the image of a label and the label's id, by the text of that id; it may contain any name of the image.

        Raises
        ------
        InvalidIdError, UnknownImageError, AmbiguousNameError
            As for :meth:`scan`.
        """
        if not isinstance(label, str):
            raise InvalidIdError(f"malformed label id {label!r}", hint=f"expected {EXPECTED_FORM}")
        splits = list(splits_of_label_id(label))
        name, *rest = next((split for split in splits if self.named(split[0])), splits[-1])
        scan = self.scan(name)
        return scan, LabelId(scan.image_id, *rest)

    def by_session(self, experiment: str, scan: str) -> Scan | None:
        """Return an image by the accession ID of its session and its scan ID, whatever its project."""
        return self._current().by_session(experiment, scan)

    def of_project(self, project: str) -> list[Scan]:
        """Return the images in a project: those that it owns, and those that others share into it."""
        return list(self._shared.images_of(project, self._current()))

    def get(self, image: str) -> Scan | None:
        """Return an image by its canonical id if it is known now; XNAT is never asked."""
        index = self._index
        return index.get(image) if index else None

    def named(self, name: str) -> list[Scan]:
        """Return the images that were added under a name: more than one only if they were added at the same moment."""
        return self._current().named(name)

    def keep_listings(self) -> None:
        """Keep each listing on this disk from now on, for a start while XNAT is away; none of somebody else's login."""
        if self._session.owner is None:
            self._kept = KeptListing(self._settings)

    def wait_for(self, error: ServerError, since: str) -> None:
        """Note why XNAT has listed nothing since the start; what was kept of an earlier run is served until it does.

        A user whom XNAT refuses is shown nothing.
        """
        if self.absence is None and self._index is not None:
            return  # it has answered to somebody else meanwhile
        self.absence = error
        if self._index is None and self._kept and not isinstance(error, REFUSED) and (kept := self._kept.read()):
            self._index, self._served = kept.images, f"; what is shown was listed at {kept.listed}"
            self._tell(kept.images.ids())
        told = f"XNAT has not answered since this server started at {since}{self._served}: {error}"
        self.problem = str(error) if isinstance(error, REFUSED) else told

    def require_answer(self) -> None:
        """Refuse to go on with images that XNAT has not listed since the start.

        Raises
        ------
        ServerError
            Why it has not.
        """
        if self.absence:
            raise restored(type(self.absence), self.absence.args, dict(self.absence.__dict__))

    def subscribe(self, listener: Callable[[Collection[str]], None]) -> None:
        """Call a listener after each change, with the ids of the images that are new, have changed or are gone.

        It is called in the thread that made the change, and also now, with all images that are known already.
        """
        self._listeners.append(listener)
        if self._index is not None:
            listener(self._index.ids())

    def put_resource(self, image: ImageId, resource: Resource) -> None:
        """Note that we wrote to a resource of a scan."""
        self._edit(image, lambda scan: scan.with_resource(resource))

    def put_drawing(self, image: ImageId, drawing: Drawing) -> None:
        """Note that we stored a drawing on a scan."""
        self._edit(image, lambda scan: scan.with_drawing(drawing))

    def drop_drawing(self, image: ImageId, drawing: Drawing) -> None:
        """Note that we deleted a drawing on a scan."""
        self._edit(image, lambda scan: scan.without_drawing(drawing.id))

    def drop(self, image: ImageId) -> None:
        """Note that we removed a scan."""
        self._edit(image, lambda scan: None)

    def renew(self) -> None:
        """Ask XNAT again, now.

        Raises
        ------
        NotInArchiveError, AccessDeniedError
            If none of the projects exists or may be seen; then the index is empty.
        ServerError
            If XNAT fails for all projects; then the old index stays in use.
        """
        self._rois.ask_again()
        self.drawn.ask_again()
        with self._renewal:
            self._renew_index()

    @property
    def unread(self) -> dict[str, dict[str, str] | dict[str, int]]:
        """The drawings that cannot be read, each of which may be the newest label of an image.

        ``roi_unread`` has the reason for each drawing, by session ID and name. ``roi_kinds_unread`` has the number of
        ROI collections of each kind that this package does not read.
        """
        unread = {**self._rois.unread, **self.drawn.unread}
        return {"roi_unread": unread, "roi_kinds_unread": dict(self._rois.unread_kinds)}

    def settle(self) -> None:
        """Wait until the drawings that are being read now are read, and put them into the index."""
        are_read = self._rois.wait(), self.drawn.wait()
        if any(are_read):
            self._try_to_renew()

    def compare_drawn(self, scan: Scan | None = None) -> None:
        """Check whether drawn scans were overwritten, which no listing shows; if so, renew the index.

        Parameters
        ----------
        scan : Scan or None
            The image whose drawings are checked; None: all images.

        Raises
        ------
        ServerError
            If the drawings of the given image cannot be compared. For all images, see ``drawn.require_compared``.
        """
        if self.drawn.compare(None if scan is None else scan.drawn_scans):
            self._try_to_renew()
        if scan is not None:
            self.drawn.require_compared(self.scan(scan.image_id))

    def close(self) -> None:
        """Close what is kept on this disk: the last listing and the read cache."""
        if self._kept:
            self._kept.close()
        self.read_cache.close()

    def _current(self) -> ImageIndex:
        """Return the index. The first one is made here; the renewal of an old one is started in the background."""
        index = self._index
        if index is None:
            self.require_answer()
            with self._renewal:
                if self._index is None:
                    self._renew_index()
                index = self._index
        elif not self.absence and self._clock() - self._taken > self._longest_age:
            self._renew_in_background()
        assert index is not None  # noqa: S101 - there is one now
        return index

    @property
    def _longest_age(self) -> float:
        """The age at which the index is renewed, in seconds."""
        return min(self._settings.max_age, max(_SOONEST, _AGE_PER_COST * self._cost))

    def _renew_in_background(self) -> None:
        with self._lock:
            self._background.start()

    def _try_to_renew(self) -> None:
        started = self._clock()
        try:
            with self._renewal:
                self._renew_index()
        # Any error is noted here: otherwise each later call would start the renewal again, and nobody would know why.
        except Exception as error:
            problem = str(error) if isinstance(error, XNATDatastoreError) else f"{type(error).__name__}: {error}"
            self.problem = self.problem if self.absence else problem
            logger.warning("the listing of XNAT could not be renewed, the old one is used: %s", problem)
            if not isinstance(error, XNATDatastoreError):
                logger.info("why the listing could not be renewed", exc_info=True)
            with self._lock:
                self._taken = self._clock()
                self._cost = self._taken - started

    def _renew_index(self) -> None:
        """Make a new index from XNAT. The caller holds ``_renewal``, and must not hold ``_lock``."""
        before = self._index or ImageIndex({})
        try:
            if not self._taken and self._settings.username:
                _ = self._session.user  # log in now, so that the time for it does not count for the listing
            started = self._clock()
            found = self._list(before)
            if found.images.lost_since(before) and not self._session.verify_login():
                # On an open site an expired login does not fail: it reads as a guest, who sees less.
                found = self._list(before)
        except REFUSED:
            self._withdraw()
            raise
        index = found.images
        with self._lock:
            self._edits = [edit for edit in self._edits if edit[0] >= started]
            for _, image, edit in self._edits:
                index.edit(image, edit)
            changed = index.take_over(before)
            self._index, self._taken = index, self._clock()
            self._cost = self._taken - started - (0.0 if len(before) else found.reading)
            self._shared.into = found.shared_into
            self._lost = {project: str(error) for project, error in found.listed.lost.items()}
            self.problem = "; ".join(filter(None, (found.listed.problem, self._rois.problem)))
            self.absence = None
            is_new, self.filter_problem = self.filter_problem != found.filter_problem, found.filter_problem
        logger.info("listed %d images", len(index))
        if is_new and self.filter_problem:
            logger.warning("no image is left by the filters: %s", self.filter_problem)
        self._tell(changed)
        if self._kept and (found.listed.lost or not found.listed.failing):
            self._kept.keep(index)
        if found.listed.error is not None:
            raise found.listed.error

    def _withdraw(self) -> None:
        """Remove what was kept of what XNAT refuses now; where it is served, it is served no longer."""
        if self._kept:
            self._kept.remove()
        if self.absence and self._index is not None:
            gone, self._index, self._served = self._index.ids(), None, ""
            self._tell(gone)

    def _list(self, before: ImageIndex) -> _Found:
        """Return the images of all projects, with their drawings.

        Raises
        ------
        ServerError
            If XNAT fails for a project at the first time, or later for all projects.
        """
        try:
            listed = self._projects.list_all()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, XNATDatastoreError):
                raise
            raise ServerError(
                f"XNAT listed its scans in an unknown form: {type(error).__name__}: {error}",
                hint="the log at level INFO has the details; please report them",
            ) from error
        failure = next(iter(listed.failing.values()), None)
        if failure is not None and (self._index is None or not (listed.scans or listed.lost)):
            raise failure
        listings = {**listed.scans, **{project: before.of_project(project) for project in listed.failing}}
        shared_into = self._shared.list(listings, listed.failing)
        everything = each_once(listings)
        choice = self._selection.of(everything, by_session(shared_into))
        began = self._clock()
        drawn = self.drawn.look(listed.scans, everything)
        for image in drawn.not_images & choice.images.keys():
            del choice.images[image]
        if self._settings.roi_tag:
            self._rois.join(choice.images, listings, drawn)
        return _Found(ImageIndex(choice.images), listed, shared_into, choice.problem, self._clock() - began)

    def _list_anew_for(self, image: ImageId | str, insist: bool) -> bool:
        """List again because of an unknown name, which another server may just have given; return whether we did.

        A client that asks for unknown names again and again must not cause a listing each time.
        """
        age = self._clock() - self._taken
        if not isinstance(image, str) or not image or not (insist or age >= _LISTING_SHARE * self._cost):
            return False
        try:
            self.renew()
        except XNATDatastoreError as error:
            logger.debug("a name could not be looked for: %s", type(error).__name__)
            return False
        return True

    def _why_unknown(self, image: ImageId | str) -> str:
        project = image.project if isinstance(image, ImageId) else str(image).partition("/")[0]
        if project in self._lost:
            return f"the images of project {project} are no longer served: {self._lost[project]}"
        if self.filter_problem:
            return self.filter_problem
        return (
            "it may be left out by the filters in the settings, have no image files, or not be visible to "
            "this user; refresh() shows what is new"
        )

    def _edit(self, image: ImageId, edit: _Edit) -> None:
        """Change the index, and also the one that a renewal is making just now."""
        name = str(image)
        with self._lock:
            self._edits.append((self._clock(), name, edit))
            if self._index is not None:
                self._index.edit(name, edit)
            if not self._renewal.locked():
                self._edits.clear()
        self._tell([name])

    def _tell(self, changed: Collection[str]) -> None:
        for listener in self._listeners if changed else ():
            listener(changed)
