"""The objects with resources that a path names, and how XNAT writes their addresses in file lists and zips."""

from __future__ import annotations

import re
from dataclasses import dataclass

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Resource, Scan
from monailabel_xnat.sandbox.archive.resources import ARCHIVE_FOLDER, Owner, Resources, owner_of
from monailabel_xnat.sandbox.http.paths import Target
from monailabel_xnat.sandbox.http.replies import HTTPError
from monailabel_xnat.sandbox.http.request import Request


@dataclass(frozen=True)
class Holder:
    """An object with resources.

    Parameters
    ----------
    owner
        What its resources belong to.
    project, subject
        Project ID and subject label, which head the members of a zip with ``structure=improved``.
    base, short_base
        Its address as it was asked for, with IDs in place of labels, and as lists of several resources have it.
    folder
        Its folder in a zip: ``s1/scans/1-T1``.
    category, cat_id, cat_desc
        What resource lists say of it.
    """

    owner: Owner
    project: str
    base: str
    short_base: str
    folder: str
    category: str = "resources"
    cat_id: str = ""
    cat_desc: str = ""
    subject: str = ""

    def member(self, resource: Resource, path: str, structure: str) -> str:
        """Return the name of a file in a zip, by the parameter ``structure`` of the call."""
        if structure == "simplified":
            parts = [part for part in self.folder.split("/") if part not in ("scans", "out", "in")]
            return "/".join((*parts, resource.label, path))
        if structure == "legacy":
            return f"{resource.folder.partition(f'/{ARCHIVE_FOLDER}/')[2] or resource.folder}/{path}"
        name = f"{self.folder}/resources/{resource.label}/files/{path}"
        return (
            "/".join(part for part in (self.project, self.subject, name) if part) if structure == "improved" else name
        )


def holders_of(archive: Archive, request: Request, target: Target) -> list[Holder]:
    """Return the objects whose resources a path is about; with ``all=true`` a session's scans and assessors too.

    Raises
    ------
    HTTPError
        404 where the path has no object.
    """
    named = _Named(archive, request, target)
    if target.kind == "scans":
        return [named.scan(target.experiment, scan) for scan in target.scans if target.experiment]
    if target.assessor is not None and target.experiment is not None:
        return [named.assessor(target.experiment, target.assessor)]
    if target.experiment is not None:
        return named.session(target.experiment, request.flag("all"))
    if target.subject is not None:
        subject = target.subject
        base = f"/data/projects/{subject.project}/subjects/{subject.id}"
        return [Holder(owner_of(archive, subject), subject.project, base, base, subject.label)]
    if target.project is None:
        raise HTTPError(404)
    base = f"/data/projects/{target.project.id}"
    return [Holder(owner_of(archive, target.project), target.project.id, base, base, target.project.id)]


class _Named:
    """Addresses below one path."""

    def __init__(self, archive: Archive, request: Request, target: Target) -> None:
        self._archive = archive
        self._target = target
        # An assessor may be asked for as an experiment, and without its direction.
        self._below_session = "/assessors/" in request.path
        self._with_direction = f"/{target.direction}/" in request.path

    def session(self, session: Experiment, everything: bool) -> list[Holder]:
        short = f"/data/experiments/{session.id}"
        found = [
            Holder(
                owner_of(self._archive, session),
                session.project,
                self._base(session),
                short,
                session.label,
                cat_id=session.id,
                subject=self._subject(session),
            )
        ]
        if everything:
            found += [self.scan(session, scan) for scan in self._archive.scans(session.id)]
            found += [self.assessor(session, item) for item in self._archive.assessors(session.id)]
        return found

    def scan(self, session: Experiment, scan: Scan) -> Holder:
        kind = str(scan.fields.get("type") or "")
        suffix = f"-{re.sub(r'[^A-Za-z0-9_]', '_', kind)}" if kind else ""
        return Holder(
            owner_of(self._archive, scan),
            session.project,
            f"{self._base(session)}/scans/{scan.id}",
            f"/data/experiments/{session.id}/scans/{scan.id}",
            f"{session.label}/scans/{scan.id}{suffix}",
            "scans",
            scan.id,
            kind,
            self._subject(session),
        )

    def assessor(self, session: Experiment, item: Experiment) -> Holder:
        direction = self._target.direction
        base = f"{self._base(session)}/assessors/{item.id}" if self._below_session else f"/data/experiments/{item.id}"
        return Holder(
            owner_of(self._archive, item, direction),
            item.project,
            f"{base}/{direction}" if self._with_direction else base,
            f"/data/experiments/{session.id}/assessors/{item.id}/{direction}",
            f"{item.label}/{direction}",
            "assessors",
            item.id,
            subject=self._subject(session),
        )

    def _base(self, session: Experiment) -> str:
        project, subject = self._target.project, self._target.subject
        if project is not None and subject is not None:
            return f"/data/projects/{project.id}/subjects/{subject.id}/experiments/{session.id}"
        return f"/data/experiments/{session.id}"

    def _subject(self, session: Experiment) -> str:
        subject = self._archive.subject(session.subject_id or "")
        return subject.label if subject else ""


def matching(resources: Resources, holder: Holder, names: str) -> list[Resource]:
    """Return the resources of an object that a path segment names: labels or, of digits only, numbers, by commas."""
    wanted = names.split(",")
    return [
        resource
        for resource in resources.of(holder.owner)
        if any(name == (str(resource.id) if name.isdigit() else resource.label) for name in wanted)
    ]
