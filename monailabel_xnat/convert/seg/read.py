"""Reading DICOM SEG objects, whoever wrote them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from monailabel_xnat.convert.canvas import Canvas
from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.objects import damage_named, decoded, encodings_of, open_object
from monailabel_xnat.convert.dicom.references import SEG_CLASSES
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.labelmap import LabelMap
from monailabel_xnat.convert.seg.colours import dicom_lab_to_rgb
from monailabel_xnat.convert.seg.pixels import Pictures, read_pictures
from monailabel_xnat.convert.seg.places import Contradictions, place_frames
from monailabel_xnat.convert.segments import Segment
from monailabel_xnat.convert.voxels import LARGEST_VALUE
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

VALUE_DESCRIPTION = "label value {}"
"""What `write_seg` puts into Segment Description: segments must count from 1, the values of a label need not."""

_BITS_ALLOCATED = 0x00280100
_PADDING = 0x00280120
_TYPE = 0x00620001
_LARGEST_FRACTION = 0x0062000E
_SEGMENTS = 0x00620002
_NUMBER = 0x00620004
_LABEL = 0x00620005
_DESCRIPTION = 0x00620006
_COLOUR = 0x0062000D
_IDENTIFICATION = 0x0062000A
_REFERENCED_NUMBER = 0x0062000B
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230

Mask = npt.NDArray[np.bool_]


def read_seg(path: Path, grid: Grid) -> LabelMap:
    """Read a DICOM SEG onto the grid of its image.

    Frames are put where their position and orientation say, in whatever order and direction they are stored; frames
    without a position where the image lies that they refer to. Where segments overlap the later number has the voxel.
    Fractional segments count from half of their maximum on.

    Parameters
    ----------
    path : Path
        A SEG of type BINARY, FRACTIONAL or LABELMAP (DICOM PS3.3 A.51).
    grid : Grid
        The grid of the image.

    Returns
    -------
    LabelMap
        Values are segment numbers, or those of the label that `write_seg` made the SEG of.

    Raises
    ------
    LabelFileError
        If it is no SEG, is damaged, is compressed in a way that cannot be read here, or has voxels of a segment that
        it does not describe.
    LabelGeometryError
        If it does not lie on the grid, lies beyond it, or elsewhere than the images that its frames refer to.
    """
    dataset = open_object(path, SEG_CLASSES, "DICOM SEG")
    with damage_named(path.name):
        segments, values, notes = _read_segments(dataset)
        canvas = Canvas(grid, max(_largest_number(dataset), *values.values()))
        places = place_frames(dataset, grid)
        masks, remarks = _masks(dataset, len(places))
        outside = 0
        unclaimed: Counter[int] = Counter()
        contradictions = Contradictions(grid)
        for frame, mask, number in masks:
            placement = places[frame].placement
            inside = mask[placement.window]
            if inside.size < mask.size:
                outside += int(np.count_nonzero(mask)) - int(np.count_nonzero(inside))
            if number not in values:
                unclaimed[number] += int(np.count_nonzero(mask))
                continue
            contradictions.look_at(frame, places[frame], inside)
            canvas.paint(placement.view, inside, values[number])
        _refuse_unclaimed(path.name, +unclaimed)
        contradictions.refuse(path.name, len(places))
    if outside:
        raise LabelGeometryError(
            f"{outside} voxels of the segmentation {path.name} lie outside its image: {grid}",
            hint="read it with the image that it was drawn on",
        )
    notes += [*remarks, *contradictions.notes]
    if canvas.overlap:
        notes.append(f"{canvas.overlap} voxels belong to several segments: each has the one of the highest number")
    return LabelMap(canvas.label_array(), grid.affine.copy(), segments, tuple(notes))


def _refuse_unclaimed(name: str, voxels: Mapping[int, int]) -> None:
    if voxels:
        listed = ", ".join(f"{number} ({count} voxels)" for number, count in sorted(voxels.items()))
        raise LabelFileError(
            f"{name} has voxels of segments that it does not describe: {listed}",
            hint="store it again from the program that made it",
        )


def _read_segments(dataset: Dataset) -> tuple[tuple[Segment, ...], dict[int, int], list[str]]:
    """Read the segments, the value for each segment number, and notes."""
    encodings = encodings_of(dataset)
    items = {elements.integer(item, _NUMBER): item for item in elements.items(dataset, _SEGMENTS)}
    # A label map object may describe its background.
    items.pop(0, None)
    if not items:
        raise LabelFileError("the DICOM SEG describes no segment", hint="store it again from the program that made it")
    values, notes = _values({number: decoded(item, _DESCRIPTION, encodings) for number, item in items.items()})
    segments = []
    for number, item in sorted(items.items()):
        name = decoded(item, _LABEL, encodings) or f"Segment {number}"
        lab = elements.integers(item, _COLOUR)
        segments.append(Segment(values[number], name, dicom_lab_to_rgb(lab) if len(lab) == 3 else None))
    return tuple(segments), values, notes


def _values(descriptions: Mapping[int, str]) -> tuple[dict[int, int], list[str]]:
    """Give each segment number the value that its description states; else the number, if no other has that."""
    pattern = re.compile(VALUE_DESCRIPTION.format(r"(\d{1,5})"))
    stated = {number: int(found[1]) for number, text in descriptions.items() if (found := pattern.fullmatch(text))}
    if len(set(stated.values())) < len(stated) or not all(0 < value <= LARGEST_VALUE for value in stated.values()):
        stated = {}
    values, notes = dict(stated), []
    for number in sorted(descriptions.keys() - stated.keys()):
        taken = set(values.values())
        values[number] = number if number not in taken else min(set(range(1, len(taken) + 2)) - taken)
        if values[number] != number:
            notes.append(f"segment {number} has the value {values[number]}: another one has {number}")
    return values, notes


def _masks(dataset: Dataset, count: int) -> tuple[Iterator[tuple[int, Mask, int]], list[str]]:
    """Give frame, mask and segment number of each mask, so that later ones go above earlier ones; and notes."""
    pictures = read_pictures(dataset, count)
    if _type(dataset) == "LABELMAP":
        return _labelled_masks(dataset, pictures, count), []
    threshold, notes = _threshold(dataset, pictures, count)
    return _segment_masks(dataset, pictures, threshold), notes


def _labelled_masks(dataset: Dataset, pictures: Pictures, count: int) -> Iterator[tuple[int, Mask, int]]:
    """Give the masks of each number in each frame of a label map object."""
    background = (0, elements.integer(dataset, _PADDING))
    for frame in range(count):
        picture = pictures(frame)
        for number in np.flatnonzero(np.bincount(picture.ravel())):
            if number not in background:
                yield frame, picture == number, int(number)


def _segment_masks(dataset: Dataset, pictures: Pictures, threshold: float) -> Iterator[tuple[int, Mask, int]]:
    """Give the mask of each frame, by ascending number of its segment."""
    numbers = _frame_numbers(dataset)
    for frame in sorted(range(len(numbers)), key=numbers.__getitem__):
        picture = pictures(frame)
        yield frame, picture if picture.dtype == np.bool_ else picture >= threshold, numbers[frame]


def _frame_numbers(dataset: Dataset) -> list[int]:
    """Give the segment number of each frame."""
    (shared,) = elements.items(dataset, _SHARED_GROUPS)[:1] or [Dataset()]
    numbers = []
    for group in elements.items(dataset, _FRAME_GROUPS):
        found = elements.items(group, _IDENTIFICATION) or elements.items(shared, _IDENTIFICATION)
        numbers.append(elements.integer(found[0], _REFERENCED_NUMBER) if found else 0)
    if not all(numbers):
        frame = numbers.index(0) + 1
        raise LabelFileError(f"frame {frame} of the DICOM SEG names no segment", hint="store the segmentation again")
    return numbers


def _type(dataset: Dataset) -> str:
    return elements.text(dataset, _TYPE) or "BINARY"


def _threshold(dataset: Dataset, pictures: Pictures, count: int) -> tuple[float, list[str]]:
    """Give the least pixel value that counts as inside, and notes."""
    if _type(dataset) != "FRACTIONAL":
        return 1.0, []
    half = elements.integer(dataset, _LARGEST_FRACTION, 255) / 2
    # dcmjs calls masks of 0 and 1 fractional, with a maximum of 255, where it compresses them.
    if half > 1 and all(pictures(frame).max(initial=0) <= 1 for frame in range(count)):
        return 1.0, [f"fractional segments that hold 0 and 1 alone, of at most {2 * half:g}: taken as masks"]
    return half, [f"fractional segments: voxels count from {half:g} on"]


def _largest_number(dataset: Dataset) -> int:
    """Give the largest segment number that the pixels of a label map may hold."""
    return int(2 ** elements.integer(dataset, _BITS_ALLOCATED, 1) - 1) if _type(dataset) == "LABELMAP" else 0
