"""Custom fields: a JSON object beside each project, subject, experiment and scan (CustomFieldsApi, XNAT 1.8.8)."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import unquote

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.http.paths import Target, locate
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, as_json, text
from monailabel_xnat.sandbox.http.request import Request

_SELECT = {
    "projects": "SELECT custom_fields FROM projects WHERE id = ?",
    "subjects": "SELECT custom_fields FROM subjects WHERE id = ?",
    "experiments": "SELECT custom_fields FROM experiments WHERE id = ?",
    "scans": "SELECT custom_fields FROM scans WHERE pk = ?",
}
_UPDATE = {
    "projects": "UPDATE projects SET custom_fields = ? WHERE id = ?",
    "subjects": "UPDATE subjects SET custom_fields = ? WHERE id = ?",
    "experiments": "UPDATE experiments SET custom_fields = ? WHERE id = ?",
    "scans": "UPDATE scans SET custom_fields = ? WHERE pk = ?",
}


class _Bearer(NamedTuple):
    """What has the fields: its table and key, and the project that decides who may change them."""

    table: str
    key: Any
    project: str


class CustomFields:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, may: Permissions) -> None:
        self._archive = archive
        self._may = may

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer ``/xapi/custom-fields/.../fields[/NAME]``.

        Raises
        ------
        HTTPError
            400 for a body that is no JSON object; 403 without the right, and for a project, subject or experiment that
            is not there; 404 for a scan or assessor that is not; 405 for another method, 415 for another content type.
        """
        end = len(words) - 1 if words[-1:] == ["fields"] else len(words) - 2
        if end < 1 or words[end] != "fields":
            raise HTTPError(404)
        name = unquote(words[end + 1]) if end + 1 < len(words) else ""
        is_read = request.method in ("GET", "HEAD")
        if request.method not in ("GET", "HEAD", "DELETE" if name else "PUT"):
            raise HTTPError(405)
        bearer = self._bearer(words[:end], is_read=is_read)
        if is_read:
            return self._get(request, bearer, name)
        if not self._may_change(bearer):
            raise HTTPError(403)
        return self._delete(bearer, name) if name else self._put(request, bearer)

    def _may_change(self, bearer: _Bearer) -> bool:
        """Return whether the user may change the fields: those of a project are its owners'."""
        test = self._may.may_delete if bearer.table == "projects" else self._may.may_edit
        return test(bearer.project)

    def _bearer(self, words: list[str], *, is_read: bool) -> _Bearer:
        inner = next((place for place, word in enumerate(words) if word in ("scans", "assessors")), len(words))
        outer = self._found(words[:inner])
        if outer is None:
            # Who asks is not told whether it exists; administrators, who see everything, are.
            raise HTTPError(404 if self._may.user.is_admin else 403)
        if inner == len(words):
            return self._of(outer)
        target = self._found(words)
        if target is not None:
            return self._of(target)
        session = outer.experiment
        may_edit = session is not None and self._may.may_edit(session.project)
        raise HTTPError(404 if is_read or may_edit else 403)

    def _found(self, words: list[str]) -> Target | None:
        try:
            return locate(self._archive, self._may, words)
        except HTTPError:
            return None

    def _of(self, target: Target) -> _Bearer:
        if target.collection or target.files or target.resource is not None:
            raise HTTPError(404)
        if target.kind == "scans":
            if len(target.scans) != 1 or target.experiment is None:
                raise HTTPError(404)
            return _Bearer("scans", target.scans[0].pk, target.experiment.project)
        item = target.assessor or target.experiment
        if item is not None:
            return _Bearer("experiments", item.id, item.project)
        if target.subject is not None:
            return _Bearer("subjects", target.subject.id, target.subject.project)
        if target.project is None or not self._may.may_read(target.project.id):
            raise HTTPError(404 if self._may.user.is_admin else 403)
        return _Bearer("projects", target.project.id, target.project.id)

    def _fields(self, bearer: _Bearer) -> dict[str, Any]:
        row = self._archive.store.one(_SELECT[bearer.table], (bearer.key,))
        if row is None:
            raise HTTPError(404)
        found: dict[str, Any] = json.loads(row[0])
        return found

    def _get(self, request: Request, bearer: _Bearer, name: str) -> Reply:
        fields = self._fields(bearer)
        if name:
            value = _named(fields, name)
            return text(value if isinstance(value, str) else json.dumps(value))
        wanted = [field for names in request.values("fieldNames") for field in names.split(",") if field]
        return as_json({key: value for key, value in fields.items() if not wanted or key in wanted})

    def _put(self, request: Request, bearer: _Bearer) -> Reply:
        if request.content_type != "application/json":
            raise HTTPError(415, f"Content type '{request.content_type}' not supported")
        try:
            given = json.load(request.body)
        except ValueError as error:
            raise HTTPError(400, f"JSON parse error: {error}") from error
        if not isinstance(given, dict):
            raise HTTPError(400, "The fields are a JSON object.")
        with self._archive.store.write() as db:
            fields = {**self._fields(bearer), **given}
            db.execute(_UPDATE[bearer.table], (json.dumps(fields), bearer.key))
        return as_json(fields)

    def _delete(self, bearer: _Bearer, name: str) -> Reply:
        with self._archive.store.write() as db:
            fields = self._fields(bearer)
            _named(fields, name)
            del fields[name]
            db.execute(_UPDATE[bearer.table], (json.dumps(fields), bearer.key))
        return as_json(fields)


def _named(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise HTTPError(404, f"Unable to find custom field {name}")
    return fields[name]
