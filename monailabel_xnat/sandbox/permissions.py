"""Who may do what: roles in projects, accessibility of projects, shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

from monailabel_xnat.sandbox.accounts import User
from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.model import Experiment, Project, Subject

Owned = Union[Subject, Experiment]


class Permissions:
    """What one user may do in an archive."""

    def __init__(self, archive: Archive, user: User) -> None:
        self._archive = archive
        self.user = user
        self._roles = {} if user.is_guest else archive.roles(user)

    def role(self, project: str) -> str | None:
        """Give the user's role in a project; administrators own all."""
        return "owner" if self.user.is_admin else self._roles.get(project)

    def may_see(self, project: Project) -> bool:
        """Tell whether the project itself, not its data, can be read."""
        return self.role(project.id) is not None or project.accessibility in ("public", "protected")

    def may_read(self, project: str) -> bool:
        """Tell whether the data of a project can be read."""
        if self.role(project):
            return True
        found = self._archive.project(project)
        return found is not None and found.accessibility == "public"

    def may_edit(self, project: str) -> bool:
        """Tell whether data of a project can be made and changed."""
        return self.role(project) in ("owner", "member")

    def may_delete(self, project: str) -> bool:
        """Tell whether data of a project can be deleted: members cannot."""
        return self.role(project) == "owner"

    def may_read_item(self, item: Owned) -> bool:
        """Tell whether a subject or experiment can be read, by its project or one that it is shared into."""
        return any(self.may_read(project) for project in (item.project, *self._archive.shares(item.id)))

    def readable(self) -> set[str]:
        """Give the IDs of the projects whose data can be read."""
        return {project.id for project in self._archive.projects() if self.may_read(project.id)}


def ids(projects: Iterable[Project]) -> set[str]:
    """Give the IDs of projects."""
    return {project.id for project in projects}
