"""XNAT's search, as clients use it: they send an XML document with fields and criteria (SearchResource)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from monailabel_xnat.sandbox.archive.archive import PROJECTS_SQL
from monailabel_xnat.sandbox.archive.columns import make_test, moment, number
from monailabel_xnat.sandbox.archive.datatypes import (
    EXPERIMENT,
    IMAGE_SCAN,
    PROJECT,
    ROI_COLLECTION,
    SUBJECT,
    DataTypes,
)
from monailabel_xnat.sandbox.archive.listings import experiment_values, object_values, scan_values
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, form_files, parsed_xml
from monailabel_xnat.sandbox.http.router import Handlers, Visit
from monailabel_xnat.sandbox.http.tables import Row, Table

_SPACE = "{http://nrg.wustl.edu/security}"


def _lower(*names: str, below: str = "") -> dict[str, str]:
    """Return the paths of display fields that have the name of their path, in capital letters."""
    return {name: f"{below}{name.lower()}" for name in names}


# Display fields of XNAT's data types, with the paths that they show. A type's own fields win over those of all types.
_OF_ALL = _lower("ID", "PROJECT", "LABEL", "INSERT_DATE", "INSERT_USER")
_DISPLAYED = {
    PROJECT: {
        **_lower("NAME", "DESCRIPTION", "SECONDARY_ID", "KEYWORDS", "PI"),
        "PROJECT_ACCESS": "accessibility",
        "PROJECT_OWNERS": "owners",
        **{f"PROJ_{name}_COUNT": f"{name.lower()}_count" for name in ("MR", "CT", "PET", "UT")},
    },
    SUBJECT: {
        "SUBJECTID": "id",
        "SUBJECT_ID": "id",
        "SUBJECT_LABEL": "label",
        "SUB_GROUP": "group",
        "SRC": "src",
        **_lower("AGE", "DOB", "YOB", "GENDER", "HANDEDNESS", "SES", below="demographics/"),
        **_lower("HEIGHT", "WEIGHT", "RACE", "ETHNICITY", below="demographics/"),
        "GENDER_TEXT": "demographics/gender",
        "HANDEDNESS_TEXT": "demographics/handedness",
        "EDUC": "demographics/education",
    },
    EXPERIMENT: {
        "SESSION_ID": "id",
        "EXPT_ID": "id",
        "TRACER_STARTTIME": "tracer/starttime",
        **_lower("SUBJECT_ID", "SUBJECT_LABEL", "DATE", "TIME", "NOTE", "UID", "MODALITY", "SCANNER", "OPERATOR"),
        **_lower("SESSION_TYPE"),
    },
    IMAGE_SCAN: {
        **_lower("TYPE", "QUALITY", "SERIES_DESCRIPTION", "UID", "FRAMES", "STARTTIME"),
        "SCAN_NOTE": "note",
        "SESSION_ID": "image_session_id",
    },
}
# The columns of a search whose document asks for no field.
_DEFAULTS = {
    PROJECT: ("ID",),
    SUBJECT: ("SUBJECTID", "PROJECT"),
    EXPERIMENT: ("SESSION_ID", "PROJECT", "SUBJECT_ID"),
    IMAGE_SCAN: ("ID", "PROJECT"),
}
_KINDS = {"int": "integer", "integer": "integer", "float": "float", "double": "float", "date": "date"}
_FIELD_MAP = "_FIELD_MAP="

Values = dict[str, str]
Experiments = dict[str, tuple[str, Values]]
"""Type and values of experiments, by ID."""
Test = Callable[["_Found"], bool]


def display_fields(types: DataTypes, kind: str) -> dict[str, str]:
    """Return the paths that the display fields of a data type show, by the name of the field."""
    base = next((base for base in _DISPLAYED if types.is_a(kind, base)), "")
    return {**_DISPLAYED.get(base, {}), **_OF_ALL}


@dataclass(frozen=True)
class _Field:
    """A column of a search: the display field `name` of `element`, which shows the value at `path`."""

    element: str
    name: str
    path: str
    header: str


@dataclass
class _Found:
    """One object and the objects related to it: the values of each, by the base of its type."""

    values: Values
    around: list[tuple[str, Values]] = field(default_factory=list)


class Search:
    """Runs search documents, for the user of one request."""

    def __init__(self, visit: Visit) -> None:
        self._archive = visit.archive
        self._types = visit.archive.types
        self._accounts = visit.accounts
        self._may = visit.may

    def run(self, document: bytes) -> Table:
        """Return the table that a document asks for.

        Raises
        ------
        HTTPError
            422 if this is not a search document, or its type cannot be searched.
        """
        root = _parsed(document)
        kind = self._types.canonical(_text(root, "root_element_name")) or ""
        base = next((base for base in _DISPLAYED if kind and self._types.is_a(kind, base)), "")
        if not base:
            raise HTTPError(422, f"Unknown element: {_text(root, 'root_element_name')}")
        fields = [self._field(item) for item in sorted(root.iter(f"{_SPACE}search_field"), key=_sequence)]
        fields = fields or [_Field(kind, name, self._path(kind, name), name) for name in _DEFAULTS[base]]
        columns = {self._key(kind, shown): shown for shown in fields}
        where = root.find(f"{_SPACE}search_where")
        test = self._criteria(kind, where) if where is not None else _anything
        rows = []
        for found in self._objects(kind, base):
            if test(found):
                row: Row = {key: self._shown(kind, found, shown) for key, shown in columns.items()}
                rows.append({**row, "quarantine_status": "active"})
        described = [*(self._described(key, shown) for key, shown in columns.items()), {"key": "quarantine_status"}]
        return Table([*columns, "quarantine_status"], rows, columns=described, extra={"rootElementName": kind})

    # Fields

    def _field(self, node: ElementTree.Element) -> _Field:
        """Return the column that a part of the document asks for, by a display field or by a path of the schema.

        A path stands for the display field that shows it. Where there is none, XNAT makes one: XNAT_COL_, the type,
        and the path in capital letters. A label always has such a one, because its display field knows of shares.
        """
        element, name = _text(node, "element_name"), _text(node, "field_ID")
        path = self._path(element, name)
        if ":" in name.partition("/")[0] and _FIELD_MAP not in name:
            known = (field for field, shown in display_fields(self._types, element).items() if shown == path != "label")
            space, _, local = element.partition(":")
            name = next(known, f"{space}_COL_{_plain(local + path)}".upper())
        return _Field(element, name, path, _text(node, "header") or name)

    def _described(self, key: str, shown: _Field) -> dict[str, str]:
        kind = _KINDS.get(self._types.simple_type(shown.element, shown.path), "string")
        path = f"{shown.element}.{shown.name.partition('=')[0]}"
        element = {"element_name": shown.element, "header": shown.header, "id": shown.name}
        return {"key": key, "type": kind, "xPATH": path, **element}

    def _key(self, kind: str, shown: _Field) -> str:
        """Return the key of a field in the answer. For fields of the type itself, it is only the name."""
        plain, prefix = (re.sub(r"\W", "_", text.lower()) for text in (shown.name, shown.element))
        return plain if shown.element.lower() == kind.lower() else f"{prefix}_{plain}"

    def _path(self, element: str, name: str) -> str:
        """Return the path that a display field shows, or that a schema path names."""
        path = name.partition("/")[2] if ":" in name.partition("/")[0] else name
        if _FIELD_MAP in path:
            return f"fields/field[name={path.partition(_FIELD_MAP)[2].lower()}]/field"
        space, _, local = element.lower().partition(":")
        made = f"{space}_col_{local}"
        if path.lower().startswith(made):
            paths = ("label", *(known for item in self._types.lineage(element) for known in item.fields))
            return next((known for known in paths if _plain(known) == path.lower()[len(made) :]), path.lower())
        return display_fields(self._types, element).get(path.upper(), path.lower()) if "/" not in path else path.lower()

    def _values(self, kind: str, found: _Found, element: str) -> list[Values]:
        if self._types.is_a(kind, element) or self._types.is_a(element, kind):
            return [found.values]
        wanted = set(map(str.lower, self._types.family(element)))
        return [values for name, values in found.around if name.lower() in wanted]

    def _shown(self, kind: str, found: _Found, shown: _Field) -> str:
        # If there are several values, XNAT shows the latest.
        values = self._values(kind, found, shown.element)
        return values[-1].get(shown.path, "") if values else ""

    # Criteria

    def _criteria(self, kind: str, node: ElementTree.Element) -> Test:
        tests = [
            self._criterion(kind, child) if child.tag == f"{_SPACE}criteria" else self._criteria(kind, child)
            for child in node
        ]
        combined = any if node.get("method", "AND").upper() == "OR" else all
        return lambda found: combined(test(found) for test in tests) if tests else True

    def _criterion(self, kind: str, node: ElementTree.Element) -> Test:
        # A display field is written as xnat:subjectData.SUB_GROUP, a field of the schema as xnat:subjectData/group.
        element, _, name = re.sub(r"\.", "/", _text(node, "schema_field"), count=1).partition("/")
        path = self._path(element, name)
        if self._types.canonical(element) is None:
            raise HTTPError(422, f"Unknown element: {element}")
        kind_of_test = _text(node, "comparison_type").strip().upper() or "="
        # An object without a value differs from every value of a display field, but from no value of a schema field.
        shows = name in display_fields(self._types, element)
        test = _comparison(kind_of_test, _text(node, "value"), is_empty_other=shows)
        return lambda found: any(test(values.get(path, "")) for values in self._values(kind, found, element) or [{}])

    # Objects

    def _objects(self, kind: str, base: str) -> Iterator[_Found]:
        """Yield the objects of a type that the user may read, with the objects around them and inside them."""
        if base == PROJECT:
            return self._projects()
        readable = self._may.readable()
        experiments, subjects = self._experiments(readable), self._subjects(readable)
        kinds = {name.lower() for name in self._types.family(kind)}
        if base == SUBJECT:
            return self._of_subjects(subjects, experiments)
        if base == EXPERIMENT:
            chosen = (values for xsi_type, values in experiments.values() if xsi_type.lower() in kinds)
            return (self._with_subject(values, subjects) for values in chosen)
        return self._scans(kinds, experiments, subjects)

    def _projects(self) -> Iterator[_Found]:
        for row in self._archive.store.all(PROJECTS_SQL):
            if self._may.may_see_id(row["id"]):
                own = {"accessibility": row["accessibility"], "owners": self._owners(row["id"])}
                yield _Found(object_values(row, **own, **self._counts(row["id"])))

    def _owners(self, project: str) -> str:
        logins = [login for login, role in self._archive.members(project) if role == "owner"]
        users = [user for user in map(self._accounts.get, logins) if user]
        return " <br/> ".join(f"{user.firstname} {user.lastname}" for user in users)

    def _counts(self, project: str) -> dict[str, str]:
        sql = "SELECT xsi_type, COUNT(*) AS number FROM experiments WHERE project = ? GROUP BY xsi_type"
        found = {row["xsi_type"]: str(row["number"]) for row in self._archive.store.all(sql, (project,))}
        return {f"{name}_count": found.get(f"xnat:{name}SessionData", "") for name in ("mr", "ct", "pet")}

    def _of_subjects(self, subjects: dict[str, Values], experiments: Experiments) -> Iterator[_Found]:
        of_subject: dict[str, list[tuple[str, Values]]] = {}
        for xsi_type, values in experiments.values():
            of_subject.setdefault(values["subject_id"], []).append((xsi_type, values))
        for subject, values in subjects.items():
            yield _Found(values, [*self._project(values), *of_subject.get(subject, ())])

    def _scans(self, kinds: set[str], experiments: Experiments, subjects: dict[str, Values]) -> Iterator[_Found]:
        for row in self._archive.store.all("SELECT * FROM scans ORDER BY pk"):
            session = experiments.get(row["experiment"])
            if session and row["xsi_type"].lower() in kinds:
                found = self._with_subject(session[1], subjects)
                yield _Found({**scan_values(row), "project": session[1]["project"]}, [session, *found.around])

    def _subjects(self, readable: set[str]) -> dict[str, Values]:
        return {
            row["id"]: object_values(row, label=row["label"], project=row["project"])
            for row in self._archive.store.all("SELECT * FROM subjects ORDER BY id")
            if row["project"] in readable
        }

    def _experiments(self, readable: set[str]) -> Experiments:
        sql = (
            "SELECT experiments.*, subjects.label AS subject_label FROM experiments"
            " LEFT JOIN subjects ON subjects.id = experiments.subject_id ORDER BY experiments.id"
        )
        found = {}
        for row in self._archive.store.all(sql):
            if row["project"] in readable:
                values = {**experiment_values(row), "subject_label": row["subject_label"] or ""}
                found[row["id"]] = (row["xsi_type"], values)
        return found

    def _with_subject(self, values: Values, subjects: dict[str, Values]) -> _Found:
        subject = subjects.get(values["subject_id"])
        around = [(SUBJECT, subject)] if subject else []
        return _Found(values, [*self._project(values), *around])

    @staticmethod
    def _project(values: Values) -> list[tuple[str, Values]]:
        return [(PROJECT, {"id": values["project"], "name": values["project"]})]


# The data types that are set up on the site, and the name of one object of each.
_SET_UP = {
    PROJECT: "Project",
    SUBJECT: "Subject",
    "xnat:mrSessionData": "MR Session",
    "xnat:ctSessionData": "CT Session",
    "xnat:petSessionData": "PET Session",
    "xnat:petmrSessionData": "PET MR Session",
    "xnat:crSessionData": "CR Session",
    "xnat:dxSessionData": "DX Session",
    "xnat:mgSessionData": "MG Session",
    "xnat:usSessionData": "US Session",
    "xnat:xaSessionData": "XA Session",
    "xnat:nmSessionData": "NM Session",
    "xnat:otherDicomSessionData": "Other DICOM Session",
    "xnat:qcManualAssessorData": "Manual QC",
    "xnat:qcAssessmentData": "Auto QC",
    ROI_COLLECTION: "ROI Collection",
}


class SearchCalls(Handlers):
    """The handlers, for the user of one request."""

    def elements(self, request: Request) -> Reply:
        """Answer ``GET /data/search/elements`` with the data types that are set up on the site."""
        counts = self._archive.counts()
        rows = []
        for name, singular in _SET_UP.items():
            count = counts.get(name, 0)
            if self._archive.types.canonical(name) and (count or request.query.get("used") != "true"):
                names = {"SINGULAR": singular, "PLURAL": f"{singular}s", "SECURED": "true", "COUNT": str(count)}
                rows.append({"ELEMENT_NAME": name, **names})
        columns = ("ELEMENT_NAME", "SINGULAR", "PLURAL", "SECURED", "COUNT")
        return Table(columns, rows, "Data-Types").answer(request)

    def fields(self, request: Request, name: str) -> Reply:
        """Answer ``GET /data/search/elements/TYPE`` with the display fields of a type."""
        kind = self._archive.types.canonical(name)
        if kind is None:
            raise HTTPError(404)
        rows = [
            {
                "FIELD_ID": field,
                "HEADER": field.replace("_", " ").capitalize(),
                "SUMMARY": f"{kind}/{path}",
                "TYPE": "string",
                "REQUIRES_VALUE": "false",
                "DESC": "",
                "ELEMENT_NAME": kind,
                "SRC": "0",
            }
            for field, path in display_fields(self._archive.types, kind).items()
        ]
        return Table(list(rows[0]), rows, "Search Fields").answer(request)

    def run(self, request: Request) -> Reply:
        """Answer ``POST /data/search``."""
        with form_files(request) as files:
            table = Search(self._visit).run(files[0][1].read())
        return table.answer(request)


def _anything(found: _Found) -> bool:
    return True


def _comparison(kind: str, value: str, *, is_empty_other: bool = True) -> Callable[[str], bool]:
    """Return the test of a criterion; `is_empty_other`: whether no value is another value than any."""
    if kind == "IS NULL":
        return lambda text: not text
    if kind == "IS NOT NULL":
        return bool
    if kind in ("LIKE", "NOT LIKE"):
        like = make_test("string", value if set(value) & set("%*") else f"%{value}%")
        return like if kind == "LIKE" else lambda text: not like(text)
    if kind == "IN":
        names = [part.strip().strip("'\"") for part in value.strip("()").split(",")]
        return lambda text: text in names
    if kind == "BETWEEN":
        low, _, high = value.partition(" AND ")
        ends = _comparison(">=", low.strip()), _comparison("<=", high.strip())
        return lambda text: all(end(text) for end in ends)
    orders: dict[str, Callable[[Any, Any], bool]] = {
        "=": lambda one, other: bool(one == other),
        "!=": lambda one, other: bool(one != other),
        "<": lambda one, other: bool(one < other),
        "<=": lambda one, other: bool(one <= other),
        ">": lambda one, other: bool(one > other),
        ">=": lambda one, other: bool(one >= other),
    }
    if kind not in orders:
        raise HTTPError(422, f"Unknown comparison: {kind}")
    order = orders[kind]

    def test(text: str) -> bool:
        for read in (number, moment):
            one, other = read(text), read(value)
            if one is not None and other is not None:
                return order(one, other)
        return (bool(text) or kind == "=" or (kind == "!=" and is_empty_other)) and order(text, value)

    return test


def _parsed(document: bytes) -> ElementTree.Element:
    root = parsed_xml(document, 422)
    if root.tag.rpartition("}")[2] not in ("bundle", "search", "stored_search"):
        raise HTTPError(422, "Not a search document")
    return root


def _plain(path: str) -> str:
    """Return a path without what is neither letter nor digit nor underscore."""
    return re.sub(r"\W", "", path)


def _sequence(node: ElementTree.Element) -> float:
    return number(_text(node, "sequence")) or 0.0


def _text(node: ElementTree.Element, name: str) -> str:
    return (node.findtext(f"{_SPACE}{name}") or "").strip()
