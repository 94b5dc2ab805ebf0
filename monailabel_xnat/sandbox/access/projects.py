"""What hangs on a project besides its data: accessibility, users, the codes of its import."""

from __future__ import annotations

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import ROLES, Archive
from monailabel_xnat.sandbox.archive.model import Project
from monailabel_xnat.sandbox.archive.owners import ARCHIVE_FOLDER
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, text
from monailabel_xnat.sandbox.http.request import Request, text_of
from monailabel_xnat.sandbox.http.tables import Table

LEVELS = ("private", "protected", "public")
ROLE_NAMES = {"owner": "Owners", "member": "Members", "collaborator": "Collaborators"}
_PREARCHIVE_CODES = ("0", "1", "4", "5", "11")


class ProjectSettings:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, may: Permissions) -> None:
        self._archive = archive
        self._may = may

    def handle(self, request: Request, project: Project, word: str, names: list[str]) -> Reply:
        """Answer for ``projects/P/WORD[/NAME...]``.

        Raises
        ------
        HTTPError
            400 where there is no such thing.
        """
        handlers = {
            "accessibility": self._accessibility,
            "users": self._users,
            "prearchive_code": self._prearchive_code,
            "quarantine_code": self._quarantine_code,
            "current_arc": self._current_arc,
        }
        if word not in handlers:
            raise HTTPError(400)
        if request.method not in ("GET", "HEAD", "PUT", "DELETE"):
            raise HTTPError(405)
        return handlers[word](request, project, [text_of(name) for name in names])

    def _require_owner(self, project: Project) -> None:
        if not self._may.may_delete(project.id):
            raise HTTPError(403)

    def _accessibility(self, request: Request, project: Project, names: list[str]) -> Reply:
        if request.method == "PUT":
            self._require_owner(project)
            if names[:1] == [] or names[0] not in LEVELS:
                raise HTTPError(400, f"Unknown accessibility; there are {', '.join(LEVELS)}")
            self._archive.set_accessibility(project.id, names[0])
            return text(names[0])
        return text(project.accessibility)

    def _users(self, request: Request, project: Project, names: list[str]) -> Reply:
        if request.method in ("PUT", "DELETE"):
            self._require_owner(project)
            self._change_user(request.method, project, names)
        elif not self._may.may_edit(project.id):
            raise HTTPError(403)
        rows = [self._user_row(project.id, login, role) for login, role in self._archive.members(project.id)]
        columns = ("GROUP_ID", "displayname", "login", "firstname", "lastname", "email")
        return Table(columns, rows).reply(request.format(("json", "html", "xml", "csv")), request.query)

    def _change_user(self, method: str, project: Project, names: list[str]) -> None:
        group = names[0].lower() if names else ""
        spellings = {role: (role, ROLE_NAMES[role].lower(), f"{project.id}_{role}".lower()) for role in ROLES}
        role = next((role for role, known in spellings.items() if group in known), None)
        if role is None or len(names) != 2:
            raise HTTPError(404, "Unable to identify the group.")
        if self._archive.user(names[1]) is None:
            raise HTTPError(404, f"Unable to identify user {names[1]}.")
        if method == "PUT":
            self._archive.set_member(project.id, names[1], role)
        elif (names[1], role) in self._archive.members(project.id):
            self._archive.set_member(project.id, names[1], None)

    def _user_row(self, project: str, login: str, role: str) -> dict[str, str]:
        user = self._archive.user(login)
        return {
            "GROUP_ID": f"{project}_{role}",
            "displayname": ROLE_NAMES[role],
            "login": login,
            "firstname": user.firstname if user else "",
            "lastname": user.lastname if user else "",
            "email": user.email if user else "",
        }

    def _prearchive_code(self, request: Request, project: Project, names: list[str]) -> Reply:
        if request.method == "PUT":
            self._require_owner(project)
            if names[:1] == [] or names[0] not in _PREARCHIVE_CODES:
                raise HTTPError(400, f"Unknown code; there are {', '.join(_PREARCHIVE_CODES)}")
            self._archive.set_prearchive_code(project.id, int(names[0]))
            return text()
        return text(str(project.prearchive_code))

    def _quarantine_code(self, request: Request, project: Project, names: list[str]) -> Reply:
        """Take a setting that changes nothing here: what is imported is never quarantined."""
        return self._fixed(request, project, "0")

    def _current_arc(self, request: Request, project: Project, names: list[str]) -> Reply:
        """Take a setting that changes nothing here: there is one archive folder."""
        return self._fixed(request, project, ARCHIVE_FOLDER)

    def _fixed(self, request: Request, project: Project, value: str) -> Reply:
        if request.method == "PUT":
            self._require_owner(project)
            return text()
        return text(value)
