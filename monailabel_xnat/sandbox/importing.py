"""XNAT's import service: a zip or tar of DICOM posted, filed into the archive (DicomZipImporter)."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.filing import Filing
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError, Reply
from monailabel_xnat.sandbox.request import Request
from monailabel_xnat.sandbox.resources import Resources
from monailabel_xnat.sandbox.staging import checked_path


def import_archive(request: Request, archive: Archive, resources: Resources, may: Permissions) -> Reply:
    """Answer ``POST /data/services/import``: the addresses of the sessions, a line each."""
    if request.method not in ("POST", "PUT"):
        raise HTTPError(405)
    if request.query.get("import-handler", "DICOM-zip") not in ("DICOM-zip", "SI", "gradual-DICOM"):
        raise HTTPError(404, "Unsupported import-handler")
    project, subject, session = _destination(request)
    found = archive.project(project) if project else None
    if found is None:
        raise HTTPError(404, f"Unknown project {project}")
    if not may.may_edit(found.id):
        raise HTTPError(403)
    with tempfile.TemporaryDirectory(dir=archive.folder) as folder:
        _unpack(request, Path(folder))
        try:
            sessions = Filing(archive, resources).file(
                Path(folder), found.id, subject=subject, session=session, user=request.user
            )
        except ValueError as error:
            raise HTTPError(400, str(error).replace(folder, "the upload")) from error
    lines = []
    for made in sessions:
        owner = archive.subject(made.subject_id or "")
        label = owner.label if owner else ""
        lines.append(f"/data/archive/projects/{found.id}/subjects/{label}/experiments/{made.label}")
    return Reply("".join(f"{line}\r\n" for line in lines).encode())


def _destination(request: Request) -> list[str]:
    words = request.query.get("dest", "").strip("/").split("/")
    named = dict(zip(words[1::2], words[2::2])) if words[0] in ("archive", "prearchive") else {}
    return [
        named.get(f"{noun}s", "") or request.query.get(noun, "") or request.query.get(other, "")
        for noun, other in (("project", "PROJECT_ID"), ("subject", "SUBJECT_ID"))
    ] + [named.get("experiments", "") or request.query.get("session", "") or request.query.get("EXPT_LABEL", "")]


def _unpack(request: Request, folder: Path) -> None:
    body = request.body
    if zipfile.is_zipfile(body):
        with zipfile.ZipFile(body) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as source:
                        _write(folder, info.filename, source)
        return
    body.seek(0)
    try:
        with tarfile.open(fileobj=body) as archive:
            for member in archive:
                source = archive.extractfile(member) if member.isfile() else None
                if source is not None:
                    _write(folder, member.name, source)
    except tarfile.TarError:
        body.seek(0)
        _write(folder, "upload.dcm", body)


def _write(folder: Path, name: str, source: object) -> None:
    try:
        target = folder / checked_path(name)
    except ValueError as error:
        raise HTTPError(400, str(error)) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)  # type: ignore[type-var, arg-type]
