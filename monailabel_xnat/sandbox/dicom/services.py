"""Services for DICOM: the import into the archive or the prearchive (Importer), and dumps of headers (DicomDump)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.errors import InvalidDicomError

from monailabel_xnat.sandbox.archive.model import Project, Scan
from monailabel_xnat.sandbox.archive.resources import owner_of
from monailabel_xnat.sandbox.archive.staging import unpack
from monailabel_xnat.sandbox.dicom.filing import FILL, ConflictError, Filing, LockedError, Merge, by_study, merge_of
from monailabel_xnat.sandbox.dicom.headers import Place
from monailabel_xnat.sandbox.dicom.prearchive import CONFLICT, READY, RECEIVING, Prearchive
from monailabel_xnat.sandbox.dicom.series import SeriesFiles, read_series, without_warnings
from monailabel_xnat.sandbox.http import tables
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, form_files
from monailabel_xnat.sandbox.http.paths import locate, words_of
from monailabel_xnat.sandbox.http.router import Handlers, Visit

DICOM_ZIP, SESSION, GRADUAL = "DICOM-zip", "SI", "gradual-DICOM"
# Project settings: to refuse overwriting, to archive at once, and to archive and overwrite.
_NO_OVERWRITE, _AUTO_ARCHIVE, _AUTO_OVERWRITE = 1, 4, 5


@dataclass(frozen=True)
class _Destination:
    """The destination that the call asks for. `to_archive` is None if the project's setting decides."""

    place: Place
    to_archive: bool | None


class Filers(Handlers):
    """Handlers that file DICOM into the archive."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._filing = Filing(visit.archive, visit.resources)
        self._prearchive = Prearchive(visit.archive)

    def _filed(self, request: Request, series: Sequence[SeriesFiles], place: Place, merge: Merge) -> str:
        """File a study, and return the address of its session as in answers to imports: with labels."""
        made = self._filing.file_study(series, place, request.user, merge)
        if request.flag("quarantine"):
            self._archive.change(made, status="quarantine")
        subject = self._archive.subject(made.subject_id or "")
        label = subject.label if subject else ""
        return f"/data/archive/projects/{made.project}/subjects/{label}/experiments/{made.label}"


class Import(Filers):
    """The service, for the user of one request."""

    def receive(self, request: Request) -> Reply:
        """Answer ``POST /data/services/import`` with the addresses of the sessions, one on each line.

        Raises
        ------
        HTTPError
            400 if the upload is not DICOM, or is no file or several; 403 without the right; 404 for an unknown project
            or handler; 409 (``SI``) or 400 for a session that exists already; 423 for a locked one.
        """
        handler = _handler(request)
        if handler not in (DICOM_ZIP, SESSION, GRADUAL):
            raise HTTPError(404, f"Unsupported import-handler: {handler}")
        destination = _destination(request)
        self._require_project(request, destination.place.project)
        with self._resources.staging.scratch() as folder:
            series = self._received(request, folder, handler)
            return self._file_all(request, series, destination, folder)

    def _require_project(self, request: Request, name: str) -> None:
        project = self._archive.project(name) if name else None
        if request.user.is_guest:
            raise HTTPError(403)
        if name and (project is None or not self._may.may_see(project)):
            raise HTTPError(404, f"Unknown project: {name}")
        if project is not None and not self._may.may_edit(project.id):
            raise HTTPError(403)

    def _received(self, request: Request, folder: Path, handler: str) -> list[SeriesFiles]:
        """Unpack the upload, and return its series."""
        paths: list[Path] = []

        def take(name: str, content: BinaryIO) -> None:
            target = folder / f"{len(paths):07d}"
            with target.open("xb") as file:
                shutil.copyfileobj(content, file)
            paths.append(target)
            names.append(name)

        names: list[str] = []
        with form_files(request) as files:
            if len(files) != 1:
                raise HTTPError(400, f"The import needs one file, and got {len(files)}.")
            try:
                take(*files[0]) if handler == GRADUAL else unpack(files[0][1], "", take)
            except ValueError as error:
                raise HTTPError(400, str(error)) from error
        series = read_series(folder)
        if not series:
            raise HTTPError(400, "There is no DICOM in the upload.")
        # Only this handler looks at each file. What names no handler goes to SI, which takes the DICOM out of any zip.
        if request.query.get("import-handler") == DICOM_ZIP and not request.flag("Ignore-Unparsable"):
            _require_only_dicom(series, paths, names)
        return series

    def _file_all(
        self, request: Request, series: Sequence[SeriesFiles], destination: _Destination, scratch: Path
    ) -> Reply:
        handler = _handler(request)
        lines, refusals = [], []
        for study in by_study(series):
            try:
                lines.append(self._file_study(request, study, destination, scratch))
            except ConflictError as error:
                refusals.append(HTTPError(409 if handler == SESSION else 400, str(error)))
            except LockedError as error:
                refusals.append(HTTPError(423, str(error)))
        if refusals:
            raise refusals[0]
        return Reply("".join(f"{line}\r\n" for line in lines).encode())

    def _file_study(
        self, request: Request, study: Sequence[SeriesFiles], destination: _Destination, scratch: Path
    ) -> str:
        handler = _handler(request)
        place = self._filing.place(study, destination.place)
        project = self._archive.project(place.project) if place.project else None
        if project is not None and not self._may.may_edit(project.id):
            raise HTTPError(403)
        study = self._filing.received(study, place, scratch)
        if project is None or not _is_archived(project, destination):
            status = RECEIVING if handler == GRADUAL and project is not None else READY
            try:
                return f"/data{self._prearchive.add(study, place, status, any_study=handler == SESSION).path}"
            except ValueError as error:
                raise HTTPError(400, str(error)) from error
        merge = _merge(request, project, destination)
        try:
            return self._filed(request, study, place, merge)
        except ConflictError:
            self._prearchive.add(study, place, CONFLICT)
            raise


def _is_archived(project: Project, destination: _Destination) -> bool:
    if destination.to_archive is not None:
        return destination.to_archive
    return project.prearchive_code in (_AUTO_ARCHIVE, _AUTO_OVERWRITE)


def _handler(request: Request) -> str:
    return request.query.get("import-handler", DICOM_ZIP)


def _merge(request: Request, project: Project, destination: _Destination) -> Merge:
    merge = merge_of(request.query.get("overwrite", ""), overwrite_files=request.flag("overwrite_files"))
    if merge.allowed and project.prearchive_code == _NO_OVERWRITE:
        raise HTTPError(400, f"project {project.id} does not allow overwrite")
    # Single objects are always added, others only if the request or the project says so.
    automatic = destination.to_archive is None and project.prearchive_code == _AUTO_OVERWRITE
    return FILL if not merge.allowed and (_handler(request) == GRADUAL or automatic) else merge


def _destination(request: Request) -> _Destination:
    """Return the destination in ``dest``, or in the parameters that name project, subject and session."""
    query = request.query
    words = [unquote(word) for word in words_of(query.get("dest", ""))] or [""]
    waiting: list[str] = []
    if words[:2] == ["prearchive", "projects"] and len(words) == 5:
        words, waiting = words[:3], words[3:]
    # A last word without a value, as in "projects/P/subjects", is ignored.
    named = dict(zip(words[1::2], words[2::2], strict=False))
    if words[0] not in ("", "archive", "prearchive") or not named.keys() <= {"projects", "subjects", "experiments"}:
        raise HTTPError(400, f"Unknown destination: {query['dest']}")
    place = Place(
        named.get("projects", "") or query.get("project", "") or query.get("PROJECT_ID", ""),
        named.get("subjects", "") or query.get("subject", "") or query.get("SUBJECT_ID", ""),
        named.get("experiments", "") or query.get("session", "") or query.get("EXPT_LABEL", ""),
        *waiting,
    )
    asked = any(request.flag(name) for name in ("Direct-Archive", "autoArchive", "AA"))
    return _Destination(place, {"archive": True, "prearchive": False}.get(words[0], True if asked else None))


def _require_only_dicom(series: Sequence[SeriesFiles], paths: Sequence[Path], names: Sequence[str]) -> None:
    """Refuse an upload with other files. A second file of one instance and a DICOMDIR are skipped."""
    read = {file.path for item in series for file in item.files}
    for path, name in zip(paths, names, strict=True):
        if path not in read and name.rpartition("/")[2].upper() != "DICOMDIR" and not _has_dicom_preamble(path):
            last = name.rpartition("/")[2]
            raise HTTPError(400, f"unable to read DICOM object {last}; Ignore-Unparsable=true passes over such files")


def _has_dicom_preamble(path: Path) -> bool:
    """Return whether a file is DICOM."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


_LONGEST_VALUE = 1024


class DicomDump(Handlers):
    """The service, for the user of one request."""

    def dump(self, request: Request) -> Reply:
        """Answer ``GET /data/services/dicomdump``.

        Raises
        ------
        HTTPError
            400 without ``src`` or for an unknown field, 404 if there is no DICOM file.
        """
        words = words_of(request.query.get("src", ""))
        if words[:1] not in (["archive"], ["prearchive"]):
            raise HTTPError(400, "The parameter src names a scan or session below /archive or /prearchive.")
        wanted = {_tag(name) for name in request.values("field")}
        path = self._waiting_file(words) if words[0] == "prearchive" else self._archived_file(words[1:])
        if path is None:
            raise HTTPError(404, "Unable to find a DICOM file.")
        with without_warnings():
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
                rows = list(_rows([*header.file_meta, *header], wanted))
            except (InvalidDicomError, OSError) as error:
                raise HTTPError(404, "Unable to find a DICOM file.") from error
        return tables.answer(rows, request.query)

    def _archived_file(self, words: list[str]) -> Path | None:
        target = locate(self._archive, self._may, words)
        scans: list[Scan] = target.scans
        if not scans and target.experiment is not None:
            scans = self._archive.scans(target.experiment.id)
        for scan in scans:
            for resource in self._resources.of(owner_of(self._archive, scan)):
                entries = self._resources.files(resource)
                if resource.is_dicom and entries:
                    return self._resources.path(entries[0])
        return None

    def _waiting_file(self, words: list[str]) -> Path | None:
        names = [unquote(word) for word in words]
        prearchive = Prearchive(self._archive)
        waiting = prearchive.find(*names[2:5]) if len(names) >= 5 else None
        allowed = waiting is not None and (self._may.may_edit(waiting.project) or self._may.user.is_admin)
        if waiting is None or not allowed:
            return None
        scans = [scan for scan in prearchive.scans(waiting) if names[6:7] in ([], [scan.id])]
        return scans[0].series.files[0].path if scans else None


def _tag(name: str) -> int:
    found = int(name, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else tag_for_keyword(name)
    if found is None:
        raise HTTPError(400, f"Unknown field: {name}")
    return found


def _rows(elements: Collection[DataElement], wanted: Collection[int]) -> Iterator[dict[str, str]]:
    for element in elements:
        if wanted and element.tag not in wanted:
            continue
        yield _row(element, "")
        if element.VR == "SQ":
            for item in element.value:
                for inner in item:
                    yield _row(inner, str(element.tag))


def _row(element: DataElement, outer: str) -> dict[str, str]:
    tag = _written(str(element.tag))
    value = "" if element.VR == "SQ" else str(element.value)[:_LONGEST_VALUE]
    return {
        "tag1": _written(outer) or tag,
        "tag2": tag if outer else "",
        "vr": str(element.VR),
        "value": value,
        "desc": element.name,
    }


def _written(tag: str) -> str:
    """Return a tag in XNAT's form, ``(0008,0060)``."""
    return tag.replace(" ", "").upper()
