"""The objects with resources that a path names, and their catalogs: written as XML, and refreshed from the disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from monailabel_xnat.sandbox.archive.archive import Archive, timestamp
from monailabel_xnat.sandbox.archive.model import Experiment, FileEntry, Resource, Scan
from monailabel_xnat.sandbox.archive.resources import ARCHIVE_FOLDER, CATALOG_SUFFIX, Owner, Resources, owner_of
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, text
from monailabel_xnat.sandbox.http.paths import Target, locate, words_of
from monailabel_xnat.sandbox.http.router import Handlers


@dataclass(frozen=True)
class Holder:
    """An object with resources.

    Parameters
    ----------
    owner
        The owner of its resources.
    project, subject
        Project ID and subject label. With ``structure=improved``, the names of a zip's members begin with them.
    base, short_base
        Its address as in the request, but with IDs in place of labels, and its address in lists of several resources.
    folder
        Its folder in a zip, such as ``s1/scans/1-T1``.
    category, cat_id, cat_desc
        What lists of resources say about it.
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
        """Return the name of a file in a zip, which depends on the parameter ``structure`` of the call."""
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
    """Return the objects whose resources a path names; with ``all=true``, also a session's scans and assessors.

    Raises
    ------
    HTTPError
        404 if the path names no object.
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
    """The objects below one path, with their addresses."""

    def __init__(self, archive: Archive, request: Request, target: Target) -> None:
        self._archive = archive
        self._target = target
        # A path may name an assessor as an experiment, and without its direction.
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
    """Return the resources that a path segment names: labels, or numbers if all are digits, with commas between."""
    wanted = names.split(",")
    return [
        resource
        for resource in resources.of(holder.owner)
        if any(name == (str(resource.id) if name.isdigit() else resource.label) for name in wanted)
    ]


_NAMESPACES = 'xmlns:cat="http://nrg.wustl.edu/catalog" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def catalog_xml(resource: Resource, entries: Iterable[FileEntry], root: str = "") -> str:
    """Return a catalog as XML. For DICOM, it has the series UID and the SOP instance UIDs of imported files.

    Parameters
    ----------
    resource, entries
        The resource and its files.
    root
        Folder of the resource on the server, which is written as a metaField. If it is empty, there is no such field.
    """
    kind = "cat:DCMCatalog" if resource.series_uid else "cat:Catalog"
    head = {"ID": str(resource.id), "name": resource.label, "UID": resource.series_uid}
    # xnatpy recognises the document by its beginning: the declaration, a line end, the element.
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{kind}{_attributes(head)} {_NAMESPACES}>'
        f"{_meta_fields(root)}{_tags(resource.tags)}"
        f"<cat:entries>{''.join(map(_entry, entries))}</cat:entries></{kind}>"
    )


def _entry(entry: FileEntry) -> str:
    values = {
        "URI": entry.path,
        "ID": entry.path,
        "name": entry.name,
        "description": entry.description,
        "format": entry.format,
        "content": entry.content,
        "createdTime": entry.created.replace(" ", "T"),
        "createdBy": entry.created_by,
        "createdEventId": str(entry.id),
        "digest": entry.digest,
    }
    if entry.sop_uid:
        values.update({"UID": entry.sop_uid, "instanceNumber": entry.instance_number, "xsi:type": "cat:dcmEntry"})
    tags = _tags(entry.tags)
    return f"<cat:entry{_attributes(values)}>{tags}</cat:entry>" if tags else f"<cat:entry{_attributes(values)}/>"


def _meta_fields(root: str) -> str:
    if not root:
        return ""
    return f'<cat:metaFields><cat:metaField name="AbsolutePath">{escape(root)}</cat:metaField></cat:metaFields>'


def _tags(tags: str) -> str:
    if not tags:
        return ""
    return f"<cat:tags>{''.join(f'<cat:tag>{escape(tag)}</cat:tag>' for tag in tags.split(','))}</cat:tags>"


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(f" {name}={quoteattr(value)}" for name, value in values.items() if value)


_OPTIONS = frozenset(("append", "delete", "checksum", "populateStats"))
_BLOCK = 1 << 20


class CatalogRefresh(Handlers):
    """The service, for the user of one request."""

    def refresh(self, request: Request) -> Reply:
        """Answer ``POST /data/services/refresh/catalog``. Without ``options``, all actions are done.

        Raises
        ------
        HTTPError
            400 without ``resource``, 403 without the right to edit, 404 if the object does not exist.
        """
        addresses = request.values("resource")
        if not addresses:
            raise HTTPError(400, "The parameter resource is missing.")
        options = {name for text in request.values("options") for name in text.split(",")} & _OPTIONS or _OPTIONS
        for resource in [found for address in addresses for found in self._find(request, address)]:
            self._refresh(resource, options, request.user.login)
        return text()

    def _find(self, request: Request, address: str) -> list[Resource]:
        words = words_of(address)
        words = words[1:] if words[:1] == ["archive"] else words
        target = locate(self._archive, self._may, words)
        item = target.assessor or target.experiment or target.subject
        project = item.project if item else target.project.id if target.project else ""
        self._may.require_edit(project)
        holders = holders_of(self._archive, request, target)
        found = [
            resource
            for holder in holders
            for resource in (
                self._resources.of(holder.owner)
                if target.resource is None
                else matching(self._resources, holder, target.resource)
            )
        ]
        if not found and target.resource is not None:
            raise HTTPError(404)
        return found

    def _refresh(self, resource: Resource, options: Collection[str], login: str) -> None:
        folder = self._resources.folder(resource)
        known = {entry.path: entry for entry in self._resources.files(resource)}
        on_disk = {
            path.relative_to(folder).as_posix(): path
            for path in (folder.rglob("*") if folder.is_dir() else ())
            if path.is_file() and not path.name.endswith(CATALOG_SUFFIX)
        }
        with self._archive.store.write():
            if "append" in options:
                rows = [
                    (resource.id, name, path.stat().st_size, "", timestamp(), login)
                    for name, path in on_disk.items()
                    if name not in known
                ]
                columns = ("resource", "path", "size", "digest", "created", "created_by")
                self._archive.store.insert_many("files", columns, rows)
            if "delete" in options:
                for entry in [entry for name, entry in known.items() if name not in on_disk]:
                    self._archive.store.delete("files", entry.id)
            if "checksum" in options:
                for entry in self._resources.files(resource):
                    path = on_disk.get(entry.path)
                    if path is not None:
                        found = {"size": path.stat().st_size, "digest": _digest(path)}
                        self._archive.store.update("files", entry.id, **found)
            if "populateStats" in options:
                self._resources.count(resource)
        self._resources.changes.note(resource.id)


def _digest(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()
