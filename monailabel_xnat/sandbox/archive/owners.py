"""What resources belong to, and where their files lie: the folders are those of an XNAT archive."""

from __future__ import annotations

import re
from dataclasses import dataclass

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Item, Project, Scan, Subject

ARCHIVE_FOLDER = "arc001"


@dataclass(frozen=True)
class Owner:
    """What a resource belongs to.

    `kind` is that of `Resource`, `parent` the object's ID (of a scan its site-wide number), `folder` where its
    resources lie below the root of the files, such as ``P/arc001/s1/SCANS/1``.
    """

    kind: str
    parent: str
    folder: str


def owner_of(archive: Archive, item: Item, direction: str = "out") -> Owner:
    """Return what the resources of an object belong to; assessors have those that went ``in`` and came ``out``."""
    if isinstance(item, Project):
        return Owner("project", item.id, f"{segment(item.id)}/resources")
    if isinstance(item, Subject):
        return Owner("subject", item.id, f"{segment(item.project)}/subjects/{segment(item.label)}")
    if isinstance(item, Scan):
        session = _session(archive, item.experiment)
        return Owner("scan", str(item.pk), f"{session_folder(session)}/SCANS/{segment(item.id)}")
    if item.session_id is None:
        return Owner("experiment", item.id, f"{session_folder(item)}/RESOURCES")
    folder = f"{session_folder(_session(archive, item.session_id))}/ASSESSORS/{segment(item.label)}"
    return Owner(direction, item.id, f"{folder}/{direction.upper()}" if direction == "in" else folder)


def _session(archive: Archive, session_id: str) -> Experiment:
    session = archive.experiment(session_id)
    if session is None:
        raise LookupError(f"session {session_id} was deleted meanwhile")
    return session


def session_folder(session: Experiment) -> str:
    """Return the folder of a session below the root of the files."""
    return f"{segment(session.project)}/{ARCHIVE_FOLDER}/{segment(session.label)}"


def segment(name: str) -> str:
    """Make a name safe as one segment of a path."""
    safe = re.sub(r"[^\w. -]", "_", name)
    return safe if safe.strip(".") else f"_{safe}"
