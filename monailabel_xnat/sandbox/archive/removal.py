"""Deleting: an object goes with all that hangs on it; through a project that it is only shared into, the share goes."""

from __future__ import annotations

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Item, Project, Scan, Subject
from monailabel_xnat.sandbox.archive.owners import owner_of
from monailabel_xnat.sandbox.archive.resources import Resources
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, text
from monailabel_xnat.sandbox.http.request import NOT_FOUND, Target


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
