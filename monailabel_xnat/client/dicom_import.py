"""Import of DICOM through XNAT's import service; each study goes into a session of its own.

This code does not rely on names and ids in headers, because sites replace those of patients by default. The images
that were sent are found again by their UIDs.
"""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from monailabel_xnat.client.dicom_source import Instance, pack, read_sop_uids
from monailabel_xnat.client.download import download_files
from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.client.upload import adding
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import (
    ImageConflictError,
    NotInArchiveError,
    ServerError,
    TransferError,
)
from monailabel_xnat.ids import ImageId

logger = logging.getLogger(__name__)

_ARCHIVED, _WAITING = "/data/archive/", "/prearchive/projects/"
_SESSIONS = {
    "xsiType": "xnat:imageSessionData",
    "columns": "ID,label,project,UID,subject_label,xnat:imagesessiondata/subject_id",
}
# XNAT answers an import with one of these if the session does not match the images that were sent.
_CONFLICTS = (400, 409)
_DICOM_RESOURCES = ("DICOM", "secondary")
_LONGEST_LABEL = 64


class Imported(NamedTuple):
    """The place of an imported series in XNAT.

    Parameters
    ----------
    image : ImageId
        The scan that holds the series.
    is_new : bool
        Whether this import made the scan.
    """

    image: ImageId
    is_new: bool


@dataclass(frozen=True)
class _Home:
    """A session in the archive, with its subject."""

    id: str
    label: str
    subject: str
    subject_label: str


class _Found(NamedTuple):
    """The part of a series that is in the archive: its scan, and the SOP Instance UIDs of its instances."""

    image: ImageId | None
    sops: frozenset[str]


_NOWHERE = _Found(None, frozenset())


class DicomImport:
    """Sends DICOM to XNAT's import service.

    Parameters
    ----------
    session : Session
        The connection.
    project : str
        ID of the project that the images are for.
    """

    def __init__(self, session: Session, project: str) -> None:
        self._session = session
        self._project = project

    def run(self, instances: Sequence[Instance], series: str, named: tuple[str, str, str] | None) -> Imported:
        """Import those of the given instances that are not in the archive yet.

        Parameters
        ----------
        instances : sequence of Instance
            The instances to import; they may belong to several studies.
        series : str
            Series Instance UID of the series whose scan is returned.
        named : tuple of str or None
            Labels or IDs for subject, session and scan, as the caller chose them. XNAT numbers the scan itself, but if
            a scan with the chosen id exists, it must not be another image. With None, images go into the session that
            already holds the study. If there is no such session, XNAT makes one with labels from the headers; if
            another study already has that session label, the new session gets a label of its own.

        Returns
        -------
        Imported
            Where the series is.

        Raises
        ------
        ImageConflictError
            If the chosen session holds another study or belongs to another subject, or the chosen scan holds another
            image.
        ServerError
            If XNAT refuses, fails, or leaves the images in its prearchive; the error says where.
        """
        studies: dict[str, list[Instance]] = defaultdict(list)
        for instance in instances:
            studies[instance.study].append(instance)
        if named and len(studies) > 1:
            raise ImageConflictError(
                f"{len(studies)} DICOM studies cannot be one session {'/'.join(named[:2])}",
                hint="add each study alone, or all of them without an id: each gets a session of its own then",
            )
        scans: dict[str, Imported] = {}
        failures: list[ServerError] = []
        for study in studies.values():
            try:
                scans.update(self._add_study(study, named))
            except ServerError as error:
                if error.may_pass_later:  # the other studies would fail for the same reason
                    raise
                failures.append(error)
        if failures:
            if len(studies) > 1:
                failures[0].message = f"{len(failures)} of {len(studies)} studies were not added: {failures[0].message}"
            raise failures[0]
        logger.info("DICOM of %d studies is in the archive", len(studies))
        return scans[series]

    def _add_study(self, study: Sequence[Instance], named: tuple[str, str, str] | None) -> dict[str, Imported]:
        """Import the missing instances of one study, and return where its series are."""
        first = study[0]
        label = named[1] if named else first.session or first.study
        # Two imports of one study must use the same session, and two studies must not use the same label.
        with adding(self._session.settings, f"study {first.study}", f"session {self._project}/{label}"):
            homes = self._named_home(named, study) if named else self._homes_of(first.study)
            before = self._archived(homes, study)
            missing = [item for item in study if item.sop not in before.get(item.series, _NOWHERE).sops]
            after = before
            if missing:
                # Some XNATs split a study with PET and MR into two sessions.
                homes = self._send(missing, self._destination(homes, named, first)) + homes
                after = self._archived(homes, study)
                _require_all(missing, after, homes[0])
            return {
                series: Imported(found.image, series not in before)
                for series, found in after.items()
                if found.image is not None
            }

    # Where a study belongs

    def _homes_of(self, study: str) -> list[_Home]:
        """Return the sessions of the project that hold a study, by its Study Instance UID."""
        homes = []
        path = quoted("data", "projects", self._project, "experiments")
        for row in self._session.rows(path, {**_SESSIONS, "UID": study}):
            cells = {key.lower(): value for key, value in row.items()}
            if cells["uid"] == study and cells["project"] == self._project:
                subject = cells["xnat:imagesessiondata/subject_id"]
                homes.append(_Home(cells["id"], cells["label"], subject, cells["subject_label"]))
        return homes

    def _named_home(self, named: tuple[str, str, str], study: Sequence[Instance]) -> list[_Home]:
        """Return the session with the chosen name, if there is one, and check that the study may go there."""
        fields = self._session_fields(named[1])
        if fields is None:
            return []
        subject = self._subject_fields(named[0])
        if subject is None or subject["ID"] != fields["subject_ID"]:
            raise ImageConflictError(
                f"the session {named[1]} exists in project {self._project!r}, but is not one of subject {named[0]}",
                hint="choose another name for the session, or name its subject",
            )
        uid = fields.get("UID") or study[0].study
        if uid != study[0].study:
            raise ImageConflictError(
                f"the session {fields['ID']} ({fields['label']}) holds another DICOM study, {uid}",
                hint="rename it: choose another name for the session, or add the study without an id",
            )
        path = quoted("data", "experiments", fields["ID"], "scans")
        for row in self._session.rows(path, {"columns": "ID,UID"}):
            if row["ID"] == named[2] and row["UID"] not in {item.series for item in study}:
                raise ImageConflictError(
                    f"scan {named[2]} of session {fields['ID']} ({fields['label']}) is another image",
                    hint="rename it: choose another scan id; images in XNAT are not overwritten",
                )
        return [_Home(fields["ID"], fields["label"], subject["ID"], subject["label"])]

    def _destination(
        self, homes: Sequence[_Home], named: tuple[str, str, str] | None, first: Instance
    ) -> tuple[str, str] | None:
        """Return labels for subject and session; None if XNAT can use those that it makes from the headers."""
        if homes:
            return homes[0].subject_label, homes[0].label
        if named:
            return named[0], named[1]
        if first.session and self._session_fields(first.session) is None:
            return None
        # The patient's first study already has this label. XNAT would leave the second one in its prearchive.
        mark = text_digest(first.study)[:8]
        label = (first.session or first.subject or "study")[: _LONGEST_LABEL - len(mark) - 1] + f"_{mark}"
        return first.subject or label, label

    def _session_fields(self, name: str) -> dict[str, str] | None:
        return self._fields(quoted("data", "projects", self._project, "experiments", name))

    def _subject_fields(self, name: str) -> dict[str, str] | None:
        return self._fields(quoted("data", "projects", self._project, "subjects", name))

    def _fields(self, path: str) -> dict[str, str] | None:
        try:
            item = self._session.json(path)
        except NotInArchiveError:
            return None
        fields: dict[str, str] = item["items"][0]["data_fields"]
        return fields

    # To XNAT and back

    def _send(self, instances: Sequence[Instance], destination: tuple[str, str] | None) -> list[_Home]:
        """Import instances of one study, and return the sessions into which XNAT says it has put them."""
        place = f"/archive/projects/{self._project}"
        if destination:
            place += "/subjects/{}/experiments/{}".format(*destination)
        query = {
            "dest": place,
            "overwrite": "append",
            # Without this, XNAT refuses the whole import if one of the files is already there.
            "overwrite_files": "true",
            "Ignore-Unparsable": "true",
        }
        with tempfile.NamedTemporaryFile(prefix="dicom-", suffix=".zip") as packed:
            path = Path(packed.name)
            pack(instances, path)
            try:
                answers = import_zip(self._session, path, query)
            except ServerError as error:
                if error.status in _CONFLICTS:
                    self._require_not_waiting(instances[0].study, error)
                raise
        archived = [answer for answer in answers if _ARCHIVED in answer]
        if not archived or len(answers) > len(archived):
            waiting = [answer for answer in answers if _WAITING in answer]
            raise _left_waiting(waiting, f"it answered {' '.join(answers) or 'nothing'}")
        return [self._home_at(answer) for answer in archived]

    def _home_at(self, address: str) -> _Home:
        """Return the session that an address ``.../experiments/LABEL`` names."""
        path = quoted("data", "projects", self._project)
        fields = self._session.json(path + quoted("experiments", address.rstrip("/").rpartition("/")[2]))
        session = fields["items"][0]["data_fields"]
        subject = (self._subject_fields(session["subject_ID"]) or {}).get("label", session["subject_ID"])
        return _Home(session["ID"], session["label"], session["subject_ID"], subject)

    def _require_not_waiting(self, study: str, error: ServerError) -> None:
        """Raise an error that says where in the prearchive a refused study is; if it is not there, do nothing."""
        try:
            rows = self._session.rows(quoted("data", "prearchive", "projects", self._project))
        except ServerError:
            return
        waiting = [row["url"] for row in rows if row.get("tag") == study and row.get("url")]
        if waiting:
            raise _left_waiting(waiting, error.message) from error

    def _archived(self, homes: Sequence[_Home], study: Sequence[Instance]) -> dict[str, _Found]:
        """Return, for each series of a study, what the given sessions hold of it, by Series Instance UID."""
        wanted = {item.series for item in study}
        found: dict[str, _Found] = {}
        for home in homes:
            path = quoted("data", "experiments", home.id, "scans")
            scans = {row["ID"]: row["UID"] for row in self._session.rows(path, {"columns": "ID,UID"})}
            scans = {scan: series for scan, series in scans.items() if series in wanted}
            for row in self._session.rows(f"{path}/ALL/resources") if scans else ():
                scan, label = row["cat_id"], row["label"]
                if scan in scans and label in _DICOM_RESOURCES:
                    known = found.get(scans[scan], _NOWHERE)
                    image = known.image or ImageId(self._project, home.subject, home.id, scan)
                    sops = sop_uids(self._session, path + quoted(scan, "resources", label))
                    found[scans[scan]] = _Found(image, known.sops | sops)
        return found


def import_zip(session: Session, packed: Path, query: Mapping[str, str]) -> list[str]:
    """Import a zip of DICOM files into XNAT, and return the path of each session, below the site's address.

    Parameters
    ----------
    session : Session
        The connection.
    packed : Path
        The zip.
    query : mapping
        Query parameters of the import service. It must contain ``dest``: where the sessions are to go.

    Raises
    ------
    ServerError
        If XNAT refuses or fails.
    """
    answer = session.request(
        "POST",
        "/data/services/import",
        query={"import-handler": "DICOM-zip", **query},
        body=lambda: packed.open("rb"),
        headers={"Content-Type": "application/zip"},
    )
    return answer.text.split()


def sop_uids(session: Session, resource: str) -> set[str]:
    """Return the SOP Instance UIDs of the files in a resource.

    Parameters
    ----------
    session : Session
        The connection.
    resource : str
        Path of the resource, percent-encoded.

    Raises
    ------
    TransferError
        If XNAT's catalog of the resource cannot be read.
    ServerError
        If XNAT fails.
    """
    content = session.request("GET", resource).content
    try:
        if b"<!DOCTYPE" in content:
            raise ElementTree.ParseError("a document type is not expected")
        root = ElementTree.fromstring(content)  # noqa: S314 - without a document type there is nothing to expand
    except ElementTree.ParseError as error:
        raise TransferError(
            f"the catalog of {resource} cannot be read: {error}", hint="it may have broken off: try again", url=resource
        ) from None
    entries = [element for element in root.iter() if element.tag.rpartition("}")[2] == "entry"]
    if all(entry.get("UID") for entry in entries):
        return {str(entry.get("UID")) for entry in entries}
    # Files that were uploaded one by one, not imported, have no UIDs in the catalog.
    with tempfile.TemporaryDirectory(prefix="dicom-") as folder:
        download_files(session, resource, list_files(session, resource), Path(folder))
        return set(read_sop_uids(Path(folder)))


def _require_all(sent: Sequence[Instance], archived: dict[str, _Found], home: _Home) -> None:
    """Raise an error unless all instances that were sent are in the archive."""
    lost = [item for item in sent if item.sop not in archived.get(item.series, _NOWHERE).sops]
    if lost:
        raise TransferError(
            f"XNAT took {len(sent)} DICOM files into session {home.id} ({home.label}), but {len(lost)} of them cannot "
            "be found there by their UIDs",
            hint="add them again, which sends only what is missing; if it stays, see whether the site's anonymisation "
            "changes UIDs",
        )


def _left_waiting(paths: Sequence[str], reason: str) -> ServerError:
    """Return the error about images that XNAT keeps in its prearchive."""
    sources = ["/" + path.strip("/").removeprefix("data/") for path in paths]
    where = f"; they wait in its prearchive: {', '.join(sources)}" if sources else ""
    how = (
        f"archive them on XNAT's page Upload > Go to prearchive, or with POST /data/services/archive?src={sources[0]}, "
        "with &session=LABEL for a session label that is free; then call refresh()"
        if sources
        else "look into the prearchive of the project, and archive them there"
    )
    return ServerError(f"XNAT did not archive the DICOM files{where}: {reason}", hint=how)
