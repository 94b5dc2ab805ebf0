"""Filing of DICOM series as by XNAT's importer: patients, studies and series become subjects, sessions and scans."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monailabel_xnat.sandbox.access.accounts import User
from monailabel_xnat.sandbox.access.gate import ACTIVE
from monailabel_xnat.sandbox.archive.archive import SYSTEM, Archive
from monailabel_xnat.sandbox.archive.model import Experiment, Resource, Scan, Subject
from monailabel_xnat.sandbox.archive.resources import Incoming, Resources, owner_of
from monailabel_xnat.sandbox.dicom.headers import (
    SCAN_FIELDS,
    SESSION_FIELDS,
    Place,
    anonymised,
    header_fields,
    read_route,
)
from monailabel_xnat.sandbox.dicom.naming import resource_label, scan_ids, scan_xsi_type, session_xsi_type, xnat_label
from monailabel_xnat.sandbox.dicom.series import DicomFile, SeriesFiles, read_series

REFUSE, REPLACE, KEEP = "refuse", "replace", "keep"


@dataclass(frozen=True)
class Merge:
    """How a study is added to a session that exists.

    Parameters
    ----------
    allowed
        Whether it may be added.
    known_files
        What to do with instances that exist already: refuse the whole study, replace them, or keep them.
    other_study
        Whether a study with another UID is accepted, too.
    """

    allowed: bool = True
    known_files: str = REFUSE
    other_study: bool = False


NO_MERGE = Merge(allowed=False)
FILL = Merge(known_files=KEEP)


def merge_of(overwrite: str, *, overwrite_files: bool = False) -> Merge:
    """Return what the parameters ask for. An unknown value of ``overwrite`` means that files are added."""
    if overwrite in ("", "none"):
        return NO_MERGE
    if overwrite in ("delete", "override"):
        # In spite of its name, this deletes nothing: files that exist and are not sent again stay.
        return Merge(known_files=REPLACE, other_study=True)
    return Merge(known_files=REPLACE if overwrite_files else REFUSE)


class ConflictError(ValueError):
    """The study does not fit what is in the archive."""


class LockedError(ValueError):
    """The session in the archive may not be changed."""


class Filing:
    """Files DICOM into an archive."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def file(self, folder: Path, project: str, user: User = SYSTEM) -> list[Experiment]:
        """File every series below a folder. Files that are in the archive already are skipped.

        Parameters
        ----------
        folder
            Any folder of DICOM files.
        project
            The project. It is made if it does not exist.
        user
            The user who files.

        Returns
        -------
        list of Experiment
            The sessions that were made or added to.

        Raises
        ------
        ValueError
            If the folder holds no DICOM, or a session is locked.
        """
        studies = by_study(read_series(folder))
        if not studies:
            raise ValueError(f"no DICOM file in {folder}")
        if self._archive.project(project) is None:
            self._archive.create_project(project, user)
        with self._resources.staging.scratch() as scratch:
            return [self._file_somewhere(series, project, user, scratch) for series in studies]

    def _file_somewhere(self, series: Sequence[SeriesFiles], project: str, user: User, scratch: Path) -> Experiment:
        """File a study. If another study has its label, it gets a label of its own."""
        place = self._own_place(series, project)
        try:
            return self.file_study(self.received(series, place, scratch), place, user, FILL)
        except ConflictError:
            label = self._free_label(project, place.subject, series[0].modality)
            place = replace(place, session=label)
            return self.file_study(self.received(series, place, scratch), place, user, FILL)

    def received(self, series: Sequence[SeriesFiles], place: Place, scratch: Path) -> Sequence[SeriesFiles]:
        """Return a study as the site accepts it. A site that anonymises makes copies below `scratch`."""
        if not self._archive.is_anonymising:
            return series
        return anonymised(series, place, Path(tempfile.mkdtemp(dir=scratch)))

    def place(self, series: Sequence[SeriesFiles], asked: Place) -> Place:
        """Return a place, completed from a study's headers as in XNAT.

        The request wins over the comments in the headers; Patient's Name and Patient ID come last. The project stays
        empty if none exists.
        """
        first = series[0]
        route = read_route(first.files[0].path)
        candidates = (asked.project, route.project, *route.may_be_project)
        project = next((name for name in candidates if name and self._archive.project(name)), "")
        subject = asked.subject or route.subject or xnat_label(first.patient_name) or xnat_label(first.patient_id)
        session = asked.session or route.session or xnat_label(first.patient_id)
        return replace(asked, project=project, subject=subject or "unknown", session=session or "dicom_upload")

    def _own_place(self, series: Sequence[SeriesFiles], project: str) -> Place:
        """Return a place in which every study has a session of its own."""
        first = series[0]
        route = read_route(first.files[0].path)
        subject = route.subject or xnat_label(first.patient_id or first.patient_name) or "unknown"
        known = self._archive.subject(subject, project)
        session = route.session or self._known_label(known, first.study_uid)
        return Place(project, subject, session or self._free_label(project, subject, first.modality))

    def _known_label(self, subject: Subject | None, study_uid: str) -> str:
        """Return the label of the session that holds a study already, or an empty text."""
        sessions = self._archive.experiments_of("subject_id", subject.id) if subject else []
        return next((item.label for item in sessions if item.fields.get("UID") == study_uid), "")

    def _free_label(self, project: str, subject: str, modality: str) -> str:
        number = 1
        while self._archive.experiment(f"{subject}_{modality or 'OT'}{number}", project) is not None:
            number += 1
        return f"{subject}_{modality or 'OT'}{number}"

    def file_study(self, series: Sequence[SeriesFiles], place: Place, user: User, merge: Merge) -> Experiment:
        """File the series of one study.

        Parameters
        ----------
        series
            All series of one study.
        place
            The place to file it, with nothing missing.
        user
            The user who files.
        merge
            What to do if the session exists.

        Returns
        -------
        Experiment
            The session.

        Raises
        ------
        ConflictError
            If the session exists and may not be changed in that way. Then nothing is stored.
        LockedError
            If the session is locked.
        """
        # One study at a time. Two clients that send the same study would both find nothing, and make everything twice.
        with self._archive.filing:
            return self._filed(series, place, user, merge)

    def _filed(self, series: Sequence[SeriesFiles], place: Place, user: User, merge: Merge) -> Experiment:
        found = self._archive.experiment(place.session, place.project)
        if found is not None:
            self._require_match(found, series, place, merge)
            self._require_new_files(found, series, merge)
        found = found or self._new_session(series, place, user)
        taken = {str(scan.fields.get("UID")): scan for scan in self._archive.scans(found.id)}
        ids = scan_ids(series)
        for item in series:
            known = taken.get(item.series_uid)
            scan = known or self._new_scan(found, item, self._free_id(found, ids[item.series_uid], item), user)
            added = self._add_files(scan, item, user, merge)
            if known and added:
                self._count_frames(known, item, added)
        return found

    def _require_match(self, found: Experiment, series: Sequence[SeriesFiles], place: Place, merge: Merge) -> None:
        subject = self._archive.subject(found.subject_id or "")
        if found.status != ACTIVE:
            raise LockedError(f"session {found.label} is {found.status}")
        if subject is None or place.subject not in (subject.label, subject.id):
            raise ConflictError(f"session {found.label} belongs to another subject")
        if not merge.allowed:
            raise ConflictError(f"Session already exists: {found.label}, retry with overwrite enabled")
        kind = session_xsi_type(series)
        if kind != found.xsi_type and merge.known_files != KEEP:
            # This is XNAT's setting preventCrossModalityMerge, which is on by default.
            raise ConflictError(f"session {found.label} is a {found.xsi_type}, the study that was sent is a {kind}")
        uid = found.fields.get("UID")
        if uid and uid != series[0].study_uid and not merge.other_study:
            raise ConflictError(f"session {found.label} holds another study, of UID {uid}")

    def _require_new_files(self, found: Experiment, series: Sequence[SeriesFiles], merge: Merge) -> None:
        if merge.known_files != REFUSE:
            return
        scans = {str(scan.fields.get("UID")): scan for scan in self._archive.scans(found.id)}
        for item in series:
            resource = self._resource_of(scans[item.series_uid]) if item.series_uid in scans else None
            known = {entry.sop_uid for entry in self._resources.files(resource)} if resource else set()
            if any(file.sop_instance_uid in known for file in item.files):
                raise ConflictError(f"session {found.label} has files of that name, retry with overwrite_files=true")

    # Sessions and scans

    def _new_session(self, series: Sequence[SeriesFiles], place: Place, user: User) -> Experiment:
        subject = self._archive.subject(place.subject, place.project)
        owner = subject or self._archive.create_subject(place.project, place.subject, user)
        kind = session_xsi_type(series)
        fields = header_fields(self._archive.types, kind, series[0], SESSION_FIELDS)
        made = self._archive.create_experiment(
            place.project, place.session, kind, subject=owner.id, user=user, **fields
        )
        project = self._archive.project(place.project)
        if project is not None and project.quarantine_code:
            self._archive.change(made, status="quarantine")
        return made

    def _free_id(self, session: Experiment, wanted: str, item: SeriesFiles) -> str:
        taken = {scan.id for scan in self._archive.scans(session.id)}
        if wanted not in taken:
            return wanted
        modality, number = xnat_label(item.modality) or "OT", 1
        plain = re.sub(rf"-{modality}\d+$", "", wanted)
        while f"{plain}-{modality}{number}" in taken:
            number += 1
        return f"{plain}-{modality}{number}"

    def _new_scan(self, session: Experiment, item: SeriesFiles, scan_id: str, user: User) -> Scan:
        kind = scan_xsi_type(item)
        fields = header_fields(self._archive.types, kind, item, SCAN_FIELDS)
        return self._archive.create_scan(session.id, scan_id, kind, user, **fields)

    def _count_frames(self, scan: Scan, item: SeriesFiles, added: int) -> None:
        more = item.frames if added == len(item.files) else added
        frames = int(str(scan.fields.get("frames") or 0)) + more
        self._archive.set_fields(scan, {"frames": str(frames)})

    # Files

    def _resource_of(self, scan: Scan) -> Resource | None:
        return self._resources.find(owner_of(self._archive, scan), resource_label(scan.xsi_type))

    def _add_files(self, scan: Scan, item: SeriesFiles, user: User, merge: Merge) -> int:
        """Add the files of a series to its scan, and return how many of them are new."""
        resource = self._resource_of(scan) or self._resources.create(
            owner_of(self._archive, scan),
            resource_label(scan.xsi_type),
            format="DICOM",
            content="RAW",
            series_uid=item.series_uid,
        )
        known = {entry.sop_uid: entry.path for entry in self._resources.files(resource)}
        incoming = [
            self._incoming(item, file, known.get(file.sop_instance_uid))
            for file in item.files
            if merge.known_files == REPLACE or file.sop_instance_uid not in known
        ]
        if incoming:
            self._resources.put(resource, incoming, user.login)
        return sum(file.sop_instance_uid not in known for file in item.files)

    def _incoming(self, item: SeriesFiles, file: DicomFile, path: str | None) -> Incoming:
        values = {
            "format": "DICOM",
            "content": "RAW",
            "sop_uid": file.sop_instance_uid,
            "instance_number": file.instance_number,
        }
        with file.path.open("rb") as stream:
            staged = self._resources.staging.take(stream, to_disk=False)
        return Incoming(path or _file_name(item, file), staged, values)


def by_study(series: Sequence[SeriesFiles]) -> list[list[SeriesFiles]]:
    """Return series, grouped by study."""
    studies: dict[str, list[SeriesFiles]] = defaultdict(list)
    for item in series:
        studies[item.study_uid].append(item)
    return list(studies.values())


def _file_name(item: SeriesFiles, file: DicomFile) -> str:
    """Return a file's name, as XNAT makes it: study, series number, instance number, and a hash of what it is."""
    what = f"{file.sop_class_uid}{file.sop_instance_uid}".encode()
    mark = hashlib.sha1(what, usedforsecurity=False).hexdigest()[:8]
    return xnat_label(f"{item.study_uid}-{item.series_number or 0}-{file.instance_number or 0}-{mark}.dcm")


def project_id(folder: Path, given: str | None) -> str:
    """Return the project for a folder: the one given, else one with the name of the folder."""
    return given or xnat_label(folder.resolve().name).replace(".", "_") or "SANDBOX"
