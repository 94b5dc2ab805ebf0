"""Storing a DICOM SEG as a scan of its session, for viewers that read scans only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from monailabel_xnat.client.drawn import find_drawn_file, head_of_drawn
from monailabel_xnat.client.items import list_scans, put, resource_path, scan_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import upload
from monailabel_xnat.errors import NotInArchiveError, ServerError
from monailabel_xnat.ids import ImageId

_XSI_TYPE = "xnat:segScanData"
_RESOURCE = "DICOM"
# Tells which scan we made for which label; whether what it holds is still ours, its file tells.
_NOTE = "MONAI Label: {}"
_HEAD = 1 << 14
# XNAT Workstation counts the segmentations of a scan so: 3001, 3101, ... of scan 1.
_PREFIXES = range(30, 100)
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def find_seg_scan(session: Session, image: ImageId, name: str, is_ours: Callable[[bytes], bool]) -> ImageId | None:
    """Find the scan that holds the SEG which we stored under a name.

    Parameters
    ----------
    session : Session
        The connection.
    image : ImageId
        The image of the SEG.
    name : str
        Of the file.
    is_ours : callable
        Tells by the first bytes of a file whether we wrote it. Somebody may have overwritten ours: then it is theirs.

    Returns
    -------
    ImageId or None
        None if there is none, or if what it holds is somebody else's now.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    for row in list_scans(session, image.experiment, "note"):
        if row.get("note") != _NOTE.format(name):
            continue
        scan = ImageId(image.project, image.subject, image.experiment, row["ID"])
        try:
            found = find_drawn_file(session, scan_path(scan, is_shared=True))
        except NotInArchiveError:  # it has just been deleted
            continue
        if found is None:  # an attempt was interrupted
            return scan
        if not found.problem and found.remote.path == name and is_ours(head_of_drawn(session, found.remote, _HEAD)):
            return scan
    return None


def make_seg_scan(session: Session, image: ImageId, name: str, description: str) -> ImageId:
    """Make a scan for a SEG, whose file is to have a name, under a free number, as XNAT Workstation counts them.

    Raises
    ------
    ServerError
        If XNAT fails, does not let the user, or no number is free.
    """
    taken = {row["ID"] for row in list_scans(session, image.experiment)}
    digits = re.match(r"\d+", image.scan)
    suffix = f"{int(digits[0]):02d}" if digits else _UNSAFE.sub("_", image.scan)
    number = next((f"{prefix}{suffix}" for prefix in _PREFIXES if f"{prefix}{suffix}" not in taken), None)
    if number is None:
        raise ServerError(f"the session has no number free for a segmentation of scan {image.scan!r}")
    scan = ImageId(image.project, image.subject, image.experiment, number)
    fields = {"type": "SEG", "series_description": description, "note": _NOTE.format(name)}
    paths = {f"{_XSI_TYPE}/{field}": value for field, value in fields.items()}
    put(session, scan_path(scan, is_shared=True), {"xsiType": _XSI_TYPE, **paths})
    return scan


def store_seg_scan(session: Session, scan: ImageId, name: str, source: Path) -> None:
    """Store a SEG in a scan, in the place of an earlier one of that name; a member may do that, but not delete.

    Raises
    ------
    AccessDeniedError
        If the user may not write there, also where XNAT does not say so.
    ServerError
        If XNAT fails, or holds something else than was sent (TransferError).
    """
    path = scan_path(scan, is_shared=True)
    upload(session, resource_path(path, _RESOURCE), name, source, format="DICOM", content="SEG", overwrite=True)
    # XNAT takes UID, modality and date from the file only where it is told to.
    put(session, path, {"pullDataFromHeaders": "true"})
