"""A project of a test's own on any XNAT: made, filled with DICOM, and deleted."""

from __future__ import annotations

from pathlib import Path

from monailabel_xnat.client.items import delete, project_path, put
from monailabel_xnat.client.session import Session

_DESCRIPTION = "made by an automatic test, which deletes it again"


def make_project(session: Session, project: str) -> None:
    """Make a project whose imports go straight into the archive."""
    put(session, project_path(project), {"description": _DESCRIPTION})
    put(session, f"{project_path(project)}/prearchive_code/4", {})


def import_zip(session: Session, project: str, packed: Path) -> list[str]:
    """Import a zip of DICOM files and return the address of each session, below the site's address."""
    query = {"import-handler": "DICOM-zip", "dest": f"/archive/projects/{project}", "overwrite": "append"}
    answer = session.request(
        "POST",
        "/data/services/import",
        query={**query, "inbody": "true"},
        body=lambda: packed.open("rb"),
        headers={"Content-Type": "application/zip"},
    )
    return answer.text.split()


def delete_project(session: Session, project: str) -> None:
    """Delete a project with all that is in it."""
    delete(session, project_path(project))
