"""Handlers for resources and their files (CatalogResource, FileList)."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote_plus

from monailabel_xnat.sandbox import tables
from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.catalog_xml import catalog_xml
from monailabel_xnat.sandbox.items import Items
from monailabel_xnat.sandbox.model import Experiment, FileEntry, Resource, Scan
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError, Reply, html, text, xml
from monailabel_xnat.sandbox.request import Request, Target
from monailabel_xnat.sandbox.owners import Owner
from monailabel_xnat.sandbox.resources import Incoming, Resources
from monailabel_xnat.sandbox.zipping import zip_blocks

_UPLOAD_TYPES = re.compile(
    r"application/(octet-stream|zip|dicom|x-tar|gzip|x-gzip|pdf|msword|vnd\..*)|text/(plain|xml|csv)|image/.*|video/.*"
)
_ARCHIVES = (".zip", ".jar", ".rar", ".ear", ".gar", ".xar", ".tar", ".tgz", ".tar.gz", ".gz")
_MEDIA_TYPES = {
    ".txt": "text/plain",
    ".xml": "text/xml",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".pdf": "application/pdf",
}
_BLOCK = 1 << 18


class Holder:
    """An object with resources: what it belongs to, and how XNAT writes its address."""

    def __init__(
        self, owner: Owner, base: str, short_base: str, zip_head: str, category: str, cat_id: str, cat_desc: str
    ) -> None:
        self.owner = owner
        self.base = base
        self.short_base = short_base
        self.zip_head = zip_head
        self.category = category
        self.cat_id = cat_id
        self.cat_desc = cat_desc


class Files:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._resources = resources
        self._items = Items(archive, resources)
        self._may = may

    def handle(self, request: Request, target: Target) -> Reply:
        """Answer a request for resources or files."""
        self._require_read(target)
        holders = self._holders(target, request.flag("all"))
        if target.files:
            return self._files(request, target, holders)
        if target.resource is None:
            return self._list_resources(request, holders)
        return self._resource(request, target, holders)

    def _require_read(self, target: Target) -> None:
        item = target.assessor or target.experiment or target.subject
        if item is None and target.project is not None and not self._may.may_read(target.project.id):
            raise HTTPError(403)

    def _project(self, target: Target) -> str:
        item = target.assessor or target.experiment or target.subject
        if item is not None:
            return item.project
        return target.project.id if target.project else ""

    def _holders(self, target: Target, everything: bool) -> list[Holder]:
        if target.kind == "scans":
            return [self._scan_holder(target, scan) for scan in target.scans]
        if target.assessor is not None:
            return [self._assessor_holder(target, target.assessor)]
        if target.experiment is not None:
            return self._session_holders(target, target.experiment, everything)
        if target.subject is not None:
            subject = target.subject
            path = f"/data/projects/{subject.project}/subjects/{subject.id}"
            return [Holder(self._items.owner(subject), path, path, subject.label, "resources", "", "")]
        if target.project is None:
            raise HTTPError(404)
        path = f"/data/projects/{target.project.id}"
        return [Holder(self._items.owner(target.project), path, path, target.project.id, "resources", "", "")]

    def _session_path(self, target: Target, session: Experiment) -> str:
        if target.project and target.subject:
            return f"/data/projects/{target.project.id}/subjects/{target.subject.id}/experiments/{session.id}"
        return f"/data/experiments/{session.id}"

    def _session_holders(self, target: Target, session: Experiment, everything: bool) -> list[Holder]:
        base, short = self._session_path(target, session), f"/data/experiments/{session.id}"
        holders = [Holder(self._items.owner(session), base, short, session.label, "resources", session.id, "")]
        if everything:
            holders += [self._scan_holder(target, scan) for scan in self._archive.scans(session.id)]
            holders += [self._assessor_holder(target, item) for item in self._archive.assessors(session.id)]
        return holders

    def _scan_holder(self, target: Target, scan: Scan) -> Holder:
        assert target.experiment is not None
        kind = str(scan.fields.get("type", ""))
        suffix = "-" + re.sub(r"\W", "_", kind) if kind else ""
        base, short = self._session_path(target, target.experiment), f"/data/experiments/{target.experiment.id}"
        head = f"{target.experiment.label}/scans/{scan.id}{suffix}"
        return Holder(
            self._items.owner(scan), f"{base}/scans/{scan.id}", f"{short}/scans/{scan.id}", head, "scans", scan.id, kind
        )

    def _assessor_holder(self, target: Target, item: Experiment) -> Holder:
        short = f"/data/experiments/{item.session_id}/assessors/{item.id}/{target.direction}"
        return Holder(
            self._items.owner(item, target.direction),
            short,
            short,
            f"{item.label}/{target.direction}",
            "assessors",
            item.id,
            "",
        )

    # Resources

    def _list_resources(self, request: Request, holders: list[Holder]) -> Reply:
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        rows = []
        for holder in holders:
            for found in self._resources.of(holder.owner):
                rows.append(
                    {
                        "xnat_abstractresource_id": str(found.id),
                        "label": found.label,
                        "element_name": "xnat:resourceCatalog",
                        "category": holder.category,
                        "cat_id": holder.cat_id,
                        "cat_desc": holder.cat_desc,
                        "file_count": _shown(found.file_count),
                        "file_size": _shown(found.file_size),
                        "tags": found.tags,
                        "content": found.content,
                        "format": found.format,
                    }
                )
        return tables.answer(rows, request.query, "Resources")

    def _resource(self, request: Request, target: Target, holders: list[Holder]) -> Reply:
        if target.rest:
            raise HTTPError(400)
        label = target.resource or ""
        found = [resource for holder in holders for resource in self._matching(holder, label)]
        if request.method in ("PUT", "POST"):
            return self._make_resource(request, target, holders, bool(found))
        if request.method == "DELETE":
            if not self._may.may_delete(self._project(target)):
                raise HTTPError(403)
            for resource in found:
                self._resources.delete(resource)
            return text()
        if not found:
            raise HTTPError(403 if label.isdigit() else 404, "Unable to find the specified catalog.")
        return xml(catalog_xml(found[0], self._resources.files(found[0])))

    def _make_resource(self, request: Request, target: Target, holders: list[Holder], exists: bool) -> Reply:
        if not self._may.may_edit(self._project(target)):
            raise HTTPError(403)
        if exists:
            raise HTTPError(409, "Specified resource already exists.")
        if len(holders) != 1:
            raise HTTPError(404, "Unable to identify scan")
        self._create(holders[0], target.resource or "", request.query)
        return text()

    def _create(self, holder: Holder, label: str, query: dict[str, str]) -> Resource:
        values = {name: query[name] for name in ("format", "content", "description", "tags") if name in query}
        return self._resources.create(holder.owner, label, **values)

    def _matching(self, holder: Holder, names: str) -> list[Resource]:
        wanted = names.split(",")
        return [
            resource
            for resource in self._resources.of(holder.owner)
            if (str(resource.id) in wanted if names.isdigit() else resource.label in wanted)
        ]

    # Files

    def _files(self, request: Request, target: Target, holders: list[Holder]) -> Reply:
        path = decoded("/".join(target.rest))
        if request.method in ("PUT", "POST"):
            return self._put(request, target, holders, path)
        selected = self._selected(target, holders)
        if request.method == "DELETE":
            return self._delete(request, target, selected, path)
        if request.query.get("format") in ("zip", "tar.gz", "tar"):
            return self._zip(selected, path)
        if path and not path.endswith(("/", "*")):
            return self._get(request, selected, path)
        return self._list(request, target, selected, path)

    def _selected(self, target: Target, holders: list[Holder]) -> list[tuple[Holder, Resource]]:
        if target.resource is None:
            return [(holder, resource) for holder in holders for resource in self._resources.of(holder.owner)]
        found = [(holder, resource) for holder in holders for resource in self._matching(holder, target.resource)]
        if not found and target.resource.isdigit():
            raise HTTPError(403)
        return found

    def _list(self, request: Request, target: Target, selected: list[tuple[Holder, Resource]], folder: str) -> Reply:
        exact = target.resource is not None and len(selected) == 1 and not request.flag("all")
        rows = []
        for holder, resource in selected:
            base = holder.base if exact else holder.short_base
            for entry in self._resources.files(resource):
                if folder and not entry.path.startswith(folder.rstrip("*")):
                    continue
                if request.query.get("file_format", entry.format) != entry.format:
                    continue
                if request.query.get("file_content", entry.content) != entry.content:
                    continue
                rows.append(
                    {
                        "Name": entry.name,
                        "Size": str(entry.size),
                        "URI": f"{base}/resources/{resource.id}/files/{entry.path}",
                        "collection": resource.label,
                        "file_tags": entry.tags,
                        "file_format": entry.format,
                        "file_content": entry.content,
                        "cat_ID": str(resource.id),
                        "digest": entry.digest,
                    }
                )
        return tables.answer(rows, request.query, "Files", [{"key": "URI", "serverRoot": ""}])

    def _get(self, request: Request, selected: list[tuple[Holder, Resource]], path: str) -> Reply:
        entries = [entry for _, resource in selected for entry in self._resources.files(resource) if entry.path == path]
        if not entries:
            raise HTTPError(404, "Unable to find catalog entry for given uri." if selected else "Unable to find file.")
        file = self._resources.path(entries[0])
        if not file.exists():
            raise HTTPError(404, "Unable to find file.")
        return _file_reply(request, file, entries[0])

    def _zip(self, selected: list[tuple[Holder, Resource]], path: str) -> Reply:
        members = [
            (f"{holder.zip_head}/resources/{resource.label}/files/{entry.path}", self._resources.path(entry))
            for holder, resource in selected
            for entry in self._resources.files(resource)
            if entry.path.startswith(path.rstrip("*"))
        ]
        if not members:
            raise HTTPError(404)
        return Reply(zip_blocks(members), media_type="application/zip")

    def _put(self, request: Request, target: Target, holders: list[Holder], path: str) -> Reply:
        if len(holders) != 1:
            raise HTTPError(404, "Unable to identify scan")
        multipart = request.content_type == "multipart/form-data"
        if not multipart and not _UPLOAD_TYPES.fullmatch(request.content_type) and not request.flag("inbody"):
            raise HTTPError(400, "You tried to PUT a payload without a content type that XNAT takes for a file.")
        if not request.length and request.content_type != "application/zip":
            raise HTTPError(500)
        if not self._may.may_edit(self._project(target)):
            return text()  # XNAT's handler has no else branch: 200, and nothing is stored
        holder, label = holders[0], target.resource or ""
        found = self._matching(holder, label)
        if not found and label.isdigit():
            raise HTTPError(403)
        resource = found[0] if found else self._create(holder, label, request.query)
        try:
            duplicates = self._store(request, resource, path)
        except ValueError as error:
            raise HTTPError(400, str(error)) from error
        return html(json.dumps({"duplicates": duplicates})) if duplicates else text()

    def _store(self, request: Request, resource: Resource, path: str) -> list[str]:
        if request.flag("extract") and path.lower().endswith(_ARCHIVES):
            return self._extract(request, resource)
        existing = {entry.path for entry in self._resources.files(resource)}
        if path in existing and not request.flag("overwrite"):
            return [path]
        values = {name: request.query.get(name, "") for name in ("format", "content", "description", "tags")}
        self._resources.put(
            resource, [Incoming(path, self._resources.stage(request.body), values)], request.user.login
        )
        return []

    def _extract(self, request: Request, resource: Resource) -> list[str]:
        existing = {entry.path for entry in self._resources.files(resource)}
        duplicates = []
        for name, stream in _members(request.body):
            if name in existing and not request.flag("overwrite"):
                duplicates.append(name)
                continue
            self._resources.put(
                resource, [Incoming(name, self._resources.stage(stream))], request.user.login
            )  # type: ignore[arg-type]
        return duplicates

    def _delete(self, request: Request, target: Target, selected: list[tuple[Holder, Resource]], path: str) -> Reply:
        if not self._may.may_delete(self._project(target)):
            raise HTTPError(403)
        if not selected:
            raise HTTPError(400)
        prefix = path.rstrip("*")
        matched = [
            entry
            for _, resource in selected
            for entry in self._resources.files(resource)
            if entry.path.startswith(prefix)
        ]
        if not matched:
            if request.flag("accept-not-found"):
                return text("", 204)
            raise HTTPError(404, "No matched files")
        self._resources.remove(matched)
        return text()


def decoded(path: str) -> str:
    """Decode a file path as XNAT does: only if ``%20`` or ``%2B`` occurs, and then completely."""
    if re.search(r"%20|%2B", path, re.IGNORECASE):
        return unquote_plus(path)
    return path


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def _members(body: object) -> Iterator[tuple[str, object]]:
    if zipfile.is_zipfile(body):  # type: ignore[arg-type]
        with zipfile.ZipFile(body) as archive:  # type: ignore[call-overload]
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as stream:
                        yield info.filename, stream
        return
    body.seek(0)  # type: ignore[attr-defined]
    with tarfile.open(fileobj=body) as archive:  # type: ignore[call-overload]
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, stream


def _file_reply(request: Request, file: Path, entry: FileEntry) -> Reply:
    size = file.stat().st_size
    start, stop, status = 0, size, 200
    headers = [
        ("Content-Disposition", f'attachment; filename="{entry.name}"'),
        ("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True)),
        ("Cache-Control", "must-revalidate"),
    ]
    asked = request.headers.get("range", "")
    if asked.startswith("bytes="):
        if "," in asked:
            raise HTTPError(416)
        first, _, last = asked[len("bytes=") :].partition("-")
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            raise HTTPError(416)
        status = 206
        headers += [("Content-Range", f"bytes {start}-{stop - 1}/{size}"), ("Accept-Ranges", "bytes")]
    media_type = _MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream")
    blocks: Iterator[bytes] = iter(()) if request.method == "HEAD" else _blocks(file, start, stop)
    return Reply(blocks, status, media_type, headers, length=stop - start)


def _blocks(file: Path, start: int, stop: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        left = stop - start
        while left > 0:
            block = stream.read(min(_BLOCK, left))
            if not block:
                return
            left -= len(block)
            yield block
