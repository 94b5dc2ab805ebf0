"""One scan as XNAT lists it: its files, what was drawn on it, and the mark of a scan that this package added.

The mark stands in the note of the scan and says under which name it was added. XNAT lists the notes of scans together
with everything else, so that the names of added images are known without a request, after a restart and on every server
of a project.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from typing import NamedTuple
from urllib.parse import quote, unquote

from monailabel_xnat.client.drawn import Drawing, DrawnScan, UnreadDrawing
from monailabel_xnat.client.files import NOTHING, Counts
from monailabel_xnat.client.items import scan_path
from monailabel_xnat.ids import ImageId

_MARK = re.compile(r"(?<!\S)monailabel_xnat:added(?P<fields>(?:;[a-z0-9]+(?:=[^;\s]*)?)*)")


class Resource(NamedTuple):
    """A folder of files that belongs to a scan.

    ``file_count`` and ``file_size`` (bytes) are None where XNAT has not computed them.
    """

    label: str
    file_count: int | None
    file_size: int | None

    @property
    def is_counted(self) -> bool:
        """Whether XNAT tells the number or the size of the files."""
        return self.file_count is not None or self.file_size is not None

    @property
    def state(self) -> str:
        """What differs when the content does; "" where XNAT has not counted, so that nothing tells."""
        if self.file_count is None or self.file_size is None:
            return ""
        return f"{self.file_count} files, {self.file_size} bytes"

    @property
    def counts(self) -> Counts:
        """What a list of its files is compared with."""
        return Counts(self.file_count, self.file_size)


class Scan(NamedTuple):
    """A scan as the listing shows it; texts are empty and ``frames`` is None where XNAT does not know.

    ``drawings`` are the ROI collections and scans that were drawn on it, ``unread`` is what may have been drawn on
    it as well and cannot be read. ``is_untold``: neither type nor modality say what it is.
    ``session_added`` is when the session came into the archive, by the clock and in the time zone of XNAT.
    ``mark`` is the text of the :class:`Mark` in the note of a scan that this package added.
    """

    image_id: ImageId
    owner: str
    subject_label: str
    session_label: str
    session_type: str
    session_date: str
    type: str
    series_description: str
    quality: str
    modality: str
    series_uid: str
    study_uid: str
    frames: int | None
    resources: tuple[Resource, ...]
    drawings: tuple[Drawing, ...] = ()
    mark: str = ""
    unread: tuple[UnreadDrawing, ...] = ()
    is_untold: bool = False
    session_added: str = ""

    @property
    def path(self) -> str:
        """Where XNAT serves the scan: a path below the site's address, percent-encoded."""
        return scan_path(self.image_id, is_shared=self.is_shared)

    @property
    def drawn_scans(self) -> list[DrawnScan]:
        """The scans that hold a drawing on it."""
        return [drawing for drawing in self.drawings if isinstance(drawing, DrawnScan)]

    @property
    def is_shared(self) -> bool:
        """Whether the project of the id may not own the session.

        A session can be shared into a project without its subject, and then has no path through the subject there.
        """
        return self.owner != self.image_id.project

    @property
    def home(self) -> str:
        """The project that owns the session: rights there decide who may change it."""
        return self.owner or self.image_id.project

    @property
    def alias(self) -> str:
        """The name under which the image was added; "" if it has none."""
        mark = read_mark(self.mark) if self.mark else None
        return mark.alias(self.series_description) if mark else ""

    def resource(self, label: str) -> Resource | None:
        """Find a resource by its label."""
        for resource in self.resources:
            if resource.label == label:
                return resource
        return None

    def counts(self, label: str) -> Counts:
        """Return how many files and bytes a resource holds, by its label."""
        resource = self.resource(label)
        return resource.counts if resource else NOTHING

    def with_resource(self, resource: Resource) -> Scan:
        """Return the scan with a resource added, or put in the place of the one with its label."""
        return self._replace(resources=(*self.without_resource(resource.label).resources, resource))

    def without_resource(self, label: str) -> Scan:
        """Return the scan without one of its resources."""
        return self._replace(resources=tuple(other for other in self.resources if other.label != label))

    def with_drawing(self, drawing: Drawing) -> Scan:
        """Return the scan with a drawing added, which replaces the one with the same ID."""
        return self._replace(drawings=(*self.without_drawing(drawing.id).drawings, drawing))

    def without_drawing(self, drawing: str) -> Scan:
        """Return the scan without one of its drawings, by ID."""
        return self._replace(drawings=tuple(other for other in self.drawings if other.id != drawing))


@dataclass(frozen=True)
class Mark:
    """What is known about the addition of an image.

    Parameters
    ----------
    is_named : bool
        Whether the series description of the scan is a name under which the image may be asked for.
    name : str
        Such a name where the series description says something else, as for DICOM.
    md5 : str
        Hexadecimal MD5 of the file that was added; empty for DICOM.
    """

    is_named: bool = False
    name: str = ""
    md5: str = ""

    def __str__(self) -> str:
        named = f";name={quote(self.name, safe='')}" if self.name else ";named" if self.is_named else ""
        return "monailabel_xnat:added" + named + (f";md5={self.md5}" if self.md5 else "")

    def alias(self, series_description: str) -> str:
        """Return the name under which the image was added; "" if it was added under an id."""
        # XNAT escapes some characters of what it is sent as HTML would.
        return self.name or (unescape(series_description) if self.is_named else "")


def text_of_mark(note: str) -> str:
    """Return the mark within a note, as text; "" for the note of a scan that others made."""
    found = _MARK.search(note) if note else None
    return found.group() if found else ""


def read_mark(note: str) -> Mark | None:
    """Return the mark within a note; None if there is none."""
    found = _MARK.search(note) if note else None
    if found is None:
        return None
    fields = dict(field.partition("=")[::2] for field in found["fields"].split(";")[1:])
    return Mark("named" in fields, unquote(fields.get("name", "")), fields.get("md5", ""))
