"""The catalog of a resource as XML, and how it is brought in line with the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive, timestamp
from monailabel_xnat.sandbox.archive.holders import holders_of, matching
from monailabel_xnat.sandbox.archive.model import FileEntry, Resource
from monailabel_xnat.sandbox.archive.resources import CATALOG_SUFFIX, Resources
from monailabel_xnat.sandbox.http.paths import locate
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, text
from monailabel_xnat.sandbox.http.request import Request

_NAMESPACES = 'xmlns:cat="http://nrg.wustl.edu/catalog" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def catalog_xml(resource: Resource, entries: Iterable[FileEntry], root: str = "") -> str:
    """Write a catalog; that of a DICOM resource has the series UID and, for imported files, their SOP instance UIDs.

    Parameters
    ----------
    resource, entries
        The resource and its files.
    root
        Folder of the resource on the server, told as a metaField; empty: not told.
    """
    kind = "cat:DCMCatalog" if resource.series_uid else "cat:Catalog"
    head = {"ID": str(resource.id), "name": resource.label, "UID": resource.series_uid}
    # xnatpy recognises the document by how it begins: the declaration, a line end, the element.
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


class CatalogRefresh:
    """The service, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._resources = resources
        self._may = may

    def handle(self, request: Request) -> Reply:
        """Answer ``POST /data/services/refresh/catalog``; without ``options`` everything is done.

        Raises
        ------
        HTTPError
            400 without ``resource``, 403 without the right to edit, 404 for what is not there.
        """
        if request.method != "POST":
            raise HTTPError(405)
        addresses = request.values("resource")
        if not addresses:
            raise HTTPError(400, "The parameter resource is missing.")
        options = {name for text in request.values("options") for name in text.split(",")} & _OPTIONS or _OPTIONS
        for resource in [found for address in addresses for found in self._find(request, address)]:
            self._refresh(resource, options, request.user.login)
        return text()

    def _find(self, request: Request, address: str) -> list[Resource]:
        words = [word for word in address.split("/") if word]
        words = words[1:] if words[:1] == ["data"] else words
        words = words[1:] if words[:1] == ["archive"] else words
        target = locate(self._archive, self._may, words)
        item = target.assessor or target.experiment or target.subject
        project = item.project if item else target.project.id if target.project else ""
        if not self._may.may_edit(project):
            raise HTTPError(403)
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
        with self._archive.store.write() as db:
            if "append" in options:
                rows = [
                    (resource.id, name, path.stat().st_size, timestamp(), login)
                    for name, path in on_disk.items()
                    if name not in known
                ]
                db.executemany(
                    "INSERT INTO files (resource, path, size, digest, created, created_by) VALUES (?, ?, ?, '', ?, ?)",
                    rows,
                )
            if "delete" in options:
                gone = [(entry.id,) for name, entry in known.items() if name not in on_disk]
                db.executemany("DELETE FROM files WHERE id = ?", gone)
            if "checksum" in options:
                for entry in self._resources.files(resource):
                    path = on_disk.get(entry.path)
                    if path is not None:
                        found = (path.stat().st_size, _digest(path), entry.id)
                        db.execute("UPDATE files SET size = ?, digest = ? WHERE id = ?", found)
            if "populateStats" in options:
                self._resources.count(resource)
        self._resources.changes.note(resource.id)


def _digest(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()
