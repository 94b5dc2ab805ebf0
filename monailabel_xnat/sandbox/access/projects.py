"""What hangs on a project besides its data: accessibility, users, codes; and what is shared into it."""

from __future__ import annotations

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import ROLES, Archive, scan_item
from monailabel_xnat.sandbox.archive.model import LEVELS, ROLE_NAMES, Experiment, Project, Scan, Subject
from monailabel_xnat.sandbox.archive.resources import ARCHIVE_FOLDER
from monailabel_xnat.sandbox.http.paths import NOT_FOUND
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, text
from monailabel_xnat.sandbox.http.request import Request, text_of
from monailabel_xnat.sandbox.http.tables import Table

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
        if request.method == "PUT":
            self._require_owner(project)
            if names not in (["0"], ["1"]):
                raise HTTPError(400, "Unknown code; there are 0, 1")
            self._archive.set_quarantine_code(project.id, int(names[0]))
            return text()
        return text(str(project.quarantine_code))

    def _current_arc(self, request: Request, project: Project, names: list[str]) -> Reply:
        """Return the archive folder, of which the sandbox has one."""
        if request.method == "PUT":
            self._require_owner(project)
            if names != [ARCHIVE_FOLDER]:
                raise HTTPError(400, f"The sandbox has one archive folder, {ARCHIVE_FOLDER}")
            return text()
        return text(ARCHIVE_FOLDER)


Shared = Subject | Experiment | Scan


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
        with self._archive.store.write():
            self._archive.share(_key(item), project.id, label)
            for scan in self._archive.scans(item.id) if isinstance(item, Experiment) else ():
                if project.id not in self._archive.shares(_key(scan)):
                    self._archive.share(_key(scan), project.id, scan.id)
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
