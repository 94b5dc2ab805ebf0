"""Objects as XNAT writes them: JSON with flattened fields and children (ItemJSONBuilder), or XML (SAXWriter)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.datatypes import DEMOGRAPHICS, PROJECT, SUBJECT, DataTypes
from monailabel_xnat.sandbox.archive.model import WRITTEN, Experiment, Fields, Item, Project, Resource, Scan, Subject
from monailabel_xnat.sandbox.archive.resources import Owner, Resources, owner_of
from monailabel_xnat.sandbox.http.messages import parsed_xml

Node = dict[str, Any]

_RESOURCE_ATTRIBUTES = frozenset(("URI", "label", "format", "content", "description", "file_count", "file_size"))
# In an entry of these lists, this value is the text of the element. The other values are attributes.
_TEXTS = ("field", "addField", "addID", "seriesUID", "alias")
_NUMBERED = frozenset(("field", "addParam"))
_HIDDEN = frozenset(("xnat_abstractresource_id", "xnat_imagescandata_id", "image_session_ID"))
_LAST = (1 << 30, "xnat")
_INVESTIGATOR = "xnat:investigatorData"
# Fields that are objects of their own, and their types.
_OBJECTS = {"demographics": DEMOGRAPHICS, "PI": _INVESTIGATOR, "investigator": _INVESTIGATOR}
_XSI = "{http://www.w3.org/2001/XMLSchema-instance}"


@dataclass
class _Element:
    """An XML element that is being built."""

    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    children: dict[str, _Element] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def below(self, path: list[str]) -> _Element:
        """Return the element at a path. Elements that are missing are made."""
        found = self
        for name in path:
            found = found.children.setdefault(name, _Element())
        return found


class ItemXml:
    """Writes the nodes of an object's JSON as XML.

    Parameters
    ----------
    types
        The site's data types.
    is_concealed
        Whether to leave out the comments about hidden fields.
    """

    def __init__(self, types: DataTypes, *, is_concealed: bool = False) -> None:
        self._types = types
        self._is_concealed = is_concealed

    def document(self, node: Node) -> str:
        """Return a whole document."""
        spaces = {f"xmlns:{prefix}": uri for prefix, uri in sorted(self._types.namespaces.items())}
        tag = self._types.element(node["meta"]["xsi:type"])
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{self._write(tag, self._build(node, spaces), node)}'

    def _build(self, node: Node, attributes: dict[str, str]) -> _Element:
        kind = node["meta"]["xsi:type"]
        root = _Element(attributes=attributes)
        hidden = {name: value for name, value in node["data_fields"].items() if name in _HIDDEN}
        if hidden and not self._is_concealed:
            listed = ",".join(f'{name}="{value}"' for name, value in hidden.items())
            root.written.append(f"<!--hidden_fields[{escape(listed)}]-->")
        for path, value in node["data_fields"].items():
            if path not in hidden:
                self._place(root, kind, path, str(value))
        for child in node["children"]:
            *wrappers, leaf = child["field"].split("/")
            place = root.below(wrappers)
            prefix = self._prefix(kind, (wrappers or [leaf])[0])
            place.written += [self._child(f"{prefix}:{leaf}", entry) for entry in child["items"]]
        return root

    def _place(self, root: _Element, kind: str, path: str, value: str) -> None:
        *wrappers, leaf = path.split("/")
        if self._types.is_attribute(kind, path) or (kind == "xnat:resourceCatalog" and leaf in _RESOURCE_ATTRIBUTES):
            root.below(wrappers).attributes[leaf] = value
        else:
            root.below([*wrappers, leaf]).text = value

    def _child(self, tag: str, node: Node) -> str:
        if WRITTEN in node["data_fields"]:
            return str(node["data_fields"][WRITTEN])
        kind = node["meta"]["xsi:type"]
        if kind == _INVESTIGATOR:  # the schema says which type it is
            return self._write(tag, self._build(node, {}), node)
        if kind and not kind.endswith("_share"):
            return self._write(tag, self._build(node, {"xsi:type": kind}), node)
        values = {name: str(value) for name, value in node["data_fields"].items()}
        text = next((values.pop(name) for name in _TEXTS if name in values), "")
        if tag.rpartition(":")[2] not in _NUMBERED or self._is_concealed:
            return self._write(tag, _Element(text, values), node)
        # XNAT writes a comment with the row's number before the text, on a line of its own. pyxnat depends on that.
        comment = f"\n<!--hidden_fields[{tag.rpartition(':')[2]}_id]-->"
        return self._write(tag, _Element("", values, written=[comment, escape(text)]), node)

    def _write(self, tag: str, element: _Element, node: Node) -> str:
        """Return an element of an object as XML. Its children are in the order of its type."""
        kind = node["meta"]["xsi:type"]
        members = self._types.members(kind) if kind else {}
        names = sorted(element.children, key=lambda name: members.get(name.lower(), _LAST)[0])
        inner = [_plain(element.children[name], self._prefix(kind, name), name) for name in names]
        return _tagged(tag, element, "".join([*element.written, *inner]))

    def _prefix(self, kind: str, name: str) -> str:
        return self._types.members(kind).get(name.lower(), _LAST)[1] if kind else "xnat"


def _plain(element: _Element, prefix: str, name: str) -> str:
    inner = [_plain(child, prefix, below) for below, child in element.children.items()]
    return _tagged(f"{prefix}:{name}", element, "".join([*inner, *element.written]))


def _tagged(tag: str, element: _Element, inner: str) -> str:
    attributes = "".join(f" {name}={quoteattr(value)}" for name, value in element.attributes.items())
    content = escape(element.text) + inner
    return f"<{tag}{attributes}>{content}</{tag}>" if content else f"<{tag}{attributes}/>"


# The field of an owner that lists its resources.
_RESOURCE_FIELDS = {"scan": "file", "out": "out/file", "in": "in/file"}
_PARTICIPANT = "xnat:projectParticipant"
_SHARE = "xnat:experimentData_share"


class Items:
    """Writes objects as JSON and as XML."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def json(self, item: Item) -> Node:
        """Return the JSON for an object."""
        return {"items": [self._without_written(self._node(item))]}

    def fields(self, item: Item) -> Fields:
        """Return the fields of an object, by path; also those of the objects inside it that it has once."""
        node = self._node(item)
        inner = {child["field"]: child["items"][0] for child in node["children"] if child["field"] in _OBJECTS}
        own = {f"{field}/{name}": value for field, part in inner.items() for name, value in part["data_fields"].items()}
        return {**node["data_fields"], **own}

    def xml(self, item: Item, *, is_concealed: bool = False) -> str:
        """Return the XML document of an object; `is_concealed` leaves out the comments about hidden fields."""
        return ItemXml(self._archive.types, is_concealed=is_concealed).document(self._node(item))

    def owner(self, item: Item, direction: str = "out") -> Owner:
        """Return the owner of the resources of an object."""
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
        objects: dict[str, Fields] = {}
        children: list[Node] = []
        for name, value in item.fields.items():
            path = types.casing(xsi_type, name)
            if isinstance(value, list):
                nodes = [{"meta": _meta("", item), "data_fields": entry, "children": []} for entry in value]
                children.append({"field": path, "items": nodes})
            elif path.partition("/")[0] in _OBJECTS and value not in (None, ""):
                field, _, leaf = path.partition("/")
                objects.setdefault(field, {})[leaf] = _typed(types, _OBJECTS[field], leaf, value)
            elif value not in (None, ""):
                fields[path] = _typed(types, xsi_type, path, value)
        for field, found in objects.items():
            node = {"meta": _meta(_OBJECTS[field], item), "data_fields": found, "children": []}
            children.append({"field": field, "items": [node]})
        return {"meta": _meta(xsi_type, item), "data_fields": fields, "children": [*children, *self._files(item)]}

    def _without_written(self, node: Node) -> Node:
        """Return a node in which no object is XML any more."""
        spaces = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in self._archive.types.namespaces.items())
        for child in node["children"]:
            for place, entry in enumerate(child["items"]):
                written = entry["data_fields"].get(WRITTEN)
                if written is not None:
                    document = f"<x{spaces}>{written}</x>".encode()
                    child["items"][place] = _read_back(parsed_xml(document)[0], entry["meta"])
                else:
                    self._without_written(entry)
        return node

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


def _read_back(element: ElementTree.Element, meta: Node) -> Node:
    """Return the node of an object that is kept as XML: attributes and texts are its fields, all else its children."""
    fields: Fields = {name: value for name, value in element.attrib.items() if not name.startswith("{")}
    groups: dict[str, list[Node]] = {}
    for child in element:
        name = _local(child)
        if child.attrib:
            groups.setdefault(name, []).append(_read_back(child, meta))
        elif not len(child):
            fields[name] = child.text or ""
        for inner in () if child.attrib else child:
            groups.setdefault(f"{name}/{_local(inner)}", []).append(_read_back(inner, meta))
    if not len(element) and (element.text or "").strip():
        fields[_local(element)] = element.text
    children = [{"field": field, "items": items} for field, items in groups.items()]
    return {"meta": {**meta, "xsi:type": element.get(f"{_XSI}type", "")}, "data_fields": fields, "children": children}


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


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
