"""Handlers for resources: list, make, catalog, delete (CatalogResourceList, CatalogResource)."""

from __future__ import annotations

from collections.abc import Sequence

from monailabel_xnat.sandbox.archive.catalog_xml import catalog_xml
from monailabel_xnat.sandbox.archive.holders import Holder
from monailabel_xnat.sandbox.archive.model import Resource
from monailabel_xnat.sandbox.archive.resources import Resources
from monailabel_xnat.sandbox.http import tables
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, text, xml
from monailabel_xnat.sandbox.http.request import Request


class ResourceCalls:
    """Answers calls for the resources of some objects; who asks may read them."""

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
            400 for a longer path, 403 without the right, 404 for an unknown resource or several scans, 409 for a
            label that is taken.
        """
        if rest or "'" in label or '"' in label:  # quotes are an attempt at SQL injection to XNAT
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


def matching(resources: Resources, holder: Holder, names: str) -> list[Resource]:
    """Return the resources of an object that a path segment names: labels or, of digits only, numbers, by commas."""
    wanted = names.split(",")
    return [
        resource
        for resource in resources.of(holder.owner)
        if any(name == (str(resource.id) if name.isdigit() else resource.label) for name in wanted)
    ]
