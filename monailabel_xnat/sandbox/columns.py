"""Columns and filters of lists: shortcut names, XML paths, and the keys they come back under (QueryOrganizer)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import translate
from functools import cached_property
from typing import Callable

from monailabel_xnat.sandbox.datatypes import (
    DEMOGRAPHICS,
    EXPERIMENT,
    IMAGE_SCAN,
    IMAGE_SESSION,
    SUBJECT,
    SUBJECT_ASSESSOR,
    DataTypes,
)
from monailabel_xnat.sandbox.replies import HTTPError

Test = Callable[[str], bool]
Values = Mapping[str, str]
"""One object of a list: lower-cased field path to text."""

_META = {
    "insert_date": "meta/insert_date",
    "insert_user": "meta/insert_user/login",
    "last_modified": "meta/last_modified",
}

EXPERIMENT_SHORTCUTS = {
    "ID": f"{EXPERIMENT}/ID",
    "label": f"{EXPERIMENT}/label",
    "project": f"{EXPERIMENT}/project",
    "xsiType": f"{EXPERIMENT}/extension_item/element_name",
    "date": f"{EXPERIMENT}/date",
    "time": f"{EXPERIMENT}/time",
    "note": f"{EXPERIMENT}/note",
    "validation_status": f"{EXPERIMENT}/validation/status",
    **{name: f"{EXPERIMENT}/{path}" for name, path in _META.items()},
    "subject_ID": f"{SUBJECT_ASSESSOR}/subject_ID",
    "subject_label": f"{SUBJECT}/label",
    "subject_project": f"{SUBJECT}/project",
    "session_ID": f"{IMAGE_SESSION}/ID",
    "session_label": f"{IMAGE_SESSION}/label",
    "session_project": f"{IMAGE_SESSION}/project",
    "modality": f"{IMAGE_SESSION}/modality",
    "session_type": f"{IMAGE_SESSION}/session_type",
    "UID": f"{IMAGE_SESSION}/UID",
    "studyInstanceUID": f"{IMAGE_SESSION}/UID",
    "scanner": f"{IMAGE_SESSION}/scanner",
    "operator": f"{IMAGE_SESSION}/operator",
    "dcmPatientId": f"{IMAGE_SESSION}/dcmPatientId",
    "dcmAccessionNumber": f"{IMAGE_SESSION}/dcmAccessionNumber",
}

_DEMOGRAPHIC_PATH = f"{SUBJECT}/demographics[@xsi:type={DEMOGRAPHICS}]"
SUBJECT_SHORTCUTS = {
    "ID": f"{SUBJECT}/ID",
    "label": f"{SUBJECT}/label",
    "project": f"{SUBJECT}/project",
    "group": f"{SUBJECT}/group",
    "src": f"{SUBJECT}/src",
    **{
        name: f"{_DEMOGRAPHIC_PATH}/{name}"
        for name in ("gender", "handedness", "yob", "dob", "age", "weight", "height")
    },
    **{name: f"{SUBJECT}/{path}" for name, path in _META.items()},
}

SCAN_SHORTCUTS = {
    "ID": f"{IMAGE_SCAN}/ID",
    "type": f"{IMAGE_SCAN}/type",
    "quality": f"{IMAGE_SCAN}/quality",
    "xsiType": f"{IMAGE_SCAN}/extension_item/element_name",
    "note": f"{IMAGE_SCAN}/note",
    "series_description": f"{IMAGE_SCAN}/series_description",
    "UID": f"{IMAGE_SCAN}/UID",
    "modality": f"{IMAGE_SCAN}/modality",
    "frames": f"{IMAGE_SCAN}/frames",
    "condition": f"{IMAGE_SCAN}/condition",
    "scanner": f"{IMAGE_SCAN}/scanner",
    "scanTime": f"{IMAGE_SCAN}/startTime",
    "xnat_imagescandata_id": f"{IMAGE_SCAN}/xnat_imageScanData_id",
    **{name: f"{IMAGE_SCAN}/{path}" for name, path in _META.items() if name != "insert_user"},
}

PROJECT_SHORTCUTS = {
    "ID": "xnat:projectData/ID",
    "secondary_ID": "xnat:projectData/secondary_ID",
    "name": "xnat:projectData/name",
    "description": "xnat:projectData/description",
    "keywords": "xnat:projectData/keywords",
    "alias": "xnat:projectData/aliases/alias/alias",
    "pi_firstname": "xnat:projectData/PI/firstname",
    "pi_lastname": "xnat:projectData/PI/lastname",
}

# What every object has besides the fields of its schema.
_OWN_FIELDS = {path: name for name, path in _META.items()}
_OWN_FIELDS.update({"extension_item/element_name": "xsitype", "xnat_imagescandata_id": "pk"})
_TIMESTAMPS = frozenset(("insert_date", "last_modified"))
_NUMBERS = frozenset(("integer", "int", "long", "short", "float", "double", "decimal"))
_DATES = frozenset(("date", "dateTime"))


@dataclass(frozen=True)
class Column:
    """A column or a filter: where its values stand, and the key they come back under.

    `level` is ``object`` (what the list is of), ``scan``, ``scan file`` (a resource of a scan), ``own file`` (a
    resource of the object itself), ``share``, ``subject`` or ``session``; `path` is lower-cased and relative to that;
    `only` are the types that have the field, lower-cased (none: all); `kind` is its XSD type.
    """

    key: str
    level: str
    path: str
    only: frozenset[str] = frozenset()
    kind: str = "string"

    def value(self, values: Values) -> str:
        """Give the text of the column in an object."""
        if self.only and values.get("xsitype", "").lower() not in self.only:
            return ""
        return values.get(self.path, "")


@dataclass
class Level:
    """The columns and filters of one of the joined tables; complete before it is used."""

    columns: list[Column] = field(default_factory=list)
    filters: list[tuple[Column, Test]] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        """Whether the table has to be joined."""
        return bool(self.columns or self.filters)

    def take(self, values: Values) -> dict[str, str] | None:
        """Give the cells of an object, or None where it does not pass the filters."""
        for column, test in self.filters:
            if not test(column.value(values)):
                return None
        # Tens of thousands of rows pass here: most columns need no more than a look into the values.
        get = values.get
        cells = {key: get(path, "") for key, path in self._plain}
        for column in self._special:
            cells[column.key] = column.value(values)
        return cells

    @cached_property
    def _plain(self) -> list[tuple[str, str]]:
        return [(column.key, column.path) for column in self.columns if not column.only]

    @cached_property
    def _special(self) -> list[Column]:
        return [column for column in self.columns if column.only]

    def take_all(self, objects: Iterable[Values]) -> list[dict[str, str]]:
        """Give the cells of those objects that pass the filters."""
        found = [self.take(values) for values in objects]
        return [cells for cells in found if cells is not None]

    def empty(self) -> list[dict[str, str]]:
        """Give the row of empty cells that a left join makes, unless a filter keeps it out."""
        return self.take_all([{}])


class ColumnNames:
    """The columns that a kind of list knows.

    Parameters
    ----------
    types
        The site's data types.
    shortcuts
        Shortcut name to XML path, of this kind of list.
    root
        The type that the list is of.
    """

    def __init__(self, types: DataTypes, shortcuts: Mapping[str, str], root: str) -> None:
        self._types = types
        self._shortcuts = shortcuts
        self._root = root
        self._by_path: dict[str, str] = {}
        for name, path in shortcuts.items():
            self._by_path.setdefault(path.lower(), name)

    def asked(self, text: str, defaults: tuple[str, ...]) -> list[Column]:
        """Read the parameter ``columns``; unknown shortcuts are dropped without a word."""
        names = [name.strip() for name in text.split(",") if name.strip()]
        wanted: list[str] = []
        for name in names or ["DEFAULT"]:
            wanted += defaults if name == "DEFAULT" else [name]
        return self.columns(wanted)

    def columns(self, names: list[str]) -> list[Column]:
        """Give the columns of some names, each key once."""
        found = [self.column(name) for name in names]
        return list({column.key: column for column in found if column is not None}.values())

    def column(self, name: str) -> Column | None:
        """Give the column that a shortcut or an XML path names; None for an unknown shortcut.

        Raises
        ------
        HTTPError
            400 if a path starts with a type that the site does not have.
        """
        path = self._shortcuts.get(name) or (name if "/" in name else "")
        if not path:
            return None
        lower = path.lower()
        return self._at(self._by_path.get(lower, lower), lower)

    def shortcuts(self) -> list[dict[str, str]]:
        """Give the table of shortcuts, which lists answer to the parameter ``fields``."""
        return [{"key": name, "xpath": path} for name, path in self._shortcuts.items()]

    def filters(self, query: Mapping[str, str]) -> list[tuple[Column, Test]]:
        """Read the filters: every parameter that is a shortcut or a path."""
        found = []
        for name, text in query.items():
            if name == "columns" or ("/" not in name and name not in self._shortcuts):
                continue
            if name == "xsiType" and "," not in text:
                continue  # the type that the list is of
            column = self.column(name)
            if column is not None:
                found.append((column, make_test(column.kind, text)))
        return found

    def _at(self, key: str, path: str) -> Column:
        kind, _, field = path.partition("/")
        if self._types.canonical(kind) is None:
            raise HTTPError(400, f"Unknown data type: {kind}")
        field = re.sub(r"\[@xsi:type=[^\]]*\]", "", field)
        if field.startswith("scans/scan/"):
            kind, field = IMAGE_SCAN.lower(), field[len("scans/scan/") :]
        if kind == DEMOGRAPHICS.lower():
            kind, field = SUBJECT.lower(), f"demographics/{field}"
        level, field = self._level(kind, field)
        field = _OWN_FIELDS.get(field, field)
        only = frozenset() if self._is_general(kind, level) else frozenset(map(str.lower, self._types.family(kind)))
        return Column(key, level, field, only, self._kind(kind, field))

    def _level(self, kind: str, field: str) -> tuple[str, str]:
        is_scan = self._types.is_a(kind, IMAGE_SCAN)
        if is_scan and field.startswith("file/"):
            return "scan file", field[len("file/") :]
        if is_scan:
            return "scan", field
        if field.startswith("sharing/share/"):
            return "share", field[len("sharing/share/") :]
        for prefix in ("resources/resource/", "out/file/"):
            if field.startswith(prefix):
                return "own file", field[len(prefix) :]
        if kind == SUBJECT.lower() and self._root != SUBJECT:
            return "subject", field
        if kind == IMAGE_SESSION.lower() and not self._types.is_a(self._root, IMAGE_SESSION):
            return "session", field
        return "object", field

    def _is_general(self, kind: str, level: str) -> bool:
        """Tell whether every object of a level is of a type, so that it need not be looked at."""
        base = {"scan": IMAGE_SCAN, "object": self._root}.get(level)
        return base is None or self._types.is_a(base, kind)

    def _kind(self, kind: str, field: str) -> str:
        if field in _TIMESTAMPS:
            return "dateTime"
        prefix, _, leaf = field.partition("/")
        return (
            self._types.simple_type(DEMOGRAPHICS, leaf)
            if prefix == "demographics"
            else self._types.simple_type(kind, field)
        )


def make_test(kind: str, text: str) -> Test:
    """Make the test of a filter.

    Commas mean or; ``*`` and ``%`` stand for anything in texts; ``lo-hi`` is a range of numbers or dates.

    Parameters
    ----------
    kind
        XSD type of the field.
    text
        The parameter's value.
    """
    tests = [_test(kind, part.strip()) for part in text.split(",")]
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


def _test(kind: str, text: str) -> Test:
    if kind in _NUMBERS:
        return _in_range(text, _number, r"(-?[\d.]+)-(-?[\d.]+)")
    if kind in _DATES:
        return _in_range(text, _moment, r"(.+?\d{2,4})-(\d{1,2}/\d{1,2}/\d{4}.*|\d{4}-\d{2}-\d{2}.*)")
    if "*" in text or "%" in text:
        pattern = re.compile(translate(text.replace("%", "*").replace("[", "[[]")), re.IGNORECASE)
        return lambda value: bool(value) and pattern.fullmatch(value) is not None
    return lambda value: value == text


def _in_range(text: str, read: Callable[[str], float | None], range_pattern: str) -> Test:
    bounds = re.fullmatch(range_pattern, text)
    low, high = (read(bounds[1]), read(bounds[2])) if bounds and read(text) is None else (read(text), read(text))
    if low is None or high is None:
        raise HTTPError(400, f"Not a number, date or range: {text}")

    def test(value: str) -> bool:
        found = read(value)
        return found is not None and low <= found <= high

    return test


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _moment(text: str) -> float | None:
    """Read a date or timestamp as XNAT takes them, ``MM/dd/yyyy`` or ``yyyy-MM-dd``, with or without a time."""
    iso = re.sub(r"^(\d{1,2})/(\d{1,2})/(\d{4})", lambda us: f"{us[3]}-{us[1]:0>2}-{us[2]:0>2}", text)
    try:
        return (datetime.fromisoformat(iso) - datetime(1, 1, 1)).total_seconds()
    except (ValueError, TypeError):
        return None
