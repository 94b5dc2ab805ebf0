"""DICOM series filed into the archive as XNAT's importer does: patient, study, series to subject, session, scan."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from monailabel_xnat.sandbox.accounts import User
from monailabel_xnat.sandbox.archive import SYSTEM, Archive
from monailabel_xnat.sandbox.dicom import (
    SeriesFiles,
    read_series,
    scan_ids,
    scan_xsi_type,
    session_xsi_type,
    xnat_label,
)
from monailabel_xnat.sandbox.items import Items
from monailabel_xnat.sandbox.model import Experiment, Scan, Subject
from monailabel_xnat.sandbox.resources import Incoming, Resources

_MODALITY = re.compile(r"xnat:(\w+?)(Scan|Session)Data")


class Filing:
    """Files DICOM into an archive."""

    def __init__(self, archive: Archive, resources: Resources) -> None:
        self._archive = archive
        self._resources = resources
        self._items = Items(archive, resources)

    def file(
        self,
        folder: Path,
        project: str,
        *,
        subject: str = "",
        session: str = "",
        user: User = SYSTEM,
    ) -> list[Experiment]:
        """File every series below a folder.

        Parameters
        ----------
        folder
            Any folder of DICOM files.
        project
            Where to; made if it does not exist.
        subject, session
            Labels to use instead of those made from the headers.
        user
            Who files.

        Returns
        -------
        list of Experiment
            The sessions that were made or added to.

        Raises
        ------
        ValueError
            If there is no DICOM in the folder.
        """
        series = read_series(folder)
        if not series:
            raise ValueError(f"no DICOM file in {folder}")
        if self._archive.project(project) is None:
            self._archive.create_project(project, user)
        studies: dict[str, list[SeriesFiles]] = defaultdict(list)
        for item in series:
            studies[item.study_uid].append(item)
        return [self._study(items, project, subject, session, user) for items in studies.values()]

    def _study(self, series: list[SeriesFiles], project: str, subject: str, session: str, user: User) -> Experiment:
        owner = self._subject(
            project, subject or xnat_label(series[0].patient_id or series[0].patient_name or "unknown"), user
        )
        found = self._session(series, project, owner, session, user)
        taken = {str(scan.fields.get("UID")): scan for scan in self._archive.scans(found.id)}
        ids = scan_ids(series)
        for item in series:
            scan = taken.get(item.series_uid) or self._scan(
                found, item, self._free_id(found, ids[item.series_uid], item), user
            )
            self._add_files(scan, item, user)
        return found

    def _subject(self, project: str, label: str, user: User) -> Subject:
        return self._archive.subject(label, project) or self._archive.create_subject(project, label, user)

    def _session(self, series: list[SeriesFiles], project: str, subject: Subject, label: str, user: User) -> Experiment:
        first = series[0]
        for row in self._archive.store.all(
            "SELECT id FROM experiments WHERE project = ? AND subject_id = ?", (project, subject.id)
        ):
            known = self._archive.experiment(row["id"])
            if known is not None and known.fields.get("UID") == first.study_uid:
                return known
        kind = session_xsi_type(series)
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
        name = label or self._free_label(project, subject.label, kind, first.modality)
        return self._archive.create_experiment(project, name, kind, subject=subject.id, user=user, **kept)

    def _free_label(self, project: str, subject: str, kind: str, modality: str) -> str:
        number = 1
        while self._archive.experiment(f"{subject}_{modality or 'OT'}{number}", project) is not None:
            number += 1
        return f"{subject}_{modality or 'OT'}{number}"

    def _free_id(self, session: Experiment, wanted: str, item: SeriesFiles) -> str:
        taken = {scan.id for scan in self._archive.scans(session.id)}
        if wanted not in taken:
            return wanted
        modality, number = item.modality or "OT", 1
        while f"{wanted}-{modality}{number}" in taken:
            number += 1
        return f"{wanted}-{modality}{number}"

    def _scan(self, session: Experiment, item: SeriesFiles, scan_id: str, user: User) -> Scan:
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

    def _add_files(self, scan: Scan, item: SeriesFiles, user: User) -> None:
        owner = self._items.owner(scan)
        label = "secondary" if scan.xsi_type == "xnat:scScanData" else "DICOM"
        resource = self._resources.find(owner, label) or self._resources.create(
            owner, label, format="DICOM", content="RAW", series_uid=item.series_uid
        )
        known = {entry.sop_uid for entry in self._resources.files(resource)}
        entries = []
        for file in item.files:
            if file.sop_instance_uid not in known:
                name = f"{item.series_uid}-{file.instance_number or 0}-{file.sop_instance_uid.rpartition('.')[2]}.dcm"
                values = {"sop_uid": file.sop_instance_uid, "instance_number": file.instance_number, "format": "DICOM"}
                with file.path.open("rb") as stream:
                    entries.append(Incoming(xnat_label(name), self._resources.stage(stream), values))
        self._resources.put(resource, entries, user.login)


def project_id(folder: Path, given: str | None) -> str:
    """Choose the project for a folder: the one given, else one named like the folder."""
    return given or xnat_label(folder.resolve().name).replace(".", "_") or "SANDBOX"
