"""Creating and changing objects: PUT to an object, POST to a list (ProjectResource, SubjectResource, ScanResource)."""

from __future__ import annotations

import re
from itertools import count
from urllib.parse import quote

from monailabel_xnat.sandbox.archive.datatypes import (
    ABSTRACT,
    IMAGE_ASSESSOR,
    IMAGE_SCAN,
    PROJECT,
    SUBJECT,
    SUBJECT_ASSESSOR,
)
from monailabel_xnat.sandbox.archive.fields import Content, FieldReader
from monailabel_xnat.sandbox.archive.model import LEVELS, Experiment, Project, Scan, Subject
from monailabel_xnat.sandbox.archive.resources import owner_of, session_folder
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, text
from monailabel_xnat.sandbox.http.paths import NOT_FOUND, Finder, Target
from monailabel_xnat.sandbox.http.router import Handlers, Visit

_STATUS_ACTIONS = {
    "activate": "active",
    "quarantine": "quarantine",
    "_lock": "locked",
    "_unlock": "active",
    "_obsolete": "obsolete",
}
_PROJECT_ID = re.compile(r"[A-Za-z0-9_-]+")
_LABEL = re.compile(r"[\w. -]{1,255}")


class Edits(Handlers):
    """The handlers, for the user of one request."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._reader = FieldReader(visit.archive.types)

    def put(self, request: Request, target: Target) -> Reply:
        """Create or change the object that a path names."""
        if request.user.is_guest:
            raise HTTPError(403)
        handlers = {
            "projects": self._project,
            "subjects": self._subject,
            "experiments": self._experiment,
            "assessors": self._assessor,
            "scans": self._scan,
        }
        # The path is followed again inside one transaction, so that what is found is still true when it is written.
        with self._archive.store.write():
            target = Finder(self._archive, self._may).find(target.segments).with_one_scan()
            return handlers[target.kind](request, target)

    def post(self, request: Request, target: Target) -> Reply:
        """Create an object of a list. The answer is its address."""
        if target.collection == "reconstructions":
            raise HTTPError(405)
        if target.project is not None and not self._may.may_edit(target.project.id):
            raise HTTPError(403)
        if target.collection == "scans" and target.experiment is not None:
            self._complete_scan(request, target.experiment)
        name = self._posted_name(request, target.collection)
        found = Finder(self._archive, self._may).find([*target.segments, quote(name, safe="")])
        if not found.missing and found.kind not in ("experiments", "assessors"):
            raise HTTPError(409, f"{name} exists already.")
        made = self.put(request, found).body
        last = made.decode() if isinstance(made, bytes) and made else quote(name, safe="")
        site = f"http://{request.headers.get('host', '')}{request.context}"
        url = f"{site}/data/{'/'.join(target.segments)}/{last}"
        answer = text(url)
        answer.headers.append(("Location", url))
        return answer

    def _complete_scan(self, request: Request, session: Experiment) -> None:
        """Set the type and ID of a posted scan if they are missing: its session's type, and the next free number."""
        identity = self._reader.content(request)
        kind = re.sub("Session(?=Data$)", "Scan", session.xsi_type)
        if not identity.xsi_type and self._archive.types.canonical(kind):
            request.query["xsiType"] = kind
        if not request.query.get("ID") and not identity.identity.get("ID"):
            taken = {scan.id for scan in self._archive.scans(session.id)}
            request.query["ID"] = next(str(number) for number in count(1) if str(number) not in taken)

    def _posted_name(self, request: Request, collection: str) -> str:
        known = {"projects": PROJECT, "subjects": SUBJECT}.get(collection, "")
        identity = self._reader.content(request, known).identity
        names = ("ID", "label") if collection in ("projects", "scans") else ("label", "ID")
        given = [request.query.get(name) or identity.get(name) for name in names]
        found = next((name for name in given if name), "")
        if not found:
            raise HTTPError(417, "An ID or a label is needed.")
        request.query.pop("label", None)
        return found

    # Projects

    def _project(self, request: Request, target: Target) -> Reply:
        content = self._reader.content(request, PROJECT)
        level = request.query.get("accessibility", "")
        if level and level not in LEVELS:
            raise HTTPError(400, f"Unknown accessibility; there are {', '.join(LEVELS)}")
        name = target.project.id if target.project else target.missing
        if content.identity.get("ID", name) != name:
            raise HTTPError(417, "The ID in the content is not that of the path.")
        if target.project is None:
            self._require_new_project(name)
        else:
            self._may.require_edit(name)
        self._require_own_names(name, content)
        if target.project is None:
            self._archive.create_project(name, request.user, level or "private", **content.fields)
            return text()
        if level and not self._may.may_delete(name):
            raise HTTPError(403)
        if level:
            self._archive.set_accessibility(name, level)
        self._archive.set_fields(target.project, content.over(target.project.fields))
        return text()

    def _require_new_project(self, name: str) -> None:
        if self._archive.project(name) is not None or self._archive.is_retired(name):
            raise HTTPError(403, f"The project ID {name} is in use.")
        if not _PROJECT_ID.fullmatch(name):
            raise HTTPError(417, f"Invalid project ID: {name}")

    def _require_own_names(self, name: str, content: Content) -> None:
        """Refuse a name, secondary ID or alias that another project has."""
        for other in self._archive.projects():
            if other.id != name and _names_of(other.id, other.fields) & _names_of(name, content.fields):
                raise HTTPError(409, "Title, running title, ID or alias is in use by another project.")

    # Subjects

    def _subject(self, request: Request, target: Target) -> Reply:
        content = self._reader.content(request, SUBJECT)
        if content.xsi_type != SUBJECT:
            raise HTTPError(422)
        if target.subject is not None:
            return self._change_subject(request, target, target.subject, content)
        if target.project is None:
            raise HTTPError(422, "Submitted subject record must include the project attribute.")
        self._may.require_edit(target.project.id)
        _require_label(target.missing)
        made = self._archive.create_subject(target.project.id, target.missing, request.user, **content.fields)
        return text(made.id, 201)

    def _change_subject(self, request: Request, target: Target, found: Subject, content: Content) -> Reply:
        if not self._may.may_edit_item(found):
            raise HTTPError(403)
        if self._rename(request, target, found):
            return text()
        _require_same(content, {"ID": found.id, "project": found.project})
        self._archive.set_fields(found, content.over(found.fields))
        return text(found.id)

    def _rename(self, request: Request, target: Target, found: Subject | Experiment) -> bool:
        """Rename a subject or experiment, and do nothing else: XNAT ignores the other fields of the call."""
        label = request.query.get("label", "")
        project = target.project.id if target.project else found.project
        if not label or label == self._archive.label_in(found, project):
            return False
        _require_label(label)
        self._require_free(project, label, found.table)
        before = self._folder(found)
        self._archive.rename(found, project, label)
        renamed = self._archive.subject(found.id) if isinstance(found, Subject) else self._archive.experiment(found.id)
        if renamed is not None and self._folder(renamed) != before:
            self._resources.move(before, self._folder(renamed))
        return True

    def _folder(self, item: Subject | Experiment) -> str:
        if isinstance(item, Experiment) and not item.session_id:
            return session_folder(item)
        return owner_of(self._archive, item).folder

    # Experiments of a subject, and those of a session, which are assessors

    def _experiment(self, request: Request, target: Target) -> Reply:
        if target.experiment is not None and not target.missing:
            return self._change_experiment(request, target, target.experiment)
        if target.project is None:
            raise HTTPError(422, "Submitted experiment record must include the project attribute.")
        content = self._new_content(request, target, SUBJECT_ASSESSOR)
        known = self._archive.experiment(content.identity.get("ID", target.missing))
        if known is not None:
            return self._add_share(known, target)
        subject = self._subject_for(request, target, target.project, content)
        self._require_free(target.project.id, target.missing)
        made = self._make(request, target.project.id, target.missing, content, subject=subject.id)
        self._change_scans(request, made, content)
        return text(made.id, 201)

    def _make(
        self,
        request: Request,
        project: str,
        label: str,
        content: Content,
        *,
        subject: str | None = None,
        session: str | None = None,
    ) -> Experiment:
        """Make an experiment of a subject, or an assessor of a session."""
        number, fields = content.identity.get("ID", ""), {"user": request.user, **content.fields}
        return self._archive.create_experiment(
            project, label, content.xsi_type, subject=subject, session=session, experiment_id=number, **fields
        )

    def _new_content(self, request: Request, target: Target, base: str) -> Content:
        """Return what a request says about a new experiment. Refuse an experiment that cannot be made."""
        project = target.project.id if target.project else target.experiment.project if target.experiment else ""
        self._may.require_edit(project)
        content = self._reader.content(request)
        if not content.xsi_type:
            raise HTTPError(417, "Need PUT Contents")
        if content.xsi_type in ABSTRACT:
            raise HTTPError(400, f"{content.xsi_type} is abstract")
        if not self._archive.types.is_a(content.xsi_type, base):
            raise HTTPError(422, f"{content.xsi_type} is not a {base}")
        _require_label(target.missing)
        _require_label(content.identity.get("ID", target.missing))
        _require_same(content, {"label": target.missing, "project": project})
        return content

    def _add_share(self, known: Experiment, target: Target) -> Reply:
        """Share an experiment of another project if the content names it. If only the path does, that is a conflict."""
        project = target.project.id if target.project else ""
        if known.id == target.missing or project == known.project or project in self._archive.shares(known.id):
            raise HTTPError(409, "Specified experiment already exists in another project.")
        if not self._may.may_read_item(known):
            raise HTTPError(403)
        self._require_free(project, target.missing)
        self._archive.share(known.id, project, target.missing)
        return text(known.id)

    def _require_free(self, project: str, label: str, table: str = "experiments") -> None:
        if self._archive.label_owner(table, label, project):
            raise HTTPError(409, "Specified label is already in use.")

    def _subject_for(self, request: Request, target: Target, project: Project, content: Content) -> Subject:
        if target.subject is not None:
            return target.subject
        name = target.new_subject or content.identity.get("subject_ID", "")
        if not name:
            raise HTTPError(422, "Submitted experiment record must include the subject.")
        known = self._archive.subject(name, project.id)
        return known or self._archive.create_subject(project.id, name, request.user)

    def _assessor(self, request: Request, target: Target) -> Reply:
        if target.assessor is not None and not target.missing:
            return self._change_experiment(request, target, target.assessor)
        session = target.experiment
        if session is None:
            raise HTTPError(404, NOT_FOUND["experiments"])
        content = self._new_content(request, target, IMAGE_ASSESSOR)
        project = target.project.id if target.project else session.project
        self._require_free(project, target.missing)
        if self._archive.experiment(content.identity.get("ID", "")):
            raise HTTPError(409, "Specified experiment already exists.")
        made = self._make(request, project, target.missing, content, session=session.id)
        return text(made.id, 201)

    def _change_experiment(self, request: Request, target: Target, found: Experiment) -> Reply:
        self._may.require_edit(found.project)
        if self._set_status(request, found):
            return text(found.id)
        if not self._may.may_edit_item(found):
            raise HTTPError(403, f"The item is {found.status}.")
        if self._rename(request, target, found):
            return text()
        content = self._reader.content(request, found.xsi_type)
        label = found.label if target.project is None else self._archive.label_in(found, target.project.id)
        _require_same(content, {"ID": found.id, "label": label, "project": found.project})
        if not self._archive.types.is_a(found.xsi_type, content.xsi_type):
            raise HTTPError(409, f"The experiment is a {found.xsi_type}")
        self._archive.set_fields(found, content.over(found.fields))
        self._move_to_subject(request, found, content)
        self._change_scans(request, found, content)
        self._act(request, found)
        return text(found.id)

    def _act(self, request: Request, session: Experiment, scan: Scan | None = None) -> None:
        """Do what a PUT asks for in addition to fields."""
        if request.flag("pullDataFromHeaders") or request.flag("fixScanTypes"):
            # Imported here and not at the start, because it imports pydicom.
            from monailabel_xnat.sandbox.dicom.headers import HeaderActions

            HeaderActions(self._archive, self._resources).run(request, session, scan)

    def _move_to_subject(self, request: Request, found: Experiment, content: Content) -> None:
        """Assign a session to the subject that the content names. An unknown subject is made."""
        name = content.identity.get("subject_ID", "")
        if not name or found.session_id:
            return
        # An ID can name a subject of another project that is shared into this project.
        subject = self._archive.subject(name, found.project) or self._archive.subject(name)
        if subject is not None and not self._may.may_read_item(subject):
            raise HTTPError(403)
        subject = subject or self._archive.create_subject(found.project, name, request.user)
        if subject.id != found.subject_id:
            self._archive.change(found, subject_id=subject.id)

    def _change_scans(self, request: Request, found: Experiment, content: Content) -> None:
        """Change or create the scans in the document of a session."""
        known = {scan.id: scan for scan in self._archive.scans(found.id)}
        for scan in content.scans:
            name = scan.identity.get("ID", "")
            if name in known:
                self._archive.set_fields(known[name], scan.fields)
            elif name:
                self._archive.create_scan(found.id, name, scan.xsi_type, request.user, **scan.fields)

    def _set_status(self, request: Request, found: Experiment) -> bool:
        for name, status in _STATUS_ACTIONS.items():
            if request.flag(name):
                # Only owners may activate. A member may put data into quarantine, but not take it out.
                if name == "activate" and not self._may.may_delete(found.project):
                    raise HTTPError(403)
                self._archive.change(found, status=status)
                return True
        return False

    # Scans

    def _scan(self, request: Request, target: Target) -> Reply:
        session = target.experiment
        if session is None:
            raise HTTPError(404, NOT_FOUND["experiments"])
        if not self._may.may_edit_item(session):
            raise HTTPError(403)
        found = target.scans[0] if len(target.scans) == 1 else None
        if found is not None:
            return self._change_scan(request, session, found)
        if not request.query and not request.length:
            raise HTTPError(417, "Need PUT Contents")
        return self._new_scan(request, session, target.missing)

    def _new_scan(self, request: Request, session: Experiment, name: str) -> Reply:
        content = self._reader.content(request)
        if content.xsi_type in ("", IMAGE_SCAN) or not self._archive.types.is_a(content.xsi_type, IMAGE_SCAN):
            raise HTTPError(400, "The type of a new scan is needed")
        self._archive.create_scan(session.id, name, content.xsi_type, request.user, **content.fields)
        return text()

    def _change_scan(self, request: Request, session: Experiment, found: Scan) -> Reply:
        content = self._reader.content(request, found.xsi_type)
        if not self._archive.types.is_a(found.xsi_type, content.xsi_type):
            raise HTTPError(409, f"Specified xsiType differs from existing xsiType {found.xsi_type}")
        self._archive.set_fields(found, content.over(found.fields))
        self._act(request, session, found)
        return text()


def _names_of(name: str, fields: dict[str, object]) -> set[str]:
    """Return the names that no other project may have, in any of its fields and in upper or lower case."""
    aliases = fields.get("aliases/alias")
    listed = [str(entry.get("alias", "")) for entry in aliases] if isinstance(aliases, list) else []
    own = [name, *listed, *(str(fields.get(key) or "") for key in ("name", "secondary_ID"))]
    return {each.lower() for each in own if each}


def _require_label(label: str) -> None:
    if not _LABEL.fullmatch(label):
        raise HTTPError(417, f"Invalid characters in {label}")


def _require_same(content: Content, expected: dict[str, str]) -> None:
    for name, value in expected.items():
        if content.identity.get(name, value) != value:
            raise HTTPError(400, f"The {name} cannot be changed through fields.")
