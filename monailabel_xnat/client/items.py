"""Projects, subjects, sessions and scans in XNAT: their paths, and requests that read or change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.errors import NotInArchiveError, TransferError
from monailabel_xnat.ids import ImageId

_NAME = "ID,label,subject_label,insert_date"

Fields = dict[str, str]


def project_path(project: str) -> str:
    """Return the path of a project below the site's address, percent-encoded, as all paths here."""
    return quoted("data", "projects", project)


def subject_path(project: str, subject: str) -> str:
    """Return the path of a subject, by its ID or label."""
    return project_path(project) + quoted("subjects", subject)


def session_path(subject: str, label: str) -> str:
    """Return the path of a session, by the path of its subject and its ID or label."""
    return subject + quoted("experiments", label)


def scan_path(image: ImageId, *, is_shared: bool = False) -> str:
    """Return the path of a scan; with ``is_shared`` one without project and subject, which shared sessions need."""
    # In a path XNAT expects these texts for characters that would split the scan id (its class ScanResource).
    scan = image.scan.replace("/", "[SLASH]").replace(",", "[COMMA]")
    if is_shared:
        return _scans_path(image.experiment) + quoted(scan)
    session = session_path(subject_path(image.project, image.subject), image.experiment)
    return session + quoted("scans", scan)


def resource_path(holder: str, label: str) -> str:
    """Return the path of a resource, by the path of the object to which it belongs."""
    return holder + quoted("resources", label)


def list_projects(session: Session) -> list[str]:
    """List the IDs of the projects that the user can see."""
    return sorted(row["ID"] for row in session.rows("/data/projects", {"columns": "ID"}) if row.get("ID"))


def read_project(session: Session, project: str) -> Any:
    """Return the item of a project. The functions below raise the same errors.

    Raises
    ------
    NotInArchiveError
        If there is no such project, or the user may not see it.
    TransferError
        If the answer does not have the form of an item.
    """
    return _item(session, project_path(project))


def read_subject(session: Session, subject: str, project: str = "") -> Any:
    """Return the item of a subject, by its ID, or within a project by its ID or label."""
    return _item(session, subject_path(project, subject) if project else quoted("data", "subjects", subject))


def read_session(session: Session, project: str, label: str) -> Any:
    """Return the item of a session of a project, by ID or label."""
    return _item(session, project_path(project) + quoted("experiments", label))


def read_anywhere(session: Session, experiment: str) -> Any:
    """Return the item of a session by its ID, in any project."""
    return _item(session, quoted("data", "experiments", experiment))


def read_scan(session: Session, path: str) -> Any:
    """Return the item of a scan by its path."""
    return _item(session, path)


def exists(session: Session, path: str) -> bool:
    """Return whether there is something that the user may see at a path."""
    try:
        session.json(path)
    except NotInArchiveError:
        return False
    return True


def list_session_names(session: Session, project: str) -> list[Fields]:
    """List the sessions of a project: ``ID``, ``label`` and ``subject_label`` in this project, and ``insert_date``."""
    return session.rows(project_path(project) + quoted("experiments"), {"columns": _NAME})


def list_scans(session: Session, experiment: str, *columns: str) -> list[Fields]:
    """List the scans of a session with their ``ID`` and the given columns."""
    return session.rows(_scans_path(experiment), {"columns": ",".join(("ID", *columns))})


def list_files_of_scans(session: Session, experiment: str) -> list[tuple[str, str, Fields]]:
    """List the files of all scans of a session, each as ID of its scan, path of its scan, and XNAT's row."""
    scans = _scans_path(experiment)
    found = []
    for row in session.rows(f"{scans}/ALL/files"):
        scan = row["URI"].partition("/scans/")[2].partition("/resources/")[0]
        found.append((scan, scans + quoted(scan), row))
    return found


def put(session: Session, path: str, fields: Mapping[str, str]) -> str:
    """Make or change an item by its path, and return XNAT's answer: for a new subject or session its ID.

    Raises
    ------
    AccessDeniedError
        If the user may not do that.
    """
    return session.request("PUT", path, query=fields).text.strip()


def append_note(session: Session, image: ImageId, note: str) -> None:
    """Append a text to the note of a scan."""
    rows = list_scans(session, image.experiment, "xsiType", "note")
    found = next(row for row in rows if row["ID"] == image.scan)
    kind, text = found["xsiType"], f"{found.get('note', '')} {note}".strip()
    put(session, _scans_path(image.experiment) + quoted(image.scan), {"xsiType": kind, f"{kind}/note": text})


def delete(session: Session, path: str) -> None:
    """Delete an item and its files, by its path.

    Raises
    ------
    NotInArchiveError
        If it is not there.
    AccessDeniedError
        If the user may not delete: in XNAT members of a project may write but not delete.
    """
    session.request("DELETE", path, query={"removeFiles": "true"})


def _item(session: Session, path: str) -> Any:
    """Return XNAT's answer for an item: an object with ``items``, whose first entry has ``data_fields``."""
    answer = session.json(path)
    try:
        is_item = isinstance(answer["items"][0]["data_fields"], dict)
    except (KeyError, IndexError, TypeError):
        is_item = False
    if not is_item:
        raise TransferError(
            f"XNAT answered GET {path} with something that does not describe what is there", hint="try again", url=path
        )
    return answer


def _scans_path(experiment: str) -> str:
    return quoted("data", "experiments", experiment, "scans")
