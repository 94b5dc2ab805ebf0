"""Which image each slice of a volume was made of: what SEG and AIM objects refer to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from monailabel_xnat.convert.dicom.series import read_series
from monailabel_xnat.convert.dicom.volume import plan_volume
from monailabel_xnat.convert.grid import Sources


def sources_of(instance_uids: Sequence[str], frame_numbers: Sequence[int], slices: int) -> dict[tuple[str, int], int]:
    """Return the slice of each image.

    Parameters
    ----------
    instance_uids : sequence of str
        SOP Instance UID of each slice, volume after volume.
    frame_numbers : sequence of int
        Number of each slice's frame in its file, from 1. What is no frame (0, a tile of a mosaic) is left out: an
        object that refers to the picture means another place.
    slices : int
        How many there are in a volume.
    """
    images = enumerate(zip(instance_uids, frame_numbers))
    return {(uid, frame): place % slices for place, (uid, frame) in images if frame}


def read_sources(folder: Path, series_uid: str | None) -> Sources:
    """Find the slice of each image of the DICOM series in a folder.

    Raises
    ------
    ImageError
        If the files are not one volume.
    """
    plan = plan_volume(read_series(folder, series_uid, one_scan=True), tilted=True)
    uids = [plan.headers[frame.path].sop_instance_uid for frame in plan.frames]
    numbers = [0 if plan.headers[frame.path].tiles else frame.index + 1 for frame in plan.frames]
    return sources_of(uids, numbers, plan.slices)


def encode_sources(sources: Sources) -> bytes:
    """Write sources as JSON."""
    return json.dumps([[uid, frame, place] for (uid, frame), place in sources.items()]).encode()


def decode_sources(content: bytes) -> Sources:
    """Read sources from JSON.

    Raises
    ------
    ValueError
        If it is none.
    """
    return {(str(uid), int(frame)): int(place) for uid, frame, place in json.loads(content)}
