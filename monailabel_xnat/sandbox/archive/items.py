"""One object as XNAT writes it: JSON with flattened fields and children (ItemJSONBuilder), or XML (SAXWriter)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.datatypes import DEMOGRAPHICS, PROJECT, SUBJECT, DataTypes
from monailabel_xnat.sandbox.archive.item_xml import ItemXml
from monailabel_xnat.sandbox.archive.model import Experiment, Fields, Item, Project, Resource, Scan, Subject
from monailabel_xnat.sandbox.archive.owners import Owner, owner_of
from monailabel_xnat.sandbox.archive.resources import Resources

Node = dict[str, Any]

# The field of an owner in which its resources stand.
_RESOURCE_FIELDS = {"scan": "file", "out": "out/file", "in": "in/file"}
_PARTICIPANT = "xnat:projectParticipant"
_SHARE = "xnat:experimentData_share"


class Items:
    """Writes objects."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def json(self, item: Item) -> Node:
        """Return the JSON of an object."""
        return {"items": [self._node(item)]}

    def fields(self, item: Item) -> Fields:
        """Return the fields of an object by path."""
        found: Fields = self._node(item)["data_fields"]
        return found

    def xml(self, item: Item, *, is_concealed: bool = False) -> str:
        """Return the XML document of an object, without the comments about hidden fields where `is_concealed`."""
        return ItemXml(self._archive.types, is_concealed=is_concealed).document(self._node(item))

    def owner(self, item: Item, direction: str = "out") -> Owner:
        """Return what the resources of an object belong to."""
        return owner_of(self._archive, item, direction)

    def _node(self, item: Item) -> Node:
        if isinstance(item, Project):
            return self._make(PROJECT, {"ID": item.id}, item)
        if isinstance(item, Scan):
            fields = {"ID": item.id, "image_session_ID": item.experiment, "xnat_imagescandata_id": item.pk}
            return self._make(item.xsi_type, fields, item)
        fields = {"ID": item.id, "label": item.label, "project": item.project}
        if isinstance(item, Subject):
            node = self._make(SUBJECT, fields, item)
        elif item.session_id:
            node = self._make(item.xsi_type, {**fields, "imageSession_ID": item.session_id}, item)
        else:
            node = self._session(item, {**fields, "subject_ID": item.subject_id or ""})
        self._add_shares(node, item)
        return node

    def _session(self, item: Experiment, fields: Fields) -> Node:
        node = self._make(item.xsi_type, fields, item)
        scans = [self._node(scan) for scan in self._archive.scans(item.id)]
        assessors = [self._node(assessor) for assessor in self._archive.assessors(item.id)]
        node["children"] += [
            {"field": name, "items": nodes}
            for name, nodes in (("scans/scan", scans), ("assessors/assessor", assessors))
            if nodes
        ]
        return node

    def _add_shares(self, node: Node, item: Subject | Experiment) -> None:
        kind = _PARTICIPANT if isinstance(item, Subject) else _SHARE
        shares = [
            {"meta": _meta(kind, item), "data_fields": {"project": project, "label": label}, "children": []}
            for project, label in self._archive.shares(item.id).items()
        ]
        if shares:
            node["children"].append({"field": "sharing/share", "items": shares})

    def _make(self, xsi_type: str, own: Fields, item: Item) -> Node:
        types = self._archive.types
        fields: Fields = dict(own)
        demographics: Fields = {}
        children: list[Node] = []
        for name, value in item.fields.items():
            path = types.casing(xsi_type, name)
            if isinstance(value, list):
                nodes = [{"meta": _meta("", item), "data_fields": entry, "children": []} for entry in value]
                children.append({"field": path, "items": nodes})
            elif name.startswith("demographics/"):
                leaf = name.partition("/")[2]
                demographics[leaf] = _typed(types, DEMOGRAPHICS, leaf, value)
            elif value not in (None, ""):
                fields[path] = _typed(types, xsi_type, path, value)
        if demographics:
            node = {"meta": _meta(DEMOGRAPHICS, item), "data_fields": demographics, "children": []}
            children.append({"field": "demographics", "items": [node]})
        return {"meta": _meta(xsi_type, item), "data_fields": fields, "children": [*children, *self._files(item)]}

    def _files(self, item: Item) -> list[Node]:
        directions = ("in", "out") if isinstance(item, Experiment) and item.session_id else ("out",)
        found = []
        for direction in directions:
            owner = self.owner(item, direction)
            nodes = [self._resource(resource, item) for resource in self._resources.of(owner)]
            if nodes:
                found.append({"field": _RESOURCE_FIELDS.get(owner.kind, "resources/resource"), "items": nodes})
        return found

    def _resource(self, resource: Resource, item: Item) -> Node:
        fields: Fields = {
            "xnat_abstractresource_id": resource.id,
            "URI": f"{self._resources.root}/{resource.folder}/{resource.label}_catalog.xml",
            "label": resource.label,
            "format": resource.format,
            "content": resource.content,
            "description": resource.description,
            "file_count": resource.file_count,
            "file_size": resource.file_size,
        }
        kept = {name: value for name, value in fields.items() if value not in (None, "")}
        return {"meta": _meta("xnat:resourceCatalog", item), "data_fields": kept, "children": []}


def _meta(xsi_type: str, item: Item) -> Node:
    started = datetime.strptime(item.insert_date, "%Y-%m-%d %H:%M:%S.%f")
    return {
        "isHistory": False,
        "xsi:type": xsi_type,
        "start_date": started.strftime("%a %b %d %H:%M:%S UTC %Y"),
        "create_event_id": int(started.timestamp() * 1000),
    }


def _typed(types: DataTypes, xsi_type: str, path: str, value: Any) -> Any:
    try:
        return types.typed(xsi_type, path, str(value))
    except ValueError:
        return str(value)
