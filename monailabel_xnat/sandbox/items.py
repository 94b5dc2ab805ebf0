"""One object as XNAT writes it: JSON with flattened fields and children, or the XML document."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from xml.sax.saxutils import quoteattr

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.datatypes import PROJECT, SUBJECT
from monailabel_xnat.sandbox.model import Experiment, Item, Project, Resource, Scan, Subject
from monailabel_xnat.sandbox.owners import Owner, owner_of
from monailabel_xnat.sandbox.resources import Resources

# The field of an owner in which its resources stand.
_RESOURCE_FIELDS = {"scan": "file", "out": "out/file", "in": "in/file"}


class Items:
    """Writes objects."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def json(self, item: Item) -> dict[str, Any]:
        """Give the JSON of an object."""
        return {"items": [self._node(item)]}

    def xml(self, item: Item) -> str:
        """Give the XML document of an object."""
        spaces = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in sorted(self._archive.types.namespaces.items()))
        node = self._node(item)
        tag = self._archive.types.element(node["meta"]["xsi:type"])
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{self._element(tag, node, spaces)}'

    def _node(self, item: Item) -> dict[str, Any]:
        if isinstance(item, Project):
            return self._make(PROJECT, {"ID": item.id}, item, self.owner(item))
        if isinstance(item, Subject):
            fields = {"ID": item.id, "label": item.label, "project": item.project}
            return self._make(SUBJECT, fields, item, self.owner(item))
        if isinstance(item, Scan):
            return self._make(
                item.xsi_type, {"ID": item.id, "image_session_ID": item.experiment}, item, self.owner(item)
            )
        return self._experiment(item)

    def _experiment(self, item: Experiment) -> dict[str, Any]:
        fields: dict[str, Any] = {"ID": item.id, "label": item.label, "project": item.project}
        if item.session_id:
            return self._make(item.xsi_type, {**fields, "imageSession_ID": item.session_id}, item, self.owner(item))
        node = self._make(item.xsi_type, {**fields, "subject_ID": item.subject_id or ""}, item, self.owner(item))
        scans = [self._node(scan) for scan in self._archive.scans(item.id)]
        assessors = [self._node(assessor) for assessor in self._archive.assessors(item.id)]
        node["children"] += [
            {"field": name, "items": nodes}
            for name, nodes in (("scans/scan", scans), ("assessors/assessor", assessors))
            if nodes
        ]
        return node

    def owner(self, item: Item, direction: str = "out") -> Owner:
        """Give what the resources of an object belong to."""
        return owner_of(self._archive, item, direction)

    def _make(self, xsi_type: str, fields: dict[str, Any], item: Item, owner: Owner) -> dict[str, Any]:
        types = self._archive.types
        children: list[dict[str, Any]] = []
        for name, value in item.fields.items():
            path = types.casing(xsi_type, name)
            if isinstance(value, list):
                nodes = [{"meta": _meta("", item), "data_fields": entry, "children": []} for entry in value]
                children.append({"field": path, "items": nodes})
            elif value not in (None, ""):
                fields[path] = _typed(types, xsi_type, path, value)
        found = [self._resource(resource, item) for resource in self._resources.of(owner)]
        if found:
            children.append({"field": _RESOURCE_FIELDS.get(owner.kind, "resources/resource"), "items": found})
        return {"meta": _meta(xsi_type, item), "data_fields": fields, "children": children}

    def _resource(self, resource: Resource, item: Item) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "xnat_abstractresource_id": resource.id,
            "URI": f"{self._resources.root}/{resource.folder}/{resource.label}_catalog.xml",
            "label": resource.label,
        }
        optional = {"format": resource.format, "content": resource.content}
        counts = {"file_count": resource.file_count, "file_size": resource.file_size}
        fields.update({name: value for name, value in {**optional, **counts}.items() if value not in (None, "")})
        return {"meta": _meta("xnat:resourceCatalog", item), "data_fields": fields, "children": []}

    def _element(self, tag: str, node: dict[str, Any], attributes: str = "") -> str:
        kind = node["meta"].get("xsi:type", "")
        simple = dict(node["data_fields"])
        known = (
            "ID",
            "label",
            "project",
            "UID",
            "URI",
            "type",
            "format",
            "content",
            "file_count",
            "file_size",
            "modality",
        )
        for name in [name for name in simple if name in known]:
            attributes += f" {name}={quoteattr(str(simple.pop(name)))}"
        if not attributes.count("xmlns:") and kind:
            attributes += f' xsi:type="{kind}"'
        body = "".join(_nested(name, value) for name, value in simple.items())
        for child in node["children"]:
            *wrappers, leaf = child["field"].split("/")
            inner = "".join(self._element(f"xnat:{leaf}", entry) for entry in child["items"])
            for wrapper in reversed(wrappers):
                inner = f"<xnat:{wrapper}>{inner}</xnat:{wrapper}>"
            body += inner
        return f"<{tag}{attributes}>{body}</{tag}>"


def _nested(name: str, value: Any) -> str:
    *wrappers, leaf = name.split("/")
    text = f"<xnat:{leaf}>{_escaped(value)}</xnat:{leaf}>"
    for wrapper in reversed(wrappers):
        text = f"<xnat:{wrapper}>{text}</xnat:{wrapper}>"
    return text


def _escaped(value: Any) -> str:
    return quoteattr(str(value), {'"': "&quot;"})[1:-1]


def _meta(xsi_type: str, item: Item) -> dict[str, Any]:
    started = datetime.strptime(item.insert_date, "%Y-%m-%d %H:%M:%S.%f")
    return {
        "isHistory": False,
        "xsi:type": xsi_type,
        "start_date": started.strftime("%a %b %d %H:%M:%S UTC %Y"),
        "create_event_id": int(started.timestamp() * 1000),
    }


def _typed(types: Any, xsi_type: str, path: str, value: Any) -> Any:
    try:
        return types.typed(xsi_type, path, str(value))
    except ValueError:
        return str(value)
