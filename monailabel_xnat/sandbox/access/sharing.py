"""Sharing between projects: ``.../projects/P2`` after a subject, an experiment or a scan."""

from __future__ import annotations

from typing import Union

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive, scan_item
from monailabel_xnat.sandbox.archive.model import Experiment, Project, Scan, Subject
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, text
from monailabel_xnat.sandbox.http.request import NOT_FOUND, Request, text_of
from monailabel_xnat.sandbox.http.tables import Table

Shared = Union[Subject, Experiment, Scan]


class Sharing:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, may: Permissions) -> None:
        self._archive = archive
        self._may = may

    def handle(self, request: Request, item: Shared, names: list[str]) -> Reply:
        """List the projects of an object, show it in another one, or take it out of that."""
        if request.method in ("GET", "HEAD"):
            return self._table(item).reply(request.format(("json", "html", "xml", "csv")), request.query)
        project = self._archive.project(text_of(names[0])) if names else None
        if project is None:
            raise HTTPError(404, NOT_FOUND["projects"])
        if request.method == "PUT":
            return self._share(request, item, project)
        if request.method == "DELETE":
            return self._unshare(item, project)
        raise HTTPError(405, headers=[("Allow", "GET, HEAD, PUT, DELETE")])

    def _table(self, item: Shared) -> Table:
        home, label = self._home(item)
        rows = []
        for name, shown_as in {home: label, **self._archive.shares(_key(item))}.items():
            project = self._archive.project(name)
            fields = project.fields if project else {}
            names = {"Secondary_ID": str(fields.get("secondary_ID", "")), "Name": str(fields.get("name", ""))}
            rows.append({"label": shown_as, "ID": name, **names})
        return Table(("label", "ID", "Secondary_ID", "Name"), rows, "Projects")

    def _home(self, item: Shared) -> tuple[str, str]:
        if not isinstance(item, Scan):
            return item.project, item.label
        session = self._archive.experiment(item.experiment)
        return (session.project if session else ""), item.id

    def _share(self, request: Request, item: Shared, project: Project) -> Reply:
        if not self._may.may_edit(project.id):
            raise HTTPError(403)
        home, own_label = self._home(item)
        shares = self._archive.shares(_key(item))
        label = request.query.get("label") or shares.get(project.id) or own_label
        if request.flag("primary") and not isinstance(item, Scan):
            return self._move(item, project, label)
        if project.id == home or project.id in shares:
            raise HTTPError(409, f"Already assigned to project: {project.id}")
        self._require_free(item, project, label)
        self._archive.share(_key(item), project.id, label)
        return text()

    def _require_free(self, item: Shared, project: Project, label: str) -> None:
        if isinstance(item, Scan):
            return
        if self._archive.label_owner(_table(item), label, project.id) not in ("", item.id):
            raise HTTPError(409, "Label already in use.")

    def _move(self, item: Subject | Experiment, project: Project, label: str) -> Reply:
        if not self._may.may_delete(item.project):
            raise HTTPError(403)
        self._require_free(item, project, label)
        self._archive.move(_table(item), item.id, project.id, label)
        return text()

    def _unshare(self, item: Shared, project: Project) -> Reply:
        if project.id not in self._archive.shares(_key(item)):
            raise HTTPError(404, f"Not shared into project {project.id}")
        if not self._may.may_delete(project.id):
            raise HTTPError(403)
        self._archive.unshare(_key(item), project.id)
        return text()


def _key(item: Shared) -> str:
    return scan_item(item.pk) if isinstance(item, Scan) else item.id


def _table(item: Subject | Experiment) -> str:
    return "subjects" if isinstance(item, Subject) else "experiments"
