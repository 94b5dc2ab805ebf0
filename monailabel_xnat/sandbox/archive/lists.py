"""Lists of projects, subjects and scans (ProjectListResource, SubjectListResource, ScanList)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from monailabel_xnat.sandbox.archive.archive import PROJECTS_SQL, ROLES
from monailabel_xnat.sandbox.archive.columns import (
    ASSESSOR,
    OF_SUBJECT,
    PROJECT_SHORTCUTS,
    SCAN_SHORTCUTS,
    SUBJECT_SHORTCUTS,
    Column,
    ColumnNames,
    Level,
    Test,
)
from monailabel_xnat.sandbox.archive.datatypes import IMAGE_SCAN, IMAGE_SESSION, PROJECT, SUBJECT
from monailabel_xnat.sandbox.archive.listings import (
    Experiments,
    Scope,
    experiment_values,
    object_values,
    own_fields,
    product,
    resource_values,
    scan_values,
)
from monailabel_xnat.sandbox.archive.model import Experiment, Project
from monailabel_xnat.sandbox.http.messages import HTTPError
from monailabel_xnat.sandbox.http.router import Handlers
from monailabel_xnat.sandbox.http.tables import Page, Row, Table

_PROJECT_DEFAULTS = ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname")
_SUBJECT_DEFAULTS = ("ID", "project", "label", "insert_date", "insert_user")
_SCAN_DEFAULTS = ("xnat_imagescandata_id", "ID", "type", "quality", "xsiType", "note", "series_description")
_ALIAS = "aliases/alias/alias"
_ROLE_COLUMNS = (
    *("id", "secondary_id", "name", "description", "pi", "project_invs", "project_access"),
    *("insert_date", "insert_user"),
)
# If the query has one of these parameters, XNAT answers from another query, with other columns.
_DISPLAY_QUERIES = (*ROLES, "accessible", "data", "prearc_code", "activeSince", "recent", "favorite", "admin", "users")


class Lists(Handlers):
    """The tables, for the user of one request."""

    # Projects

    def projects(self, query: Mapping[str, str]) -> Table:
        """Return the projects that the user can see."""
        if "permissions" in query:
            return self._projects_by_permission(query)
        if _is_true(query.get("creatableTypes")):
            return self._projects_to_fill()
        if any(name in query for name in _DISPLAY_QUERIES):
            return self._projects_by_role(query)
        names = ColumnNames(self._archive.types, PROJECT_SHORTCUTS, PROJECT)
        if "fields" in query:
            return Table(("key", "xpath"), names.shortcuts())
        columns = names.asked(query.get("columns", ""), _PROJECT_DEFAULTS)
        level = Level(names.columns([*(column.key for column in columns), "ID"]), names.filters(query))
        is_listed = {"edit": self._may.may_edit, "delete": self._may.may_delete}.get(
            query.get("restrict", ""), self._may.may_see_id
        )
        rows = []
        is_by_alias = any(
            column.path == _ALIAS for column in [*level.columns, *(column for column, _ in level.filters)]
        )
        for row in self._archive.store.all(PROJECTS_SQL):
            if is_listed(row["id"]):
                # The list has a row for each alias, because the table of aliases is joined.
                aliases = (is_by_alias and json.loads(row["fields"]).get("aliases/alias")) or [{"alias": ""}]
                found = level.take_all(object_values(row, **{_ALIAS: each["alias"]}) for each in aliases)
                rows += [{**cells, "URI": f"/data/projects/{row['id']}"} for cells in found]
        return Table([*(column.key for column in level.columns), "URI"], rows, "Projects")

    def _projects_by_permission(self, query: Mapping[str, str]) -> Table:
        """Return the projects in which the user has a permission; without ``dataType``, that of adding sessions."""
        tests = {
            "read": self._may.may_read,
            "create": self._may.may_edit,
            "edit": self._may.may_edit,
            "delete": self._may.may_delete,
            "activate": self._may.may_delete,
        }
        if query["permissions"] not in tests:
            raise HTTPError(500, f"You must specify one of the following values: {', '.join(tests)}")
        is_listed = tests[query["permissions"]] if query.get("dataType") else self._may.may_edit
        return self._projects_in_short(("id", "secondary_id"), is_listed)

    def _projects_to_fill(self) -> Table:
        return self._projects_in_short(("id", "secondary_id", "name", "description"), self._may.may_edit)

    def _projects_in_short(self, names: Sequence[str], is_listed: Callable[[str], bool]) -> Table:
        found = [project for project in self._archive.projects() if is_listed(project.id)]
        rows = [self._role_row(project) for project in found]
        return Table(names, sorted(({name: row[name] for name in names} for row in rows), key=lambda row: row["id"]))

    def _projects_by_role(self, query: Mapping[str, str]) -> Table:
        rows = [self._role_row(project) for project in self._archive.projects() if self._is_asked(project, query)]
        number = self._may.user.number
        return Table([*_ROLE_COLUMNS, f"user_role_{number}", f"last_accessed_{number}", "URI"], rows, "Projects")

    def _is_asked(self, project: Project, query: Mapping[str, str]) -> bool:
        granted = self._may.granted_role(project.id)
        wanted = {name for name in ROLES if _is_true(query.get(name))}
        if wanted and granted not in wanted:
            return False
        if query.get("data") == "writable" and not self._may.may_edit(project.id):
            return False
        if query.get("data") == "readable" and not self._may.may_read(project.id):
            return False
        if query.get("accessible", "").lower() == "false" and granted:
            return False
        return self._may.may_see(project)

    def _role_row(self, project: Project) -> Row:
        fields, number = project.fields, self._may.user.number
        names = ("PI/firstname", "PI/lastname")
        return {
            "id": project.id,
            "secondary_id": str(fields.get("secondary_ID", "")),
            "name": str(fields.get("name", "")),
            "description": str(fields.get("description", "")),
            "pi": " ".join(str(fields[name]) for name in names if fields.get(name)),
            "project_invs": "",
            "project_access": project.accessibility,
            "insert_date": project.insert_date,
            "insert_user": project.insert_user,
            f"user_role_{number}": _plural(self._may.granted_role(project.id)),
            f"last_accessed_{number}": "",
            "URI": f"/data/projects/{project.id}",
        }

    # Subjects

    def subjects(self, query: Mapping[str, str], project: str = "") -> Table:
        """Return the subjects of the site, or of a project, also those shared into it."""
        names = ColumnNames(self._archive.types, SUBJECT_SHORTCUTS, SUBJECT)
        if "fields" in query:
            return Table(("key", "xpath"), names.shortcuts())
        asked = names.asked(query.get("columns", ""), _SUBJECT_DEFAULTS)
        columns = names.columns([*(column.key for column in asked), "ID"])
        filters = names.filters(query)
        own, fields = (
            Level([item for item in columns if item.level == name], [item for item in filters if item[0].level == name])
            for name in ("object", "own field")
        )
        readable = self._may.readable()
        joined = [_by_subject(experiments) for experiments in self._joined(columns, filters, readable)]
        rows = []
        for row in self._archive.store.all(_SUBJECTS, (project, project, project)):
            shown_in = {row["project"], *json.loads(row["shared_into"])}
            values = object_values(row, label=row["shared_label"] or row["label"], project=row["project"])
            cells = own.take(values) if project or shown_in & readable else None
            if cells is None:
                continue
            tails = [found.get(row["id"]) or empty for found, empty in joined]
            if fields.is_used:
                tails.append(fields.take_all(own_fields(row["fields"]) or [{}]))
            rows += [{**each, "URI": f"/data/subjects/{row['id']}"} for each in product(cells, tails)]
        page = Page.of(query)
        names_shown = [*(column.key for column in columns), "URI"]
        return Table(names_shown, page.cut(rows), "Subjects", is_page=page.is_on)

    def _joined(
        self, columns: Sequence[Column], filters: Sequence[tuple[Column, Test]], readable: set[str]
    ) -> list[Experiments]:
        """Return the experiments to join to subjects: those of each type that a column or a filter names."""
        used = [*columns, *(column for column, _ in filters)]
        kinds = list(dict.fromkeys(column.level for column in used if column.level.startswith(OF_SUBJECT)))
        types = self._archive.types
        of_session = {column.level for column in used if column.level.startswith(("scan", ASSESSOR))}
        home = next((kind for kind in kinds if types.is_a(kind[len(OF_SUBJECT) :], IMAGE_SESSION)), "")
        if of_session and not home:
            home = f"{OF_SUBJECT}{IMAGE_SESSION.lower()}"
            kinds.append(home)
        found = []
        for kind in kinds:
            levels = {kind, *of_session} if kind == home else {kind}
            root = types.canonical(kind[len(OF_SUBJECT) :]) or IMAGE_SESSION
            own = [_as_object(column, kind) for column in columns if column.level in levels]
            tests = [(_as_object(column, kind), test) for column, test in filters if column.level in levels]
            found.append(Experiments(self._archive, root, own, tests, readable, Scope(root)))
        return found

    # Scans

    def scans(self, query: Mapping[str, str], session: Experiment) -> Table:
        """Return the scans of a session. XNAT ignores the filters: the condition on the session replaces them."""
        types = self._archive.types
        root = ColumnNames(types, SCAN_SHORTCUTS, IMAGE_SCAN).root_of(query)
        names = ColumnNames(types, SCAN_SHORTCUTS, root)
        if "fields" in query:
            return Table(("key", "xpath"), names.shortcuts())
        asked = names.asked(query.get("columns", ""), _SCAN_DEFAULTS)
        if not any(column.key == "ID" for column in asked):
            raise HTTPError(500)  # XNAT needs this column to make the URI
        columns = names.columns([*(column.key for column in asked), f"{root}/xnat_imageScanData_id"])
        kinds = set(types.family(root))
        scan_level, file_level, session_level = (
            Level([column for column in columns if column.level == name]) for name in ("scan", "scan file", "session")
        )
        of_session = session_level.take(experiment_values(self._archive.store.get("experiments", session.id))) or {}
        rows = []
        for row in self._archive.store.all("SELECT * FROM scans WHERE experiment = ? ORDER BY pk", (session.id,)):
            if row["xsi_type"] not in kinds:
                continue
            cells = {**(scan_level.take(scan_values(row)) or {}), **of_session}
            cells["URI"] = f"/data/experiments/{session.id}/scans/{row['id']}"
            rows += [{**cells, **more} for more in self._scan_files(file_level, row["pk"])]
        return Table([*(column.key for column in columns), "URI"], rows, "Scans")

    def _scan_files(self, level: Level, scan: int) -> list[Row]:
        if not level.is_used:
            return [{}]
        found = self._archive.store.all(
            "SELECT * FROM resources WHERE kind = 'scan' AND parent = ? ORDER BY id", (str(scan),)
        )
        return level.take_all(map(resource_values, found)) or level.empty()


def _as_object(column: Column, kind: str) -> Column:
    """Return a column of joined experiments as a column of a list of experiments."""
    return replace(column, level="object") if column.level == kind else column


def _by_subject(experiments: Experiments) -> tuple[dict[str, list[Row]], list[Row]]:
    """Return the rows of experiments by subject, and the rows for a subject without experiments."""
    found: dict[str, list[Row]] = {}
    for row, cells, is_readable in experiments.rows():
        if is_readable:
            found.setdefault(row["subject_id"] or "", []).append(cells)
    return found, experiments.empty()


_SUBJECTS = (
    "SELECT subjects.*, here.label AS shared_label,"
    " (SELECT json_group_array(project) FROM shares WHERE item = subjects.id) AS shared_into"
    " FROM subjects LEFT JOIN shares AS here ON here.item = subjects.id AND here.project = ?"
    " WHERE ? = '' OR subjects.project = ? OR here.project IS NOT NULL ORDER BY subjects.id"
)


def _is_true(text: str | None) -> bool:
    return text is not None and text.lower() not in ("false", "0")


def _plural(role: str | None) -> str:
    return f"{role.capitalize()}s" if role else ""
