"""The prearchive: imported sessions that wait to be archived. Each has a folder of DICOM files and a row."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from monailabel_xnat.sandbox.archive.archive import Archive, timestamp
from monailabel_xnat.sandbox.archive.resources import segment
from monailabel_xnat.sandbox.dicom.headers import Place
from monailabel_xnat.sandbox.dicom.naming import resource_label, scan_ids, scan_xsi_type
from monailabel_xnat.sandbox.dicom.series import SeriesFiles, read_series

UNASSIGNED = "Unassigned"
READY, CONFLICT, RECEIVING = "READY", "CONFLICT", "RECEIVING"


@dataclass(frozen=True)
class Waiting:
    """A session in the prearchive. `folder` is its name there, `directory` the folder of its files in the archive."""

    id: int
    project: str
    timestamp: str
    folder: str
    subject: str
    name: str
    status: str
    study_uid: str
    scan_date: str
    scan_time: str
    uploaded: str
    last_modified: str
    directory: str

    @property
    def path(self) -> str:
        """Its address below ``/data``."""
        return f"/prearchive/projects/{self.project or UNASSIGNED}/{self.timestamp}/{self.folder}"

    @property
    def place(self) -> Place:
        """The place where it is to be archived."""
        return Place(self.project, self.subject, self.name)


@dataclass(frozen=True)
class WaitingScan:
    """A scan of a session in the prearchive. Its files are those of its folder, all in one resource."""

    id: str
    xsi_type: str
    series: SeriesFiles

    @property
    def label(self) -> str:
        """The label of its resource."""
        return resource_label(self.xsi_type)


class Prearchive:
    """The prearchive that belongs to an archive."""

    def __init__(self, archive: Archive) -> None:
        self._store = archive.store
        self._root = archive.folder / "prearchive"

    def add(self, series: Sequence[SeriesFiles], place: Place, status: str, *, any_study: bool = False) -> Waiting:
        """Add the files of a study to those of the same study that wait already.

        Parameters
        ----------
        series
            All series of one study. Their files are copied.
        place
            The place where it is to be archived. The project may be unknown.
        status
            ``READY``, ``CONFLICT`` or ``RECEIVING``.
        any_study
            Whether a session of another study, at the requested address, accepts this study, too.

        Raises
        ------
        ValueError
            If the requested address belongs to another study.
        """
        known = self._known(series[0], place, any_study)
        waiting = known or self._reserve(series[0], place, status)
        ids = scan_ids(series)
        for item in series:
            target = (
                self._root
                / waiting.directory
                / "SCANS"
                / segment(ids[item.series_uid])
                / resource_label(scan_xsi_type(item))
            )
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file in item.files:
                shutil.copyfile(file.path, target / segment(f"{file.sop_instance_uid}.dcm"))
        if known is None:
            return self._get(self._store.insert("prearchive", {**asdict(waiting), "id": None}))
        if known.status != status:
            self.set_status(known, status)
        return self._get(known.id)

    def _known(self, first: SeriesFiles, place: Place, any_study: bool) -> Waiting | None:
        """Return the session that collects a study: one of its UID in the same project, with any name."""
        if place.moment:
            at = self.find(place.project, place.moment, segment(place.folder or place.session))
            if at is not None and at.study_uid != first.study_uid and not any_study:
                raise ValueError(f"{at.path} holds another study, of UID {at.study_uid}")
            return at
        sql = "SELECT * FROM prearchive WHERE project = ? AND study_uid = ?"
        return self._store.object(Waiting, sql, (place.project, first.study_uid))

    def _reserve(self, first: SeriesFiles, place: Place, status: str) -> Waiting:
        """Make a folder that no other session has, and return its session."""
        now, folder = timestamp(), segment(place.folder or place.session)
        home = segment(place.project) if place.project else UNASSIGNED
        moment = datetime.strptime(now, "%Y-%m-%d %H:%M:%S.%f")
        while True:
            stamp = place.moment or _stamp(moment)
            directory = f"{home}/{segment(stamp)}/{folder}"
            try:
                (self._root / directory).mkdir(mode=0o700, parents=True)
                break
            except FileExistsError:
                moment += timedelta(milliseconds=1)
        return Waiting(
            id=0,
            project=place.project,
            timestamp=stamp,
            folder=folder,
            subject=place.subject,
            name=place.session,
            status=status,
            study_uid=first.study_uid,
            scan_date=first.study_date,
            scan_time=first.study_time,
            uploaded=now,
            last_modified=now,
            directory=directory,
        )

    def _get(self, number: int) -> Waiting:
        found = self._store.object(Waiting, "SELECT * FROM prearchive WHERE id = ?", (number,))
        if found is None:
            raise LookupError("the session is no longer in the prearchive")
        return found

    def all(self) -> list[Waiting]:
        """Return all sessions that wait, oldest first."""
        return self._store.objects(Waiting, "SELECT * FROM prearchive ORDER BY id")

    def find(self, project: str, moment: str, folder: str) -> Waiting | None:
        """Return the session with an address, or None."""
        wanted = "" if project == UNASSIGNED else project
        sql = "SELECT * FROM prearchive WHERE project = ? AND timestamp = ? AND folder = ?"
        return self._store.object(Waiting, sql, (wanted, moment, folder))

    def series(self, waiting: Waiting) -> list[SeriesFiles]:
        """Return the series of a session, read from its files."""
        return read_series(self._root / waiting.directory)

    def scans(self, waiting: Waiting) -> list[WaitingScan]:
        """Return the scans of a session."""
        series = self.series(waiting)
        ids = scan_ids(series)
        return [WaitingScan(ids[item.series_uid], scan_xsi_type(item), item) for item in series]

    def set_status(self, waiting: Waiting, status: str) -> None:
        """Set the status of a session."""
        self._store.update("prearchive", waiting.id, status=status, last_modified=timestamp())

    def move(self, waiting: Waiting, project: str) -> Waiting:
        """Assign a session to another project."""
        self._store.update("prearchive", waiting.id, project=project, last_modified=timestamp())
        return self._get(waiting.id)

    def delete(self, waiting: Waiting) -> None:
        """Remove a session and its files."""
        self._store.delete("prearchive", waiting.id)
        folder = self._root / waiting.directory
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def clear(self) -> None:
        """Remove the files of all sessions."""
        shutil.rmtree(self._root, ignore_errors=True)


def _stamp(moment: datetime) -> str:
    """Return a time in the form that addresses in the prearchive use."""
    return f"{moment:%Y%m%d_%H%M%S}{moment.microsecond // 1000:03d}"
