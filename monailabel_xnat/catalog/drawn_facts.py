"""Facts about a drawn scan (DICOM SEG or RTSTRUCT): what it is, when it was stored, and on what it was drawn."""

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
# Of the images to which an object refers, this many are kept. They are enough to find the series.
_SHOWN_INSTANCES = 16
# Where XNAT stores the DICOM files of an image.
_OF_IMAGES = ("DICOM", "SECONDARY")


class ScanFacts(NamedTuple):
    """The facts in the file of a scan, and what XNAT says about the file.

    ``kind`` is empty if the file is neither SEG nor RTSTRUCT. ``problem`` says why its content cannot be read.
    ``images`` are the scans, as ``<session ID>/<scan ID>``, that hold the images to which it refers, if they could not
    be found by the UID of their series.
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
    """Finds the images on which objects were drawn, by the UIDs of their series.

    Parameters
    ----------
    scans : mapping
        All scans, by id.
    facts : iterable of ScanFacts
        The facts about all objects that :meth:`of` will be asked for.
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
        """Return the ids of the images on which the object in a scan was drawn.

        Images of its session come first; if there are none, those of its project; then those in ``facts.images``.
        """
        found = [other for uid in facts.series for other in self._by_series.get(uid, ()) if other is not scan]
        image = scan.image_id
        near = [other for other in found if other.image_id.experiment == image.experiment]
        near = near or [other for other in found if other.image_id.project == image.project]
        near = near or [self._by_key[key] for key in facts.images if key in self._by_key]
        return list(dict.fromkeys(str(other.image_id) for other in near))


def read_facts(session: Session, scan: Scan) -> ScanFacts | None:
    """Return the facts about a scan that is, or may be, a drawing; None if it holds no file at the moment.

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
    """Return the scans that hold the images to which an object refers.

    They are looked for in its session, then in its study, then in its subject. This takes a request for each scan.

    Parameters
    ----------
    session : Session
        The connection.
    scan : Scan
        The scan that holds the object.
    facts : ScanFacts
        The facts about the object.
    scans : iterable of Scan
        All scans.

    Returns
    -------
    tuple of str
        Each as ``<session ID>/<scan ID>``; empty if none was found.

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
    """Return ``<session ID>/<scan ID>``, which names a scan in whatever project it is listed."""
    return f"{scan.image_id.experiment}/{scan.image_id.scan}"


def is_drawing(facts: ScanFacts) -> bool:
    """Return whether an object is a SEG or an RTSTRUCT, according to its file."""
    return bool(facts.kind)


def remembered(content: Any) -> ScanFacts | None:
    """Return facts that were kept as JSON; None if another version kept them in another form."""
    if not isinstance(content, list) or len(content) != len(ScanFacts._fields):
        return None
    values: list[Any] = [tuple(value) if isinstance(value, list) else str(value) for value in content]
    return ScanFacts(*values)


def _read(session: Session, found: DrawnFile) -> tuple[ScanFacts, str]:
    """Return the facts about the object in a file, and the file's HTTP header ``Last-Modified``."""
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
    # XNAT does not always count files; a folder is passed over only if it is known to be empty.
    folders = [found.label for found in scan.resources if found.label.upper() in _OF_IMAGES and found.file_count != 0]
    return set().union(*(sop_uids(session, resource_path(scan.path, folder)) for folder in folders))
