"""The fields that a request sets, by query or as an XML document; and custom fields (CustomFieldsApi, XNAT 1.8.8)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from monailabel_xnat.sandbox.archive.columns import (
    EXPERIMENT_SHORTCUTS,
    PROJECT_SHORTCUTS,
    SCAN_SHORTCUTS,
    SUBJECT_SHORTCUTS,
)
from monailabel_xnat.sandbox.archive.datatypes import (
    DEMOGRAPHICS,
    EXPERIMENT,
    IMAGE_ASSESSOR,
    IMAGE_SCAN,
    PROJECT,
    SUBJECT,
    DataTypes,
)
from monailabel_xnat.sandbox.archive.model import WRITTEN, Fields, Item, Project, Scan
from monailabel_xnat.sandbox.http.messages import (
    MULTIPART,
    HTTPError,
    Reply,
    Request,
    as_json,
    form_files,
    parsed_xml,
    text,
)
from monailabel_xnat.sandbox.http.paths import Target, locate
from monailabel_xnat.sandbox.http.router import Handlers

CLEARED = "NULL"
_SHORTCUTS = {
    PROJECT: PROJECT_SHORTCUTS,
    SUBJECT: SUBJECT_SHORTCUTS,
    EXPERIMENT: EXPERIMENT_SHORTCUTS,
    IMAGE_SCAN: SCAN_SHORTCUTS,
}
_IDENTITY = {"id": "ID", "label": "label", "project": "project", "subject_id": "subject_ID"}
# Elements that hold a text and may be repeated. Each one becomes an object, in which the text has this name.
_TEXT_LISTS = {"references/seriesuid": "seriesUID", "aliases/alias": "alias"}
_NOT_READ = frozenset(("assessors", "reconstructions", "resources", "sharing", "experiments", "file", "out", "in"))
_XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_INTEGERS = frozenset(("integer", "int", "long", "short", "nonNegativeInteger", "positiveInteger"))
_FLOATS = frozenset(("float", "double", "decimal"))
_BOOLEANS = {"1": "true", "0": "false", "true": "true", "false": "false"}
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
# A time in an element that is kept as it was sent. XNAT answers with a T in it and without a zone.
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)Z?")
_DATE = re.compile(r"(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})|(?P<m2>\d{1,2})/(?P<d2>\d{1,2})/(?P<y2>\d{4})")


@dataclass
class Content:
    """What a request says about an object.

    `identity` holds its ``ID``, ``label``, ``project`` and ``subject_ID``. A field that is to be cleared is None.
    `scans` are those in the XML document of a session. `is_whole` means that missing fields are to be cleared.
    """

    xsi_type: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    fields: Fields = field(default_factory=dict)
    scans: list[Content] = field(default_factory=list)
    is_whole: bool = False

    def over(self, stored: Fields) -> Fields:
        """Return the changes to the stored fields of an object."""
        gone = dict.fromkeys(stored.keys() - self.fields.keys()) if self.is_whole else {}
        return {**gone, **self.fields}


class FieldReader:
    """Reads fields with the help of the site's data types."""

    def __init__(self, types: DataTypes) -> None:
        self._types = types

    def content(self, request: Request, known_type: str = "") -> Content:
        """Return what a request says, from the XML document in its body and from its query.

        Parameters
        ----------
        request
            The request.
        known_type
            The object's type, if it exists or its path has the type; else the document's root or ``xsiType`` has it.

        Raises
        ------
        HTTPError
            400 for an unknown type, a broken document or a value that its field cannot hold.
        """
        given = request.query.get("xsiType", "")
        kind = self._types.canonical(given) if given else ""
        if kind is None:
            raise HTTPError(400, f"Unknown data type: {given}")
        text = _document_of(request)
        content = self._document(text) if text else Content()
        content.is_whole = bool(text) and request.query.get("allowDataDeletion") == "true"
        content.xsi_type = content.xsi_type or kind or known_type
        self._read_query(content, known_type or content.xsi_type, {**request.form(), **request.query})
        return content

    # The query

    def _read_query(self, content: Content, kind: str, query: Mapping[str, str]) -> None:
        shortcuts = next((table for base, table in _SHORTCUTS.items() if self._types.is_a(kind, base)), {})
        for name, value in query.items():
            owner, slash, path = (name if "/" in name else shortcuts.get(name, "")).partition("/")
            if not slash or not self._types.is_a(kind, owner):
                continue  # a path of another type is silently ignored
            if ("/" in name or name == "subject_ID") and path.lower() in _IDENTITY:
                content.identity[_IDENTITY[path.lower()]] = value
            else:
                self._place(content.fields, kind, path, value)

    def _place(self, fields: Fields, kind: str, path: str, value: str) -> None:
        """Set a field. ``fields/field[name=x]/field`` becomes an entry of a list."""
        path = re.sub(r"\[(@xsi:type=[^\]]*|\d+)\]", "", path)
        listed = re.fullmatch(r"(.+)\[name=([^\]]*)\]/(.+)", path)
        text = None if value == CLEARED else value
        if listed:
            base, name, leaf = self._types.casing(kind, listed[1]), listed[2], listed[3]
            fields.setdefault(base, []).append({"name": name, leaf: text})
        elif path.lower() in _TEXT_LISTS:
            fields.setdefault(self._types.casing(kind, path), []).append({_TEXT_LISTS[path.lower()]: value})
        elif path.lower() == "aliases/alias/alias":
            fields.setdefault("aliases/alias", []).append({"alias": value})
        else:
            self._set(fields, kind, path, text)

    def _set(self, fields: Fields, kind: str, path: str, text: str | None) -> None:
        prefix, _, leaf = path.partition("/")
        if prefix.lower() == "demographics":
            prefix, kind, path = "demographics/", DEMOGRAPHICS, leaf
        else:
            prefix = ""
        if self._types.has_field(kind, path) and path.lower() not in ("id", "label", "project", "image_session_id"):
            name = self._types.casing(kind, path)
            if text is not None and len(text) > self._types.longest(kind, path):
                raise HTTPError(400, f"The value of {name} is too long.")
            fields[prefix + name] = None if text is None else valid(name, self._types.simple_type(kind, path), text)

    # The document

    def _document(self, text: bytes) -> Content:
        root = parsed_xml(text, of_doctype=500)  # as XNAT 1.10.1 does
        return self._content_of(root, self._types.element_type(self._types.qualified(root.tag)) or "")

    def _content_of(self, node: ElementTree.Element, kind: str) -> Content:
        kind = self._types.canonical(node.get(_XSI_TYPE, "")) or kind
        if not kind:
            raise HTTPError(400, f"Unknown element: {node.tag}")
        content = Content(kind)
        self._read_node(content, node, "")
        return content

    def _read_node(self, content: Content, node: ElementTree.Element, path: str) -> None:
        for name, value in node.attrib.items():
            if not name.startswith("{"):
                self._read_value(content, f"{path}{name}", value)
        for child in node:
            name = f"{path}{child.tag.rpartition('}')[2]}"
            if name == "scans" and not self._types.is_a(content.xsi_type, IMAGE_ASSESSOR):
                content.scans = [self._content_of(scan, "") for scan in child]
            elif name in _NOT_READ:
                continue
            elif _is_named(child):
                leaf = name.rpartition("/")[2].replace("addParam", "addField")
                self._read_value(content, f"{name}[name={child.get('name')}]/{leaf}", (child.text or "").strip())
            elif self._is_kept(content.xsi_type, name, child):
                self._keep(content, name, child)
            else:
                if (child.text or "").strip():
                    self._read_value(content, name, (child.text or "").strip())
                self._read_node(content, child, f"{name}/")

    def _is_kept(self, kind: str, name: str, node: ElementTree.Element) -> bool:
        """Return whether an element holds objects for which the sandbox has no fields."""
        if not len(node) or name == "demographics" or any(map(_is_named, node)):
            return False
        return not self._types.has_fields_below(kind, name)

    def _keep(self, content: Content, path: str, node: ElementTree.Element) -> None:
        """Keep an object of the document for which the sandbox has no fields, such as a step of a provenance."""
        if not node.attrib and all(map(len, node)):  # nothing but a list of such objects
            for child in node:
                self._keep(content, f"{path}/{child.tag.rpartition('}')[2]}", child)
        else:
            texts = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in node}
            written = _STAMP.sub(r"\1T\2", self._written(node))
            content.fields.setdefault(path, []).append({**texts, WRITTEN: written})

    def _written(self, node: ElementTree.Element) -> str:
        prefix, _, local = self._types.qualified(node.tag).partition(":")
        tag = f"{prefix or 'xnat'}:{local}"
        named = {self._types.qualified(name) if name[0] == "{" else name: value for name, value in node.attrib.items()}
        attributes = "".join(f" {name}={quoteattr(value)}" for name, value in named.items())
        inner = "".join(map(self._written, node))
        return f"<{tag}{attributes}>{escape((node.text or '').strip())}{inner}</{tag}>"

    def _read_value(self, content: Content, path: str, value: str) -> None:
        if path.lower() not in _IDENTITY:
            self._place(content.fields, content.xsi_type, path, value)
        elif value.strip():  # a blank ID or project counts as missing
            content.identity[_IDENTITY[path.lower()]] = value


def _is_named(node: ElementTree.Element) -> bool:
    """Return whether an element is an entry of a list of texts with names, such as a custom variable."""
    return node.get("name") is not None and bool((node.text or "").strip())


def _document_of(request: Request) -> bytes:
    """Return the XML document in the body, or in a form in the body; empty if there is none."""
    kind = request.content_type
    if kind == MULTIPART:
        with form_files(request) as files:
            text = files[0][1].read()
        request.body.seek(0)
        return text if text.lstrip().startswith(b"<") else b""
    says_so = kind in ("text/xml", "application/xml") or request.query.get("req_format") == "xml"
    if not request.length or not (says_so or request.flag("inbody")):
        return b""
    text = request.body.read()
    request.body.seek(0)
    return text


def valid(name: str, kind: str, text: str) -> str:
    """Return a value as XNAT stores it.

    Raises
    ------
    HTTPError
        400 if a field of that XSD type cannot hold it.
    """
    try:
        return _valid(kind, text) if text else text
    except ValueError:
        raise HTTPError(400, f"Invalid value for {name}: {text}") from None


def _valid(kind: str, text: str) -> str:
    if kind in _INTEGERS:
        return str(int(text))
    if kind in _FLOATS:
        # PostgreSQL and Java write numbers in this way: 12 is 12.0.
        return repr(float(text))
    if kind == "date":
        return _iso_date(text)
    if kind == "boolean" and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if kind == "boolean" or (kind == "time" and not _TIME.fullmatch(text)):
        raise ValueError(text)
    return text


def _iso_date(text: str) -> str:
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    year, month, day = (int(found[name] or found[f"{name}2"]) for name in "ymd")
    return date(year, month, day).isoformat()


class CustomFields(Handlers):
    """The calls ``/xapi/custom-fields/.../fields[/NAME]``."""

    def get(self, request: Request, words: list[str]) -> Reply:
        """Answer with all fields of an object, or with those that ``fieldNames`` names.

        Raises
        ------
        HTTPError
            403 without the right, and if a project, subject or experiment does not exist; 404 if a scan or assessor
            does not. This holds for all calls.
        """
        fields = self._item(words, is_read=True).custom_fields
        wanted = [field for names in request.values("fieldNames") for field in names.split(",") if field]
        return as_json({key: value for key, value in fields.items() if not wanted or key in wanted})

    def get_one(self, request: Request, words: list[str], name: str) -> Reply:
        """Answer with one field."""
        value = _named(self._item(words, is_read=True).custom_fields, name)
        return text(value if isinstance(value, str) else json.dumps(value))

    def put(self, request: Request, words: list[str]) -> Reply:
        """Set the fields that are in the body, and answer with all fields.

        Raises
        ------
        HTTPError
            400 for a body that is not a JSON object; 415 for another content type.
        """
        if request.content_type != "application/json":
            raise HTTPError(415, f"Content type '{request.content_type}' not supported")
        try:
            given = json.load(request.body)
        except ValueError as error:
            raise HTTPError(400, f"JSON parse error: {error}") from error
        if not isinstance(given, dict):
            raise HTTPError(400, "The fields are a JSON object.")
        with self._archive.store.write():
            item = self._changeable(words)
            return self._stored(item, {**item.custom_fields, **given})

    def delete(self, request: Request, words: list[str], name: str) -> Reply:
        """Remove one field, and answer with the others."""
        with self._archive.store.write():
            item = self._changeable(words)
            _named(item.custom_fields, name)
            return self._stored(item, {key: value for key, value in item.custom_fields.items() if key != name})

    def _stored(self, item: Item, fields: Fields) -> Reply:
        self._archive.store.update(item.table, item.key, custom_fields=json.dumps(fields))
        return as_json(fields)

    def _changeable(self, words: list[str]) -> Item:
        """Return the object whose fields the user may change. Only its owners may change those of a project."""
        item = self._item(words, is_read=False)
        if isinstance(item, Project):
            may_change = self._may.may_delete(item.id)
        else:
            home = self._archive.experiment(item.experiment) if isinstance(item, Scan) else item
            may_change = home is not None and self._may.may_edit(home.project)
        if not may_change:
            raise HTTPError(403)
        return item

    def _item(self, words: list[str], *, is_read: bool) -> Item:
        inner = next((place for place, word in enumerate(words) if word in ("scans", "assessors")), len(words))
        outer = self._found(words[:inner])
        if outer is None:
            # The user must not learn whether the object exists. Administrators may, because they see everything.
            raise HTTPError(404 if self._may.user.is_admin else 403)
        if inner == len(words):
            return self._of(outer)
        target = self._found(words)
        if target is not None:
            return self._of(target)
        session = outer.experiment
        may_edit = session is not None and self._may.may_edit(session.project)
        raise HTTPError(404 if is_read or may_edit else 403)

    def _found(self, words: list[str]) -> Target | None:
        try:
            return locate(self._archive, self._may, words)
        except HTTPError:
            return None

    def _of(self, target: Target) -> Item:
        if target.collection or target.files or target.resource is not None:
            raise HTTPError(404)
        if target.kind == "scans":
            if len(target.scans) != 1:
                raise HTTPError(404)
            return target.scans[0]
        item = target.assessor or target.experiment or target.subject
        if item is not None:
            return item
        if target.project is None or not self._may.may_read(target.project.id):
            raise HTTPError(404 if self._may.user.is_admin else 403)
        return target.project


def _named(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise HTTPError(404, f"Unable to find custom field {name}")
    return fields[name]
