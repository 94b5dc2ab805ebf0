"""One scan as XNAT lists it: its resources, the drawings on it, and the mark of a scan that this package added.

The mark is in the note of the scan, and contains the name under which the scan was added. XNAT lists notes together
with everything else. So the names of added images are known without a further request, also after a restart and on
every server of a project.
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

    ``file_count`` and ``file_size`` (bytes) are None if XNAT has not computed them.
    """

    label: str
    file_count: int | None
    file_size: int | None

    @property
    def is_counted(self) -> bool:
        """Whether XNAT shows the number or the size of the files."""
        return self.file_count is not None or self.file_size is not None

    @property
    def state(self) -> str:
        """A text of counts that normally differs if the content differs; "" if XNAT has not counted."""
        if self.file_count is None or self.file_size is None:
            return ""
        return f"{self.file_count} files, {self.file_size} bytes"

    @property
    def counts(self) -> Counts:
        """The counts with which a list of its files is compared."""
        return Counts(self.file_count, self.file_size)


class Scan(NamedTuple):
    """A scan as the listing shows it. If XNAT does not know a value, a text is empty and ``frames`` is None.

    ``drawings`` are the ROI collections and drawn scans of this scan. ``unread`` are drawings that cannot be read and
    may belong to it as well. ``is_untold`` is True if neither type nor modality say what the scan is.
    ``session_added`` is when the session came into the archive, in the time zone of XNAT's server.
    ``mark`` is the text of the :class:`ScanMark` in the note, if this package added the scan.
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
        """Path of the scan below the site's address, percent-encoded."""
        return scan_path(self.image_id, is_shared=self.is_shared)

    @property
    def drawn_scans(self) -> list[DrawnScan]:
        """The drawings that are stored as scans."""
        return [drawing for drawing in self.drawings if isinstance(drawing, DrawnScan)]

    @property
    def is_shared(self) -> bool:
        """Whether another project than the one in the id owns the session, or the owner is not known.

        A session can be shared into a project without its subject. Then there is no path to it through the subject.
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
        """Return a resource by its label; None if there is none."""
        for resource in self.resources:
            if resource.label == label:
                return resource
        return None

    def counts(self, label: str) -> Counts:
        """Return the counts of a resource, by its label; those of nothing if there is no such resource."""
        resource = self.resource(label)
        return resource.counts if resource else NOTHING

    def with_resource(self, resource: Resource) -> Scan:
        """Return the scan with a resource, which replaces the one with the same label."""
        others = (other for other in self.resources if other.label != resource.label)
        return self._replace(resources=(*others, resource))

    def with_drawing(self, drawing: Drawing) -> Scan:
        """Return the scan with a drawing, which replaces the one with the same ID."""
        return self._replace(drawings=(*self.without_drawing(drawing.id).drawings, drawing))

    def without_drawing(self, drawing: str) -> Scan:
        """Return the scan without one of its drawings, by ID."""
        return self._replace(drawings=tuple(other for other in self.drawings if other.id != drawing))


@dataclass(frozen=True)
class ScanMark:
    """The mark of an image that this package added.

    Parameters
    ----------
    is_named : bool
        Whether the series description of the scan is the name under which the image was added.
    name : str
        That name, if the series description is another text, as with DICOM.
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
        # XNAT stores some characters of a text in the escaped form of HTML.
        return self.name or (unescape(series_description) if self.is_named else "")


def text_of_mark(note: str) -> str:
    """Return the text of the mark within a note; "" if there is none, because others made the scan."""
    found = _MARK.search(note) if note else None
    return found.group() if found else ""


def read_mark(note: str) -> ScanMark | None:
    """Return the mark within a note; None if there is none."""
    found = _MARK.search(note) if note else None
    if found is None:
        return None
    fields = dict(field.partition("=")[::2] for field in found["fields"].split(";")[1:])
    return ScanMark("named" in fields, unquote(fields.get("name", "")), fields.get("md5", ""))
