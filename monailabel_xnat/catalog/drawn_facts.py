"""What a scan that holds a DICOM SEG or RTSTRUCT says: what it is, when it was stored, and what it was drawn on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.catalog.selection import is_drawn_scan
from monailabel_xnat.client.dicom_import import sop_uids
from monailabel_xnat.client.drawn import (
    DrawnFile,
    content_of,
    download_drawn,
    find_drawn_file,
    head_of_drawn,
    read_makers,
    stored_when,
)
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.convert.dicom.objects import drawn_object, kind_of_head
from monailabel_xnat.errors import LabelFileError

_HEAD = 1 << 14
# So many of the images that an object refers to tell which series it was drawn on.
_SHOWN_INSTANCES = 16


class ScanFacts(NamedTuple):
    """What the file of a scan says, and XNAT of its file; `kind` is empty for what is no SEG and no RTSTRUCT.

    `problem` says why its content cannot be read. `images` are the scans, ``<session ID>/<scan ID>``, that hold the
    images that it refers to, where they were not found by the UIDs of their series.
    """

    kind: str = ""
    uid: str = ""
    study: str = ""
    series: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    folder: str = ""
    file: str = ""
    content: str = ""
    inserted: str = ""
    user: str = ""
    stored: str = ""
    problem: str = ""
    images: tuple[str, ...] = ()


class Targets:
    """Finds the images that objects were drawn on, by the UIDs of their series.

    Parameters
    ----------
    scans : mapping
        All scans, by id.
    facts : iterable of ScanFacts
        The objects.
    """

    def __init__(self, scans: Mapping[str, Scan], facts: Iterable[ScanFacts]) -> None:
        objects = list(facts)
        series = {uid for item in objects for uid in item.series}
        keys = {key for item in objects for key in item.images}
        self._by_series: dict[str, list[Scan]] = {}
        self._by_key: dict[str, Scan] = {}
        for scan in scans.values() if series or keys else ():
            if scan.series_uid in series and not is_drawn_scan(scan):
                self._by_series.setdefault(scan.series_uid, []).append(scan)
            if keys and key_of(scan) in keys:
                self._by_key[key_of(scan)] = scan

    def of(self, scan: Scan, facts: ScanFacts) -> list[str]:
        """List the ids of the images that the object in a scan was drawn on: of its session, else of its project."""
        found = [other for uid in facts.series for other in self._by_series.get(uid, ()) if other is not scan]
        image = scan.image_id
        near = [other for other in found if other.image_id.experiment == image.experiment]
        near = near or [other for other in found if other.image_id.project == image.project]
        near = near or [self._by_key[key] for key in facts.images if key in self._by_key]
        return list(dict.fromkeys(str(other.image_id) for other in near))


def read_facts(session: Session, scan: Scan) -> ScanFacts | None:
    """Read what a scan holds that is, or may be, a drawing; None if it holds no file at the moment.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    found = find_drawn_file(session, scan.path)
    if found is None:
        return None
    if not is_drawn_scan(scan) and (found.problem or not kind_of_head(head_of_drawn(session, found.remote, _HEAD))):
        return ScanFacts()
    inserted, user = read_makers(session, scan.image_id.experiment).get(scan.image_id.scan, ("", ""))
    facts, modified = ScanFacts(folder=found.folder, file=found.remote.path, problem=found.problem), found.modified
    if not found.problem:
        facts, modified = _read(session, found)
    stored = stored_when("" if found.problem else inserted, modified, datetime.now(timezone.utc))
    return facts._replace(inserted=inserted, user=user, stored=stored)


def find_images(session: Session, scan: Scan, facts: ScanFacts, scans: Iterable[Scan]) -> tuple[str, ...]:
    """Find the scans that hold the images which an object refers to: of its session, else its study, else its subject.

    Parameters
    ----------
    session : Session
        The connection.
    scan : Scan
        The scan that holds the object.
    facts : ScanFacts
        What it says.
    scans : iterable of Scan
        All scans.

    Returns
    -------
    tuple of str
        Session ID and scan ID of each.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    wanted = set(facts.instances)
    image, others = scan.image_id, list(scans)
    levels: tuple[Callable[[Scan], bool], ...] = (
        lambda other: other.image_id.experiment == image.experiment,
        lambda other: bool(facts.study) and other.study_uid == facts.study,
        lambda other: other.image_id.subject == image.subject,
    )
    for is_near in levels if wanted else ():
        near = [other for other in others if is_near(other) and not is_drawn_scan(other) and other.image_id != image]
        found = tuple(key_of(other) for other in near if wanted & _instances(session, other))
        if found:
            return found
    return ()


def key_of(scan: Scan) -> str:
    """Return what a scan is known by, whatever project it is listed under."""
    return f"{scan.image_id.experiment}/{scan.image_id.scan}"


def is_drawing(facts: ScanFacts) -> bool:
    """Return whether an object is a SEG or an RTSTRUCT, by what it holds."""
    return bool(facts.kind)


def remembered(content: Any) -> ScanFacts | None:
    """Return facts that were kept as JSON; None if they were kept in another form."""
    if not isinstance(content, list) or len(content) != len(ScanFacts._fields):
        return None
    values: list[Any] = [tuple(value) if isinstance(value, list) else str(value) for value in content]
    return ScanFacts(*values)


def _read(session: Session, found: DrawnFile) -> tuple[ScanFacts, str]:
    """Read the object in a file, and return also the file's HTTP header ``Last-Modified``."""
    with tempfile.TemporaryDirectory(prefix="drawn-") as folder:
        file, modified = download_drawn(session, found.remote, Path(folder))
        content = content_of(session, found.remote)
        facts = ScanFacts(folder=found.folder, file=found.remote.path, content=content)
        try:
            drawn = drawn_object(file)
        except LabelFileError as error:
            return facts._replace(problem=str(error)), modified
        known = drawn.references
        return facts._replace(
            kind=drawn.kind,
            uid=drawn.instance_uid,
            study=known.study_uid,
            series=known.series_uids,
            instances=known.instance_uids[:_SHOWN_INSTANCES],
        ), modified


def _instances(session: Session, scan: Scan) -> set[str]:
    folder = next((found for found in scan.resources if found.label.upper() == "DICOM" and found.file_count), None)
    return sop_uids(session, resource_path(scan.path, folder.label)) if folder else set()
