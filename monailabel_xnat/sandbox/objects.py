"""Handlers for projects, subjects, experiments, assessors and scans: list, read, create, change, delete, share."""

from __future__ import annotations

from typing import Any

from monailabel_xnat.sandbox import listings, tables
from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.datatypes import ABSTRACT, IMAGE_ASSESSOR, IMAGE_SCAN
from monailabel_xnat.sandbox.items import Items
from monailabel_xnat.sandbox.model import Experiment, Item, Scan
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError, Reply, as_json, html, text, xml
from monailabel_xnat.sandbox.request import Request, Target
from monailabel_xnat.sandbox.resources import Resources

_SCAN_SHORTCUTS = {
    "ID": "id",
    "type": "type",
    "quality": "quality",
    "xsiType": "xsitype",
    "note": "note",
    "series_description": "series_description",
    "UID": "uid",
    "modality": "modality",
    "frames": "frames",
    "condition": "condition",
    "scanner": "scanner",
    "xnat_imagescandata_id": "pk",
    "insert_date": "insert_date",
    "last_modified": "last_modified",
}
_SCAN_DEFAULTS = ("xnat_imagescandata_id", "ID", "type", "quality", "xsiType", "note", "series_description")
_NOT_FIELDS = frozenset(
    (
        "xsiType",
        "req_format",
        "format",
        "event_reason",
        "accessibility",
        "label",
        "project",
        "subject_ID",
        "removeFiles",
        "activate",
        "quarantine",
        "XNAT_CSRF",
        "inbody",
        "allowDataDeletion",
        "triggerPipelines",
        "event_id",
        "event_action",
    )
)
_ROLE_NAMES = {"owner": "Owners", "member": "Members", "collaborator": "Collaborators"}


class Objects:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._resources = resources
        self._items = Items(archive, resources)
        self._may = may

    def handle(self, request: Request, target: Target) -> Reply:
        """Answer a request for an object or a list of objects."""
        if target.collection:
            return self._list(request, target)
        if target.rest:
            return self._below(request, target)
        handler = {"GET": self._read, "PUT": self._put, "DELETE": self._delete, "HEAD": self._read}.get(request.method)
        if handler is None:
            raise HTTPError(405)
        return handler(request, target)

    # Lists

    def _list(self, request: Request, target: Target) -> Reply:
        if request.method == "POST":
            raise HTTPError(405)
        if target.project and not self._may.may_read(target.project.id):
            raise HTTPError(403)
        rows: list[dict[str, str]] = getattr(self, f"_list_{target.collection}")(request, target)
        titles = {
            "experiments": "Matching experiments",
            "subjects": "Subjects",
            "projects": "Projects",
            "scans": "Scans",
        }
        return tables.answer(rows, request.query, titles.get(target.collection, ""))

    def _list_projects(self, request: Request, target: Target) -> list[dict[str, str]]:
        columns = [name for name in request.query.get("columns", "").split(",") if name]
        rows = []
        for project in self._archive.projects():
            if not self._may.may_see(project):
                continue
            fields = {key: str(value) for key, value in project.fields.items()}
            row = {
                "ID": project.id,
                "secondary_ID": fields.get("secondary_ID", ""),
                "name": fields.get("name", ""),
                "description": fields.get("description", ""),
                "pi_firstname": "",
                "pi_lastname": "",
            }
            kept = {name: row.get(name, fields.get(name, "")) for name in columns} if columns else row
            rows.append({**kept, "ID": project.id, "URI": f"/data/projects/{project.id}"})
        return rows

    def _list_subjects(self, request: Request, target: Target) -> list[dict[str, str]]:
        columns = [name for name in request.query.get("columns", "").split(",") if name]
        defaults = ("ID", "project", "label", "insert_date", "insert_user")
        found = self._archive.subjects(target.project.id if target.project else None)
        rows = []
        for subject, label in found:
            if not target.project and not self._may.may_read_item(subject):
                continue
            row = {key: str(value) for key, value in subject.fields.items()}
            row.update(ID=subject.id, project=subject.project, label=label, insert_date=subject.insert_date)
            row.update(insert_user=subject.insert_user, last_modified=subject.last_modified)
            if any(
                row.get(name, "") not in value.split(",")
                for name, value in request.query.items()
                if name in ("project", "label", "ID")
            ):
                continue
            names = columns or defaults
            rows.append(
                {
                    **{name: row.get(name, "") for name in names if name != "URI"},
                    "ID": subject.id,
                    "URI": f"/data/subjects/{subject.id}",
                }
            )
        return rows

    def _list_experiments(self, request: Request, target: Target) -> list[dict[str, str]]:
        project = target.project.id if target.project else None
        subject = target.subject.id if target.subject else None
        return listings.experiment_rows(
            self._archive, request.query, self._may.may_read, project=project, subject=subject
        )

    def _list_assessors(self, request: Request, target: Target) -> list[dict[str, str]]:
        if target.experiment is None:
            raise HTTPError(404)
        query = dict(request.query)
        query.setdefault("xsiType", IMAGE_ASSESSOR)
        return listings.experiment_rows(self._archive, query, self._reads_anyway, session=target.experiment.id)

    @staticmethod
    def _reads_anyway(project: str) -> bool:
        """Answer for a session that was already found readable."""
        return True

    def _list_scans(self, request: Request, target: Target) -> list[dict[str, str]]:
        if target.experiment is None:
            raise HTTPError(400, "projects/P/experiments/E/scans is no path of XNAT")
        columns = [name for name in request.query.get("columns", "").split(",") if name and name != "URI"]
        rows = []
        for scan in self._archive.scans(target.experiment.id):
            values = {key.lower(): str(value) for key, value in scan.fields.items() if not isinstance(value, list)}
            values.update(id=scan.id, xsitype=scan.xsi_type, pk=str(scan.pk), insert_date=scan.insert_date)
            row = {}
            for name in columns or _SCAN_DEFAULTS:
                key = name if name in _SCAN_SHORTCUTS else name.lower()
                row[key] = values.get(_SCAN_SHORTCUTS.get(name, name.lower().rpartition("/")[2]), "")
            if columns and "ID" not in columns:
                raise HTTPError(500)
            row["URI"] = f"/data/experiments/{target.experiment.id}/scans/{scan.id}"
            rows.append(row)
        return rows

    # One object

    def _item(self, target: Target) -> Item:
        if target.missing:
            raise HTTPError(404, "Unable to find the specified experiment." if target.kind == "experiments" else "")
        found = {
            "projects": target.project,
            "subjects": target.subject,
            "experiments": target.experiment,
            "assessors": target.assessor,
            "scans": target.scans[0] if len(target.scans) == 1 else None,
        }[target.kind]
        if found is None:
            raise HTTPError(404)
        return found

    def _read(self, request: Request, target: Target) -> Reply:
        item = self._item(target)
        kind = request.query.get("format", "html")
        if kind == "json":
            return as_json(self._items.json(item))
        if kind == "xml":
            return xml(self._items.xml(item))
        return html(f"<html><body><h1>{target.kind}</h1></body></html>")

    def _below(self, request: Request, target: Target) -> Reply:
        item = self._item(target)
        word, *names = target.rest
        if word == "projects" and not isinstance(item, Scan):
            return self._sharing(request, item, names[0] if names else "")
        if word == "status" and isinstance(item, Experiment):
            return text(item.status)
        if word == "accessibility" and target.kind == "projects":
            return self._accessibility(request, target, names)
        if word == "users" and target.kind == "projects":
            return self._users(request, target, names)
        if word == "prearchive_code" and target.kind == "projects":
            return text(str(target.project.prearchive_code) if target.project else "")
        raise HTTPError(400)

    def _accessibility(self, request: Request, target: Target, names: list[str]) -> Reply:
        assert target.project is not None
        if request.method == "PUT" and names:
            if not self._may.may_delete(target.project.id):
                raise HTTPError(403)
            self._archive.set_accessibility(target.project.id, names[0])
            return text(names[0])
        return text(target.project.accessibility)

    def _users(self, request: Request, target: Target, names: list[str]) -> Reply:
        assert target.project is not None
        project = target.project.id
        if not self._may.may_delete(project):
            raise HTTPError(403)
        if len(names) == 2 and request.method in ("PUT", "DELETE"):
            role = next((role for role, name in _ROLE_NAMES.items() if name == names[0]), None)
            self._archive.set_member(project, names[1], role if request.method == "PUT" else None)
        rows = [
            {
                "GROUP_ID": f"{project}_{role}",
                "displayname": _ROLE_NAMES[role],
                "login": login,
                "firstname": "",
                "lastname": "",
                "email": "",
            }
            for login, role in self._archive.members(project)
        ]
        return tables.answer(rows, request.query)

    def _sharing(self, request: Request, item: Any, name: str) -> Reply:
        shares = self._archive.shares(item.id)
        if request.method == "GET":
            rows = [
                {"label": label, "ID": project, "Secondary_ID": project, "Name": project}
                for project, label in {item.project: item.label, **shares}.items()
            ]
            return tables.answer(rows, request.query)
        project = self._archive.project(name)
        if project is None:
            raise HTTPError(404)
        if not self._may.may_edit(project.id):
            raise HTTPError(403)
        if request.method == "DELETE":
            self._archive.unshare(item.id, project.id)
        elif project.id in shares or project.id == item.project:
            raise HTTPError(409, "Already assigned to project")
        else:
            self._archive.share(item.id, project.id, request.query.get("label") or item.label)
        return text()

    # Create and change

    def _put(self, request: Request, target: Target) -> Reply:
        if request.user.is_guest:
            raise HTTPError(403)
        return getattr(self, f"_put_{target.kind}")(request, target)  # type: ignore[no-any-return]

    def _fields(self, request: Request, xsi_type: str) -> dict[str, Any]:
        """Read fields from the query: shortcuts, or paths of the type; paths of another type are ignored."""
        fields: dict[str, Any] = {}
        for name, value in request.query.items():
            kind, slash, path = name.partition("/")
            if not slash:
                if name not in _NOT_FIELDS:
                    fields[self._archive.types.casing(xsi_type, name)] = value
            elif self._archive.types.is_a(xsi_type, kind) and path not in ("ID", "label", "project"):
                _place(fields, self._archive.types.casing(xsi_type, path), value)
        return {key: None if value == "NULL" else value for key, value in fields.items()}

    def _label(self, request: Request) -> str:
        given = [value for name, value in request.query.items() if name == "label" or name.endswith("/label")]
        return given[0] if given else ""

    def _put_projects(self, request: Request, target: Target) -> Reply:
        name = target.missing
        fields = self._fields(request, "xnat:projectData")
        if target.project is not None:
            if not self._may.may_edit(target.project.id):
                raise HTTPError(403)
            self._archive.set_fields("projects", "id", target.project.id, fields)
        else:
            if self._archive.project(name) is not None:
                raise HTTPError(403)
            if not all(character.isalnum() or character in "_-" for character in name):
                raise HTTPError(417, f"Invalid project ID: {name}")
            self._archive.create_project(name, request.user, request.query.get("accessibility", "private"), **fields)
        return text()

    def _put_subjects(self, request: Request, target: Target) -> Reply:
        if target.project is None:
            raise HTTPError(422 if target.subject is None else 400)
        if not self._may.may_edit(target.project.id):
            raise HTTPError(403)
        if target.subject is None:
            fields = self._fields(request, "xnat:subjectData")
            made = self._archive.create_subject(target.project.id, target.missing, request.user, **fields)
            return text(made.id, 201)
        label = self._label(request)
        if label and label not in (target.subject.label, target.subject.id):
            self._rename("subjects", target.subject, label)
            return text()
        self._archive.set_fields("subjects", "id", target.subject.id, self._fields(request, "xnat:subjectData"))
        return text(target.subject.id)

    def _rename(self, table: str, item: Any, label: str) -> None:
        with self._archive.store.write() as db:
            taken = db.execute(
                f"SELECT 1 FROM {table} WHERE project = ? AND label = ?", (item.project, label)
            ).fetchone()
            if taken:
                raise HTTPError(409, "Specified label is already in use.")
            db.execute(f"UPDATE {table} SET label = ? WHERE id = ?", (label, item.id))

    def _put_experiments(self, request: Request, target: Target) -> Reply:
        found = target.experiment if not target.missing else None
        if found is not None:
            return self._change_experiment(request, found)
        if target.project is None:
            raise HTTPError(422)
        if not self._may.may_edit(target.project.id):
            raise HTTPError(403)
        if not request.query.get("xsiType"):
            raise HTTPError(417, "Need PUT Contents")
        kind = self._archive.types.canonical(request.query["xsiType"])
        if kind is None or kind in ABSTRACT:
            raise HTTPError(400)
        subject = target.subject
        if subject is None and request.query.get("subject_ID"):
            name = request.query["subject_ID"]
            subject = self._archive.subject(name, target.project.id) or self._archive.create_subject(
                target.project.id, name, request.user
            )
        if subject is None:
            raise HTTPError(422)
        fields = self._fields(request, kind)
        made = self._archive.create_experiment(
            target.project.id, target.missing, kind, subject=subject.id, user=request.user, **fields
        )
        return text(made.id, 201)

    def _change_experiment(self, request: Request, found: Experiment) -> Reply:
        if not self._may.may_edit(found.project):
            raise HTTPError(403)
        label = self._label(request)
        if label and label not in (found.label, found.id):
            self._rename("experiments", found, label)
            return text()
        self._archive.set_fields("experiments", "id", found.id, self._fields(request, found.xsi_type))
        return text(found.id)

    def _put_assessors(self, request: Request, target: Target) -> Reply:
        if target.assessor is not None and not target.missing:
            return self._change_experiment(request, target.assessor)
        session = target.experiment
        if session is None:
            raise HTTPError(404)
        if not self._may.may_edit(session.project):
            raise HTTPError(403)
        kind = self._archive.types.canonical(request.query.get("xsiType", ""))
        if kind is None:
            raise HTTPError(400 if request.query.get("xsiType") else 417)
        made = self._archive.create_experiment(
            session.project, target.missing, kind, session=session.id, user=request.user, **self._fields(request, kind)
        )
        return text(made.id, 201)

    def _put_scans(self, request: Request, target: Target) -> Reply:
        session = target.experiment
        if session is None:
            raise HTTPError(404)
        if not self._may.may_edit(session.project):
            raise HTTPError(403)
        if not request.query:
            raise HTTPError(417)
        asked = self._archive.types.canonical(request.query.get("xsiType", ""))
        if target.missing:
            if asked is None or asked == IMAGE_SCAN:
                raise HTTPError(400)
            self._archive.create_scan(session.id, target.missing, asked, request.user, **self._fields(request, asked))
            return text()
        scan = target.scans[0]
        if asked is not None and asked != scan.xsi_type:
            raise HTTPError(409)
        self._archive.set_fields("scans", "pk", scan.pk, self._fields(request, scan.xsi_type))
        return text()

    # Delete

    def _delete(self, request: Request, target: Target) -> Reply:
        if target.kind == "projects" and target.project is None:
            raise HTTPError(400)
        item = self._item(target)
        if target.kind == "scans" and isinstance(item, Scan):
            assert target.experiment is not None
            self._require_delete(target.experiment.project)
            self._drop_scan(item)
            return text()
        project = item.id if target.kind == "projects" else item.project  # type: ignore[union-attr]
        via = target.project.id if target.project else project
        if via != project and via in self._archive.shares(item.id):  # type: ignore[arg-type]
            self._require_delete(via)
            self._archive.unshare(item.id, via)  # type: ignore[arg-type]
            return text()
        self._require_delete(project)
        self._drop(item)
        return text()

    def _require_delete(self, project: str) -> None:
        if not self._may.may_delete(project):
            raise HTTPError(403)

    def _drop_scan(self, scan: Scan) -> None:
        self._resources.delete_of(self._items.owner(scan))
        with self._archive.store.write() as db:
            db.execute("DELETE FROM scans WHERE pk = ?", (scan.pk,))

    def _drop_experiment(self, item: Experiment) -> None:
        for scan in self._archive.scans(item.id):
            self._drop_scan(scan)
        for assessor in self._archive.assessors(item.id):
            self._drop_experiment(assessor)
        self._resources.delete_of(self._items.owner(item))
        with self._archive.store.write() as db:
            db.execute("DELETE FROM experiments WHERE id = ?", (item.id,))

    def _drop(self, item: Any) -> None:
        if isinstance(item, Experiment):
            self._drop_experiment(item)
            return
        column = "subject_id" if hasattr(item, "label") else "project"
        table = "subjects" if hasattr(item, "label") else "projects"
        for row in self._archive.store.all(f"SELECT id FROM experiments WHERE {column} = ?", (item.id,)):
            found = self._archive.experiment(row["id"])
            if found is not None:
                self._drop_experiment(found)
        self._resources.delete_of(self._items.owner(item))
        with self._archive.store.write() as db:
            db.execute(f"DELETE FROM {table} WHERE id = ?", (item.id,))
            if table == "projects":
                db.execute("INSERT OR IGNORE INTO retired_projects VALUES (?)", (item.id,))


def _place(fields: dict[str, Any], path: str, value: str) -> None:
    """Set a field; ``fields/field[name=x]/field`` and list fields such as ``references/seriesUID`` become lists."""
    if "[" in path:
        base, _, rest = path.partition("[")
        condition, _, leaf = rest.partition("]/")
        key, _, wanted = condition.partition("=")
        fields.setdefault(base, []).append({key: wanted, leaf: value})
    elif path == "references/seriesUID":
        fields.setdefault(path, []).append({"seriesUID": value})
    else:
        fields[path] = value
