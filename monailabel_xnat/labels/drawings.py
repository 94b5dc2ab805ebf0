"""Drawings as labels: ROI collections of the XNAT-OHIF viewer, and scans with a SEG or RTSTRUCT.

Drawings in XNAT are read, but never changed. Each is decoded once. The result stays on this machine beside the label
files: ``<name>.nii.gz``, and ``<name>.json`` with a description like those in
:mod:`~monailabel_xnat.labels.description`.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_xnat.catalog import Scan
from monailabel_xnat.catalog.read_cache import ReadCache
from monailabel_xnat.catalog.selection import drawn_labels, is_label, is_of_unread_kind, may_be_drawn_label
from monailabel_xnat.client.drawn import PREFIX, Drawing, DrawnScan, UnreadDrawing, fetch_drawn
from monailabel_xnat.client.roi import (
    SUFFIXES,
    RoiCollection,
    ask_when_stored,
    download_collection,
    stored_at,
)
from monailabel_xnat.client.session import Session
from monailabel_xnat.convert import Grid, LabelMap, read_aim, read_label, read_rtstruct, read_seg, to_grid, write_label
from monailabel_xnat.disk import file_digest, must_work, private_folder, text_digest, write_whole
from monailabel_xnat.errors import UnknownLabelError, UnreadDrawingError, XNATDatastoreError
from monailabel_xnat.ids import LabelId, safe_name
from monailabel_xnat.images import Images
from monailabel_xnat.labels.description import completed, decode, describe, encode
from monailabel_xnat.labels.files import grid_now, require_fit_of_file
from monailabel_xnat.labels.segments import with_values
from monailabel_xnat.labels.version import LABEL_MAP, LabelVersion, version_name

logger = logging.getLogger(__name__)


ROI_FACTS = "roi_collection"
"""The key in the label info under which the facts about the original drawing are stored."""

_KIND = "ROI collection stored at"
# Seconds. MONAI Label asks several things about one label in a row; while XNAT fails, only the first one waits for it.
_ASK_AGAIN_SECONDS = 5.0


def _read_nifti(path: Path, grid: Grid) -> LabelMap:
    return to_grid(read_label(path, grid), grid, any_extent=True)


READERS: Mapping[str, Callable[[Path, Grid], LabelMap]] = {
    "SEG": read_seg,
    "RTSTRUCT": read_rtstruct,
    "AIM": read_aim,
    "NIFTI": _read_nifti,
}
"""The reader of each kind of drawing in :data:`monailabel_xnat.client.roi.SUFFIXES`."""


class Drawings:
    """Reads drawings: ROI collections, and scans that hold a SEG or RTSTRUCT.

    Parameters
    ----------
    session : Session
        The connection; its settings say which drawings count as labels, and with which tag.
    images : Images
        Returns the grids of images.
    folder : Path
        The folder for decoded drawings.
    read_cache : ReadCache
        Keeps the times at which ROI collections were stored.
    """

    def __init__(self, session: Session, images: Images, folder: Path, read_cache: ReadCache) -> None:
        self._session = session
        self._settings = session.settings
        self._images = images
        self._folder = folder
        self._read_cache = read_cache
        self._stored_at: dict[str, datetime] = {}
        self._undated: dict[str, tuple[str, float]] = {}

    def ask_again(self) -> None:
        """Forget for which drawings XNAT could not say when they were stored, so that it is asked again at once."""
        self._undated.clear()

    def tag(self, scan: Scan) -> str:
        """Return the tag that an image has because of drawings, "" if no drawing counts; makes no request."""
        return self._settings.roi_tag if drawn_labels(scan, self._settings) else ""

    def newest(
        self, scan: Scan, tag: str, after: datetime | None = None, *, is_labelled: bool = False
    ) -> Drawing | None:
        """Return the drawing that is the label with a tag: the newest drawing that counts, None if there is none.

        Parameters
        ----------
        scan : Scan
            The image.
        tag : str
            The label's tag.
        after : datetime or None
            When our newest label was saved. A drawing is the label only if it was stored later.
        is_labelled : bool
            Whether the image has another label with the tag.

        Raises
        ------
        UnreadDrawingError
            If there is a label, but a drawing that cannot be read may be newer.
        """
        if tag != self._settings.roi_tag:
            return None
        drawn = drawn_labels(scan, self._settings)
        newest = self._newest_of(drawn)
        if newest is not None and after is not None and not self._is_later(newest, after):
            newest = None
        if newest is not None or is_labelled:
            for item in self._unread(scan):
                if self._may_be_later(item, newest, after):
                    raise UnreadDrawingError(
                        f"{_named(item.name)} cannot be read and may be newer than the label {tag!r}: {item.reason}",
                        hint="it is read again by itself; if it stays unreadable, repair or delete it in XNAT, or "
                        "exclude it with the setting roi_label",
                    )
        return newest

    def named(self, scan: Scan, label: LabelId) -> Drawing:
        """Return a drawing on an image by its name, also a drawing that does not count as the label of the image.

        Parameters
        ----------
        scan : Scan
            The image.
        label : LabelId
            The name of a ROI collection or of a scan. If it names a scan and there is no such scan, a ROI collection
            with that name is returned.

        Raises
        ------
        UnknownLabelError
            If there is no such drawing, or it cannot be read as a label map.
        """
        readable = [drawing for drawing in scan.drawings if is_label(drawing)]
        name = PREFIX + label.drawn_scan if label.drawn_scan is not None else label.collection
        found = [drawing for drawing in readable if drawing.label == name]
        is_scan = label.drawn_scan is not None
        found.sort(key=lambda drawing: isinstance(drawing, DrawnScan) != is_scan)
        if found and (is_scan or isinstance(found[0], RoiCollection)):
            return found[0]
        what = "label in scan" if is_scan else "ROI collection"
        raise UnknownLabelError(
            f"image {str(scan.image_id)!r} has no {what} {(label.drawn_scan if is_scan else name)!r}",
            hint=f"it has {', '.join(drawing.label for drawing in readable) or 'none'}",
        )

    def path(self, scan: Scan, drawing: Drawing) -> Path:
        """Return the file of a drawing as a label map (NIfTI) on the grid of its image; it is decoded only once.

        The values are those that the setting ``labels`` gives to the names of the segments. Without that setting they
        are the segment numbers.

        Raises
        ------
        LabelError
            If the drawing cannot be read, does not lie on the grid, or has no segment with a name in the setting, or
            the image changed since it was decoded.
        ServerError
            If XNAT fails.
        CacheError
            If the label map cannot be written to the disk.
        """
        path = self._path(scan, drawing)
        if not self._description_file(path).exists() or not path.exists():
            self._decode(scan, drawing, path)
            return path
        grid = grid_now(self._images, scan)
        if grid is not None:
            require_fit_of_file(path, grid)
        return path

    def description(self, scan: Scan, drawing: Drawing) -> dict[str, Any]:
        """Return a description of a drawing, like that of a saved label.

        Until the drawing is decoded, it holds only what the listing shows.
        """
        try:
            return decode(self._description_file(self._path(scan, drawing)).read_bytes())
        except (OSError, ValueError):
            info = {ROI_FACTS: _facts(drawing)}
            description = describe(scan, self._settings.roi_tag, info, label=None, file_type="", configured={})
            when = self._stored_at.get(drawing.fingerprint) or _listed_time(drawing)
            return completed(description, sha256="", saved_at=when, saved_by=drawing.user)

    def version(self, scan: Scan, drawing: Drawing) -> LabelVersion:
        """Return a drawing as a version of a label."""
        description = self.description(scan, drawing)
        saved_at = datetime.fromisoformat(description["saved_at"])
        identity = text_digest(drawing.fingerprint)
        return LabelVersion(version_name(saved_at, identity), LABEL_MAP, description=description)

    def _decode(self, scan: Scan, drawing: Drawing, path: Path) -> None:
        grid = self._images.grid(scan)
        hint = "make room on the disk or set cache_path to another one"
        with must_work(f"keep the label in {self._folder}", hint):
            private_folder(self._folder)
            with tempfile.TemporaryDirectory(prefix=".roi-", dir=self._folder) as scratch:
                file, saved_at = self._fetch(drawing, Path(scratch))
                label = with_values(READERS[drawing.kind](file, grid), self._settings.label_values)
            write_label(label, path)
            description = self._described(scan, drawing, label, path, saved_at)
            write_whole(self._description_file(path), encode(description))
        for note in label.notes:
            logger.warning("what somebody drew was read with a difference: %s", note)

    def _fetch(self, drawing: Drawing, folder: Path) -> tuple[Path, datetime]:
        """Download the file of a drawing into a folder, and return its path and the time when it was stored."""
        if isinstance(drawing, DrawnScan):
            return fetch_drawn(self._session, drawing, folder), _listed_time(drawing)
        return download_collection(self._session, drawing, folder)

    def _described(
        self, scan: Scan, drawing: Drawing, label: LabelMap, file: Path, saved_at: datetime
    ) -> dict[str, Any]:
        names = [{"name": segment.name, "idx": segment.value} for segment in label.segments]
        facts = {**_facts(drawing), "notes": list(label.notes)}
        description = describe(
            scan,
            self._settings.roi_tag,
            {ROI_FACTS: facts, "label_info": names},
            label=label,
            file_type=SUFFIXES[drawing.kind][0],
            configured={},
        )
        return completed(description, sha256=file_digest(file), saved_at=saved_at, saved_by=drawing.user)

    def _newest_of(self, drawn: list[Drawing]) -> Drawing | None:
        if len(drawn) < 2:
            return drawn[0] if drawn else None
        # The same clock dated all ROI collections. XNAT is asked for the times of files only if that is not enough.
        last = drawn[-1]
        if isinstance(last, RoiCollection) and all(
            isinstance(other, RoiCollection) and other.was_stored_before(last) for other in drawn[:-1]
        ):
            return last
        return max(drawn, key=self._when_stored)

    def _is_later(self, drawing: Drawing, than: datetime) -> bool:
        earliest, latest = drawing.stored_between
        if than < earliest or than > latest:
            return than < earliest
        return self._when_stored(drawing) > than

    def _unread(self, scan: Scan) -> list[UnreadDrawing]:
        """Return the drawings that may be a label of an image, but cannot be read."""
        return [
            *scan.unread,
            *(
                UnreadDrawing(drawing.label, f"this version does not read the kind {drawing.kind}", drawing)
                for drawing in scan.drawings
                if is_of_unread_kind(drawing) and may_be_drawn_label(drawing, self._settings)
            ),
        ]

    def _may_be_later(self, item: UnreadDrawing, newest: Drawing | None, after: datetime | None) -> bool:
        """Return whether an unread drawing may have been stored later than the newest label that can be read."""
        unread = item.drawing
        if unread is None:
            return True
        if newest is not None:
            times, others = unread.server_times, newest.server_times
            if times and others:
                return times[1] >= others[0]
            return unread.stored_between[1] >= newest.stored_between[0]
        if after is None:
            return True
        try:
            # The time is that of its file. Without its kind it is not known where the file is.
            return self._is_later(unread, after) if unread.kind else unread.stored_between[1] >= after
        except UnreadDrawingError:
            return True

    def _when_stored(self, drawing: Drawing) -> datetime:
        """Return when a drawing was stored.

        XNAT is asked once for each ROI collection. For a scan the time is known since the scan was read.

        Raises
        ------
        UnreadDrawingError
            If XNAT does not say when it was stored.
        """
        if isinstance(drawing, DrawnScan):
            if drawing.stored_at is None:
                raise self._not_dated(drawing, "XNAT does not say when its file was stored")
            return drawing.stored_at
        known = self._stored_at.get(drawing.fingerprint) or self._remembered(drawing)
        if known is None:
            failure, until = self._undated.get(drawing.fingerprint, ("", 0.0))
            if time.monotonic() < until:
                raise self._not_dated(drawing, failure)
            try:
                known = ask_when_stored(self._session, drawing)
            except XNATDatastoreError as error:
                self._undated[drawing.fingerprint] = (str(error), time.monotonic() + _ASK_AGAIN_SECONDS)
                raise self._not_dated(drawing, str(error)) from error
            self._read_cache.put(_KIND, drawing.fingerprint, "", known.isoformat())
        self._stored_at[drawing.fingerprint] = known
        return known

    @staticmethod
    def _not_dated(drawing: Drawing, reason: str) -> UnreadDrawingError:
        return UnreadDrawingError(
            f"it is not known when {_named(drawing.label)} was stored, which may be the newest label: {reason}",
            hint="XNAT is asked again; if it stays, look at the collection there",
        )

    def _remembered(self, collection: RoiCollection) -> datetime | None:
        when = self._read_cache.get(_KIND, collection.fingerprint, "")
        return datetime.fromisoformat(when) if isinstance(when, str) else None

    def _path(self, scan: Scan, drawing: Drawing) -> Path:
        values = json.dumps(self._settings.label_values, sort_keys=True)
        image = scan.image_id
        text = f"{image.subject}_{image.experiment}_{image.scan}_roi_{drawing.label}"
        return self._folder / (safe_name(text, f"{image} {drawing.fingerprint} {values}") + LABEL_MAP)

    def _description_file(self, path: Path) -> Path:
        return path.with_name(path.name[: -len(LABEL_MAP)] + ".json")


def _named(label: str) -> str:
    """Return how a message calls a drawing by its label; "" stands for all that people drew in a project."""
    if not label:
        return "what people drew"
    scan = label.removeprefix(PREFIX)
    return f"the ROI collection {label!r}" if scan == label else f"the drawing in scan {scan!r}"


def _listed_time(drawing: Drawing) -> datetime:
    """Return when a drawing was stored, as far as it is known without a request."""
    if isinstance(drawing, DrawnScan):
        return drawing.stored_at or datetime.fromtimestamp(0, timezone.utc)
    return stored_at(drawing)


def _facts(drawing: Drawing) -> dict[str, Any]:
    facts = {
        "label": drawing.label,
        "id": drawing.id,
        "type": drawing.kind,
        "name": drawing.name,
        "user": drawing.user,
        "inserted": drawing.inserted,
    }
    return {**facts, "scan": drawing.id} if isinstance(drawing, DrawnScan) else facts
