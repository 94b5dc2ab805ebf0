"""ROI collections: what the XNAT-OHIF viewer saves drawings as, one assessor of the session for each.

Listing and reading go over XNAT's ordinary calls; storing goes over the viewer's plugin (``/xapi/roi``), which checks
that what comes belongs to the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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
"""The kinds of drawings that are read as label maps, and what their files end in, the usual ending first.

Each has a reader in :mod:`monailabel_xnat.labels.drawings`.
"""

_TIME = "%Y-%m-%d %H:%M:%S.%f"
# UTC offsets of all time zones are multiples of this.
_ZONE_STEP = timedelta(minutes=15)
_EASTMOST, _WESTMOST = timedelta(hours=14), timedelta(hours=12)
# What was stored anew later than this is not what was stored when it was inserted.
_SAME_MOMENT = timedelta(seconds=3)
_FIRST, _LAST = (time.replace(tzinfo=timezone.utc) for time in (datetime.min, datetime.max))
UNKNOWN_TIMES = _FIRST, _LAST
"""Between which times something was stored of which nothing is known."""

_UUID_ROOT = "2.25."
_MARK_BITS = 62
_MARK = b"monailabel_xnat ROI collection "


class RoiCollection(NamedTuple):
    """A ROI collection as the listing shows it; texts are empty where XNAT does not know.

    Parameters
    ----------
    id, label : str
        Of the assessor.
    session_id : str
        The session that it belongs to.
    kind : str
        ``SEG``, ``RTSTRUCT``, ``NIFTI``, ``AIM`` or ``MEAS``.
    name : str
        What the person who saved it called it.
    uid : str
        SOP Instance UID of the object.
    inserted, changed : str
        ``YYYY-MM-DD HH:MM:SS.mmm``, in the time zone of the server.
    user : str
        Who saved it.
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
        """What patterns are compared with."""
        return (self.label,)

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote it: the UID of what we write bears a mark, and any other program gives another."""
        return is_marked(self.uid)

    @property
    def server_times(self) -> tuple[datetime, datetime] | None:
        """Between which times it was stored, by the clock of the server, as if that were UTC; None if not known."""
        inserted = _time_of(self.inserted)
        changed = _time_of(self.changed) if self.changed else inserted
        return (inserted, max(inserted, changed)) if inserted and changed else None

    def was_stored_before(self, other: RoiCollection) -> bool:
        """Return whether it is known to have been stored before another one, whatever was stored in their places."""
        mine, theirs = self.server_times, other.server_times
        return mine is not None and theirs is not None and mine[1] - theirs[0] <= _SAME_MOMENT

    @property
    def stored_between(self) -> tuple[datetime, datetime]:
        """Between which times, UTC, it was stored, whatever the time zone of the server."""
        if self.server_times is None:
            return UNKNOWN_TIMES
        inserted, changed = self.server_times
        return inserted - _EASTMOST, changed + _WESTMOST

    @property
    def fingerprint(self) -> str:
        """What tells its content from any other."""
        text = "\n".join((self.id, self.uid, self.inserted, self.changed))
        return text_digest(text)[:16]

    @property
    def path(self) -> str:
        """Where XNAT serves the collection: a path below the site's address, percent-encoded."""
        return quoted("data", "experiments", self.session_id, "assessors", self.id)

    @property
    def resource(self) -> str:
        """Path of the resource that holds its file."""
        return f"{self.path}/out{quoted('resources', self.kind)}"


class CollectionFacts(NamedTuple):
    """What the item of a collection says: UID of the object, type, and the Series Instance UIDs it was drawn on."""

    uid: str
    kind: str
    series: tuple[str, ...]


def list_collections(session: Session, project: str) -> list[RoiCollection]:
    """List the ROI collections in the sessions of a project.

    Raises
    ------
    ServerError
        If XNAT fails, which it does where it does not know the data type.
    """
    query = {"project": project, "xsiType": _XSI_TYPE, "columns": ",".join(_COLUMNS)}
    with session.pace.heavy("listing of ROI collections"):
        rows = session.rows("/data/experiments", query)
    # A site that does not know the type lists sessions, each of which is its own session.
    return [_collection(row) for row in rows if row.get("session_ID") not in (None, "", row.get("ID"))]


def read_facts(session: Session, collection: RoiCollection) -> CollectionFacts:
    """Read the item of a collection, which tells more than the listing.

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
    """Return the ID of a collection of an image's session if it is the object of a SOP Instance UID; else "".

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
        The SOP Instance UID.

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
    """Find the file of a collection.

    Raises
    ------
    LabelFileError
        If it has none.
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
    """Fetch the file of a collection into a folder.

    Returns
    -------
    Path
        The file.
    datetime
        When it was stored, UTC.

    Raises
    ------
    LabelFileError
        If it has none.
    ServerError
        If XNAT fails, or sends something else than it lists (TransferError).
    """
    remote = collection_file(session, collection)
    suffix = next((end for end in SUFFIXES.get(collection.kind, ()) if remote.path.lower().endswith(end)), DICOM_SUFFIX)
    target = folder / f"collection{suffix}"
    modified = fetch_listed(session, remote, target, f"the ROI collection {collection.label!r}")
    return target, stored_at(collection, modified)


def ask_when_stored(session: Session, collection: RoiCollection) -> datetime:
    """Ask when the file of a collection was stored, UTC: listings tell it in the time zone of the server only.

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
        Its date of insertion is exact, but of an unknown time zone; without anything else it is taken for UTC.
    modified : str
        The HTTP header ``Last-Modified`` of its file: UTC, in whole seconds.
    """
    exact = inserted_at(collection.inserted, modified)
    return exact or last_modified(modified) or _time_of(collection.inserted) or datetime.fromtimestamp(0, timezone.utc)


def last_modified(header: str) -> datetime | None:
    """Read an HTTP header ``Last-Modified``; None if there is none."""
    try:
        return parsedate_to_datetime(header).astimezone(timezone.utc)
    except (TypeError, ValueError):
        return None


def inserted_at(inserted: str, modified: str) -> datetime | None:
    """Return when something was inserted, UTC, if its file was stored then; None if it was stored anew since.

    Parameters
    ----------
    inserted : str
        Date of insertion as listed: exact, but of an unknown time zone.
    modified : str
        The HTTP header ``Last-Modified`` of its file.
    """
    first, second = _time_of(inserted), last_modified(modified)
    if first is None or second is None:
        return None
    zone = round((second - first) / _ZONE_STEP) * _ZONE_STEP
    return first + zone if abs(second - first - zone) < _SAME_MOMENT else None


def may_store(session: Session, project: str) -> bool:
    """Ask whether the viewer's plugin is there and lets the user store ROI collections in a project.

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
        If XNAT fails or refuses it: with status 422 also where the label is in use, 409 where it is in use elsewhere.
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
        If XNAT fails or does not let the user.
    """
    session.request("DELETE", quoted("xapi", "roi", "projects", project, "collections", collection.id))


def marked_uid(identity: str) -> str:
    """Make the SOP Instance UID for something that we write; the same for the same identity.

    It is a UID of a UUID (DICOM PS3.5 B.2), of which one half is a digest of the identity, the other of the first half.
    """
    digest = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 4
    high = (digest >> 12) << 16 | 0x8000 | (digest & 0xFFF)
    return f"{_UUID_ROOT}{high << 64 | 0b10 << _MARK_BITS | _mark_of(high)}"


@lru_cache(maxsize=1 << 16)
def is_marked(uid: str) -> bool:
    """Return whether a UID is one of :func:`marked_uid`."""
    number = uid[len(_UUID_ROOT) :]
    if not uid.startswith(_UUID_ROOT) or not number.isdecimal():
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
    """Read a time of a listing as if it were UTC; its fraction may have any number of digits, or be missing."""
    try:
        return datetime.strptime(text if "." in text else f"{text}.0", _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
