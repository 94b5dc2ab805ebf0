"""Who may do what: roles in projects, accessibility of projects, shares, locks."""

from __future__ import annotations

from functools import cached_property

from monailabel_xnat.sandbox.accounts import User
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Project, Subject

Owned = Subject | Experiment

ACTIVE = "active"


class Permissions:
    """What one user may do in an archive."""

    def __init__(self, archive: Archive, user: User) -> None:
        self._archive = archive
        self.user = user

    @cached_property
    def _roles(self) -> dict[str, str]:
        return {} if self.user.is_guest else self._archive.roles(self.user)

    @cached_property
    def _accessibility(self) -> dict[str, str]:
        return self._archive.accessibility()

    def granted_role(self, project: str) -> str | None:
        """Return the role that the user was given in a project."""
        return self._roles.get(project)

    def role(self, project: str) -> str | None:
        """Return the role that the user acts in; administrators own all."""
        return "owner" if self.user.is_admin else self._roles.get(project)

    def may_see(self, project: Project) -> bool:
        """Return whether the project itself, not its data, can be read."""
        return self.may_see_id(project.id)

    def may_see_id(self, project: str) -> bool:
        """Return whether the project with an ID, not its data, can be read."""
        return bool(self.role(project)) or self._accessibility.get(project) in ("public", "protected")

    def may_read(self, project: str) -> bool:
        """Return whether the data of a project can be read."""
        return bool(self.role(project)) or self._accessibility.get(project) == "public"

    def may_edit(self, project: str) -> bool:
        """Return whether data of a project can be made and changed."""
        return self.role(project) in ("owner", "member")

    def may_delete(self, project: str) -> bool:
        """Return whether data of a project can be deleted: members cannot."""
        return self.role(project) == "owner"

    def may_read_item(self, item: Owned) -> bool:
        """Return whether a subject or experiment can be read, by its project or one that it is shared into."""
        return self.may_read(item.project) or any(self.may_read(project) for project in self._archive.shares(item.id))

    def may_edit_item(self, item: Owned) -> bool:
        """Return whether a subject or experiment can be changed: by its own project, and only while it is active."""
        return self.may_edit(item.project) and (isinstance(item, Subject) or item.status == ACTIVE)

    def readable(self) -> set[str]:
        """Return the IDs of the projects whose data can be read."""
        return {project for project in self._accessibility if self.may_read(project)}
