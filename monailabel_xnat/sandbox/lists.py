"""Lists of projects, subjects and scans (ProjectListResource, SubjectListResource, ScanList)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.columns import (
    PROJECT_SHORTCUTS,
    SCAN_SHORTCUTS,
    SUBJECT_SHORTCUTS,
    ColumnNames,
    Level,
)
from monailabel_xnat.sandbox.datatypes import ABSTRACT, IMAGE_SCAN, PROJECT, SUBJECT
from monailabel_xnat.sandbox.listings import object_values, resource_values, scan_values
from monailabel_xnat.sandbox.model import Experiment, Project
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError
from monailabel_xnat.sandbox.tables import Page, Row, Table

_PROJECT_DEFAULTS = ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname")
_SUBJECT_DEFAULTS = ("ID", "project", "label", "insert_date", "insert_user")
_SCAN_DEFAULTS = ("xnat_imagescandata_id", "ID", "type", "quality", "xsiType", "note", "series_description")
# Any of these makes XNAT answer from another query, with other columns.
_ROLE_PARAMETERS = {"owner": ("owner",), "member": ("member",), "collaborator": ("collaborator",)}
_OTHER_QUERY = ("accessible", "users", "recent", "favorite", "permissions", "data", "restrict", "prearc_code")


class Lists:
    """The tables, for one request's user."""

    def __init__(self, archive: Archive, may: Permissions) -> None:
        self._archive = archive
        self._may = may

    # Projects

    def projects(self, query: Mapping[str, str]) -> Table:
        """List the projects that the user can see."""
        if any(name in query for name in (*_ROLE_PARAMETERS, *_OTHER_QUERY)):
            return self._projects_by_role(query)
        names = ColumnNames(self._archive.types, PROJECT_SHORTCUTS, PROJECT)
        if "fields" in query:
            return Table(("key", "xpath"), names.shortcuts())
        columns = names.asked(query.get("columns", ""), _PROJECT_DEFAULTS)
        level = Level(names.columns([*(column.key for column in columns), "ID"]), names.filters(query))
        rows = []
        for row in self._archive.store.all("SELECT * FROM projects ORDER BY id"):
            cells = level.take(object_values(row)) if self._may.may_see_id(row["id"]) else None
            if cells is not None:
                rows.append({**cells, "URI": f"/data/projects/{row['id']}"})
        return Table([*(column.key for column in level.columns), "URI"], rows, "Projects")

    def _projects_by_role(self, query: Mapping[str, str]) -> Table:
        rows = [self._role_row(project) for project in self._archive.projects() if self._is_asked(project, query)]
        names = list(self._role_row(Project("", "private", 0, {}, {}, "", "", "")))
        return Table(names, rows, "Projects")

    def _is_asked(self, project: Project, query: Mapping[str, str]) -> bool:
        role = self._may.role(project.id)
        wanted = {name for name in _ROLE_PARAMETERS if _is_true(query.get(name))}
        if wanted and self._may.granted_role(project.id) not in wanted:
            return False
        needs = {query.get("permissions", ""), query.get("restrict", "")}
        if "delete" in needs and role != "owner":
            return False
        if ("edit" in needs or query.get("data") == "writable") and role not in ("owner", "member"):
            return False
        if query.get("data") == "readable" or "read" in needs or _is_true(query.get("accessible")):
            return self._may.may_read(project.id)
        return self._may.may_see(project)

    def _role_row(self, project: Project) -> Row:
        fields = project.fields
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
            f"user_role_{self._may.user.number}": _plural(self._may.granted_role(project.id)),
            "URI": f"/data/projects/{project.id}",
        }

    # Subjects

    def subjects(self, query: Mapping[str, str], project: str = "") -> Table:
        """List the subjects of the site, or of a project with those shared into it."""
        names = ColumnNames(self._archive.types, SUBJECT_SHORTCUTS, SUBJECT)
        if "fields" in query:
            return Table(("key", "xpath"), names.shortcuts())
        columns = names.asked(query.get("columns", ""), _SUBJECT_DEFAULTS)
        level = Level(names.columns([*(column.key for column in columns), "ID"]), names.filters(query))
        readable = self._may.readable()
        rows = []
        for row in self._archive.store.all(_SUBJECTS, (project, project, project)):
            shown_in = {row["project"], *json.loads(row["shared_into"])}
            values = object_values(row, label=row["shared_label"] or row["label"], project=row["project"])
            cells = level.take(values) if project or shown_in & readable else None
            if cells is not None:
                rows.append({**cells, "URI": f"/data/subjects/{row['id']}"})
        page = Page.of(query)
        names_shown = [*(column.key for column in level.columns), "URI"]
        return Table(names_shown, page.cut(rows), "Subjects", is_page=page.is_on)

    # Scans

    def scans(self, query: Mapping[str, str], session: Experiment) -> Table:
        """List the scans of a session; its filters are not applied (the session's clause replaces them)."""
        names = ColumnNames(self._archive.types, SCAN_SHORTCUTS, IMAGE_SCAN)
        if "fields" in query:
            return Table(("key", "xpath"), names.shortcuts())
        asked = query.get("columns", "")
        columns = names.asked(asked, _SCAN_DEFAULTS)
        if not any(column.key == "ID" for column in columns):
            raise HTTPError(500)  # XNAT makes the URI from this column
        kinds = set(self._archive.types.family(self._scan_root(query)))
        scan_level = Level([column for column in columns if column.level != "scan file"])
        file_level = Level([column for column in columns if column.level == "scan file"])
        rows = []
        for row in self._archive.store.all("SELECT * FROM scans WHERE experiment = ? ORDER BY pk", (session.id,)):
            if row["xsi_type"] not in kinds:
                continue
            cells = scan_level.take_all([scan_values(row)])
            uri = {"URI": f"/data/experiments/{session.id}/scans/{row['id']}"}
            rows += [{**cells[0], **more, **uri} for more in self._scan_files(file_level, row["pk"])]
        return Table([*(column.key for column in columns), "URI"], rows, "Scans")

    def _scan_files(self, level: Level, scan: int) -> list[Row]:
        if not level.is_used:
            return [{}]
        found = self._archive.store.all(
            "SELECT * FROM resources WHERE kind = 'scan' AND parent = ? ORDER BY id", (str(scan),)
        )
        return level.take_all(map(resource_values, found)) or level.empty()

    def _scan_root(self, query: Mapping[str, str]) -> str:
        types = self._archive.types
        root = types.canonical(query.get("xsiType", "")) or IMAGE_SCAN
        for name in query.get("columns", "").split(","):
            kind = types.canonical(name.partition("/")[0]) if "/" in name else None
            if kind and kind not in ABSTRACT and types.is_a(kind, root):
                root = kind
        return root


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
