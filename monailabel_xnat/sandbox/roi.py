"""The OHIF plugin's ROI collections, with the checks that refuse what does not belong to the session."""

from __future__ import annotations

import io
import re
import secrets
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.datatypes import ROI_COLLECTION
from monailabel_xnat.sandbox.items import Items
from monailabel_xnat.sandbox.model import Experiment
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError, Reply, as_json, text
from monailabel_xnat.sandbox.request import Request
from monailabel_xnat.sandbox.resources import Incoming, Resources

_TYPES = {
    "SEG": (".dcm", "DICOM"),
    "RTSTRUCT": (".dcm", "DICOM"),
    "AIM": (".xml", "XML"),
    "NIFTI": (".nii.gz", "NIFTI"),
    "MEAS": (".json", "JSON"),
}
_PERMISSION_NAMES = ("RoiCollection", "MRSession", "CTSession", "PETSession", "PETMRSession", "CRSession")
_MODALITIES = (
    "xnat:mrSessionData",
    "xnat:ctSessionData",
    "xnat:petSessionData",
    "xnat:petmrSessionData",
    "xnat:usSessionData",
)


class RoiCollections:
    """The handlers below ``/xapi/roi``, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._archive = archive
        self._resources = resources
        self._items = Items(archive, resources)
        self._may = may

    def handle(self, request: Request, segments: list[str]) -> Reply:
        """Answer ``/xapi/roi/projects/P/...``."""
        words = [unquote(segment) for segment in segments]
        if len(words) < 4 or words[0] != "projects":
            raise HTTPError(404)
        project = words[1]
        if not self._may.may_read(project):
            raise HTTPError(403)
        if words[2] == "permissions":
            return self._permissions(project, words[3])
        if words[2] == "sessions" and len(words) == 6 and words[4] == "collections":
            if request.method != "PUT":
                raise HTTPError(405)
            return self._store(request, project, words[3], words[5])
        if words[2] == "collections":
            return (
                self._delete(project, words[3]) if request.method == "DELETE" else self._get(request, project, words[3])
            )
        if words[2] == "exists":
            return text("true" if self._find(project, words[3]) else "false")
        raise HTTPError(404)

    def _permissions(self, project: str, name: str) -> Reply:
        if name not in _PERMISSION_NAMES:
            raise HTTPError(422)
        kind = ROI_COLLECTION if name == "RoiCollection" else f"xnat:{name[:-7].lower()}SessionData"
        edit = self._may.may_edit(project)
        answer = {"element": f"{kind}/project", "create": edit, "read": True, "edit": edit}
        return as_json({**answer, "delete": self._may.may_delete(project)})

    def _find(self, project: str, name: str) -> Experiment | None:
        found = self._archive.experiment(name, project)
        return found if found is not None and found.xsi_type == ROI_COLLECTION else None

    def _get(self, request: Request, project: str, name: str) -> Reply:
        found = self._find(project, name)
        kind = request.query.get("type", "")
        resource = self._resources.find(self._items.owner(found), kind) if found and kind else None
        if resource is None:
            raise HTTPError(422, "Unknown ROI collection or no such conversion")
        content = self._resources.path(self._resources.files(resource)[0]).read_bytes()
        return Reply(content, media_type="application/octet-stream")

    def _delete(self, project: str, name: str) -> Reply:
        found = self._find(project, name)
        if found is None:
            raise HTTPError(422)
        if not self._may.may_delete(project):
            raise HTTPError(403)
        self._resources.delete_of(self._items.owner(found))
        with self._archive.store.write() as db:
            db.execute("DELETE FROM experiments WHERE id = ?", (found.id,))
        return text()

    def _store(self, request: Request, project: str, session_id: str, label: str) -> Reply:
        if request.content_type != "application/octet-stream":
            raise HTTPError(415)
        kind = request.query.get("type", "")
        if kind not in _TYPES:
            raise HTTPError(422, f"Unsupported type: {kind}")
        session = self._archive.experiment(session_id)
        in_project = session is not None and (session.project == project or project in self._archive.shares(session.id))
        if session is None or not in_project:
            raise HTTPError(422, f"Session not found: {session_id}")
        if not self._may.may_edit(project):
            raise HTTPError(403)
        known = self._archive.experiment(label, project)
        if known is not None and (known.session_id != session.id or known.xsi_type != ROI_COLLECTION):
            raise HTTPError(409, f"Label {label} is in use")
        if known is not None and not request.flag("overwrite"):
            raise HTTPError(422, "ROI collection exists, overwrite not specified")
        fields = self._checked(kind, request.body.read(), session)
        return text(self._save(request, session, known, label, kind, fields).id)

    def _checked(self, kind: str, content: bytes, session: Experiment) -> dict[str, Any]:
        fields: dict[str, Any] = {"collectionType": kind, "name": kind, "subjectID": session.subject_id or ""}
        if kind in ("SEG", "RTSTRUCT"):
            if session.xsi_type not in _MODALITIES:
                raise HTTPError(422, f"Session type {session.xsi_type} has no {kind}")
            fields.update(self._checked_dicom(content, session))
        elif kind == "NIFTI":
            raise HTTPError(422, "Missing dependencies: study UID")
        elif kind == "AIM":
            uids = re.findall(rb'instanceUid[^>]*?root="([0-9.]+)"', content)
            known = {scan.fields.get("UID") for scan in self._archive.scans(session.id)}
            found = sorted({uid.decode() for uid in uids} & {str(uid) for uid in known})
            fields["references/seriesUID"] = [{"seriesUID": uid} for uid in found]
        return fields

    def _checked_dicom(self, content: bytes, session: Experiment) -> dict[str, Any]:
        import pydicom
        from pydicom.errors import InvalidDicomError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(io.BytesIO(content))
        except (InvalidDicomError, EOFError, ValueError) as error:
            raise HTTPError(422, f"Not a DICOM object: {error}") from error
        studies, series, instances = _references(dataset)
        if studies - {""} != {session.fields.get("UID")}:
            raise HTTPError(422, f"Missing dependencies: study UID {' '.join(sorted(studies))}")
        scans = {str(scan.fields.get("UID")): scan for scan in self._archive.scans(session.id)}
        if not series or not series <= scans.keys():
            raise HTTPError(422, f"Missing dependencies: series UID {' '.join(sorted(series - scans.keys()))}")
        known: set[str] = set()
        for uid in series:
            for resource in self._resources.of(self._items.owner(scans[uid])):
                if resource.label in ("DICOM", "secondary"):
                    known |= {entry.sop_uid for entry in self._resources.files(resource)}
        if not instances <= known:
            raise HTTPError(422, f"Missing dependencies: SOP instance UID {' '.join(sorted(instances - known)[:3])}")
        day = str(dataset.get("ContentDate", "") or dataset.get("StructureSetDate", ""))
        return {
            "UID": str(dataset.SOPInstanceUID),
            "name": str(dataset.get("SeriesDescription", "")) or str(dataset.Modality),
            "date": f"{day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 else "",
            "references/seriesUID": [{"seriesUID": uid} for uid in sorted(series)],
        }

    def _save(
        self,
        request: Request,
        session: Experiment,
        known: Experiment | None,
        label: str,
        kind: str,
        fields: dict[str, Any],
    ) -> Experiment:
        if known is None:
            number = f"RoiCollection_{secrets.token_hex(8)}"
            known = self._archive.create_experiment(
                session.project,
                label,
                ROI_COLLECTION,
                session=session.id,
                user=request.user,
                experiment_id=number,
                **fields,
            )
        else:
            self._resources.delete_of(self._items.owner(known))
            self._archive.set_fields("experiments", "id", known.id, fields)
        suffix, file_format = _TYPES[kind]
        resource = self._resources.create(self._items.owner(known), kind, format=file_format, content="EXTERNAL")
        request.body.seek(0)
        self._resources.put(
            resource, [Incoming(f"{label}{suffix}", self._resources.stage(request.body))], request.user.login
        )
        return known


def _references(dataset: Any) -> Any:
    """Collect the study, series and instance UIDs that a SEG or RTSTRUCT refers to."""
    studies: set[str] = {str(dataset.get("StudyInstanceUID", ""))} if dataset.Modality == "SEG" else set()
    series: set[str] = set()
    instances: set[str] = set()
    for item in _walk(dataset):
        if "RTReferencedSeriesSequence" in item and "ReferencedSOPInstanceUID" in item:
            studies.add(str(item.ReferencedSOPInstanceUID))
            continue
        if "ReferencedSOPInstanceUID" in item and item is not dataset:
            instances.add(str(item.ReferencedSOPInstanceUID))
        if "SeriesInstanceUID" in item and item is not dataset:
            series.add(str(item.SeriesInstanceUID))
    return studies, series, instances


def _walk(dataset: Any) -> Iterator[Any]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ" and element.keyword not in ("ReferencedStudySequence",):
            for item in element.value:
                yield from _walk(item)
