"""The data types of the site, read from the XSD files that it serves.

The schemas define what a type extends, the element that it is written as, and the types of its simple fields. So a
server that has a plugin's schema knows the plugin's types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

T = TypeVar("T")
XS = "{http://www.w3.org/2001/XMLSchema}"

PROJECT = "xnat:projectData"
SUBJECT = "xnat:subjectData"
EXPERIMENT = "xnat:experimentData"
SUBJECT_ASSESSOR = "xnat:subjectAssessorData"
IMAGE_SESSION = "xnat:imageSessionData"
IMAGE_ASSESSOR = "xnat:imageAssessorData"
IMAGE_SCAN = "xnat:imageScanData"
ROI_COLLECTION = "icr:roiCollectionData"
DEMOGRAPHICS = "xnat:demographicData"

ABSTRACT = frozenset((EXPERIMENT, SUBJECT_ASSESSOR, IMAGE_SESSION, IMAGE_ASSESSOR, IMAGE_SCAN))

NAMESPACES = {
    "xnat": "http://nrg.wustl.edu/xnat",
    "xdat": "http://nrg.wustl.edu/xdat",
    "icr": "http://icr.ac.uk/icr",
    "cat": "http://nrg.wustl.edu/catalog",
    "prov": "http://www.nbirn.net/prov",
    "xsi": "http://www.w3.org/2001/XMLSchema-instance",
}

_INTEGERS = frozenset(("integer", "int", "long", "short", "nonNegativeInteger", "positiveInteger"))
_FLOATS = frozenset(("float", "double", "decimal"))
_DEPTH = 4
_LENGTH = 255


@dataclass
class DataType:
    """One complex type.

    Parameters
    ----------
    name, base, element
        The type, the type that it extends, and the element that it is written as.
    fields, casing
        Its own simple fields, by lower-case path: their XSD types, and their paths in the spelling of the schema.
    lengths
        The greatest number of characters, for the fields for which the schema has one.
    attributes
        Lower-case paths of the fields that are written as XML attributes.
    members
        Lower-case names of its own elements, in the order of the schema.
    """

    name: str
    base: str = ""
    element: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    casing: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    members: list[str] = field(default_factory=list)


class DataTypes:
    """The types defined by a folder of XSD files, and the files themselves.

    Parameters
    ----------
    folder
        A tree of ``*.xsd`` files, as XNAT has it below ``schemas/``.

    Raises
    ------
    ValueError
        If the folder holds no schema of XNAT's core types.
    """

    def __init__(self, folder: Path) -> None:
        self._documents = {schema_name(path.relative_to(folder)): path for path in sorted(folder.rglob("*.xsd"))}
        self._types: dict[str, DataType] = {}
        self._namespaces = dict(NAMESPACES)
        self._prefixes = {uri: prefix for prefix, uri in NAMESPACES.items()}
        roots = [_SchemaDocument(path) for path in self._documents.values()]
        for document in roots:
            if document.prefix and document.namespace not in self._prefixes:
                self._prefixes[document.namespace] = document.prefix
                self._namespaces[document.prefix] = document.namespace
        self._complex = {name: node for document in roots for name, node in document.complex_types(self._prefixes)}
        for document in roots:
            document.add_types(self._types, self._prefixes, self._complex)
        if EXPERIMENT.lower() not in self._types:
            raise ValueError(f"{folder} holds no XNAT schema: xnat/xnat.xsd (or xnat.xsd) with {EXPERIMENT} is needed")

    @property
    def namespaces(self) -> dict[str, str]:
        """The namespaces of all schemas, by prefix."""
        return dict(self._namespaces)

    def names(self) -> list[str]:
        """Return the names of the schemas, as in ``/xapi/schemas``."""
        return list(self._documents)

    def all(self) -> list[str]:
        """Return the names of all types."""
        return [item.name for item in self._types.values()]

    def document(self, name: str) -> bytes | None:
        """Return one XSD file as stored, or None."""
        path = self._documents.get(name)
        return path.read_bytes() if path else None

    def canonical(self, name: str) -> str | None:
        """Return the name of a type in upper and lower case as the schema writes it, or None for an unknown type."""
        found = self._types.get(name.lower())
        return found.name if found else None

    def element(self, name: str) -> str:
        """Return the element a type is written as, such as ``xnat:MRSession``."""
        found = self._types.get(name.lower())
        if found and found.element:
            return found.element
        prefix, _, local = name.partition(":")
        stem = re.sub(r"Data$", "", local)
        return f"{prefix}:{stem[:1].upper()}{stem[1:]}"

    def qualified(self, tag: str) -> str:
        """Return a name such as ``{http://nrg.wustl.edu/xnat}MRSession`` with its prefix, ``xnat:MRSession``."""
        uri, _, local = tag.rpartition("}")
        return f"{self._prefixes.get(uri[1:], '')}:{local}"

    def element_type(self, element: str) -> str | None:
        """Return the type of a root element, or None."""
        return next((item.name for item in self._types.values() if self.element(item.name) == element), None)

    def lineage(self, name: str) -> Iterator[DataType]:
        """Yield a type and the types that it extends, nearest first."""
        found = self._types.get(name.lower())
        seen: set[str] = set()
        while found and found.name not in seen:
            seen.add(found.name)
            yield found
            found = self._types.get(found.base.lower())

    def is_a(self, name: str, ancestor: str) -> bool:
        """Return whether a type is `ancestor` or extends it."""
        wanted = ancestor.lower()
        return any(item.name.lower() == wanted for item in self.lineage(name))

    def family(self, ancestor: str) -> list[str]:
        """Return a type and all types that extend it."""
        return [item.name for item in self._types.values() if self.is_a(item.name, ancestor)]

    def casing(self, name: str, path: str) -> str:
        """Return a field path as the schema spells it, or unchanged if the schema does not have it."""
        return self._nearest(name, path, lambda item: item.casing, path)

    def has_field(self, name: str, path: str) -> bool:
        """Return whether a type has a simple field."""
        wanted = path.lower()
        return any(wanted in item.fields for item in self.lineage(name))

    def has_fields_below(self, name: str, path: str) -> bool:
        """Return whether a type has simple fields below an element."""
        start = f"{path.lower()}/"
        return any(known.startswith(start) for item in self.lineage(name) for known in item.fields)

    def longest(self, name: str, path: str) -> int:
        """Return how many characters a field holds: the number in the schema, else 255, as in XNAT's database."""
        return self._nearest(name, path, lambda item: item.lengths, _LENGTH)

    def simple_type(self, name: str, path: str) -> str:
        """Return the XSD type of a field, such as ``integer``; ``string`` for an unknown one."""
        return self._nearest(name, path, lambda item: item.fields, "string")

    def _nearest(self, name: str, path: str, table: Callable[[DataType], dict[str, T]], default: T) -> T:
        """Return what the nearest type in a lineage says about a path."""
        wanted = path.lower()
        return next((table(item)[wanted] for item in self.lineage(name) if wanted in table(item)), default)

    def is_attribute(self, name: str, path: str) -> bool:
        """Return whether a field is written as an XML attribute."""
        wanted = path.lower()
        return any(wanted in item.attributes for item in self.lineage(name))

    def members(self, name: str) -> dict[str, tuple[int, str]]:
        """Return position and namespace prefix of a type's elements, by lower-case name, in the order of the schema."""
        lineage = list(self.lineage(name))
        found = [(member, item.name.partition(":")[0]) for item in reversed(lineage) for member in item.members]
        return {member: (place, prefix) for place, (member, prefix) in enumerate(found)}

    def typed(self, name: str, path: str, value: str) -> Any:
        """Return the value of a field as a number if the schema says so, else as text.

        Raises
        ------
        ValueError
            If the field is a number and the text is not.
        """
        kind = self.simple_type(name, path)
        if kind in _INTEGERS:
            return int(value)
        return float(value) if kind in _FLOATS else value


def schema_name(path: Path) -> str:
    """Return the name of a schema file in XNAT: its path without ``.xsd``, with equal neighbours merged."""
    parts: list[str] = []
    for part in path.with_suffix("").parts:
        if not parts or parts[-1] != part:
            parts.append(part)
    return "/".join(parts)


class _SchemaDocument:
    """One parsed XSD file."""

    def __init__(self, path: Path) -> None:
        self._declared: dict[str, str] = {}
        root: ElementTree.Element | None = None
        # These files come from the operator, not from a client, so parsing them is safe.
        for event, item in ElementTree.iterparse(path, events=("start-ns", "start")):  # noqa: S314
            if event == "start-ns":
                self._declared.setdefault(item[0], item[1])
            elif root is None:
                root = item
        if root is None:
            raise ValueError(f"{path} is not an XML schema")
        self.root = root
        self.namespace = root.get("targetNamespace", "")
        self.prefix = next((prefix for prefix, uri in self._declared.items() if uri == self.namespace and prefix), "")

    def _qualified(self, name: str, prefixes: dict[str, str]) -> str:
        prefix, colon, local = name.rpartition(":")
        uri = self._declared.get(prefix, self.namespace) if colon else self._declared.get("", self.namespace)
        return f"{prefixes.get(uri, prefix)}:{local}"

    def complex_types(self, prefixes: dict[str, str]) -> Iterator[Any]:
        """Yield the named complex types with their nodes."""
        prefix = prefixes.get(self.namespace, self.prefix)
        for node in self.root.findall(f"{XS}complexType"):
            yield f"{prefix}:{node.get('name')}", (self, node)

    def add_types(self, types: dict[str, DataType], prefixes: dict[str, str], complex_types: dict[str, Any]) -> None:
        """Add this file's types to the table."""
        for name, (_, node) in self.complex_types(prefixes):
            known = DataType(name)
            extension = node.find(f"{XS}complexContent/{XS}extension")
            if extension is not None:
                known.base = self._qualified(extension.get("base", ""), prefixes)
            _collect(self, node, "", _DEPTH, known, prefixes, complex_types)
            types[name.lower()] = known
        for element in self.root.findall(f"{XS}element"):
            kind = self._qualified(element.get("type", ""), prefixes).lower()
            if kind in types:
                types[kind].element = f"{prefixes.get(self.namespace, self.prefix)}:{element.get('name')}"


def _collect(
    document: _SchemaDocument,
    node: ElementTree.Element,
    path: str,
    depth: int,
    known: DataType,
    prefixes: dict[str, str],
    complex_types: dict[str, Any],
) -> None:
    """Add the simple fields below a complex type, but not those inside lists and other objects."""
    for child in _members(node):
        name = f"{path}{child.get('name')}"
        simple = _simple_type(child)
        if simple is not None:
            known.fields[name.lower()] = simple
            known.casing[name.lower()] = name
            length = child.find(f"{XS}simpleType/{XS}restriction/{XS}maxLength")
            if length is not None:
                known.lengths[name.lower()] = int(length.get("value", _LENGTH))
        if child.tag == f"{XS}attribute":
            known.attributes.add(name.lower())
        elif not path:
            known.members.append(name.lower())
        if child.tag == f"{XS}attribute" or child.get("maxOccurs") == "unbounded" or depth == 0:
            continue
        inner = child.find(f"{XS}complexType")
        owner = document
        if inner is None and child.get("type") and not simple:
            named = complex_types.get(document._qualified(child.get("type", ""), prefixes))
            owner, inner = named if named else (document, None)
        if inner is not None:
            _collect(owner, inner, f"{name}/", depth - 1, known, prefixes, complex_types)


def _members(node: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield the elements and attributes of a complex type, also those in its groups and extensions."""
    for child in node:
        if child.tag in (f"{XS}element", f"{XS}attribute") and child.get("name"):
            yield child
        elif child.tag in tuple(
            XS + tag for tag in ("sequence", "all", "choice", "complexContent", "simpleContent", "extension")
        ):
            yield from _members(child)


def _simple_type(node: ElementTree.Element) -> str | None:
    """Return the XSD type of a field that holds a value, or None."""
    restriction = node.find(f"{XS}simpleType/{XS}restriction")
    extension = node.find(f"{XS}complexType/{XS}simpleContent/{XS}extension")
    declared = node.get("type") or ""
    for found in (restriction, extension):
        if found is not None:
            declared = found.get("base") or ""
    prefix, _, local = declared.rpartition(":")
    if not declared and (node.tag == f"{XS}attribute" or node.find(f"{XS}complexType") is None):
        return "string"
    return local if prefix in ("xs", "xsd") else None
