"""ROI collections: the assessors of a session in which the XNAT-OHIF viewer saves drawings.

They are listed and read through XNAT's ordinary REST calls. They are stored through the viewer's plugin
(``/xapi/roi``), which checks that an object belongs to the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from monailabel_xnat.client.answers import http_time
from monailabel_xnat.client.files import RemoteFile, fetch_listed, list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import LabelFileError, NotInArchiveError, TransferError
from monailabel_xnat.ids import ImageId

DICOM_SUFFIX = ".dcm"

_XSI_TYPE = "icr:roiCollectionData"
_FIELD = "icr:roicollectiondata/"
_COLUMNS = (
    *("ID", "label", "session_ID", "insert_date", "insert_user", "last_modified"),
    *(_FIELD + column for column in ("uid", "collectiontype", "name")),
)
_REFERENCES = "references/seriesUID"
SUFFIXES: dict[str, tuple[str, ...]] = {
    "SEG": (DICOM_SUFFIX,),
    "RTSTRUCT": (DICOM_SUFFIX,),
    "AIM": (".xml",),
    "NIFTI": (".nii.gz", ".nii"),
}
"""The kinds of drawings that are read as label maps, with the endings of their files, the usual ending first.

Each kind has a reader in :mod:`monailabel_xnat.labels.drawings`.
"""

_TIME = "%Y-%m-%d %H:%M:%S.%f"
# UTC offsets of all time zones are multiples of this.
_ZONE_STEP = timedelta(minutes=15)
_EASTMOST, _WESTMOST = timedelta(hours=14), timedelta(hours=12)
# A file that was stored more than this after the collection was inserted is not the first one: it was overwritten.
_SAME_MOMENT = timedelta(seconds=3)
_FIRST, _LAST = (time.replace(tzinfo=timezone.utc) for time in (datetime.min, datetime.max))
UNKNOWN_TIMES = _FIRST, _LAST
"""The earliest and the latest time of something if nothing is known about its time."""

_UUID_ROOT = "2.25."
_LONGEST_UUID = 39
_MARK_BITS = 62
_MARK = b"monailabel_xnat ROI collection "


class RoiCollection(NamedTuple):
    """A ROI collection as the listing shows it. A text is empty if XNAT does not know the value.

    Parameters
    ----------
    id, label : str
        ID and label of the assessor.
    session_id : str
        ID of the session to which it belongs.
    kind : str
        ``SEG``, ``RTSTRUCT``, ``NIFTI``, ``AIM`` or ``MEAS``.
    name : str
        The name that the person who saved it gave it.
    uid : str
        SOP Instance UID of the object.
    inserted, changed : str
        When it was first stored and last changed: ``YYYY-MM-DD HH:MM:SS.mmm``, in the time zone of the server.
    user : str
        The user who saved it.
    """

    id: str
    label: str
    session_id: str
    kind: str
    name: str = ""
    uid: str = ""
    inserted: str = ""
    changed: str = ""
    user: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names with which patterns in the settings are compared."""
        return (self.label,)

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote it: our UIDs carry a mark, and other programs use UIDs without it."""
        return is_marked(self.uid)

    @property
    def server_times(self) -> tuple[datetime, datetime] | None:
        """The earliest and the latest time at which it may have been stored; None if not known.

        These times are in the time zone of the server, but marked as UTC.
        """
        inserted = _time_of(self.inserted)
        changed = _time_of(self.changed) if self.changed else inserted
        return (inserted, max(inserted, changed)) if inserted and changed else None

    def was_stored_before(self, other: RoiCollection) -> bool:
        """Return whether it was certainly stored before another one, even if one of them was overwritten."""
        mine, theirs = self.server_times, other.server_times
        return mine is not None and theirs is not None and mine[1] - theirs[0] <= _SAME_MOMENT

    @property
    def stored_between(self) -> tuple[datetime, datetime]:
        """The earliest and the latest time, UTC, at which it may have been stored, in any time zone of the server."""
        if self.server_times is None:
            return UNKNOWN_TIMES
        inserted, changed = self.server_times
        return inserted - _EASTMOST, changed + _WESTMOST

    @property
    def fingerprint(self) -> str:
        """A text of 16 hexadecimal digits that differs if the content differs."""
        text = "\n".join((self.id, self.uid, self.inserted, self.changed))
        return text_digest(text)[:16]

    @property
    def path(self) -> str:
        """Path of the collection below the site's address, percent-encoded."""
        return quoted("data", "experiments", self.session_id, "assessors", self.id)

    @property
    def resource(self) -> str:
        """Path of the resource that holds its file."""
        return f"{self.path}/out{quoted('resources', self.kind)}"


class CollectionFacts(NamedTuple):
    """The item of a collection: SOP Instance UID of the object, kind, and UIDs of the series on which it was drawn."""

    uid: str
    kind: str
    series: tuple[str, ...]


def list_collections(session: Session, project: str) -> list[RoiCollection]:
    """List the ROI collections in the sessions of a project.

    Raises
    ------
    ServerError
        If XNAT fails. Some sites fail because they do not know the data type.
    """
    query = {"project": project, "xsiType": _XSI_TYPE, "columns": ",".join(_COLUMNS)}
    with session.pace.heavy("listing of ROI collections"):
        rows = session.rows("/data/experiments", query)
    # Some sites that do not know the type list sessions instead. Skip these rows: their session ID is their own ID.
    return [_collection(row) for row in rows if row.get("session_ID") not in (None, "", row.get("ID"))]


def read_facts(session: Session, collection: RoiCollection) -> CollectionFacts:
    """Return the facts in the item of a collection, which says more than the listing.

    Raises
    ------
    NotInArchiveError
        If the collection is gone.
    TransferError
        If the answer is not the item of this collection.
    ServerError
        If XNAT fails.
    """
    path = quoted("data", "experiments", collection.id)
    item = session.json(path)
    try:
        fields, children = item["items"][0]["data_fields"], item["items"][0]["children"]
        found = (child["items"] for child in children if child["field"] == _REFERENCES)
        series = tuple(entry["data_fields"]["seriesUID"] for entries in found for entry in entries)
        texts = (fields["ID"], fields.get("UID") or "", fields.get("collectionType") or "", *series)
        is_whole = all(isinstance(text, str) for text in texts) and all(series)
        is_this = fields["ID"] == collection.id and collection.uid in ("", fields.get("UID"))
    except (KeyError, IndexError, TypeError, AttributeError):
        is_whole = is_this = False
    if not (is_whole and is_this):
        raise TransferError(
            f"XNAT described the ROI collection {collection.label!r} "
            + ("as another one" if is_whole else "in a form that is not known"),
            hint="it is asked again; if it stays, look at the collection in XNAT",
            url=path,
        )
    return CollectionFacts(texts[1], texts[2].upper(), series)


def id_of_collection(session: Session, project: str, image: ImageId, label: str, uid: str) -> str:
    """Return the ID of a collection in an image's session; "" if there is none, or it is another object.

    Parameters
    ----------
    session : Session
        The connection.
    project : str
        The project that owns the session.
    image : ImageId
        The image.
    label : str
        The label of the collection.
    uid : str
        The SOP Instance UID that its object must have.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    try:
        above = ("projects", project, "subjects", image.subject, "experiments", image.experiment)
        item = session.json(quoted("data", *above, "assessors", label))
    except NotInArchiveError:
        return ""
    try:
        fields = item["items"][0]["data_fields"]
        return str(fields["ID"]) if fields.get("UID") == uid else ""
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""


def collection_file(session: Session, collection: RoiCollection) -> RemoteFile:
    """Return the file of a collection, as XNAT lists it.

    Raises
    ------
    LabelFileError
        If it has no file.
    ServerError
        If XNAT fails.
    """
    files = list_files(session, collection.resource)
    suffixes = SUFFIXES.get(collection.kind, ())
    found = [file for file in files if file.path.lower().endswith(suffixes)] or files[:1]
    if not found:
        raise LabelFileError(
            f"the ROI collection {collection.label!r} holds no file", hint="save it again from the viewer"
        )
    return found[0]


def download_collection(session: Session, collection: RoiCollection, folder: Path) -> tuple[Path, datetime]:
    """Download the file of a collection into a folder.

    Returns
    -------
    Path
        The downloaded file.
    datetime
        When it was stored, UTC.

    Raises
    ------
    LabelFileError
        If it has no file.
    ServerError
        If XNAT fails, or sends a file that differs from its list (TransferError).
    """
    remote = collection_file(session, collection)
    suffix = next((end for end in SUFFIXES.get(collection.kind, ()) if remote.path.lower().endswith(end)), DICOM_SUFFIX)
    target = folder / f"collection{suffix}"
    modified = fetch_listed(session, remote, target, f"the ROI collection {collection.label!r}")
    return target, stored_at(collection, modified)


def ask_when_stored(session: Session, collection: RoiCollection) -> datetime:
    """Return when the file of a collection was stored, UTC. This takes requests: listings do not show the time zone.

    Raises
    ------
    LabelFileError, ServerError
        As for :func:`collection_file`.
    """
    answer = session.request("HEAD", collection_file(session, collection).uri)
    return stored_at(collection, answer.headers.get("Last-Modified", ""))


def stored_at(collection: RoiCollection, modified: str = "") -> datetime:
    """Return when a collection was stored, UTC.

    Parameters
    ----------
    collection : RoiCollection
        The collection. Its date of insertion is exact, but the time zone is not known. If there is no other time, the
        date is taken for UTC, and if there is no date, the result is the start of 1970.
    modified : str
        The HTTP header ``Last-Modified`` of its file: UTC, in whole seconds.
    """
    exact = inserted_at(collection.inserted, modified)
    return exact or http_time(modified) or _time_of(collection.inserted) or datetime.fromtimestamp(0, timezone.utc)


def inserted_at(inserted: str, modified: str) -> datetime | None:
    """Return when something was inserted, UTC; None if its file was not stored at that time, but overwritten later.

    The two times must agree, apart from an offset that a time zone can have.

    Parameters
    ----------
    inserted : str
        Date of insertion as listed: exact, but its time zone is not known.
    modified : str
        The HTTP header ``Last-Modified`` of its file.
    """
    first, second = _time_of(inserted), http_time(modified)
    if first is None or second is None:
        return None
    zone = round((second - first) / _ZONE_STEP) * _ZONE_STEP
    return first + zone if abs(second - first - zone) < _SAME_MOMENT else None


def may_store(session: Session, project: str) -> bool:
    """Return whether the viewer's plugin is installed and lets the user store ROI collections in a project.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    try:
        answer = session.json(quoted("xapi", "roi", "projects", project, "permissions", "RoiCollection"))
    except NotInArchiveError:
        return False
    return isinstance(answer, dict) and bool(answer.get("create")) and bool(answer.get("edit"))


def store_seg(
    session: Session, project: str, session_id: str, label: str, source: Path, *, overwrite: bool = False
) -> str:
    """Store a DICOM SEG as a ROI collection.

    Returns
    -------
    str
        ID of the assessor.

    Raises
    ------
    ServerError
        If XNAT fails or refuses it. Status 422 can mean that the label is in use, and 409 that it is in use in another
        session.
    """
    path = quoted("xapi", "roi", "projects", project, "sessions", session_id, "collections", label)
    answer = session.request(
        "PUT",
        path,
        query={"type": "SEG", "overwrite": "true" if overwrite else "false"},
        body=lambda: source.open("rb"),
        headers={"Content-Type": "application/octet-stream"},
    )
    return answer.text.strip()


def delete_collection(session: Session, project: str, collection: RoiCollection) -> None:
    """Delete a collection.

    Raises
    ------
    ServerError
        If XNAT fails, or the user may not delete it.
    """
    session.request("DELETE", quoted("xapi", "roi", "projects", project, "collections", collection.id))


def marked_uid(identity: str) -> str:
    """Return the SOP Instance UID for something that we write; the same identity always gets the same UID.

    It is a UID made of a UUID (DICOM PS3.5 B.2). The first half of the UUID is a digest of the identity, and the second
    half a digest of the first: this is the mark.
    """
    digest = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 4
    high = (digest >> 12) << 16 | 0x8000 | (digest & 0xFFF)
    return f"{_UUID_ROOT}{high << 64 | 0b10 << _MARK_BITS | _mark_of(high)}"


@lru_cache(maxsize=1 << 16)
def is_marked(uid: str) -> bool:
    """Return whether a UID was made by :func:`marked_uid`."""
    number = uid[len(_UUID_ROOT) :]
    if not uid.startswith(_UUID_ROOT) or not number.isdecimal() or len(number) > _LONGEST_UUID:
        return False
    high, low = divmod(int(number), 1 << 64)
    return low == 0b10 << _MARK_BITS | _mark_of(high)


def _mark_of(high: int) -> int:
    digest = hashlib.sha256(_MARK + high.to_bytes(16, "big")).digest()
    return int.from_bytes(digest[:8], "big") & ((1 << _MARK_BITS) - 1)


def _collection(row: dict[str, Any]) -> RoiCollection:
    keys: Iterable[str] = (
        *("ID", "label", "session_ID"),
        *(_FIELD + column for column in ("collectiontype", "name", "uid")),
        *("insert_date", "last_modified", "insert_user"),
    )
    texts = [str(row.get(key) or "") for key in keys]
    texts[3] = texts[3].upper()
    return RoiCollection(*texts)


def _time_of(text: str) -> datetime | None:
    """Return a time of a listing as if it were UTC; None if it is not a time. A fraction of a second may be missing."""
    try:
        return datetime.strptime(text if "." in text else f"{text}.0", _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
