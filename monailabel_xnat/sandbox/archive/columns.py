"""Columns and filters of lists: shortcut names, XML paths, and the keys of the columns in answers (QueryOrganizer)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import translate
from functools import cached_property

from monailabel_xnat.sandbox.archive.datatypes import (
    DEMOGRAPHICS,
    EXPERIMENT,
    IMAGE_ASSESSOR,
    IMAGE_SCAN,
    IMAGE_SESSION,
    PROJECT,
    SUBJECT,
    SUBJECT_ASSESSOR,
    DataTypes,
)
from monailabel_xnat.sandbox.http.messages import HTTPError

Test = Callable[[str], bool]
Values = Mapping[str, str]
"""One object of a list: texts by lower-case field path."""

_META = {
    "insert_date": "meta/insert_date",
    "insert_user": "meta/insert_user/login",
    "last_modified": "meta/last_modified",
}


def _paths(root: str, *names: str, below: str = "") -> dict[str, str]:
    """Return the paths of fields that have the name of their shortcut."""
    return {name: f"{root}/{below}{name}" for name in names}


_VALIDATION = {f"validation_{name}": f"validation/{name}" for name in ("method", "status", "date", "notes")}
_INVESTIGATOR = {"pi_firstname": "investigator/firstname", "pi_lastname": "investigator/lastname"}
_MR_SESSION, _PET_SESSION = "xnat:mrSessionData", "xnat:petSessionData"
_MR_SCAN, _PET_SCAN = "xnat:mrScanData", "xnat:petScanData"

# XNAT's own table of shortcut names (XMLPathShortcuts).
EXPERIMENT_SHORTCUTS = {
    **_paths(EXPERIMENT, "ID", "label", "project", "visit_id", "visit", "date", "time", "note"),
    "xsiType": f"{EXPERIMENT}/extension_item/element_name",
    **{name: f"{EXPERIMENT}/{path}" for name, path in {**_INVESTIGATOR, **_VALIDATION, **_META}.items()},
    "subject_ID": f"{SUBJECT_ASSESSOR}/subject_ID",
    "subject_label": f"{SUBJECT}/label",
    "subject_project": f"{SUBJECT}/project",
    "session_ID": f"{IMAGE_SESSION}/ID",
    "session_label": f"{IMAGE_SESSION}/label",
    "session_project": f"{IMAGE_SESSION}/project",
    **_paths(IMAGE_SESSION, "scanner", "operator", "modality", "session_type", "UID"),
    **_paths(IMAGE_SESSION, "dcmPatientId", "dcmPatientName", "dcmAccessionNumber"),
    "studyInstanceUID": f"{IMAGE_SESSION}/UID",
    **_paths(_MR_SESSION, "coil", "fieldStrength", "marker"),
    **_paths(_PET_SESSION, "studyType", "patientID", "patientName", "stabilization"),
    "scan_start_time": f"{_PET_SESSION}/start_time_scan",
    "injection_start_time": f"{_PET_SESSION}/start_time_injection",
    **{
        f"tracer_{name}": f"{_PET_SESSION}/tracer/{path}"
        for name, path in {
            **{name: name for name in ("name", "startTime", "dose", "totalMass", "intermediate", "transmissions")},
            "sa": "specificActivity",
            "isotope": "isotope/half-life",
            "transmissions_start": "transmissions_starttime",
        }.items()
    },
}

SUBJECT_SHORTCUTS = {
    **_paths(SUBJECT, "ID", "label", "project", "group", "src"),
    **{name: f"{SUBJECT}/{path}" for name, path in {**_INVESTIGATOR, **_META}.items()},
    **_paths(
        SUBJECT,
        *("dob", "yob", "age", "gender", "handedness", "ses", "education", "educationDesc", "race", "ethnicity"),
        *("weight", "height", "gestational_age", "post_menstrual_age", "birth_weight"),
        below=f"demographics[@xsi:type={DEMOGRAPHICS}]/",
    ),
}

SCAN_SHORTCUTS = {
    **_paths(IMAGE_SCAN, "ID", "type", "UID", "note", "quality", "condition", "series_description", "documentation"),
    **_paths(IMAGE_SCAN, "scanner", "modality", "frames"),
    "xsiType": f"{IMAGE_SCAN}/extension_item/element_name",
    "xnat_imagescandata_id": f"{IMAGE_SCAN}/xnat_imageScanData_id",
    "scanTime": f"{IMAGE_SCAN}/startTime",
    **{name: f"{IMAGE_SCAN}/{path}" for name, path in {**_VALIDATION, **_META}.items()},
    **_paths(_MR_SCAN, "coil", "fieldStrength", "marker", "stabilization"),
    **_paths(
        _PET_SCAN,
        *("orientation", "originalFileName", "systemType", "fileType", "transaxialFOV", "acqType", "facility"),
        *("numPlanes", "numGates", "planeSeparation", "binSize", "dataType"),
        below="parameters/",
    ),
    "numFrames": f"{_PET_SCAN}/parameters/frames/numFrames",
}

PROJECT_SHORTCUTS = {
    **_paths(PROJECT, "ID", "secondary_ID", "name", "description", "keywords"),
    "alias": f"{PROJECT}/aliases/alias/alias",
    "pi_firstname": f"{PROJECT}/PI/firstname",
    "pi_lastname": f"{PROJECT}/PI/lastname",
    "note": f"{PROJECT}/fields/field[name=note]/field",
}

# Every object has these fields in addition to those of its schema.
_OWN_FIELDS = {path: name for name, path in _META.items()}
_OWN_FIELDS.update({"extension_item/element_name": "xsitype", "xnat_imagescandata_id": "pk"})
# The levels of columns that need a type: those of joined assessors of a session and joined experiments of a subject.
ASSESSOR, OF_SUBJECT = "assessor ", "experiment "
# The tables that belong to an object, and the level of their columns.
_OWN_TABLES = {
    "sharing/share/": "share",
    "resources/resource/": "own file",
    "out/file/": "own file",
    "fields/field/": "own field",
    "provenance/processstep/": "own step",
}
_TIMESTAMPS = frozenset(("insert_date", "last_modified"))
_NUMBERS = frozenset(("integer", "int", "long", "short", "float", "double", "decimal"))
_DATES = frozenset(("date", "dateTime"))


@dataclass(frozen=True)
class Column:
    """A column or a filter: where its values are, and the key of the column in answers.

    `level` is ``object`` (the objects of the list), ``scan``, ``scan file`` (a resource of a scan), ``own file``, ``own
    field`` and ``own step`` (a resource, a custom variable and a step of the processing of the object itself),
    ``share``, ``subject``, ``session``, or `ASSESSOR` or `OF_SUBJECT` with a type. `path` is in lower case and relative
    to that level. `only` are the types that have the field, in lower case; none means all types. `kind` is the XSD type
    of the field.
    """

    key: str
    level: str
    path: str
    only: frozenset[str] = frozenset()
    kind: str = "string"

    def value(self, values: Values) -> str:
        """Return the text of the column in an object."""
        if self.only and values.get("xsitype", "").lower() not in self.only:
            return ""
        return values.get(self.path, "")


@dataclass
class Level:
    """The columns and filters of one of the joined tables. All of them are set before it is used."""

    columns: list[Column] = field(default_factory=list)
    filters: list[tuple[Column, Test]] = field(default_factory=list)

    @property
    def is_used(self) -> bool:
        """Whether the table has to be joined."""
        return bool(self.columns or self.filters)

    def take(self, values: Values) -> dict[str, str] | None:
        """Return the cells of an object, or None if it does not pass the filters."""
        for column, test in self.filters:
            if not test(column.value(values)):
                return None
        # Tens of thousands of rows come here. Most columns need only a look into the values.
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
        """Return the cells of those objects that pass the filters."""
        found = [self.take(values) for values in objects]
        return [cells for cells in found if cells is not None]

    def empty(self) -> list[dict[str, str]]:
        """Return the row of empty cells that a left join makes, unless a filter removes that row."""
        return self.take_all([{}])


class ColumnNames:
    """The columns that a kind of list knows.

    Parameters
    ----------
    types
        The site's data types.
    shortcuts
        The XML paths of this kind of list, by shortcut name.
    root
        The type of the objects in the list.
    """

    def __init__(self, types: DataTypes, shortcuts: Mapping[str, str], root: str) -> None:
        self._types = types
        self._shortcuts = shortcuts
        self._root = root
        self._scan_root = root if types.is_a(root, IMAGE_SCAN) else IMAGE_SCAN
        self._by_path: dict[str, str] = {}
        for name, path in shortcuts.items():
            self._by_path.setdefault(path.lower(), name)

    def asked(self, text: str, defaults: tuple[str, ...]) -> list[Column]:
        """Return the columns of the parameter ``columns``. Unknown shortcuts are silently ignored."""
        names = [name.strip() for name in text.split(",") if name.strip()]
        wanted: list[str] = []
        for name in names or ["DEFAULT"]:
            wanted += defaults if name == "DEFAULT" else [name]
        return self.columns(wanted)

    def columns(self, names: list[str]) -> list[Column]:
        """Return the columns that some names mean, each key once."""
        found = [self.column(name) for name in names]
        return list({column.key: column for column in found if column is not None}.values())

    def column(self, name: str) -> Column | None:
        """Return the column that a shortcut or an XML path names, or None for an unknown shortcut.

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

    def root_of(self, query: Mapping[str, str]) -> str:
        """Return the type of a list's objects: ``xsiType``, else that of a column or filter if it extends the root."""
        asked = query.get("xsiType", "")
        if asked and "," not in asked:
            return self._types.canonical(asked) or asked
        root = self._root
        for name in [*query.get("columns", "").split(","), *query]:
            path = self._shortcuts.get(name.strip(), name.strip())
            kind = self._types.canonical(path.partition("/")[0]) if "/" in path else None
            if kind and self._types.is_a(kind, root):
                root = kind
        return root

    def shortcuts(self) -> list[dict[str, str]]:
        """Return the table of shortcuts, with which lists answer the parameter ``fields``."""
        return [{"key": name, "xpath": path} for name, path in self._shortcuts.items()]

    def filters(self, query: Mapping[str, str]) -> list[tuple[Column, Test]]:
        """Return the filters: every parameter that is a shortcut or a path."""
        found = []
        for name, text in query.items():
            if name == "columns" or ("/" not in name and name not in self._shortcuts):
                continue
            if name == "xsiType" and "," not in text:
                continue  # this parameter is the type of the list
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
        is_a, root = self._types.is_a, self._root
        if is_a(kind, IMAGE_SCAN):
            return ("scan file", field[len("file/") :]) if field.startswith("file/") else ("scan", field)
        if is_a(kind, IMAGE_ASSESSOR) and not is_a(root, IMAGE_ASSESSOR):
            return f"{ASSESSOR}{kind}", field
        if is_a(kind, EXPERIMENT) and root == SUBJECT:
            return f"{OF_SUBJECT}{kind}", field
        for prefix, level in _OWN_TABLES.items():
            if field.startswith(prefix):
                return level, field[len(prefix) :]
        if kind == SUBJECT.lower() and root != SUBJECT:
            return "subject", field
        if is_a(kind, IMAGE_SESSION) and not is_a(root, SUBJECT_ASSESSOR) and not is_a(root, kind):
            return "session", field
        if kind == IMAGE_SESSION.lower() and not is_a(root, IMAGE_SESSION):
            return "session", field
        return "object", field

    def _is_general(self, kind: str, level: str) -> bool:
        """Return whether all objects of a level have a type, so that their types need no check."""
        base = {"scan": self._scan_root, "object": self._root}.get(level)
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
    """Return the test of a filter.

    A comma means "or". In texts, ``*`` and ``%`` match anything. ``lo-hi`` is a range of numbers or dates.

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
        return _in_range(text, number, r"(-?[\d.]+)-(-?[\d.]+)")
    if kind in _DATES:
        return _in_range(text, moment, r"(.+?\d{2,4})-(\d{1,2}/\d{1,2}/\d{4}.*|\d{4}-\d{2}-\d{2}.*)")
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


def number(text: str) -> float | None:
    """Return the number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def moment(text: str) -> float | None:
    """Return a date or timestamp as a number. Like XNAT: ``MM/dd/yyyy`` or ``yyyy-MM-dd``, with or without a time."""
    iso = re.sub(r"^(\d{1,2})/(\d{1,2})/(\d{4})", lambda us: f"{us[3]}-{us[1]:0>2}-{us[2]:0>2}", text)
    try:
        return (datetime.fromisoformat(iso) - datetime(1, 1, 1)).total_seconds()
    except (ValueError, TypeError):
        return None
