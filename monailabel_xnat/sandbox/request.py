"""A request as the handlers see it, and where in the archive its path points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import unquote

from monailabel_xnat.sandbox.accounts import Session, User
from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.model import Experiment, Project, Scan, Subject
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError


@dataclass
class Request:
    """One request.

    Parameters
    ----------
    method, path
        As sent; the path still percent-encoded.
    query
        Decoded parameters.
    headers
        By lower-cased name.
    body
        The body, on disk where it is large.
    length
        Its length; None where it came chunked.
    user, session
        Who asks.
    began
        When the request arrived, in changes of catalogs: a catalog changed since was changed by another writer.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: BinaryIO
    length: int | None
    user: User
    session: Session | None = None
    began: int = 0

    @property
    def content_type(self) -> str:
        """The media type of the body without parameters, lower-cased."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def flag(self, name: str) -> bool:
        """Read a boolean parameter: any value but ``false`` and ``0`` is true (SecureResource)."""
        value = self.query.get(name)
        return value is not None and value.lower() not in ("false", "0")


@dataclass
class Target:
    """What a path names, from the outside in; `missing` is the last name where it does not exist (yet).

    `collection` is set where the path ends in a list (``scans``); `rest` is what follows ``files``, still encoded.
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
    rest: list[str] = field(default_factory=list)

    @property
    def all_scans(self) -> bool:
        """Whether the path names scans."""
        return self.kind == "scans"


class Finder:
    """Follows a path through the archive as one user sees it; what cannot be read is 404."""

    def __init__(self, archive: Archive, permissions: Permissions) -> None:
        self._archive = archive
        self._may = permissions

    def find(self, segments: list[str]) -> Target:
        """Follow the segments, which are still percent-encoded.

        Raises
        ------
        HTTPError
            404 where something on the way does not exist or may not be read.
        """
        target = Target()
        position = 0
        while position < len(segments):
            word = segments[position]
            if word in ("resources", "files"):
                self._resource(target, segments, position)
                return target
            if word in ("in", "out") and target.assessor:
                target.direction, position = word, position + 1
                continue
            if target.missing or word not in ("projects", "subjects", "experiments", "scans", "assessors"):
                target.rest = segments[position:]
                return self._settled(target)
            if position + 1 == len(segments) or not segments[position + 1]:
                self._settled(target)
                target.collection = word
                return target
            target.kind = word
            self._step(target, word, unquote(segments[position + 1]))
            position += 2
        return target

    @staticmethod
    def _settled(target: Target) -> Target:
        if target.missing:
            raise HTTPError(404)
        return target

    def _resource(self, target: Target, segments: list[str], position: int) -> None:
        self._settled(target)
        if segments[position] == "resources":
            position += 1
            if position == len(segments) or not segments[position]:
                target.collection = "resources"
                return
            target.resource = unquote(segments[position])
            position += 1
        if position < len(segments) and segments[position] == "files":
            target.files = True
            position += 1
        target.rest = list(segments[position:])
        while target.rest and not target.rest[-1]:
            target.rest.pop()

    def _step(self, target: Target, word: str, name: str) -> None:
        self._settled(target)
        found = getattr(self, f"_step_{word}")(target, name)
        if not found:
            target.missing = name

    def _step_projects(self, target: Target, name: str) -> bool:
        project = self._archive.project(name)
        if project is not None and self._may.may_see(project):
            target.project = project
        return target.project is not None

    def _step_subjects(self, target: Target, name: str) -> bool:
        subject = self._archive.subject(name, target.project.id if target.project else None)
        if subject is not None and self._reads(subject, target):
            target.subject = subject
        return target.subject is not None

    def _step_experiments(self, target: Target, name: str) -> bool:
        found = self._archive.experiment(name, target.project.id if target.project else None)
        if found is not None and self._reads(found, target):
            if target.subject is not None and found.subject_id != target.subject.id and not found.session_id:
                return False
            if found.session_id:
                target.assessor, target.experiment = found, self._archive.experiment(found.session_id)
                target.kind = "assessors"
            else:
                target.experiment = found
            return True
        return False

    def _step_assessors(self, target: Target, name: str) -> bool:
        if target.experiment is None:
            raise HTTPError(404)
        for assessor in self._archive.assessors(target.experiment.id):
            if name in (assessor.id, assessor.label):
                target.assessor = assessor
        return target.assessor is not None

    def _step_scans(self, target: Target, name: str) -> bool:
        if target.experiment is None:
            raise HTTPError(404)
        scans = self._archive.scans(target.experiment.id)
        if name in ("ALL", "*"):
            target.scans = scans
            return True
        names = [part.replace("[SLASH]", "/").replace("[COMMA]", ",") for part in name.split(",")]
        target.scans = [scan for scan in scans if scan.id in names or scan.fields.get("type") in names]
        return bool(target.scans)

    def _reads(self, item: Subject | Experiment, target: Target) -> bool:
        if target.project is not None and self._may.may_read(target.project.id):
            return True
        return self._may.may_read_item(item)
