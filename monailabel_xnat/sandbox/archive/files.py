"""Handlers that list, read, zip and delete resources and files (CatalogResourceList, FileList, CatalogUtils)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_plus

from monailabel_xnat.sandbox.archive.catalogs import Holder, catalog_xml, holders_of, matching
from monailabel_xnat.sandbox.archive.model import FileEntry, Resource
from monailabel_xnat.sandbox.archive.resources import ARCHIVE_FOLDER, Resources
from monailabel_xnat.sandbox.archive.staging import tar_blocks, zip_blocks
from monailabel_xnat.sandbox.archive.transfers import Uploads, file_reply, media_type
from monailabel_xnat.sandbox.http import tables
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, text, xml
from monailabel_xnat.sandbox.http.paths import Target
from monailabel_xnat.sandbox.http.router import Handlers


class ResourceCalls:
    """Answers calls for the resources of some objects. The caller has checked that the user may read them."""

    def __init__(self, resources: Resources, holders: Sequence[Holder], *, may_edit: bool, may_delete: bool) -> None:
        self._resources = resources
        self._holders = holders
        self._may_edit = may_edit
        self._may_delete = may_delete

    def list(self, request: Request) -> Reply:
        """Answer ``.../resources``."""
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        rows = [
            self._row(request, holder, resource)
            for holder in self._holders
            for resource in self._resources.of(holder.owner)
        ]
        return tables.answer(rows, request.query, "Resources")

    def _row(self, request: Request, holder: Holder, resource: Resource) -> dict[str, str]:
        count, size = resource.file_count, resource.file_size
        if request.flag("file_stats"):
            entries = self._resources.files(resource)
            count, size = len(entries), sum(entry.size for entry in entries)
            if request.flag("cache_file_stats"):
                self._resources.count(resource)
        return {
            "xnat_abstractresource_id": str(resource.id),
            "label": resource.label,
            "element_name": "xnat:resourceCatalog",
            "category": holder.category,
            "cat_id": holder.cat_id,
            "cat_desc": holder.cat_desc,
            "file_count": "" if count is None else str(count),
            "file_size": "" if size is None else str(size),
            "tags": resource.tags,
            "content": resource.content,
            "format": resource.format,
        }

    def one(self, request: Request, label: str, rest: Sequence[str]) -> Reply:
        """Answer ``.../resources/R``.

        Raises
        ------
        HTTPError
            400 for a longer path, 403 without the right, 404 for an unknown resource or several scans, 409 for a label
            that exists.
        """
        if rest or "'" in label or '"' in label:  # XNAT takes quotes for SQL injection
            raise HTTPError(400)
        found = [resource for holder in self._holders for resource in matching(self._resources, holder, label)]
        if not found and label.isdigit():
            raise HTTPError(403)
        if request.method in ("PUT", "POST"):
            return self._make(request, label, found)
        if request.method == "DELETE":
            return self._delete(found)
        if not found:
            raise HTTPError(404, "Unable to find the specified catalog.")
        root = str(self._resources.folder(found[0])) if request.flag("includeRootPath") else ""
        return xml(catalog_xml(found[0], self._resources.files(found[0]), root))

    def _make(self, request: Request, label: str, found: Sequence[Resource]) -> Reply:
        if not self._may_edit:
            raise HTTPError(403)
        if found:
            raise HTTPError(409, "Specified resource already exists.")
        if len(self._holders) != 1:
            raise HTTPError(404, "Unable to identify scan")
        names = ("format", "content", "description", "tags")
        values = {name: request.query[name] for name in names if name in request.query}
        self._resources.create(self._holders[0].owner, label, **values)
        return text()

    def _delete(self, found: Sequence[Resource]) -> Reply:
        if not self._may_delete:
            raise HTTPError(403)
        for resource in found:
            self._resources.delete(resource)
        return text()


_ARCHIVE_FORMATS = {"zip": "application/zip", "tar.gz": "application/x-gtar", "tar": "application/x-tar"}
_STORED_ARCHIVE = re.compile(r"(.+?\.(?:zip|jar|xar))(?:!/|!|/)(.*)", re.IGNORECASE)
_NOT_CATALOGUED = "Unable to find catalog entry for given uri."
_NO_FILE = "Unable to find file."


class _Found(NamedTuple):
    """One file, and the place where it was found."""

    holder: Holder
    resource: Resource
    entry: FileEntry


class Files(Handlers):
    """The handlers, for the user of one request."""

    def handle(self, request: Request, target: Target) -> Reply:
        """Answer a request for resources or files.

        Raises
        ------
        HTTPError
            If the request is refused.
        """
        item = target.assessor or target.experiment or target.subject
        if item is None and target.project is not None and not self._may.may_read(target.project.id):
            raise HTTPError(403)
        holders = holders_of(self._archive, request, target)
        project = item.project if item else target.project.id if target.project else ""
        may_edit = self._may.may_edit_item(item) if item else self._may.may_edit(project)
        may_delete = self._may.may_delete(project)
        if target.files:
            return self._files(request, target, holders, may_edit, may_delete)
        calls = ResourceCalls(self._resources, holders, may_edit=may_edit, may_delete=may_delete)
        return calls.list(request) if target.resource is None else calls.one(request, target.resource, target.rest)

    def _files(
        self, request: Request, target: Target, holders: list[Holder], may_edit: bool, may_delete: bool
    ) -> Reply:
        path = decoded("/".join(target.rest))
        if request.method in ("PUT", "POST"):
            if len(holders) != 1:
                raise HTTPError(404, "Unable to identify scan")
            if not may_edit:
                return text()  # XNAT's handler has no branch for this: 200, and nothing is stored
            return Uploads(self._resources).put(request, holders[0], target.resource or "", path)
        selection = _Selection(self._resources, holders, target.resource)
        if request.method == "DELETE":
            return self._delete(request, selection, path, may_delete)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        try:
            return self._read(request, selection, path)
        except HTTPError as error:
            if error.status == 404 and request.flag("accept-not-found"):
                return Reply((), 204, "")
            raise

    def _read(self, request: Request, selection: _Selection, path: str) -> Reply:
        is_folder = not path or request.path.endswith("/")
        by_prefix = path.endswith("*") and not selection.is_one
        if request.query.get("format") in _ARCHIVE_FORMATS:
            return self._packed(request, selection, path.rstrip("*"))
        if not (is_folder or by_prefix):
            return self._content(request, selection, path)
        prefix = path.rstrip("*") if by_prefix else path and f"{path}/"
        found = self._listed(request, selection, prefix)
        if "index" not in request.query:
            return self._list(request, selection, found)
        place = int(request.query["index"]) if request.query["index"].isdigit() else len(found)
        if place >= len(found):
            raise HTTPError(404, _NO_FILE)
        return file_reply(request, self._path(found[place]))

    # Lists and zips

    def _listed(self, request: Request, selection: _Selection, prefix: str) -> list[_Found]:
        query = request.query
        return [
            item
            for item in selection.files()
            if item.entry.path.startswith(prefix)
            and query.get("file_format", item.entry.format) == item.entry.format
            and query.get("file_content", item.entry.content) == item.entry.content
            and (request.flag("recursive") or "recursive" not in query or "/" not in item.entry.path[len(prefix) :])
        ]

    def _list(self, request: Request, selection: _Selection, found: Sequence[_Found]) -> Reply:
        locator = request.query.get("locator", "URI")
        rows = [self._row(item, locator, selection.is_one) for item in found]
        return tables.answer(rows, request.query, "Files", [{"key": "URI", "serverRoot": request.context}])

    def _row(self, found: _Found, locator: str, is_one: bool) -> dict[str, str]:
        holder, resource, entry = found
        base = holder.base if is_one else holder.short_base
        relative = f"{resource.folder}/{entry.path}"
        places = {
            "URI": f"{base}/resources/{resource.id}/files/{entry.path}",
            "absolutePath": f"{self._resources.root}/{relative}",
            "projectPath": relative.partition(f"/{ARCHIVE_FOLDER}/")[2] or relative.partition("/")[2],
        }
        return {
            "Name": entry.name,
            "Size": str(entry.size),
            locator: places.get(locator, ""),
            "collection": resource.label,
            "file_tags": entry.tags,
            "file_format": entry.format,
            "file_content": entry.content,
            "cat_ID": str(resource.id),
            "digest": entry.digest,
        }

    def _packed(self, request: Request, selection: _Selection, prefix: str) -> Reply:
        structure, kind = request.query.get("structure", ""), request.query["format"]
        members = [
            (item.holder.member(item.resource, item.entry.path, structure), self._path(item))
            for item in selection.files()
            if item.entry.path.startswith(prefix) and self._path(item).is_file()
        ]
        if not members:
            raise HTTPError(404, _NO_FILE)
        if kind == "zip":
            level = request.query.get("compression", "0")
            blocks = zip_blocks(members, min(int(level), 9) if level.isdigit() else 0)
        else:
            blocks = tar_blocks(members, compressed=kind == "tar.gz")
        name = f"{selection.name}.{kind}"
        headers = [("Content-Disposition", f'attachment; filename="{name}"')]
        return Reply(() if request.method == "HEAD" else blocks, 200, _ARCHIVE_FORMATS[kind], headers)

    def _path(self, found: _Found) -> Path:
        return self._resources.folder(found.resource) / found.entry.path

    # One file

    def _content(self, request: Request, selection: _Selection, path: str) -> Reply:
        found = selection.file(path)
        if found is None:
            return self._stored_member(request, selection, path)
        file = self._path(found)
        if not file.is_file():
            raise HTTPError(404, _NO_FILE)
        if request.flag("listContents") and zipfile.is_zipfile(file):
            return self._contents(request, found, selection.is_one)
        return file_reply(request, file)

    def _stored_member(self, request: Request, selection: _Selection, path: str) -> Reply:
        """Answer with a file from inside a stored zip, ``a.zip!/inner/name``."""
        match = _STORED_ARCHIVE.fullmatch(path)
        found = selection.file(match.group(1)) if match else None
        if match is None or found is None or not zipfile.is_zipfile(self._path(found)):
            raise HTTPError(404, _NOT_CATALOGUED if selection.resources else _NO_FILE)
        with zipfile.ZipFile(self._path(found)) as archive:
            try:
                content = archive.read(match.group(2))
            except KeyError:
                raise HTTPError(404, _NO_FILE) from None
        name = match.group(2).rpartition("/")[2]
        headers = [("Content-Disposition", f'attachment; filename="{name}"')]
        return Reply(content, 200, media_type(name), headers)

    def _contents(self, request: Request, found: _Found, is_one: bool) -> Reply:
        row = self._row(found, "URI", is_one)
        with zipfile.ZipFile(self._path(found)) as archive:
            rows = [
                {"File Name": info.filename, "Size": str(info.file_size), "URI": f"{row['URI']}!/{info.filename}"}
                for info in archive.infolist()
                if not info.is_dir()
            ]
        return tables.answer(rows, request.query)

    # Delete

    def _delete(self, request: Request, selection: _Selection, path: str, may_delete: bool) -> Reply:
        """Delete every file whose path begins with this path. XNAT's DELETE uses prefixes, with or without ``*``."""
        if not may_delete:
            raise HTTPError(403)
        if not selection.resources:
            raise HTTPError(400)
        prefix = path.rstrip("*")
        matched = [item.entry for item in selection.files() if item.entry.path.startswith(prefix)]
        if not matched:
            if request.flag("accept-not-found"):
                return Reply((), 204, "")
            raise HTTPError(404, "No matched files")
        keep = request.query.get("removeFiles", "true").lower() in ("false", "0")
        self._resources.remove(matched, keep_files=keep)
        return text()


class _Selection:
    """The resources that a path is about."""

    def __init__(self, resources: Resources, holders: Sequence[Holder], names: str | None) -> None:
        self._resources = resources
        self.resources = [
            (holder, resource)
            for holder in holders
            for resource in (resources.of(holder.owner) if names is None else matching(resources, holder, names))
        ]
        if not self.resources and names is not None and names.isdigit():
            raise HTTPError(403)
        # The form of the addresses in a list depends on it.
        self.is_one = names is not None and len(holders) == len(self.resources) == 1
        self.name = names if names else "files"

    def files(self) -> list[_Found]:
        return [
            _Found(holder, resource, entry)
            for holder, resource in self.resources
            for entry in self._resources.files(resource)
        ]

    def file(self, path: str) -> _Found | None:
        for holder, resource in self.resources:
            entry = self._resources.file(resource, path)
            if entry is not None:
                return _Found(holder, resource, entry)
        return None


def decoded(path: str) -> str:
    """Return a file path, decoded as in XNAT: only if ``%20`` or ``%2B`` occurs, and then completely."""
    return unquote_plus(path) if re.search(r"%20|%2B", path, re.IGNORECASE) else path
