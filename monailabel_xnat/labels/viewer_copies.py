"""Copies of labels for viewers: labels that are safe in XNAT are stored again as ROI collections or as scans.

This happens in the background. The XNAT-OHIF viewer reads ROI collections. There is one for each image, tag and author,
named ``<tag>_<scan>_<model or user>_<time of the first>``; a later label replaces the earlier one. XNAT Workstation
reads scans: if the setting ``label_scan`` names a tag, there is one scan with a SEG for each image with that tag. Our
copies have a mark in their SOP Instance UID. A drawing without that mark was saved by somebody else and is never
changed. Copies that a process could not store before it ended are stored by the next process.
"""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.catalog.selection import image_resources
from monailabel_xnat.client.drawn import find_seg_scan, make_seg_scan, store_seg_scan
from monailabel_xnat.client.items import delete, scan_path
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.client.roi import (
    DICOM_SUFFIX,
    RoiCollection,
    delete_collection,
    id_of_collection,
    is_marked,
    marked_uid,
    may_store,
    read_facts,
    store_seg,
)
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import writing
from monailabel_xnat.convert import LabelMap, Segment, read_label, write_seg
from monailabel_xnat.convert.dicom.objects import instance_of_head
from monailabel_xnat.disk import must_work, private_folder
from monailabel_xnat.errors import (
    NotInArchiveError,
    ServerError,
    UnknownImageError,
    UnknownLabelError,
    XNATDatastoreError,
)
from monailabel_xnat.ids import safe_name
from monailabel_xnat.images import Images
from monailabel_xnat.labels.description import info_of
from monailabel_xnat.labels.drawings import ROI_FACTS
from monailabel_xnat.labels.files import LabelFiles
from monailabel_xnat.labels.index import DRAFT_TAG
from monailabel_xnat.labels.outbox import is_away
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.version import LABEL_MAP, LabelVersion
from monailabel_xnat.labels.viewer_queue import CopyQueue, WantedCopy

logger = logging.getLogger(__name__)


_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 60
# What follows the tag, the scan and the author in the name of a copy.
_TIME_AND_NUMBER = re.compile(r"[0-9]{8}T[0-9]{6}(?:_[0-9]+)?")
# Seconds that `ViewerCopies.close` waits for the copies that are queued.
_LONGEST_GOODBYE = 10.0
_TRIES_FOR_A_NAME = 20
# Status with which XNAT may refuse the name of a collection because it is in use. 422 has other meanings, too.
_IN_USE = (409, 422)
# Keys in the info of a label that a model drew around places that a person clicked on (DeepEdit, DeepGrow, SAM).
_CLICKS = ("foreground", "background", "roi")

_COLLECTION, _SCAN = "collection", "scan"


class _Copy(NamedTuple):
    """A label that must be stored for a viewer. The version holds its description."""

    scan: Scan
    tag: str
    version: LabelVersion

    @property
    def title(self) -> str:
        """The name that viewers show."""
        return _title(self.tag, self.version.description)


class ViewerCopies:
    """Stores labels as ROI collections and as scans, one after the other, in a thread of its own.

    A failure is only logged, because the label itself is in XNAT already.

    Parameters
    ----------
    session : Session
        The connection; its settings say which tags are stored.
    catalog : Catalog
        Collections that were stored are put into it.
    images : Images
        Returns the DICOM files that a SEG refers to.
    files : LabelFiles
        Returns the files of labels.
    find : callable
        Returns the current version of a label, given the image and the tag.
    """

    def __init__(
        self,
        session: Session,
        catalog: Catalog,
        images: Images,
        files: LabelFiles,
        find: Callable[[Scan, str], LabelVersion],
    ) -> None:
        self._session = session
        self._settings = session.settings
        self._catalog = catalog
        self._images = images
        self._files = files
        self._find = find
        self._queue = CopyQueue(self._settings.server_folder / "roi" / "waiting")
        self._waiting: deque[tuple[WantedCopy, bool]] = deque()
        self._may_store: dict[str, bool] = {}
        self._start = renewed_in_children(self, "_start", threading.Lock)
        self._background = Background("xnat-viewer", self._work)
        self._deadline: float | None = None
        self._failed = 0
        self._problem = ""

    def offer(self, scan: Scan, tag: str, version: LabelVersion) -> None:
        """Queue a label to be stored for viewers, if the settings say so and its image is a DICOM series."""
        resources = image_resources(scan, self._settings)
        is_dicom = bool(resources) and resources[0].label.upper() == "DICOM"
        if version.suffix != LABEL_MAP or not is_dicom:
            return
        origin = info_of(version.description).get(ROI_FACTS)
        was_drawn = origin is not None
        was_scan = isinstance(origin, Mapping) and "scan" in origin
        kinds = [_COLLECTION] if tag in self._settings.roi_write and not was_drawn else []
        kinds += [_SCAN] if tag in self._settings.label_scan and not was_scan else []
        image = str(scan.image_id)
        user = self._session.known_user
        for kind in kinds:
            copy = WantedCopy(image, tag, version.name, kind, user, dict(version.description))
            self._enqueue([(copy, self._queue.add(copy))])

    @property
    def report(self) -> dict[str, int | str]:
        """The number of copies that this process could not store, and the reason for the last one, as XNAT gave it."""
        return {"viewer_copies_failed": self._failed, "viewer_copies_problem": self._problem}

    def resume(self) -> None:
        """Store, in the background, the copies that an earlier process did not store."""
        left = [(copy, True) for copy in self._queue.all()] if not self._settings.sends_nothing else []
        if left:
            self._enqueue(left)

    def _enqueue(self, copies: list[tuple[WantedCopy, bool]]) -> None:
        """Queue copies. Each comes with a flag that says whether it is kept on disk."""
        with self._start:
            if self._deadline is not None:
                return
            self._waiting.extend(copies)
            self._background.start()

    def withdraw(self, scan: Scan, tag: str, versions: Iterable[str]) -> None:
        """Delete the collections of removed versions, and the scan that shows the tag, if the user may do so."""
        uids = {_uid(scan, tag, version) for version in versions}
        for collection in scan.drawings:
            if isinstance(collection, RoiCollection) and collection.uid in uids:
                try:
                    delete_collection(self._session, scan.home, collection)
                    self._catalog.drop_drawing(scan.image_id, collection)
                except ServerError as error:
                    logger.info("the viewer still shows a label that was removed: %s", error)

        if tag not in self._settings.label_scan:
            return
        try:
            found = find_seg_scan(self._session, scan.image_id, _file_name(scan, tag), _is_marked_head)
            if found:
                delete(self._session, scan_path(found, is_shared=True))
        except ServerError as error:
            logger.info("a scan still shows a label that was removed: %s", error)

    def close(self) -> None:
        """Wait up to ten seconds for the copies that are queued; the rest is stored at the next start."""
        with self._start:
            self._deadline = time.monotonic() + _LONGEST_GOODBYE
        self._background.join(_LONGEST_GOODBYE)
        if self._waiting:
            logger.info("%d labels are stored for viewers at the next start; they are safe in XNAT", len(self._waiting))

    def _work(self) -> None:
        while True:
            with self._start:
                if not self._waiting or (self._deadline is not None and time.monotonic() > self._deadline):
                    self._background.leave()
                    return
                copy, is_kept = self._waiting.popleft()
            try:
                with background_work():
                    self._make(copy, is_kept)
            except UnknownImageError as error:  # a datastore with other projects may know the image
                logger.debug("a label is not stored for a viewer: %s", error)
            except UnknownLabelError:
                self._queue.remove(copy)
            except XNATDatastoreError as error:
                self._note_failure(copy, error, is_final=not is_away(error))
            except Exception as error:  # no error may keep the next labels from being stored
                self._note_failure(copy, error)
                logger.info("where that came from", exc_info=True)

    def _note_failure(self, copy: WantedCopy, error: Exception, *, is_final: bool = True) -> None:
        """Note why a copy was not stored. An XNAT that does not answer is no reason to give it up in the end."""
        if is_final:
            self._queue.note_failure(copy)
        self._failed, self._problem = self._failed + 1, str(error)
        logger.warning("a label is safe in XNAT, but the viewer does not show it: %s", type(error).__name__)
        logger.info("why the viewer does not show a label: %s", error)

    def _make(self, wanted: WantedCopy, is_kept: bool) -> None:
        """Store a label for a viewer, unless another process has done it or there is a later label."""
        if wanted.user not in ("", self._session.user):
            return
        scan = self._catalog.scan(wanted.image)
        with writing(self._settings, f"copy {wanted.name}"):
            if is_kept and not self._queue.holds(wanted):
                return
            tags = self._settings.roi_write if wanted.kind == _COLLECTION else self._settings.label_scan
            version = self._find(scan, wanted.tag)
            if wanted.tag in tags and version.name == wanted.version:
                copy = _Copy(scan, wanted.tag, version.with_description(wanted.description))
                (self._store if wanted.kind == _COLLECTION else self._store_scan)(copy)
            self._queue.remove(wanted)

    def _store_scan(self, copy: _Copy) -> None:
        image = copy.scan.image_id
        name = _file_name(copy.scan, copy.tag)
        with self._scratch() as scratch:
            file = scratch / "label.dcm"
            self._write_seg(copy.scan, copy, _uid(copy.scan, copy.tag, copy.version.name), file)
            stored = find_seg_scan(self._session, image, name, _is_marked_head)
            stored = stored or make_seg_scan(self._session, image, name, copy.title)
            store_seg_scan(self._session, stored, name, file)

    def _store(self, copy: _Copy) -> None:
        image = copy.scan.image_id
        if not self._is_allowed(copy.scan.home):
            return
        scan = self._catalog.scan(image)
        uid = _uid(scan, copy.tag, copy.version.name)
        known = any(collection.uid == uid for collection in scan.drawings)
        if known or scan.resource(resource_of(copy.tag)) is None:
            return
        with self._scratch() as scratch:
            file = scratch / "label.dcm"
            self._write_seg(scan, copy, uid, file)
            stem = _stem(scan, copy)
            with writing(self._settings, f"{scan.path} {stem}"):
                stored = self._send(scan, stem, copy, file)
        found = RoiCollection(*stored, scan.image_id.experiment, "SEG", copy.title, uid, user=self._session.user)
        self._catalog.put_drawing(image, found)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield a folder to write a SEG into; it is removed afterwards."""
        above = self._settings.server_folder / "roi"
        with must_work(f"write a SEG into {above}", "make room on the disk or set cache_path to another one"):
            private_folder(above)
            with tempfile.TemporaryDirectory(prefix=".seg-", dir=above) as scratch:
                yield Path(scratch)

    def _is_allowed(self, project: str) -> bool:
        """Return whether ROI collections can be stored in a project. XNAT is asked once for each project."""
        allowed = self._may_store.get(project)
        if allowed is None:
            try:
                allowed = may_store(self._session, project)
            except ServerError as error:
                if error.may_pass_later:
                    raise
                allowed = False
            self._may_store[project] = allowed
            if not allowed:
                logger.info("labels are not shown in the viewer: no ROI plugin, or no permission, in this project")
        return allowed

    def _write_seg(self, scan: Scan, copy: _Copy, uid: str, target: Path) -> None:
        label = read_label(self._files.path(scan.image_id, copy.tag, copy.version))
        write_as_seg(self._images, scan, label, copy.tag, copy.version.description, target, uid)

    def _send(self, scan: Scan, stem: str, copy: _Copy, file: Path) -> tuple[str, str]:
        """Store a SEG in place of an earlier one of ours, or else under a free name; return its ID and that name."""
        image = scan.image_id
        for collection in reversed(scan.drawings):
            if (
                isinstance(collection, RoiCollection)
                and collection.is_ours
                and _is_named(collection.label, stem)
                and self._is_still_ours(collection)
            ):
                where = (scan.home, image.experiment, collection.label)
                return store_seg(self._session, *where, file, overwrite=True), collection.label
        uid = _uid(scan, copy.tag, copy.version.name)
        first = stem + copy.version.name.partition("-")[0][:15]
        for number in range(1, _TRIES_FOR_A_NAME + 1):
            label = first if number == 1 else f"{first}_{number}"
            try:
                return store_seg(self._session, scan.home, image.experiment, label, file), label
            except ServerError as error:
                if error.status not in _IN_USE or not _is_in_use(error) or number == _TRIES_FOR_A_NAME:
                    raise
                # XNAT may have stored it at an earlier attempt whose answer was lost.
                stored = id_of_collection(self._session, scan.home, image, label, uid)
                if stored:
                    return stored, label
        raise AssertionError  # the last try returns or raises

    def _is_still_ours(self, collection: RoiCollection) -> bool:
        """Return whether a collection is still ours. Somebody may have saved under its name since it was listed."""
        try:
            # Without a UID to compare with: the question is which UID it has now.
            return is_marked(read_facts(self._session, collection._replace(uid="")).uid)
        except NotInArchiveError:
            return False


def write_as_seg(
    images: Images,
    scan: Scan,
    label: LabelMap,
    tag: str,
    description: Mapping[str, Any],
    target: Path,
    uid: str | None = None,
) -> None:
    """Write a label as a DICOM SEG that refers to the series of its image.

    Parameters
    ----------
    images : Images
        Returns the DICOM files that the SEG refers to.
    scan : Scan
        The image.
    label : LabelMap
        The label, on the grid of the image.
    tag : str
        The label's tag.
    description : mapping
        The label's description, which names its values and says who drew it.
    target : Path
        The file to write.
    uid : str or None
        SOP Instance UID; None makes a new one.

    Raises
    ------
    NoImageError
        If the image is not stored as DICOM.
    LabelError
        If the label is empty; a SEG needs at least one segment.
    ServerError, CacheError
        If the DICOM files cannot be downloaded or stored.
    """
    folder = images.dicom_folder(scan)
    kind, model = _algorithm(tag, description)
    write_seg(
        _named(label, description),
        sorted(path for path in folder.rglob("*") if path.is_file()),
        target,
        description=_title(tag, description),
        algorithm_type=kind,
        algorithm_name=model,
        instance_uid=uid,
        tilted=images.is_stacked,
    )


def _uid(scan: Scan, tag: str, version: str) -> str:
    image = scan.image_id
    return marked_uid(f"{image.experiment}/{image.scan} {tag} {version}")


def _author(tag: str, description: Mapping[str, Any]) -> str:
    kind, model = _algorithm(tag, description)
    return model if kind != "MANUAL" else str(description.get("saved_by") or "unknown")


def _title(tag: str, description: Mapping[str, Any]) -> str:
    return f"{tag} {_author(tag, description)}"


def _stem(scan: Scan, copy: _Copy) -> str:
    author = _author(copy.tag, copy.version.description)
    return _UNSAFE.sub("_", f"{copy.tag}_{scan.image_id.scan}_{author}")[:_LONGEST_NAME] + "_"


def _is_named(label: str, stem: str) -> bool:
    """Return whether a copy is one author's; the name of another author may begin with the same letters."""
    return label.startswith(stem) and _TIME_AND_NUMBER.fullmatch(label, len(stem)) is not None


def _algorithm(tag: str, description: Mapping[str, Any]) -> tuple[str, str]:
    """Return type and name of the algorithm. Only a draft of a model certainly has not been changed by a person."""
    model = str(description.get("source", {}).get("model") or "")
    if tag != DRAFT_TAG or not model:
        return "MANUAL", ""
    params = info_of(description).get("params")
    clicked = isinstance(params, Mapping) and any(params.get(name) for name in _CLICKS)
    return ("SEMIAUTOMATIC" if clicked else "AUTOMATIC"), model


def _named(label: LabelMap, description: Mapping[str, Any]) -> LabelMap:
    segments = [
        Segment(int(item["value"]), str(item["name"]), tuple(item["colour"]) if item.get("colour") else None)
        for item in description.get("segments") or ()
    ]
    return replace(label, segments=tuple(segments))


def _file_name(scan: Scan, tag: str) -> str:
    """Return the name of the file in the scan that shows a label. The name tells our scans apart."""
    image = scan.image_id
    return safe_name(f"{tag}_{image.scan}", f"{image.experiment}/{image.scan} {tag}") + DICOM_SUFFIX


def _is_marked_head(head: bytes) -> bool:
    return is_marked(instance_of_head(head))


def _is_in_use(error: ServerError) -> bool:
    return error.status == _IN_USE[0] or "exists" in error.message
