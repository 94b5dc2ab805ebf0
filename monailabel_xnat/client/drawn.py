"""Drawn scans: scans that hold a DICOM SEG or RTSTRUCT, which XNAT Workstation stores or a PACS sends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from monailabel_xnat.client.answers import http_time
from monailabel_xnat.client.files import RemoteFile, fetch_listed, list_files_by_resource
from monailabel_xnat.client.items import list_scans, put, resource_path, scan_path
from monailabel_xnat.client.roi import (
    DICOM_SUFFIX,
    UNKNOWN_TIMES,
    RoiCollection,
    inserted_at,
    is_marked,
)
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import upload
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import NotInArchiveError, ServerError, TransferError
from monailabel_xnat.ids import ImageId

PREFIX = "scan:"
"""The prefix of a drawn scan's name. It tells drawn scans from ROI collections where both are named."""

_RESOURCES = ("DICOM", "SECONDARY")
_OWN_RESOURCES = "MONAILABEL_"
_DICOM_SUFFIXES = frozenset((DICOM_SUFFIX, ".dicom", ".ima", ""))
_NO_DICOM = frozenset(("SNAPSHOTS", "NIFTI", "BIDS"))
_ASKED_FILES = 16
# XNAT tells the time of a file in whole seconds.
_ONE_SECOND = timedelta(seconds=1)
_XSI_TYPE = "xnat:segScanData"
_RESOURCE = "DICOM"
# The note of a scan that we made. It says for which label; only the file shows whether the content is still ours.
_NOTE = "MONAI Label: {}"
_HEAD = 1 << 14
# XNAT Workstation numbers the segmentations of scan 1 as 3001, 3101, ... These are the first two digits.
_PREFIXES = range(30, 100)
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class DrawnScan(NamedTuple):
    """A SEG or RTSTRUCT that is stored as a scan, as it was when it was read.

    It has the same properties as a :class:`~monailabel_xnat.client.roi.RoiCollection` for what it is and when it was
    stored.

    Parameters
    ----------
    id, session_id : str
        ID of the scan, and of its session.
    kind : str
        ``SEG`` or ``RTSTRUCT``; empty if its file is neither.
    name : str
        The scan's series description.
    path : str
        Where XNAT serves the scan: a path below the site's address, percent-encoded.
    uid : str
        SOP Instance UID of the object.
    inserted, user : str
        When XNAT made the scan, in the time zone of the server, and for which user.
    stored : str
        When the file was stored, UTC (ISO 8601); empty if that is not known.
    folder, file : str
        Label of the resource, and path of the file in it.
    content : str
        A text that differs if the content of the file differs: see :func:`content_of`.
    """

    id: str
    session_id: str
    kind: str = ""
    name: str = ""
    path: str = ""
    uid: str = ""
    inserted: str = ""
    user: str = ""
    stored: str = ""
    folder: str = ""
    file: str = ""
    content: str = ""

    @property
    def label(self) -> str:
        """Its name in lists that contain ROI collections as well."""
        return PREFIX + self.id

    @property
    def names(self) -> tuple[str, str]:
        """The names with which patterns in the settings are compared."""
        return self.name, self.label

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote it."""
        return is_marked(self.uid)

    @property
    def stored_between(self) -> tuple[datetime, datetime]:
        """The earliest and the latest time, UTC, at which it may have been stored."""
        stored = self.stored_at
        return (stored, stored) if stored else UNKNOWN_TIMES

    @property
    def stored_at(self) -> datetime | None:
        """When it was stored, UTC; None if that is not known."""
        return datetime.fromisoformat(self.stored) if self.stored else None

    @property
    def server_times(self) -> None:
        """Always None: in the server's time it is only known when the scan was made, not when its file was stored."""
        return

    @property
    def fingerprint(self) -> str:
        """A text of 16 hexadecimal digits that differs if the content differs."""
        text = "\n".join((self.session_id, self.id, self.folder, self.file, self.content))
        return text_digest(text)[:16]

    @property
    def resource(self) -> str:
        """Path of the resource that holds its file."""
        return resource_path(self.path, self.folder)


Drawing = RoiCollection | DrawnScan
"""Something that a person drew on an image, as XNAT stores it."""


class UnreadDrawing(NamedTuple):
    """A drawing that cannot be read, and that may be the newest label of an image.

    Parameters
    ----------
    name : str
        The name by which the person who saved it can find it. It is empty if a whole list cannot be read: then
        nobody knows which drawings are in it.
    reason : str
        Why it cannot be read.
    drawing : RoiCollection or DrawnScan or None
        The drawing, as far as it is known; None if it is not known when it was stored.
    """

    name: str
    reason: str
    drawing: Drawing | None = None


class DrawnFile(NamedTuple):
    """The file of a drawn scan.

    Parameters
    ----------
    folder : str
        Label of its resource.
    remote : RemoteFile
        The file as XNAT lists it.
    problem : str
        Why it is not known which file holds the drawing; then ``remote`` is only one of the files that may. Otherwise
        empty.
    modified : str
        If there is a problem, the HTTP header ``Last-Modified`` of the file that was stored last; empty if not known.
    """

    folder: str
    remote: RemoteFile
    problem: str = ""
    modified: str = ""


def find_drawn_file(session: Session, path: str) -> DrawnFile | None:
    """Return the DICOM file of a scan that holds a drawing.

    It is looked for in the resource ``DICOM``, then in ``secondary``, then in all others.

    Parameters
    ----------
    session : Session
        The connection.
    path : str
        Path of the scan, percent-encoded.

    Returns
    -------
    DrawnFile or None
        None if the scan holds no file at all. If it holds no DICOM file, or several in one resource, the result has
        a problem.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    listed = list_files_by_resource(session, path)
    found = {label: files for label, files in listed.items() if not label.upper().startswith(_OWN_RESOURCES)}
    if not any(found.values()):
        return None
    for label in sorted(found, key=_rank):
        files = _dicom_files(label, found[label])
        if len(files) > 1:
            problem = f"its resource {label} holds {len(files)} DICOM files, and which one is the label is not known"
            return DrawnFile(label, files[0], problem, _last_modified_of(session, files))
        if files:
            return DrawnFile(label, files[0])
    others = [(label, file) for label, files in found.items() for file in files]
    modified = _last_modified_of(session, [file for _, file in others])
    return DrawnFile(*others[0], "it holds no DICOM file", modified)


def content_of(session: Session, remote: RemoteFile) -> str:
    """Return a text that differs if the content of a file differs: its MD5, or its size and time if it has no MD5.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    if remote.md5:
        return remote.md5
    modified = session.request("HEAD", remote.uri).headers.get("Last-Modified", "")
    return f"{remote.size} bytes, {modified}"


def download_drawn(session: Session, remote: RemoteFile, folder: Path) -> tuple[Path, str]:
    """Download a file into a folder; return its path, and its HTTP header ``Last-Modified``, "" if there is none.

    Raises
    ------
    ServerError
        If XNAT fails, or sends a file that differs from its list (TransferError).
    """
    target = folder / f"scan{DICOM_SUFFIX}"
    modified = fetch_listed(session, remote, target, "a scan that somebody drew")
    return target, modified


def fetch_drawn(session: Session, drawn: DrawnScan, folder: Path) -> Path:
    """Download the file of a drawn scan into a folder, and return its path.

    Raises
    ------
    TransferError
        If the file is no longer the one that ``drawn`` describes, because it was overwritten.
    ServerError
        As for :func:`find_drawn_file` and :func:`download_drawn`.
    """
    found = find_drawn_file(session, drawn.path)
    is_same = found and (found.folder, found.remote.path, found.problem) == (drawn.folder, drawn.file, "")
    if not found or not is_same or content_of(session, found.remote) != drawn.content:
        raise TransferError(
            f"the scan {drawn.id!r} was overwritten a moment ago",
            hint="try again: it will be read again",
            url=drawn.path,
        )
    return download_drawn(session, found.remote, folder)[0]


def head_of_drawn(session: Session, remote: RemoteFile, size: int) -> bytes:
    """Return the first ``size`` bytes of a file, or all if it is shorter.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    content = b""
    with session.stream(remote.uri) as response:
        for chunk in response.iter_content(size):
            content += chunk
            if len(content) >= size:
                break
    return content[:size]


def read_makers(session: Session, experiment: str) -> dict[str, tuple[str, str]]:
    """Return, by ID of each scan of a session, when XNAT made it (in the server's time zone) and for which user.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    rows = list_scans(session, experiment, "insert_date", "insert_user")
    return {str(row.get("ID")): (_text(row, "insert_date"), _text(row, "insert_user")) for row in rows}


def stored_when(inserted: str, modified: str, now: datetime) -> str:
    """Return when the file of a scan was stored, UTC (ISO 8601); empty if nothing shows it.

    Parameters
    ----------
    inserted : str
        When XNAT made the scan, in the time zone of the server. This time is exact, and the file was stored right
        after it, unless it was overwritten later.
    modified : str
        The HTTP header ``Last-Modified`` of its file: UTC, in whole seconds.
    now : datetime
        When the file was read, with a time zone. It was not stored later than that.
    """
    exact = inserted_at(inserted, modified)
    if exact is not None:
        return exact.isoformat()
    second = http_time(modified)
    # The time is known to the second only. If a label was stored in the same second, the drawing counts as the later.
    return min(second + _ONE_SECOND, max(now.astimezone(timezone.utc), second)).isoformat() if second else ""


def _rank(label: str) -> tuple[int, str]:
    name = label.upper()
    return (_RESOURCES.index(name) if name in _RESOURCES else len(_RESOURCES)), name


def _dicom_files(label: str, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    if label.upper() in _NO_DICOM:
        return []
    return [file for file in files if _is_dicom_name(PurePosixPath(file.path).suffix.lower())]


def _last_modified_of(session: Session, files: Sequence[RemoteFile]) -> str:
    """Return the header ``Last-Modified`` of the file that was stored last.

    It is empty if there are too many files to ask for each, or if the time of one is not known.
    """
    if len(files) > _ASKED_FILES:
        return ""
    headers = [session.request("HEAD", file.uri).headers.get("Last-Modified", "") for file in files]
    times = [(http_time(header), header) for header in headers]
    known = [(time, header) for time, header in times if time is not None]
    return max(known)[1] if known and len(known) == len(times) else ""


def _is_dicom_name(suffix: str) -> bool:
    # Names of DICOM files are often UIDs: then the part behind the last dot is a number.
    return suffix in _DICOM_SUFFIXES or suffix[1:].isdecimal()


def _text(row: Mapping[str, str], key: str) -> str:
    return str(row.get(key) or "")


def find_seg_scan(session: Session, image: ImageId, name: str, is_ours: Callable[[bytes], bool]) -> ImageId | None:
    """Return the id of the scan that holds the SEG which we stored under a name.

    Parameters
    ----------
    session : Session
        The connection.
    image : ImageId
        The image to which the SEG belongs.
    name : str
        Name of the file.
    is_ours : callable
        Returns whether we wrote a file, by its first bytes. If somebody has overwritten our file, it is theirs.

    Returns
    -------
    ImageId or None
        None if there is no such scan, or if somebody else's file is in it now.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    for row in list_scans(session, image.experiment, "note"):
        if row.get("note") != _NOTE.format(name):
            continue
        scan = ImageId(image.project, image.subject, image.experiment, row["ID"])
        try:
            found = find_drawn_file(session, scan_path(scan, is_shared=True))
        except NotInArchiveError:  # somebody has just deleted it
            continue
        if found is None:  # we made the scan, and were interrupted before the file was stored
            return scan
        if not found.problem and found.remote.path == name and is_ours(head_of_drawn(session, found.remote, _HEAD)):
            return scan
    return None


def make_seg_scan(session: Session, image: ImageId, name: str, description: str) -> ImageId:
    """Make a scan for a SEG, and return its id; its number is a free one of those that XNAT Workstation would use.

    Parameters
    ----------
    session : Session
        The connection.
    image : ImageId
        The image to which the SEG belongs.
    name : str
        The name that its file will have. It goes into the note of the scan, for :func:`find_seg_scan`.
    description : str
        The series description of the new scan.

    Raises
    ------
    ServerError
        If XNAT fails, the user may not make a scan, or no number is free.
    """
    taken = {row["ID"] for row in list_scans(session, image.experiment)}
    digits = re.match(r"\d{1,18}", image.scan)
    suffix = f"{int(digits[0]):02d}" if digits else _UNSAFE.sub("_", image.scan)
    number = next((f"{prefix}{suffix}" for prefix in _PREFIXES if f"{prefix}{suffix}" not in taken), None)
    if number is None:
        raise ServerError(f"the session has no free scan number for a segmentation of scan {image.scan!r}")
    scan = ImageId(image.project, image.subject, image.experiment, number)
    fields = {"type": "SEG", "series_description": description, "note": _NOTE.format(name)}
    paths = {f"{_XSI_TYPE}/{field}": value for field, value in fields.items()}
    put(session, scan_path(scan, is_shared=True), {"xsiType": _XSI_TYPE, **paths})
    return scan


def store_seg_scan(session: Session, scan: ImageId, name: str, source: Path) -> None:
    """Store a SEG in a scan; an earlier file of that name is overwritten.

    It is not deleted first, because in XNAT members of a project may overwrite but not delete.

    Raises
    ------
    AccessDeniedError
        If the user may not write there, also if XNAT does not report that.
    ServerError
        If XNAT fails, or if the stored file differs from the one that was sent (TransferError).
    """
    path = scan_path(scan, is_shared=True)
    upload(session, resource_path(path, _RESOURCE), name, source, format="DICOM", content="SEG", overwrite=True)
    # XNAT copies UID, modality and date from the file only when it is asked to.
    put(session, path, {"pullDataFromHeaders": "true"})
