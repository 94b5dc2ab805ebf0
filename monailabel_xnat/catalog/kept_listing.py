"""The last listing, kept on this disk: what a server shows that starts while XNAT is away.

It says what one user saw with certain filters when XNAT answered last, and is given to nobody else: its name and its
content name server, user, projects and filters. It is removed as soon as XNAT refuses the user. Nothing proves that it
still holds, so that the catalog serves it as what it is, and nothing is trained on by it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, NamedTuple

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.catalog.image_index import ImageIndex
from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.client.drawn import Drawing, DrawnScan, UnreadDrawing
from monailabel_xnat.client.roi import RoiCollection
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import private_folder, text_digest, write_whole
from monailabel_xnat.errors import AccessDeniedError, CacheError, InvalidIdError, LoginError, NotInArchiveError
from monailabel_xnat.ids import ImageId

logger = logging.getLogger(__name__)

DECIDING = (
    *("server", "username", "auth_provider", "project", "image_resource"),
    *("scan_type", "series_description", "modality", "quality", "subject", "session", "min_frames"),
    *("roi_tag", "roi_label"),
)
"""The settings that decide what a listing shows."""

REFUSED = (LoginError, AccessDeniedError, NotInArchiveError)
"""What XNAT answers a user who may not see what he asks for."""

# Whoever has the fields in another order, or other fields, does not read it.
_FORMAT = [1, *(list(kind._fields) for kind in (Scan, Resource, RoiCollection, DrawnScan, UnreadDrawing))]
_IMAGE, _DRAWINGS, _UNREAD = map(Scan._fields.index, ("image_id", "drawings", "unread"))
_KINDS: dict[str, type[RoiCollection] | type[DrawnScan]] = {"collection": RoiCollection, "scan": DrawnScan}
# A process that ends waits so long, in seconds, for a listing that is being written.
_LONGEST_WRITE = 10.0


class Kept(NamedTuple):
    """A listing that was kept.

    Parameters
    ----------
    images : ImageIndex
        What it showed.
    listed : str
        When XNAT last showed it, for people, by the clock of this machine.
    """

    images: ImageIndex
    listed: str


class KeptListing:
    """The listing of one user with certain filters.

    Parameters
    ----------
    settings : Settings
        Tell the folder, the user and the filters.
    """

    def __init__(self, settings: Settings) -> None:
        self._bound = json.dumps([[name, getattr(settings, name)] for name in DECIDING])
        self._file = settings.server_folder / f"listing-{text_digest(self._bound)[:16]}.json"
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._disk = renewed_in_children(self, "_disk", threading.Lock)
        self._kept: list[Scan] | None = None
        self._new: list[Scan] | None = None
        self._is_refused = False
        self._writer = Background("xnat-kept-listing", self._write_new)

    def keep(self, images: ImageIndex) -> None:
        """Write what XNAT has just listed, in the background; where nothing has changed, only the time is noted."""
        scans = images.scans()
        with self._lock:
            if scans == self._kept and self._new is None:
                with suppress(OSError):
                    os.utime(self._file)
                return
            self._new, self._is_refused = scans, False
            self._writer.start()

    def read(self) -> Kept | None:
        """Return what was kept; None if nothing was, or not just this, or if it cannot be read."""
        try:
            listed = told(datetime.fromtimestamp(self._file.stat().st_mtime, timezone.utc))
            head, _, body = self._file.read_text("ascii").partition("\n")
            digest, written, bound = json.loads(head)
            if (digest, written, bound) != (text_digest(body), _FORMAT, self._bound):
                logger.info("the listing of an earlier run is damaged, or of another version, and is not used")
                return None
            scans = [_scan_from(row) for row in json.loads(body)]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, InvalidIdError) as error:
            logger.info("the listing of an earlier run cannot be read: %s", type(error).__name__)
            return None
        return Kept(ImageIndex({str(scan.image_id): scan for scan in scans}), listed)

    def remove(self) -> None:
        """Remove it, for XNAT refuses this user, or does not show the projects any more."""
        with self._lock:
            self._new = None
        with self._disk, suppress(OSError):
            self._kept, self._is_refused = None, True
            self._file.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait until it is written."""
        self._writer.join(_LONGEST_WRITE)

    def _write_new(self) -> None:
        while True:
            with self._lock:
                scans, self._new = self._new, None
                if scans is None:
                    self._writer.leave()
                    return
            self._write(scans)

    def _write(self, scans: list[Scan]) -> None:
        body = json.dumps([_row_of(scan) for scan in scans])
        head = json.dumps([text_digest(body), _FORMAT, self._bound])
        with self._disk:
            if self._is_refused:
                return
            try:
                private_folder(self._file.parent)
                write_whole(self._file, f"{head}\n{body}".encode("ascii"))
            except (OSError, CacheError) as error:  # it is a help and no more
                logger.debug("the listing cannot be kept: %s", error)
            self._kept = scans


def told(time: datetime) -> str:
    """Return a time, in UTC, as people read it."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _row_of(scan: Scan) -> list[Any]:
    """Return a scan as plain JSON, value by value."""
    image, row = scan.image_id, list[Any](scan)
    row[_IMAGE] = [image.project, image.subject, image.experiment, image.scan]
    if scan.drawings:
        row[_DRAWINGS] = [_row_of_drawing(drawing) for drawing in scan.drawings]
    if scan.unread:
        row[_UNREAD] = [[*item[:2], _row_of_drawing(item.drawing) if item.drawing else None] for item in scan.unread]
    return row


def _row_of_drawing(drawing: Drawing) -> list[Any]:
    return ["collection" if isinstance(drawing, RoiCollection) else "scan", *drawing]


def _scan_from(row: list[Any]) -> Scan:
    row[_IMAGE] = ImageId(*row[_IMAGE])
    unread = ((name, why, _drawing_from(kept) if kept else None) for name, why, kept in row[_UNREAD])
    row[_UNREAD] = tuple(UnreadDrawing(*item) for item in unread)
    row[_DRAWINGS] = tuple(map(_drawing_from, row[_DRAWINGS]))
    scan = Scan(*row)
    return scan._replace(resources=tuple(Resource(*resource) for resource in scan.resources))


def _drawing_from(row: Sequence[Any]) -> Drawing:
    kind, *values = row
    return _KINDS[kind](*values)
