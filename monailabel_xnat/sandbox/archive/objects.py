"""Objects of the archive: which handler answers for which path and method; reading and deleting."""

from __future__ import annotations

from collections.abc import Callable

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.access.projects import ProjectSettings, Sharing
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.datatypes import EXPERIMENT, IMAGE_ASSESSOR, SUBJECT_ASSESSOR
from monailabel_xnat.sandbox.archive.edits import Edits
from monailabel_xnat.sandbox.archive.items import Items
from monailabel_xnat.sandbox.archive.listings import Scope, experiment_table
from monailabel_xnat.sandbox.archive.lists import Lists
from monailabel_xnat.sandbox.archive.model import Experiment, Item, Project, Scan, Subject
from monailabel_xnat.sandbox.archive.resources import Resources, owner_of
from monailabel_xnat.sandbox.http.paths import NOT_FOUND, Target
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, as_json, html, text, xml
from monailabel_xnat.sandbox.http.request import Request
from monailabel_xnat.sandbox.http.tables import Table


class Removal:
    """The handler, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._resources = resources
        self._may = may

    def delete(self, target: Target) -> Reply:
        """Answer a DELETE of an object."""
        item = self._found(target)
        if isinstance(item, Scan):
            self._require(target.experiment.project if target.experiment else "")
        elif isinstance(item, Project):
            self._require(item.id)
        else:
            via = target.project.id if target.project else item.project
            self._require(via if via != item.project else item.project)
            if via != item.project:
                self._archive.unshare(item.id, via)
                return text()
        with self._archive.store.write():
            self._drop(item)
        return text()

    def _require(self, project: str) -> None:
        if not self._may.may_delete(project):
            raise HTTPError(403)

    def _found(self, target: Target) -> Item:
        found: dict[str, Item | None] = {
            "projects": target.project,
            "subjects": target.subject,
            "experiments": target.experiment,
            "assessors": target.assessor,
            "scans": target.scans[0] if len(target.scans) == 1 else None,
        }
        item = found[target.kind]
        if item is not None and not target.missing and not target.new_subject:
            return item
        if target.kind == "projects":
            # A project is looked up before the right to see it.
            raise HTTPError(403 if self._archive.project(target.missing) else 400)
        raise HTTPError(404, NOT_FOUND[target.kind])

    def _drop(self, item: Item) -> None:
        if isinstance(item, Scan):
            self._resources.delete_of(owner_of(self._archive, item))
            self._archive.drop("scans", item.pk)
            return
        if isinstance(item, Experiment) and self._archive.experiment(item.id) is None:
            return  # an assessor that went with its session
        for inner in self._inside(item):
            self._drop(inner)
        for direction in ("in", "out"):
            self._resources.delete_of(owner_of(self._archive, item, direction))
        tables = {Project: "projects", Subject: "subjects", Experiment: "experiments"}
        self._archive.drop(tables[type(item)], item.id)

    def _inside(self, item: Project | Subject | Experiment) -> list[Item]:
        if isinstance(item, Experiment):
            return [*self._archive.scans(item.id), *self._archive.assessors(item.id)]
        if isinstance(item, Subject):
            return [*self._archive.experiments_of("subject_id", item.id)]
        subjects = [subject for subject, _ in self._archive.subjects(item.id) if subject.project == item.id]
        return [*self._archive.experiments_of("project", item.id), *subjects]


_TABLE_FORMATS = ("json", "html", "xml", "csv")
# No JSON: items want it said with format=json.
_ITEM_FORMATS = ("html", "xml")


class Objects:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._may = may
        self._items = Items(archive, resources)
        self._edits = Edits(archive, resources, may)
        self._removal = Removal(archive, resources, may)
        self._sharing = Sharing(archive, may)
        self._settings = ProjectSettings(archive, may)

    def handle(self, request: Request, target: Target) -> Reply:
        """Answer a request for an object or a list of objects."""
        if target.collection:
            return self._collection(request, target)
        target = target.with_one_scan()
        if target.rest:
            return self._below(request, target)
        if request.method in ("GET", "HEAD"):
            return self._read(request, target)
        if request.method == "PUT":
            return self._edits.put(request, target)
        if request.method == "DELETE":
            return self._removal.delete(target)
        raise HTTPError(405, headers=[("Allow", "GET, HEAD, PUT, DELETE")])

    # Lists

    def _collection(self, request: Request, target: Target) -> Reply:
        if request.method == "POST":
            return self._edits.post(request, target)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, headers=[("Allow", "GET, HEAD, POST")])
        if target.project and target.collection != "projects" and not self._may.may_read(target.project.id):
            raise HTTPError(403)
        return self._table(request, target).reply(request.format(_TABLE_FORMATS), request.query)

    def _table(self, request: Request, target: Target) -> Table:
        lists, query = Lists(self._archive, self._may), request.query
        if target.collection == "projects":
            return lists.projects(query)
        if target.collection == "subjects":
            return lists.subjects(query, target.project.id if target.project else "")
        if target.collection == "scans" and target.experiment:
            return lists.scans(query, target.experiment)
        if target.collection == "reconstructions":
            return Table(("ID", "type", "URI"), [], "Reconstructions")
        readable = None if target.project or target.experiment else self._may.readable()
        return experiment_table(self._archive, query, readable, _scope(target))

    # One object

    def _read(self, request: Request, target: Target) -> Reply:
        item = found_item(target)
        if request.query.get("handler") == "values":
            return self._values(request, item)
        if request.query.get("format") == "json":
            return as_json(self._items.json(item))
        if request.format(_ITEM_FORMATS) == "xml":
            return xml(self._items.xml(item, is_concealed=request.flag("concealHiddenFields")))
        return html(f"<html><body><h1>{item.id}</h1></body></html>")

    def _values(self, request: Request, item: Item) -> Reply:
        """Answer the fields of one object as a table of one row (ItemValuesRepresentation)."""
        fields = {name.lower(): str(value) for name, value in self._items.fields(item).items()}
        names = [name for name in request.query.get("columns", "").split(",") if name] or list(self._items.fields(item))
        row = {name: fields.get((name.partition("/")[2] if ":" in name else name).lower(), "") for name in names}
        return Table(names, [row]).reply(request.format(_TABLE_FORMATS), request.query)

    def _below(self, request: Request, target: Target) -> Reply:
        """Answer for what follows an object where XNAT has no route: some handlers use it, others refuse it."""
        item = found_item(target)
        word, *names = target.rest
        if isinstance(item, Project):
            return self._settings.handle(request, item, word, names)
        if word == "projects":
            return self._sharing.handle(request, item, names)
        readers: dict[str, Callable[[Experiment], Reply]] = {"status": _status, "history": _history}
        if isinstance(item, Experiment) and word in readers and request.method in ("GET", "HEAD"):
            return readers[word](item)
        raise HTTPError(400)


def found_item(target: Target) -> Item:
    """Return the one object that a path names.

    Raises
    ------
    HTTPError
        404 where there is none, or not one alone.
    """
    candidates: dict[str, Item | None] = {
        "projects": target.project,
        "subjects": target.subject,
        "experiments": target.experiment,
        "assessors": target.assessor,
        "scans": target.scans[0] if len(target.scans) == 1 else None,
    }
    found = candidates[target.kind]
    if found is None or target.missing or target.new_subject:
        raise HTTPError(404, NOT_FOUND[target.kind])
    return found


def _scope(target: Target) -> Scope:
    project = target.project.id if target.project else ""
    if target.collection == "assessors" and target.experiment:
        return Scope(IMAGE_ASSESSOR, project, session=target.experiment.id)
    subject = target.subject.id if target.subject else ""
    return Scope(SUBJECT_ASSESSOR if project else EXPERIMENT, project, subject)


def _status(item: Experiment) -> Reply:
    return text(item.status)


def _history(item: Experiment) -> Reply:
    row = {"event_user": item.insert_user, "event_date": item.insert_date, "event_action": "Created"}
    return Table(tuple(row), [row]).reply("json", {})
