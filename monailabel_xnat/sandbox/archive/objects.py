"""Objects of the archive: which handler answers which path and method; reading, deleting, sharing, settings."""

from __future__ import annotations

from monailabel_xnat.sandbox.archive.archive import ROLES
from monailabel_xnat.sandbox.archive.datatypes import EXPERIMENT, IMAGE_ASSESSOR, SUBJECT_ASSESSOR
from monailabel_xnat.sandbox.archive.edits import Edits
from monailabel_xnat.sandbox.archive.files import Files
from monailabel_xnat.sandbox.archive.items import Items
from monailabel_xnat.sandbox.archive.listings import Scope, experiment_table
from monailabel_xnat.sandbox.archive.lists import Lists
from monailabel_xnat.sandbox.archive.model import LEVELS, ROLE_NAMES, Experiment, Item, Project, Scan, Subject
from monailabel_xnat.sandbox.archive.resources import ARCHIVE_FOLDER, owner_of
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, as_json, html, text, text_of, xml
from monailabel_xnat.sandbox.http.paths import NOT_FOUND, Finder, Target
from monailabel_xnat.sandbox.http.router import Handlers, Visit
from monailabel_xnat.sandbox.http.tables import Table

# The settings of a project, and the values that each may have.
_SETTINGS = {
    "accessibility": LEVELS,
    "prearchive_code": ("0", "1", "4", "5", "11"),
    "quarantine_code": ("0", "1"),
    "current_arc": (ARCHIVE_FOLDER,),
}


class ProjectSettings(Handlers):
    """Answers calls for the settings and the members of a project, for the user of one request."""

    def handle(self, request: Request, project: Project, word: str, names: list[str]) -> Reply:
        """Answer ``projects/P/WORD[/NAME...]``.

        Raises
        ------
        HTTPError
            400 if there is no such setting.
        """
        if word not in ("users", *_SETTINGS):
            raise HTTPError(400)
        if request.method not in ("GET", "HEAD", "PUT", "DELETE"):
            raise HTTPError(405)
        given = [text_of(name) for name in names]
        return self._users(request, project, given) if word == "users" else self._setting(request, project, word, given)

    def _setting(self, request: Request, project: Project, word: str, given: list[str]) -> Reply:
        if request.method != "PUT":
            return text(str(getattr(project, word, ARCHIVE_FOLDER)))  # the sandbox has only one folder of archives
        self._may.require_delete(project.id)
        if given[:1] == [] or given[0] not in _SETTINGS[word]:
            raise HTTPError(400, f"Unknown {word}; there are {', '.join(_SETTINGS[word])}")
        if word != "current_arc":
            self._archive.store.update("projects", project.id, **{word: given[0]})
        return text(given[0] if word == "accessibility" else "")

    def _users(self, request: Request, project: Project, names: list[str]) -> Reply:
        if request.method in ("PUT", "DELETE"):
            self._may.require_delete(project.id)
            self._change_user(request.method, project, names)
        else:
            self._may.require_edit(project.id)
        rows = [self._user_row(project.id, login, role) for login, role in self._archive.members(project.id)]
        columns = ("GROUP_ID", "displayname", "login", "firstname", "lastname", "email")
        return Table(columns, rows).answer(request)

    def _change_user(self, method: str, project: Project, names: list[str]) -> None:
        group = names[0].lower() if names else ""
        spellings = {role: (role, ROLE_NAMES[role].lower(), f"{project.id}_{role}".lower()) for role in ROLES}
        role = next((role for role, known in spellings.items() if group in known), None)
        if role is None or len(names) != 2:
            raise HTTPError(404, "Unable to identify the group.")
        if self._visit.accounts.get(names[1]) is None:
            raise HTTPError(404, f"Unable to identify user {names[1]}.")
        if method == "PUT":
            self._archive.set_member(project.id, names[1], role)
        elif (names[1], role) in self._archive.members(project.id):
            self._archive.set_member(project.id, names[1], None)

    def _user_row(self, project: str, login: str, role: str) -> dict[str, str]:
        user = self._visit.accounts.get(login)
        return {
            "GROUP_ID": f"{project}_{role}",
            "displayname": ROLE_NAMES[role],
            "login": login,
            "firstname": user.firstname if user else "",
            "lastname": user.lastname if user else "",
            "email": user.email if user else "",
        }


Shared = Subject | Experiment | Scan


class Sharing(Handlers):
    """Answers calls that share an object into other projects, for the user of one request."""

    def handle(self, request: Request, item: Shared, names: list[str]) -> Reply:
        """List the projects of an object, share it into another project, or end a share."""
        if request.method in ("GET", "HEAD"):
            return self._table(item).answer(request)
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
        for name, shown_as in {home: label, **self._archive.shares(item.shared_as)}.items():
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
        self._may.require_edit(project.id)
        home, own_label = self._home(item)
        shares = self._archive.shares(item.shared_as)
        label = request.query.get("label") or shares.get(project.id) or own_label
        if request.flag("primary") and not isinstance(item, Scan):
            return self._move(item, project, label)
        if project.id == home or project.id in shares:
            raise HTTPError(409, f"Already assigned to project: {project.id}")
        self._require_free(item, project, label)
        with self._archive.store.write():
            self._archive.share(item.shared_as, project.id, label)
            for scan in self._archive.scans(item.id) if isinstance(item, Experiment) else ():
                if project.id not in self._archive.shares(scan.shared_as):
                    self._archive.share(scan.shared_as, project.id, scan.id)
        return text()

    def _require_free(self, item: Shared, project: Project, label: str) -> None:
        if isinstance(item, Scan):
            return
        if self._archive.label_owner(item.table, label, project.id) not in ("", item.id):
            raise HTTPError(409, "Label already in use.")

    def _move(self, item: Subject | Experiment, project: Project, label: str) -> Reply:
        self._may.require_delete(item.project)
        self._require_free(item, project, label)
        self._archive.move(item, project.id, label)
        return text()

    def _unshare(self, item: Shared, project: Project) -> Reply:
        if project.id not in self._archive.shares(item.shared_as):
            raise HTTPError(404, f"Not shared into project {project.id}")
        self._may.require_delete(project.id)
        self._archive.unshare(item.shared_as, project.id)
        return text()


class Removal(Handlers):
    """Answers calls that delete an object, for the user of one request."""

    def delete(self, target: Target) -> Reply:
        """Answer a DELETE of an object."""
        item = self._found(target)
        if isinstance(item, Scan):
            self._may.require_delete(target.experiment.project if target.experiment else "")
        elif isinstance(item, Project):
            self._may.require_delete(item.id)
        else:
            via = target.project.id if target.project else item.project
            self._may.require_delete(via)
            if via != item.project:
                self._archive.unshare(item.id, via)
                return text()
        with self._archive.store.write():
            self._drop(item)
        return text()

    def _found(self, target: Target) -> Item:
        if target.kind == "projects" and (target.project is None or target.missing):
            # A project is looked up before the right to see it.
            raise HTTPError(403 if self._archive.project(target.missing) else 400)
        return found_item(target)

    def _drop(self, item: Item) -> None:
        if isinstance(item, Scan):
            self._resources.delete_of(owner_of(self._archive, item))
            self._archive.drop(item)
            return
        if isinstance(item, Experiment) and self._archive.experiment(item.id) is None:
            return  # an assessor that went with its session
        for inner in self._inside(item):
            self._drop(inner)
        for direction in ("in", "out"):
            self._resources.delete_of(owner_of(self._archive, item, direction))
        self._archive.drop(item)

    def _inside(self, item: Project | Subject | Experiment) -> list[Item]:
        if isinstance(item, Experiment):
            return [*self._archive.scans(item.id), *self._archive.assessors(item.id)]
        if isinstance(item, Subject):
            return [*self._archive.experiments_of("subject_id", item.id)]
        return [*self._archive.experiments_of("project", item.id), *self._archive.subjects(item.id)]


# JSON is not among them: an object is sent as JSON only if the request says format=json.
_ITEM_FORMATS = ("html", "xml")


class Objects(Handlers):
    """Answers all calls for objects, itself or through another handler, for the user of one request."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._items = Items(visit.archive, visit.resources)
        self._edits = Edits(visit)

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer calls for the objects of the archive, for lists of them, and for their resources and files."""
        if not words:
            raise HTTPError(404)
        target = Finder(self._archive, self._may).find(words)
        if not target.kind and not target.collection:
            raise HTTPError(404)
        if target.files or target.resource is not None or target.collection == "resources":
            return Files(self._visit).handle(request, target)
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
            return Removal(self._visit).delete(target)
        raise HTTPError(405, headers=[("Allow", "GET, HEAD, PUT, DELETE")])

    # Lists

    def _collection(self, request: Request, target: Target) -> Reply:
        if request.method == "POST":
            return self._edits.post(request, target)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, headers=[("Allow", "GET, HEAD, POST")])
        if target.project and target.collection != "projects" and not self._may.may_read(target.project.id):
            raise HTTPError(403)
        return self._table(request, target).answer(request)

    def _table(self, request: Request, target: Target) -> Table:
        lists, query = Lists(self._visit), request.query
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
        """Answer with the fields of one object as a table of one row (ItemValuesRepresentation)."""
        fields = {name.lower(): str(value) for name, value in self._items.fields(item).items()}
        names = [name for name in request.query.get("columns", "").split(",") if name] or list(self._items.fields(item))
        row = {name: fields.get((name.partition("/")[2] if ":" in name else name).lower(), "") for name in names}
        return Table(names, [row]).answer(request)

    def _below(self, request: Request, target: Target) -> Reply:
        """Answer a path with more words than XNAT has routes for. Some handlers use them, others refuse them."""
        item = found_item(target)
        word, *names = target.rest
        if isinstance(item, Project):
            return ProjectSettings(self._visit).handle(request, item, word, names)
        if word == "projects":
            return Sharing(self._visit).handle(request, item, names)
        if isinstance(item, Experiment) and request.method in ("GET", "HEAD"):
            if word == "status":
                return text(item.status)
            if word == "history":
                row = {"event_user": item.insert_user, "event_date": item.insert_date, "event_action": "Created"}
                return Table(tuple(row), [row]).reply("json", {})
        raise HTTPError(400)


def found_item(target: Target) -> Item:
    """Return the object that a path names.

    Raises
    ------
    HTTPError
        404 if the path names no object, or several.
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
