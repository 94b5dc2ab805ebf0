"""Lists of experiments, joined with columns of their scans, resources and shares (ExperimentListResource)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.columns import (
    ASSESSOR,
    EXPERIMENT_SHORTCUTS,
    Column,
    ColumnNames,
    Level,
    Test,
    Values,
)
from monailabel_xnat.sandbox.archive.datatypes import ABSTRACT, IMAGE_ASSESSOR, SUBJECT_ASSESSOR
from monailabel_xnat.sandbox.http.tables import Page, Row, Table

_DEFAULTS = ("ID", "project", "date", "xsiType", "label", "insert_date")
_OF_SUBJECT = ("subject_ID", "subject_label")
_OF_SESSION = ("session_ID", "session_label")
_RESOURCE_KINDS = frozenset(("experiment", "out"))
_NOTHING: list[Values] = [{}]
# Levels whose values stand in a list in the object itself, and the name of that list.
_OWN_LISTS = {"own field": "fields/field", "own step": "provenance/processStep"}
# This is json.loads without the checks of its argument. A list decodes tens of thousands of texts.
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Scope:
    """The part of the archive that the path of a list names; `root` is the default type of the experiments."""

    root: str
    project: str = ""
    subject: str = ""
    session: str = ""


class Experiments:
    """Rows of experiments, joined with columns of the objects below them. There is a row for each combination.

    Parameters
    ----------
    archive
        The archive to read.
    root
        The type of the experiments.
    columns, filters
        The columns to show, and the tests that a row must pass.
    readable
        IDs of the projects whose data the user may read; None for everything in the scope.
    scope
        The part of the archive that the list covers.
    primary
        The project that owns the experiments; empty for any project.
    """

    def __init__(
        self,
        archive: Archive,
        root: str,
        columns: Sequence[Column],
        filters: Sequence[tuple[Column, Test]],
        readable: set[str] | None,
        scope: Scope,
        primary: str = "",
    ) -> None:
        self._archive = archive
        self._root = root
        self._readable = readable
        self._scope = scope
        self._primary = primary
        # If the label is asked for, XNAT shows the names that an experiment has in the list's project, not those in the
        # owner's project. XNAT does so only if the root is the root of the path or a concrete type.
        is_renamed = root == scope.root or root not in ABSTRACT
        self._shows_shares = is_renamed and any(column.key == "label" for column in columns)
        self._levels: dict[str, Level] = defaultdict(Level)
        for column in columns:
            self._levels[column.level].columns.append(column)
        for column, test in filters:
            self._levels[column.level].filters.append((column, test))

    def rows(self) -> Iterator[tuple[Any, Row, bool]]:
        """Yield each experiment as in the database, with the cells of a row, and whether the user may read it."""
        clause, arguments = self._clause()
        shares = _grouped(self._archive, _SHARES, (), "item")
        branches = self._branches(clause, arguments)
        share_level = self._levels["share"]
        lists = [(self._levels[name], key) for name, key in _OWN_LISTS.items() if self._levels[name].is_used]
        for row in self._archive.store.all(_EXPERIMENTS + _JOINS + clause + " ORDER BY experiments.id", arguments):
            into = shares.get(row["id"], [])
            head = self._head(row, into)
            if head is None:
                continue
            readable = self._may_read(row["project"], into)
            tails = [branch.get(row["id"]) or empty for branch, empty in branches]
            if share_level.is_used:
                tails.append(share_level.take_all(into or _NOTHING))
            tails += [level.take_all(own_fields(row["fields"], key) or _NOTHING) for level, key in lists]
            head["URI"] = f"/data/experiments/{row['id']}"
            for cells in product(head, tails):
                yield row, cells, readable

    def empty(self) -> list[Row]:
        """Return the row of empty cells that a left join makes, unless a filter removes that row."""
        return list(product({}, [level.empty() for level in self._levels.values()]))

    def _may_read(self, project: str, shares: list[Values]) -> bool:
        if self._readable is None or project in self._readable:
            return True
        return any(share["project"] in self._readable for share in shares)

    def _head(self, row: Any, shares: list[Values]) -> Row | None:
        """Return the cells of an experiment, its subject and its session, or None if a filter removes it."""
        values = experiment_values(row)
        cells = self._levels["object"].take(values)
        if cells is not None and self._levels["subject"].is_used:
            found = self._levels["subject"].take(_prefixed(row, "s_"))
            cells = None if found is None else {**cells, **found}
        if cells is not None and self._levels["session"].is_used:
            session = _prefixed(row, "e_") if row["session_id"] else values
            found = self._levels["session"].take(session)
            cells = None if found is None else {**cells, **found}
        if cells is not None and self._shows_shares:
            self._rename(cells, row, shares)
        return cells

    def _rename(self, cells: Row, row: Any, shares: list[Values]) -> None:
        """Replace the owner's names with those in the project of the list, as XNAT does after the query."""
        here = next((share["label"] for share in shares if share["project"] == self._scope.project), "")
        names = {"label": here, "project": self._scope.project, "subject_label": row["s_shared_label"]}
        for key, name in names.items() if here else ():
            if key in cells and name:
                cells[key] = name

    def _clause(self) -> tuple[str, tuple[str, ...]]:
        """Return the SQL condition that selects the experiments, and its arguments."""
        kinds = self._archive.types.family(self._root) or [self._root]
        scope = self._scope
        conditions = ["experiments.xsi_type IN (" + ", ".join("?" * len(kinds)) + ")"]
        arguments = [scope.project, *kinds]
        for condition, value in (
            ("experiments.subject_id = ?", scope.subject),
            ("experiments.session_id = ?", scope.session),
            ("experiments.project = ?", "" if set(self._primary) & set(",*%") else self._primary),
            (_IN_PROJECT, scope.project),
        ):
            if value:
                conditions.append(condition)
                arguments += [value] * condition.count("?")
        return " WHERE " + " AND ".join(conditions), tuple(arguments)

    def _branches(self, clause: str, arguments: tuple[str, ...]) -> list[tuple[dict[str, list[Row]], list[Row]]]:
        """Return the cells of the objects below each experiment, by its ID, and those for one without such objects."""
        found = []
        if self._levels["scan"].is_used or self._levels["scan file"].is_used:
            found.append(self._scans(clause, arguments))
        own = self._levels["own file"]
        if own.is_used:
            selected = [row for row in self._archive.store.all(_RESOURCES) if row["kind"] in _RESOURCE_KINDS]
            found.append((_cells(own, selected, "parent", resource_values), own.empty()))
        for name, level in self._levels.items():
            if name.startswith(ASSESSOR):
                found.append((self._assessors(name[len(ASSESSOR) :], level), level.empty()))
        return found

    def _assessors(self, kind: str, level: Level) -> dict[str, list[Row]]:
        kinds = self._archive.types.family(kind)
        sql = f"{_ASSESSORS} ({', '.join('?' * len(kinds))}) ORDER BY id"
        return _cells(level, self._archive.store.all(sql, tuple(kinds)), "session_id", experiment_values)

    def _scans(self, clause: str, arguments: tuple[str, ...]) -> tuple[dict[str, list[Row]], list[Row]]:
        scan_level, file_level = self._levels["scan"], self._levels["scan file"]
        files: dict[str, list[Row]] = {}
        no_files = file_level.empty()
        if file_level.is_used:
            selected = [row for row in self._archive.store.all(_RESOURCES) if row["kind"] == "scan"]
            files = _cells(file_level, selected, "parent", resource_values)
        found: dict[str, list[Row]] = {}
        for row in self._archive.store.all(_SCANS + _JOINS + clause + " ORDER BY scans.pk", arguments):
            rows = found.setdefault(row["experiment"], [])
            cells = scan_level.take(scan_values(row))
            if cells is None:
                continue
            if not file_level.is_used:
                rows.append(cells)
            else:
                rows += [{**cells, **more} for more in files.get(str(row["pk"]), no_files)]
        return found, list(product({}, [scan_level.empty(), no_files]))


def experiment_table(archive: Archive, query: Mapping[str, str], readable: set[str] | None, scope: Scope) -> Table:
    """Return the answer to one request for a list of experiments.

    Parameters
    ----------
    archive
        The archive to read.
    query
        ``xsiType``, ``columns``, filters, ``limit`` and ``offset``, as for XNAT.
    readable, scope
        As for `Experiments`. The path defines `scope`.
    """
    types = archive.types
    root = ColumnNames(types, EXPERIMENT_SHORTCUTS, scope.root).root_of(query)
    names = ColumnNames(types, EXPERIMENT_SHORTCUTS, root)
    if "fields" in query:
        return Table(("key", "xpath"), names.shortcuts())
    defaults = [*_DEFAULTS]
    if types.is_a(root, IMAGE_ASSESSOR):
        defaults += _OF_SESSION
    elif "xsiType" in query and types.is_a(root, SUBJECT_ASSESSOR):
        defaults += _OF_SUBJECT
    added = ["xsiType", "project"] if root in ABSTRACT else []
    asked = [*names.asked(query.get("columns", ""), tuple(defaults)), *names.columns([*added, f"{root}/ID"])]
    columns = list({column.key: column for column in asked}.values())
    found = Experiments(archive, root, columns, names.filters(query), readable, scope, query.get("project", ""))
    rows = ((cells, is_readable) for _, cells, is_readable in found.rows())
    page = Page.of(query)
    if root in ABSTRACT:
        # XNAT first cuts the page. Then it removes from an abstract list what the user may not read.
        chosen = [row for row, is_readable in page.cut(rows) if is_readable]
    else:
        chosen = page.cut(row for row, is_readable in rows if is_readable)
    return Table([*(column.key for column in columns), "URI"], chosen, "Matching experiments", is_page=page.is_on)


_JOINS = (
    " LEFT JOIN shares AS here ON here.item = experiments.id AND here.project = ?"
    " LEFT JOIN subjects ON subjects.id = experiments.subject_id"
    " LEFT JOIN shares AS subject_here ON subject_here.item = subjects.id AND subject_here.project = here.project"
    " LEFT JOIN experiments AS sessions ON sessions.id = experiments.session_id"
)
_EXPERIMENTS = (
    "SELECT experiments.*, subjects.id AS s_id, subjects.label AS s_label, subjects.project AS s_project,"
    " subjects.fields AS s_fields, subject_here.label AS s_shared_label, sessions.id AS e_id,"
    " sessions.label AS e_label, sessions.project AS e_project, sessions.fields AS e_fields FROM experiments"
)
_SCANS = "SELECT scans.* FROM scans JOIN experiments ON experiments.id = scans.experiment"
_RESOURCES = "SELECT * FROM resources ORDER BY id"
_ASSESSORS = "SELECT * FROM experiments WHERE session_id IS NOT NULL AND xsi_type IN"
_SHARES = "SELECT item, project, label FROM shares ORDER BY project"
_IN_PROJECT = "(experiments.project = ? OR here.project IS NOT NULL)"


def object_values(row: Any, **more: str) -> dict[str, str]:
    """Return the values of an object by lower-case field path: its schema's, those of all objects, and `more`."""
    values = flattened(row["fields"])
    values["id"] = row["id"]
    values["insert_date"] = row["insert_date"]
    values["insert_user"] = row["insert_user"]
    values["last_modified"] = row["last_modified"]
    values.update(more)
    return values


def scan_values(row: Any) -> dict[str, str]:
    """Return the values of a scan by lower-case field path."""
    own = {"pk": str(row["pk"]), "xsitype": row["xsi_type"], "image_session_id": row["experiment"]}
    return object_values(row, **own)


def experiment_values(row: Any) -> dict[str, str]:
    """Return the values of a session or assessor by lower-case field path."""
    own = {"label": row["label"], "project": row["project"], "xsitype": row["xsi_type"]}
    return object_values(row, subject_id=row["subject_id"] or "", imagesession_id=row["session_id"] or "", **own)


def own_fields(fields: str, key: str = "fields/field") -> list[Values]:
    """Return the entries of a list in an object: custom variables, each with ``name`` and ``field``, or steps."""
    entries = _decode(fields)[0].get(key, ())
    return [{key: str(value) for key, value in entry.items()} for entry in entries]


def flattened(fields: str) -> dict[str, str]:
    """Return stored fields by lower-case path. Of lists, only entries with a name are included."""
    values: dict[str, str] = {}
    for key, value in _decode(fields)[0].items():
        if type(value) is str:
            values[key.lower()] = value
        elif isinstance(value, list):
            for entry in value:
                for leaf in entry if "name" in entry else ():
                    values[f"{key}[name={entry['name']}]/{leaf}".lower()] = str(entry[leaf])
        elif value is not None:
            values[key.lower()] = str(value)
    return values


def resource_values(row: Any) -> dict[str, str]:
    """Return the values of a resource by column of ``xnat:abstractResource``."""
    names = ("label", "format", "content", "description", "file_count", "file_size")
    found = {name: "" if row[name] is None else str(row[name]) for name in names}
    return {**found, "xnat_abstractresource_id": str(row["id"])}


def _prefixed(row: Any, prefix: str) -> dict[str, str]:
    if row[f"{prefix}id"] is None:
        return {}
    names = ("id", "label", "project")
    own = {name: row[f"{prefix}{name}"] for name in names}
    return {**flattened(row[f"{prefix}fields"]), **own}


def _grouped(archive: Archive, sql: str, arguments: tuple[str, ...], key: str) -> dict[str, list[Values]]:
    found: dict[str, list[Values]] = {}
    for row in archive.store.all(sql, arguments):
        found.setdefault(row[key], []).append(dict(row))
    return found


def _cells(level: Level, rows: Iterable[Any], key: str, values: Any) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        listed = found.setdefault(row[key], [])
        cells = level.take(values(row))
        if cells is not None:
            listed.append(cells)
    return found


def product(head: Row, tails: Sequence[list[Row]]) -> Iterable[Row]:
    """Return every combination of a head with one row of each tail."""
    rows = [head]
    for tail in tails:
        rows = [{**row, **cells} for row in rows for cells in tail]
    return rows
