"""DICOM series filed into the archive as XNAT's importer does: patient, study, series to subject, session, scan."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monailabel_xnat.sandbox.accounts import User
from monailabel_xnat.sandbox.archive import SYSTEM, Archive
from monailabel_xnat.sandbox.dicom import (
    DicomFile,
    SeriesFiles,
    read_series,
    scan_ids,
    scan_xsi_type,
    session_xsi_type,
    xnat_label,
)
from monailabel_xnat.sandbox.model import Experiment, Scan, Subject
from monailabel_xnat.sandbox.owners import owner_of
from monailabel_xnat.sandbox.permissions import ACTIVE
from monailabel_xnat.sandbox.resources import Incoming, Resources
from monailabel_xnat.sandbox.routing import read_route

NONE, APPEND, DELETE, OVERRIDE = "none", "append", "delete", "override"
_REPLACING = (DELETE, OVERRIDE)


class ConflictError(ValueError):
    """What is to be filed does not go together with what is in the archive."""


class LockedError(ValueError):
    """The session in the archive is not to be changed."""


@dataclass(frozen=True)
class Place:
    """Where a study goes; labels that are empty are made from its headers."""

    project: str
    subject: str = ""
    session: str = ""


class Filing:
    """Files DICOM into an archive."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources

    def file(self, folder: Path, project: str, user: User = SYSTEM) -> list[Experiment]:
        """File every series below a folder; what is in the archive already is passed over.

        Parameters
        ----------
        folder
            Any folder of DICOM files.
        project
            Where to; made if it does not exist.
        user
            Who files.

        Returns
        -------
        list of Experiment
            The sessions that were made or added to.

        Raises
        ------
        ValueError
            If there is no DICOM in the folder, or a session is locked.
        """
        studies = by_study(read_series(folder))
        if not studies:
            raise ValueError(f"no DICOM file in {folder}")
        if self._archive.project(project) is None:
            self._archive.create_project(project, user)
        return [self._file_somewhere(series, project, user) for series in studies]

    def _file_somewhere(self, series: Sequence[SeriesFiles], project: str, user: User) -> Experiment:
        """File a study; where its label belongs to another one, it gets a label of its own."""
        place = self.place(series, Place(project))
        try:
            return self.file_study(series, place, user, APPEND)
        except ConflictError:
            label = self._free_label(project, place.subject, series[0].modality)
            return self.file_study(series, replace(place, session=label), user, APPEND)

    def place(self, series: Sequence[SeriesFiles], asked: Place) -> Place:
        """Complete a place from a study's headers; the project stays empty where they name none that exists."""
        first = series[0]
        route = read_route(first.files[0].path)
        candidates = (asked.project, route.project, *route.may_be_project)
        project = next((name for name in candidates if name and self._archive.project(name)), "")
        subject = asked.subject or route.subject or xnat_label(first.patient_id or first.patient_name) or "unknown"
        known = self._archive.subject(subject, project) if project else None
        session = asked.session or route.session or self._known_label(known, first.study_uid)
        return Place(project, subject, session or self._free_label(project, subject, first.modality))

    def _known_label(self, subject: Subject | None, study_uid: str) -> str:
        """Give the label of the session that holds a study already."""
        sessions = self._archive.experiments_of("subject_id", subject.id) if subject else []
        return next((item.label for item in sessions if item.fields.get("UID") == study_uid), "")

    def _free_label(self, project: str, subject: str, modality: str) -> str:
        number = 1
        while project and self._archive.experiment(f"{subject}_{modality or 'OT'}{number}", project) is not None:
            number += 1
        return f"{subject}_{modality or 'OT'}{number}"

    def file_study(self, series: Sequence[SeriesFiles], place: Place, user: User, overwrite: str) -> Experiment:
        """File the series of one study.

        Parameters
        ----------
        series
            All of one study.
        place
            Where to, complete.
        user
            Who files.
        overwrite
            What to do with a session that exists: ``none`` refuses, ``append`` adds what is missing, ``delete`` and
            ``override`` replace its files by new ones of the same SOP instances, and take a study of another UID too.

        Returns
        -------
        Experiment
            The session.

        Raises
        ------
        ConflictError
            If the session exists and may not be changed that way.
        LockedError
            If it is locked.
        """
        found = self._archive.experiment(place.session, place.project)
        if found is None:
            found = self._new_session(series, place, user)
        else:
            self._require_match(found, series[0], place, overwrite)
        taken = {str(scan.fields.get("UID")): scan for scan in self._archive.scans(found.id)}
        ids = scan_ids(series)
        for item in series:
            known = taken.get(item.series_uid)
            scan = known or self._new_scan(found, item, self._free_id(found, ids[item.series_uid], item), user)
            added = self._add_files(scan, item, user, overwrite)
            if known and added:
                self._count_frames(known, item, added)
        return found

    def _require_match(self, found: Experiment, first: SeriesFiles, place: Place, overwrite: str) -> None:
        subject = self._archive.subject(found.subject_id or "")
        if found.status != ACTIVE:
            raise LockedError(f"session {found.label} is {found.status}")
        if subject is None or place.subject not in (subject.label, subject.id):
            raise ConflictError(f"session {found.label} belongs to another subject")
        if overwrite == NONE:
            raise ConflictError(f"Session already exists: {found.label}, retry with overwrite enabled")
        uid = found.fields.get("UID")
        if uid and uid != first.study_uid and overwrite not in _REPLACING:
            raise ConflictError(f"session {found.label} holds another study, of UID {uid}")

    # Sessions and scans

    def _new_session(self, series: Sequence[SeriesFiles], place: Place, user: User) -> Experiment:
        first = series[0]
        subject = self._archive.subject(place.subject, place.project)
        owner = subject or self._archive.create_subject(place.project, place.subject, user)
        fields = {
            "UID": first.study_uid,
            "date": first.study_date,
            "time": first.study_time,
            "modality": first.modality,
            "dcmPatientId": first.patient_id,
            "dcmPatientName": first.patient_name,
            "dcmAccessionNumber": first.accession_number,
            "study_id": first.study_id,
            "session_type": first.study_description,
            "scanner/manufacturer": first.manufacturer,
            "scanner/model": first.model,
        }
        kept = {name: value for name, value in fields.items() if value}
        kind = session_xsi_type(series)
        return self._archive.create_experiment(place.project, place.session, kind, subject=owner.id, user=user, **kept)

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
        fields = {
            "UID": item.series_uid,
            "type": item.series_description or item.modality,
            "series_description": item.series_description,
            "modality": item.modality,
            "quality": "usable",
            "frames": str(item.frames),
            "scanner/manufacturer": item.manufacturer,
            "scanner/model": item.model,
            "startTime": item.series_time,
        }
        kept = {name: value for name, value in fields.items() if value}
        return self._archive.create_scan(session.id, scan_id, scan_xsi_type(item), user, **kept)

    def _count_frames(self, scan: Scan, item: SeriesFiles, added: int) -> None:
        more = item.frames if added == len(item.files) else added
        frames = int(str(scan.fields.get("frames") or 0)) + more
        self._archive.set_fields("scans", "pk", scan.pk, {"frames": str(frames)})

    # Files

    def _add_files(self, scan: Scan, item: SeriesFiles, user: User, overwrite: str) -> int:
        """Add the files of a series to its scan, and give how many of them are new."""
        owner = owner_of(self._archive, scan)
        label = "secondary" if scan.xsi_type == "xnat:scScanData" else "DICOM"
        resource = self._resources.find(owner, label) or self._resources.create(
            owner, label, format="DICOM", content="RAW", series_uid=item.series_uid
        )
        known = {entry.sop_uid: entry.path for entry in self._resources.files(resource)}
        incoming = [
            self._incoming(item, file, known.get(file.sop_instance_uid))
            for file in item.files
            if overwrite in _REPLACING or file.sop_instance_uid not in known
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
    """Group series by study."""
    studies: dict[str, list[SeriesFiles]] = defaultdict(list)
    for item in series:
        studies[item.study_uid].append(item)
    return list(studies.values())


def _file_name(item: SeriesFiles, file: DicomFile) -> str:
    """Name a file as XNAT's namer does: study, series number, instance number, and a hash of what it is."""
    what = f"{file.sop_class_uid}{file.sop_instance_uid}".encode()
    mark = hashlib.sha1(what, usedforsecurity=False).hexdigest()[:8]
    return xnat_label(f"{item.study_uid}-{item.series_number or 0}-{file.instance_number or 0}-{mark}.dcm")


def project_id(folder: Path, given: str | None) -> str:
    """Choose the project for a folder: the one given, else one named like the folder."""
    return given or xnat_label(folder.resolve().name).replace(".", "_") or "SANDBOX"
