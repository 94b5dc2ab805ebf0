"""ROI collections of the OHIF viewer's plugin, and the checks that a collection belongs to its session."""

from __future__ import annotations

import io
import secrets
from typing import Any, NamedTuple

from monailabel_xnat.sandbox.archive.datatypes import ROI_COLLECTION
from monailabel_xnat.sandbox.archive.model import Experiment, Resource
from monailabel_xnat.sandbox.archive.resources import Incoming, owner_of
from monailabel_xnat.sandbox.archive.staging import Staged
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, as_json, text
from monailabel_xnat.sandbox.http.router import Handlers
from monailabel_xnat.sandbox.roi.content import RoiContent, as_rtstruct, read_content


class _Kind(NamedTuple):
    """How a type of collection is stored."""

    suffix: str
    format: str


_KINDS = {
    "SEG": _Kind(".dcm", "DICOM"),
    "RTSTRUCT": _Kind(".dcm", "DICOM"),
    "AIM": _Kind(".xml", "XML"),
    "NIFTI": _Kind(".nii.gz", "NIFTI"),
    "MEAS": _Kind(".json", "JSON"),
}
_PERMISSION_ELEMENTS = {
    "RoiCollection": ROI_COLLECTION,
    "MRSession": "xnat:mrSessionData",
    "CTSession": "xnat:ctSessionData",
    "PETSession": "xnat:petSessionData",
    "PETMRSession": "xnat:petmrSessionData",
    "CRSession": "xnat:crSessionData",
}
# Only in sessions of these types does AIM become an RTSTRUCT: their images lie in space (OhifRoiApi.is3D).
_SPATIAL_TYPES = ("xnat:mrSessionData", "xnat:ctSessionData", "xnat:petSessionData", "xnat:petmrSessionData")
# A SEG or RTSTRUCT needs a session of modality MR, CT, PT or US.
_SESSION_TYPES = (*_SPATIAL_TYPES, "xnat:usSessionData")


class RoiCollections(Handlers):
    """The calls below ``/xapi/roi/projects/P``, for the user of one request."""

    def answer(self, method: str, request: Request, names: dict[str, str]) -> Reply:
        """Answer a request. A refusal is text, or JSON if the client accepts nothing else."""
        try:
            if not self._may.may_read(names["project"]):
                raise HTTPError(403, f"Project {names['project']} is not accessible")
            return super().answer(method, request, names)
        except HTTPError as error:
            if request.headers.get("accept") == "application/json":
                return as_json({"ResponseMessage": str(error)}, error.status)
            raise

    def permissions(self, request: Request, project: str, name: str) -> Reply:
        """Answer with what the user may do with a kind of object."""
        element = _PERMISSION_ELEMENTS.get(name)
        if element is None:
            raise HTTPError(422, f"Unsupported data type: {name}")
        edit, delete = self._may.may_edit(project), self._may.may_delete(project)
        return as_json({"element": f"{element}/project", "create": edit, "read": True, "edit": edit, "delete": delete})

    def exists(self, request: Request, project: str, name: str) -> Reply:
        """Answer whether there is a collection with this ID or label."""
        return as_json(self._find(project, name) is not None)

    def _find(self, project: str, name: str) -> Experiment | None:
        found = self._archive.experiment(name, project)
        return found if found is not None and found.xsi_type == ROI_COLLECTION else None

    def _require(self, project: str, name: str) -> Experiment:
        found = self._find(project, name)
        if found is None:
            raise HTTPError(422, f"ROI collection not found: {name}")
        return found

    def _resource(self, collection: Experiment, kind: str) -> Resource | None:
        return self._resources.find(owner_of(self._archive, collection), kind) if kind in _KINDS else None

    def _bytes(self, resource: Resource) -> bytes:
        return self._resources.path(self._resources.files(resource)[0]).read_bytes()

    # Read and delete

    def get(self, request: Request, project: str, name: str) -> Reply:
        """Answer with the bytes of a collection."""
        collection = self._require(project, name)
        own = str(collection.fields.get("collectionType", ""))
        kind = request.query.get("type") or own
        resource = self._resource(collection, kind)
        if resource is None and (own, kind) == ("AIM", "RTSTRUCT"):
            # It is made again, but only for users who may write. The others get 404.
            if not self._may.may_edit(project):
                raise HTTPError(404)
            resource = self._make_rtstruct(collection, request.user.login)
        if resource is None:
            raise HTTPError(422, f"{name} is not available as {kind}")
        return Reply(self._bytes(resource), media_type="application/octet-stream")

    def rois(self, request: Request, project: str, name: str) -> Reply:
        """List the regions of a collection."""
        collection = self._require(project, name)
        kind = str(collection.fields.get("collectionType", ""))
        resource = self._resource(collection, kind)
        found = read_content(kind, self._bytes(resource)).rois if resource else []
        return as_json(
            [
                {
                    "id": number,
                    "uid": roi.uid,
                    "name": roi.name,
                    "geometricType": roi.geometric_type,
                    "roiCollectionId": collection.id,
                }
                for number, roi in enumerate(found, 1)
            ]
        )

    def delete(self, request: Request, project: str, name: str) -> Reply:
        """Delete a collection."""
        found = self._require(project, name)
        self._may.require_delete(project)
        self._resources.delete_of(owner_of(self._archive, found))
        self._archive.drop(found)
        return text()

    # Store

    def store(self, request: Request, project: str, session_id: str, label: str) -> Reply:
        """Store a collection of a session, and answer with its ID."""
        if request.content_type != "application/octet-stream":
            raise HTTPError(415, f"Content type '{request.content_type}' not supported")
        kind = request.query.get("type", "")
        if kind not in _KINDS:
            raise HTTPError(422, f"Unsupported ROI collection type: {kind}")
        session = self._session(project, session_id)
        self._may.require_edit(project)
        known = self._archive.experiment(label, project)
        if known is not None and (known.session_id != session.id or known.xsi_type != ROI_COLLECTION):
            raise HTTPError(409, f"Label {label} is in use by another experiment")
        if known is not None and not request.flag("overwrite"):
            raise HTTPError(422, "ROI collection exists, overwrite not specified")
        fields = self._checked(kind, request.body.read(), session)
        stored = self._save(request, session, known, label, kind, fields)
        if kind == "AIM":
            self._make_rtstruct(stored, request.user.login)
        return text(stored.id)

    def _session(self, project: str, session_id: str) -> Experiment:
        found = self._archive.experiment(session_id)
        if found is None or (found.project != project and project not in self._archive.shares(found.id)):
            raise HTTPError(422, f"Session not found: {session_id}")
        return found

    def _checked(self, kind: str, content: bytes, session: Experiment) -> dict[str, Any]:
        """Check that a collection belongs to the session, and return the fields of its assessor."""
        if kind in ("SEG", "RTSTRUCT") and session.xsi_type not in _SESSION_TYPES:
            raise HTTPError(422, f"{kind} is not supported for a session of type {session.xsi_type}")
        try:
            found = read_content(kind, content)
        except ValueError as error:
            raise HTTPError(422, str(error)) from error
        self._require_images(found, session)
        return {
            "UID": found.uid,
            "collectionType": kind,
            "name": found.name or kind,
            "subjectID": session.subject_id or "",
            "date": found.date or None,
            "time": found.time or None,
            "references/seriesUID": [{"seriesUID": uid} for uid in sorted(found.series) if uid],
        }

    def _require_images(self, found: RoiContent, session: Experiment) -> None:
        if found.studies != {str(session.fields.get("UID", ""))}:
            raise _missing("study UID", found.studies)
        scans = {str(scan.fields.get("UID", "")): scan for scan in self._archive.scans(session.id)}
        named = found.series.keys() - {""}
        if not named or named - scans.keys():
            raise _missing("series UID", named - scans.keys())
        archived: dict[str, set[str]] = {}
        for uid in named:
            owner = owner_of(self._archive, scans[uid])
            catalogs = [item for item in self._resources.of(owner) if item.is_dicom]
            archived[uid] = {entry.sop_uid for item in catalogs for entry in self._resources.files(item)}
        archived[""] = set().union(*archived.values())
        for uid, instances in found.series.items():
            if instances - archived[uid]:
                raise _missing("SOP instance UID", instances - archived[uid])

    def _save(
        self,
        request: Request,
        session: Experiment,
        known: Experiment | None,
        label: str,
        kind: str,
        fields: dict[str, Any],
    ) -> Experiment:
        request.body.seek(0)
        staged = self._resources.stage(request.body)
        if known is None:
            known = self._archive.create_experiment(
                session.project,
                label,
                ROI_COLLECTION,
                session=session.id,
                user=request.user,
                experiment_id=f"RoiCollection_{secrets.token_urlsafe(16).replace('-', '_')}",
                **{name: value for name, value in fields.items() if value is not None},
            )
        else:
            self._resources.delete_of(owner_of(self._archive, known))
            self._archive.set_fields(known, fields)
        self._add(known, kind, staged, request.user.login)
        return known

    def _add(self, collection: Experiment, kind: str, staged: Staged, login: str) -> Resource:
        """Store a file of a collection in a resource of its own."""
        stored = _KINDS[kind]
        values = {"format": stored.format, "content": "EXTERNAL"}
        made = self._resources.create(owner_of(self._archive, collection), kind, **values)
        self._resources.put(made, [Incoming(f"{collection.label}{stored.suffix}", staged, values)], login)
        return made

    def _make_rtstruct(self, collection: Experiment, login: str) -> Resource | None:
        """Store and return the RTSTRUCT of an AIM collection, or None if its images have no place in the patient."""
        session = self._archive.experiment(collection.session_id or "")
        aim = self._resource(collection, "AIM")
        if session is None or aim is None or session.xsi_type not in _SPATIAL_TYPES:
            return None
        content = self._bytes(aim)
        wanted = {uid for instances in read_content("AIM", content).series.values() for uid in instances}
        files = {
            entry.sop_uid: self._resources.path(entry)
            for scan in self._archive.scans(session.id)
            for resource in self._resources.of(owner_of(self._archive, scan))
            for entry in self._resources.files(resource)
            if entry.sop_uid in wanted
        }
        if not files:
            return None
        try:
            struct = as_rtstruct(content, files)
        except ValueError as error:
            # At this point the document itself is stored already, as in XNAT.
            raise HTTPError(500, f"Error converting ROI collection: {error}") from error
        return self._add(collection, "RTSTRUCT", self._resources.stage(io.BytesIO(struct)), login)


def _missing(what: str, uids: set[str]) -> HTTPError:
    shown = sorted(uids)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return HTTPError(422, f"Missing dependencies: {what} {', '.join(shown[:3])}{more}".rstrip())
