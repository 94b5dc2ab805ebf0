"""Which object of the archive a path names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from monailabel_xnat.sandbox.access.gate import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Project, Scan, Subject
from monailabel_xnat.sandbox.http.messages import HTTPError, text_of

# Which words may follow a word. There is no route projects/P/experiments/E/scans: the experiment's handler answers it.
_FILES = frozenset(("resources", "files"))


_INSIDE = _FILES | {"scans", "assessors", "reconstructions"}


_ROUTES: dict[str, frozenset[str]] = {
    "": frozenset(("projects", "subjects", "experiments")),
    "projects": _FILES | {"subjects", "experiments"},
    "projects/subjects": _FILES | {"experiments"},
    "projects/subjects/experiments": _INSIDE,
    "projects/experiments": _FILES,
    "subjects": _FILES,
    "experiments": _INSIDE,
    "scans": _FILES,
    "assessors": _FILES,
}


NOT_FOUND = {
    "projects": "Unable to find the specified project.",
    "subjects": "Unable to identify subject.",
    "experiments": "Unable to find the specified experiment.",
    "scans": "Unable to find the specified scan.",
    "assessors": "Unable to find the specified experiment.",
}


@dataclass
class Target:
    """What a path names, from the outside in. `missing` is the last name, if it does not exist (yet).

    `scan_name` is the scan as written, which for resources may be a list, a type or ``ALL``. `segments` is the path.
    `kind` is the kind of the last name (``experiments``). `collection` is set if the path ends in a list (``scans``).
    `new_subject` is the subject of the path, if only the subject is missing. `rest` is what follows ``files``, or an
    object where XNAT has no such route, still encoded.
    """

    project: Project | None = None
    subject: Subject | None = None
    experiment: Experiment | None = None
    assessor: Experiment | None = None
    scans: list[Scan] = field(default_factory=list)
    kind: str = ""
    missing: str = ""
    collection: str = ""
    direction: str = "out"
    resource: str | None = None
    files: bool = False
    new_subject: str = ""
    scan_name: str = ""
    segments: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    def with_one_scan(self) -> Target:
        """Return the target where `scan_name` is an ID and nothing else, as it is for the scan itself."""
        if self.kind != "scans":
            return self
        exact = [scan for scan in self.scans if scan.id == self.scan_name]
        return replace(self, scans=exact, missing="" if exact else self.scan_name)


class Finder:
    """Follows a path through the archive as one user sees it. An object that the user may not read does not exist."""

    def __init__(self, archive: Archive, permissions: Permissions) -> None:
        self._archive = archive
        self._may = permissions

    def find(self, segments: list[str]) -> Target:
        """Follow the segments, which are still percent-encoded.

        Raises
        ------
        HTTPError
            404 if something on the path does not exist or the user may not read it.
        """
        target = Target(segments=[segment for segment in segments if segment])
        route, position = "", 0
        while position < len(segments):
            word = segments[position]
            if word in ("in", "out") and route == "assessors":
                target.direction, position = word, position + 1
                continue
            if word not in _ROUTES[route]:
                target.rest = segments[position:]
                return _settled(target)
            if word in ("resources", "files"):
                _find_files(_settled(target), segments[position:])
                return target
            if not any(segments[position + 1 :]):
                # The path ends in a list, so only the last object before it can be missing.
                _settled(target).collection = word
                return target
            route = self._step(target, route, word, text_of(segments[position + 1]))
            position += 2
        return target

    def _step(self, target: Target, route: str, word: str, name: str) -> str:
        """Go one object further, and return its route."""
        if target.missing and target.kind == "subjects" and word == "experiments":
            # A client may put an experiment of a subject that does not exist yet. The subject is made with it.
            target.new_subject, target.missing = target.missing, ""
        else:
            _settled(target)
        target.kind = word
        if word == "reconstructions":
            raise HTTPError(404, "The sandbox has no reconstructions.")
        steps = {
            "projects": self._step_project,
            "subjects": self._step_subject,
            "experiments": self._step_experiment,
            "assessors": self._step_assessor,
            "scans": self._step_scans,
        }
        target.missing = "" if steps[word](target, name) else name
        if target.kind in ("assessors", "scans"):
            return target.kind
        return f"{route}/{word}" if route else word

    def _step_project(self, target: Target, name: str) -> bool:
        project = self._archive.project(name)
        if project is not None and self._may.may_see(project):
            target.project = project
        return target.project is not None

    def _step_subject(self, target: Target, name: str) -> bool:
        subject = self._archive.subject(name, target.project.id if target.project else None)
        if subject is not None and self._reads(subject, target):
            target.subject = subject
        return target.subject is not None

    def _step_experiment(self, target: Target, name: str) -> bool:
        found = self._archive.experiment(name, target.project.id if target.project else None)
        if found is None or target.new_subject or not self._reads(found, target):
            return False
        if found.session_id:
            # An assessor is also an experiment.
            target.assessor, target.experiment = found, self._archive.experiment(found.session_id)
            target.kind = "assessors"
        elif target.subject is None or found.subject_id == target.subject.id:
            target.experiment = found
        return target.experiment is not None

    def _step_assessor(self, target: Target, name: str) -> bool:
        for assessor in self._archive.assessors(target.experiment.id if target.experiment else ""):
            if name == assessor.id or (target.project is not None and name == assessor.label):
                target.assessor = assessor
        return target.assessor is not None

    def _step_scans(self, target: Target, name: str) -> bool:
        scans = self._archive.scans(target.experiment.id if target.experiment else "")
        target.scan_name = name.replace("[SLASH]", "/").replace("[COMMA]", ",")
        if name in ("ALL", "*"):
            target.scans = scans
            return True
        names = [part.replace("[SLASH]", "/").replace("[COMMA]", ",") for part in name.split(",")]
        types = ["" if part == "NULL" else part for part in names]
        target.scans = [scan for scan in scans if scan.id in names or str(scan.fields.get("type", "")) in types]
        return bool(target.scans)

    def _reads(self, item: Subject | Experiment, target: Target) -> bool:
        if target.project is not None and self._may.may_read(target.project.id):
            return True
        return self._may.may_read_item(item)


def _settled(target: Target) -> Target:
    if target.missing:
        raise HTTPError(404, NOT_FOUND.get(target.kind, ""))
    if target.new_subject:
        raise HTTPError(404, NOT_FOUND["subjects"])
    return target


def _find_files(target: Target, segments: list[str]) -> None:
    word, *rest = segments
    if word == "resources":
        if not any(rest):
            target.collection = "resources"
            return
        target.resource, *rest = [text_of(rest[0]), *rest[1:]]
        word = rest[0] if rest else ""
        rest = rest[1:] if word == "files" else rest
    target.files = word == "files"
    while rest and not rest[-1]:
        rest.pop()
    target.rest = rest


def words_of(address: str) -> list[str]:
    """Return the words of an address in a parameter, such as ``/data/prearchive/projects/P``, from after ``/data``."""
    words = [word for word in address.split("/") if word]
    return words[1:] if words[:1] == ["data"] else words


_INSIDE_SESSION = ("scans", "assessors")


def locate(archive: Archive, may: Permissions, words: list[str]) -> Target:
    """Return what ``projects/P/experiments/E/scans/S`` or any other path names.

    Parameters
    ----------
    archive, may
        The archive, and what the user may do.
    words
        The segments of the path, still percent-encoded.

    Raises
    ------
    HTTPError
        404 if there is no such object, or the user may not read it.
    """
    if words[:1] == ["projects"] and words[2:3] == ["experiments"] and words[4:5] and words[4] in _INSIDE_SESSION:
        session = Finder(archive, may).find(words[:4]).experiment
        if session is None:
            raise HTTPError(404)
        # The session is named by its ID, because it may be shared without its subject.
        words = ["experiments", session.id, *words[4:]]
    if words[:1] == ["experiments"] and words[2:3] == ["assessors"] and len(words) == 4:
        session = Finder(archive, may).find(words[:2]).experiment
        names = unquote(words[3])
        labelled = [item for item in archive.assessors(session.id if session else "") if item.label == names]
        words = [*words[:3], labelled[0].id] if labelled else words
    target = Finder(archive, may).find(words)
    if target.missing or target.new_subject or (target.rest and not target.files):
        raise HTTPError(404)
    return target
