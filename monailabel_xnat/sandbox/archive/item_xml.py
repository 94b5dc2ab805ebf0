"""The XML document of an object, with its fields in the order of the schema (SAXWriter)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from monailabel_xnat.sandbox.archive.datatypes import DataTypes

Node = dict[str, Any]

_RESOURCE_ATTRIBUTES = frozenset(("URI", "label", "format", "content", "description", "file_count", "file_size"))
# What a list of texts holds as its own text; the rest of an entry are attributes.
_TEXTS = ("field", "addField", "seriesUID", "alias")
_HIDDEN = frozenset(("xnat_abstractresource_id", "xnat_imagescandata_id", "image_session_ID"))
_LAST = (1 << 30, "xnat")


@dataclass
class _Element:
    """An element that is being put together."""

    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    children: dict[str, _Element] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def below(self, path: list[str]) -> _Element:
        """Return the element at a path, made where it is not there."""
        found = self
        for name in path:
            found = found.children.setdefault(name, _Element())
        return found


class ItemXml:
    """Writes the nodes of the item JSON as XML.

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
        """Write a whole document."""
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
        kind = node["meta"]["xsi:type"]
        if kind and not kind.endswith("_share"):
            return self._write(tag, self._build(node, {"xsi:type": kind}), node)
        values = {name: str(value) for name, value in node["data_fields"].items()}
        text = next((values.pop(name) for name in _TEXTS if name in values), "")
        return self._write(tag, _Element(text, values), node)

    def _write(self, tag: str, element: _Element, node: Node) -> str:
        """Write an element of an object, whose children stand in the order of its type."""
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
