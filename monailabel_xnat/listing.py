"""What XNAT lists of a project's scans: one request, folded from rows into scans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from monailabel_xnat.client.roi import RoiCollection
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.errors import NotInArchiveError
from monailabel_xnat.ids import ImageId

# Asked in lower case, for so the keys come back; UID has a shortcut and comes back under that name only.
_SCAN = "xnat:imagescandata/"
_SUBJECT_ID = "xnat:imagesessiondata/subject_id"
_SHARED_INTO = "xnat:imagesessiondata/sharing/share/project"
_COLUMNS = (
    "ID",
    "label",
    "project",
    "date",
    "UID",
    "subject_label",
    _SUBJECT_ID,
    *(
        _SCAN + column
        for column in (
            "id",
            "type",
            "uid",
            "quality",
            "note",
            "frames",
            "series_description",
            "modality",
            "file/label",
            "file/file_count",
            "file/file_size",
        )
    ),
)
# xnat:ctSessionData and the like, where a scan has no modality of its own.
_SESSION_MODALITIES = {"pet": "PT", "petmr": "PT", "otherDicom": ""}


class Resource(NamedTuple):
    """A folder of files that belongs to a scan.

    ``file_count`` and ``file_size`` (bytes) are None where XNAT has not computed them.
    """

    label: str
    file_count: int | None
    file_size: int | None


class Scan(NamedTuple):
    """A scan as the listing shows it; texts are empty and ``frames`` is None where XNAT does not know."""

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
    note: str
    series_uid: str
    study_uid: str
    frames: int | None
    resources: tuple[Resource, ...]
    collections: tuple[RoiCollection, ...] = ()

    @property
    def path(self) -> str:
        """Where XNAT serves the scan: a path below the site's address, percent-encoded."""
        image = self.image_id
        # XNAT's stand-ins for the characters that would split a scan id in a path (ScanResource).
        scan = image.scan.replace("/", "[SLASH]").replace(",", "[COMMA]")
        session = ("data", "projects", image.project, "subjects", image.subject, "experiments", image.experiment)
        return quoted(*session, "scans", scan)

    def resource(self, label: str) -> Resource | None:
        """Find a resource by its label."""
        return next((resource for resource in self.resources if resource.label == label), None)


def list_scans(session: Session, project: str) -> list[Scan]:
    """List the scans of the sessions that a project owns.

    Raises
    ------
    NotInArchiveError
        If there is no such project, or the user may not see it.
    """
    scans = _list(session, project, {"project": project})
    if not scans:
        _require_project(session, project)
    return scans


def list_shared_scans(session: Session, project: str) -> list[Scan]:
    """List the scans of the sessions that other projects share into a project."""
    return [scan for scan in _list(session, project, {_SHARED_INTO: project}) if scan.owner != project]


def list_projects(session: Session) -> list[str]:
    """List the IDs of the projects whose data the user can read."""
    return sorted(row["ID"] for row in session.rows("/data/projects", {"columns": "ID"}))


def _require_project(session: Session, project: str) -> None:
    try:
        session.json(quoted("data", "projects", project))
    except NotInArchiveError as error:
        raise NotInArchiveError(
            f"XNAT has no project {project!r} that user {session.user!r} may see",
            hint="check the project's ID (not its title) and the user's access",
            url=error.url,
            status=error.status,
        ) from None


def _list(session: Session, project: str, restriction: dict[str, str]) -> list[Scan]:
    query = {"xsiType": "xnat:imageSessionData", "columns": ",".join(_COLUMNS), **restriction}
    return fold(session.rows("/data/experiments", query), project)


def fold(rows: Iterable[dict[str, str]], project: str) -> list[Scan]:
    """Fold the rows of the joined listing, one per session x scan x resource, into scans.

    Parameters
    ----------
    rows : iterable of dict
        All values are texts; a session without scans, or a scan without resources, has a row with empty ones.
    project : str
        The project that the scans are listed under.
    """
    shared: dict[str, str] = {}  # one object for texts that repeat in thousands of rows
    firsts: dict[tuple[str, str], dict[str, str]] = {}
    resources: dict[tuple[str, str], dict[str, Resource]] = {}
    for row in rows:
        key = (row["ID"], row.get(_SCAN + "id", ""))
        if not key[1] or not row.get(_SUBJECT_ID):  # a session without scans, or without a subject
            continue
        firsts.setdefault(key, row)
        of_scan = resources.setdefault(key, {})
        resource = _resource(row, shared)
        if resource is not None:
            of_scan[resource.label] = resource
    return [_scan(row, project, tuple(resources[key].values()), shared) for key, row in firsts.items()]


def _resource(row: dict[str, str], shared: dict[str, str]) -> Resource | None:
    label = row.get(_SCAN + "file/label", "")
    if not label:
        return None
    count, size = row.get(_SCAN + "file/file_count", ""), row.get(_SCAN + "file/file_size", "")
    return Resource(shared.setdefault(label, label), _number(count), _number(size))


def _scan(row: dict[str, str], project: str, resources: tuple[Resource, ...], shared: dict[str, str]) -> Scan:
    def text(key: str) -> str:
        value = row.get(key) or ""
        return shared.setdefault(value, value)

    return Scan(
        image_id=ImageId(project, text(_SUBJECT_ID), text("ID"), text(_SCAN + "id")),
        owner=text("project"),
        subject_label=text("subject_label"),
        session_label=text("label"),
        session_type=text("xsiType"),
        session_date=text("date"),
        type=text(_SCAN + "type"),
        series_description=text(_SCAN + "series_description"),
        quality=text(_SCAN + "quality"),
        modality=text(_SCAN + "modality") or _modality_of(text("xsiType")),
        note=text(_SCAN + "note"),
        series_uid=row.get(_SCAN + "uid") or "",
        study_uid=text("UID"),
        frames=_number(row.get(_SCAN + "frames") or ""),
        resources=resources,
    )


def _modality_of(session_type: str) -> str:
    name = session_type.partition(":")[2].replace("SessionData", "")
    return _SESSION_MODALITIES.get(name, name.upper())


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
