"""Reading RT structure sets: contours in patient space, filled slice by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from monailabel_xnat.convert.contours.polygons import (
    FARTHEST_CORNER,
    empty_slices,
    fill_polygons,
    in_slice,
    is_flat,
    lost_contours,
)
from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.objects import (
    RTSTRUCT_CLASSES,
    ImageReference,
    SliceFinder,
    contour_references,
    damage_named,
    decoded,
    encodings_of,
    open_object,
    refuse_truncated,
)
from monailabel_xnat.convert.geometry import Floats, group_by_distance, voxel_spacing
from monailabel_xnat.convert.grid import PLANE_TOLERANCE, Grid
from monailabel_xnat.convert.labelmap import LARGEST_VALUE, Canvas, LabelMap, Segment
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

SAME_PLANE_TOLERANCE = 0.02
"""Contours that lie within this distance, in slice spacings, are in one plane and make one shape."""

IMAGE_TOLERANCE = 1.0
"""A contour may lie this far, in slice spacings, from the image that it refers to, because a contour between two
slices may refer to either. Beyond this distance plus `SLICE_TOLERANCE` it is noted."""

SLICE_TOLERANCE = 0.1
"""Contours that are farther than this from the middle of a slice, in slice spacings, are noted."""

_STRUCTURES = 0x30060020
_ROI_NUMBER = 0x30060022
_ROI_NAME = 0x30060026
_ROI_CONTOURS = 0x30060039
_ROI_COLOUR = 0x3006002A
_REFERENCED_ROI = 0x30060084
_CONTOURS = 0x30060040
_GEOMETRY = 0x30060042
_POINTS = 0x30060050
_CLOSED = frozenset(("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"))
_THIN = frozenset(("POINT", "OPEN_PLANAR"))


@dataclass(frozen=True, eq=False)
class _Roi:
    """A structure and its contours: corners (n, 3) as voxel indices (i, j, k)."""

    segment: Segment
    contours: tuple[Floats, ...]


def read_rtstruct(path: Path, grid: Grid) -> LabelMap:
    """Read an RT structure set as a label map on the grid of its image.

    A voxel belongs to an ROI if its centre lies on a contour of its slice or inside the contours of its slice, by the
    even-odd rule (a contour within another is a hole). In a structure with closed contours, points, open contours and
    contours without area mark the voxels that they run through. A structure with points and open contours only is a
    marker, and is left out. A contour between two slices is drawn in the nearer slice. Slices without a contour stay
    empty. Where ROIs overlap, the voxel belongs to the ROI with the higher number. The notes list all contours that
    were not drawn exactly as they are stored.

    Parameters
    ----------
    path : Path
        An RT structure set (DICOM PS3.3 A.19, C.8.8.6).
    grid : Grid
        The grid of the image; its third axis runs from slice to slice.

    Returns
    -------
    LabelMap
        Array (i, j, k), uint8 or uint16. The values are the ROI numbers. If one of these is not between 1 and 65535,
        the ROIs are numbered anew from 1.

    Raises
    ------
    LabelFileError
        If the file is not a structure set, is damaged, or holds no closed contour.
    LabelGeometryError
        If a contour runs across the slices, or no contour lies in the image.
    """
    dataset = open_object(path, RTSTRUCT_CLASSES, "RTSTRUCT")
    refuse_truncated(path)
    with damage_named(path.name):
        rois, notes = _read_rois(dataset, grid)
        if not rois:
            message = f"{path.name} holds no closed contour{': ' if notes else ''}{'; '.join(notes)}"
            raise LabelFileError(message, hint="only closed contours make a label map")
        _refuse_other_place(rois, grid)
        canvas = Canvas(grid, max(roi.segment.value for roi in rois))
        for roi in rois:
            notes += _draw(roi, grid, canvas)
    if canvas.overlap:
        notes.append(f"{canvas.overlap} voxels belong to several ROIs: each has the one of the highest number")
    segments = tuple(roi.segment for roi in rois)
    return LabelMap(canvas.label_array(), grid.affine.copy(), segments, tuple(notes))


def _read_rois(dataset: Dataset, grid: Grid) -> tuple[list[_Roi], list[str]]:
    """Return the structures that have closed contours, in the order of their numbers, and notes."""
    encodings = encodings_of(dataset)
    structures = elements.items(dataset, _STRUCTURES)
    names = {_integer(item, _ROI_NUMBER): decoded(item, _ROI_NAME, encodings) for item in structures}
    drawn: dict[int, list[Dataset]] = {}
    for item in elements.items(dataset, _ROI_CONTOURS):
        drawn.setdefault(_integer(item, _REFERENCED_ROI), []).append(item)
    values, notes = _values(sorted(drawn))
    rois = []
    for number, parts in sorted(drawn.items()):
        name = names.get(number) or f"ROI {number}"
        contours = [contour for part in parts for contour in elements.items(part, _CONTOURS)]
        shapes, remarks = _shapes(contours, name, grid)
        notes += remarks
        if shapes:
            rois.append(_Roi(Segment(values[number], name, _colour(parts[0])), shapes))
    return rois, notes


def _values(numbers: Sequence[int]) -> tuple[dict[int, int], list[str]]:
    if all(0 < number <= LARGEST_VALUE for number in numbers):
        return {number: number for number in numbers}, []
    note = f"ROI numbers from {numbers[0]} to {numbers[-1]} are no label values: numbered anew in their order"
    return {number: value for value, number in enumerate(numbers, start=1)}, [note]


def _shapes(contours: Sequence[Dataset], name: str, grid: Grid) -> tuple[tuple[Floats, ...], list[str]]:
    """Return the contours of a structure that are drawn, as voxel indices (n, 3), and notes about all others."""
    shapes: dict[bytes, Floats] = {}
    others: Counter[str] = Counter()
    thin: Counter[str] = Counter()
    drawn_on: list[tuple[float, list[ImageReference]]] = []
    is_marker = not any(elements.text(contour, _GEOMETRY) in _CLOSED for contour in contours)
    for contour in contours:
        kind = elements.text(contour, _GEOMETRY)
        corners = np.reshape(elements.decimals(contour, _POINTS) or (), (-1, 3))
        if kind not in _CLOSED and (is_marker or kind not in _THIN):
            others[kind or "without type"] += 1
        elif not len(corners):
            others["without points"] += 1
        elif corners.tobytes() in shapes:
            # By the even-odd rule a second copy would cancel the first.
            others["stored twice"] += 1
        else:
            voxels = grid.voxels_of(corners)
            if not np.abs(voxels).max() <= FARTHEST_CORNER:
                farthest = corners[int(np.argmax(np.abs(voxels).max(axis=1)))].tolist()
                raise LabelFileError(
                    f"a contour of {name!r} has a corner at {farthest} mm, more than {FARTHEST_CORNER:g} voxels away",
                    hint="store the structure set again from the program that made it",
                )
            if kind in _THIN:
                thin[kind] += 1
                # The path goes there and back, so that it encloses nothing.
                voxels = np.concatenate([voxels, voxels[-2:0:-1]])
            elif is_flat(voxels[:, :2], (grid.shape[0], grid.shape[1])):
                thin["closed, without area"] += 1
            shapes[corners.tobytes()] = voxels
            drawn_on.append((float(voxels[:, 2].mean()), contour_references(contour)))
    _refuse_oblique(shapes.values(), name)
    notes = [f"{name}: {count} contours left aside ({kind})" for kind, count in others.items()]
    notes += [
        f"{name}: {count} contours mark the voxels that they run through ({kind})" for kind, count in thin.items()
    ]
    return tuple(shapes.values()), notes + _far_from_images(name, drawn_on, grid)


def _far_from_images(name: str, drawn_on: Sequence[tuple[float, list[ImageReference]]], grid: Grid) -> list[str]:
    """Return a note on contours that lie in other slices than the images that they refer to.

    ``drawn_on`` holds for each contour its height (third voxel index) and the images that it refers to.
    """
    if not any(images for _, images in drawn_on):
        return []
    finder = SliceFinder(grid.sources())
    found = [(height, finder.slices(images)) for height, images in drawn_on]
    away = [min(abs(height - place) for place in places) for height, places in found if places]
    far = [distance for distance in away if distance > IMAGE_TOLERANCE + SLICE_TOLERANCE]
    if not far:
        return []
    farthest = max(far) * float(voxel_spacing(grid.affine)[2])
    return [f"{name}: {len(far)} contours lie up to {farthest:.1f} mm from their images: drawn where they lie"]


def _refuse_oblique(contours: Iterable[Floats], name: str) -> None:
    depth = max((float(np.ptp(corners[:, 2])) for corners in contours), default=0.0)
    if depth > PLANE_TOLERANCE:
        raise LabelGeometryError(
            f"the contours of {name!r} do not lie in the slices of the image: one of them spans {depth:.2f} slices",
            hint="read the structure set with the series that it was drawn on",
        )


def _refuse_other_place(rois: Sequence[_Roi], grid: Grid) -> None:
    """Refuse structures if none of their contours lies in the image."""
    if any(_touches(corners, grid) for roi in rois for corners in roi.contours):
        return
    corners = np.concatenate([contour for roi in rois for contour in roi.contours])
    patient = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = (", ".join(f"{value:.1f}" for value in ends) for ends in (patient.min(axis=0), patient.max(axis=0)))
    raise LabelGeometryError(
        f"the contours lie outside the image: from ({low}) to ({high}) mm RAS. Image: {grid}",
        hint="read the structure set with the series that it was drawn on",
    )


def _touches(corners: Floats, grid: Grid) -> bool:
    return bool((corners.max(axis=0) >= -0.5).all() and (corners.min(axis=0) <= np.array(grid.shape) - 0.5).all())


def _draw(roi: _Roi, grid: Grid, canvas: Canvas) -> Iterator[str]:
    """Fill the contours of a structure, one plane after the other, and return notes."""
    contours = [corners for corners in roi.contours if _touches(corners, grid)]
    if len(contours) < len(roi.contours):
        yield f"{roi.segment.name}: {len(roi.contours) - len(contours)} contours lie outside the image"
    heights = np.array([corners[:, 2].mean() for corners in contours])
    slices = set()
    apart = 0.0
    shape = grid.shape[0], grid.shape[1]
    for plane in group_by_distance(heights, SAME_PLANE_TOLERANCE):
        height = float(heights[plane].mean())
        number = min(max(round(height), 0), grid.shape[2] - 1)
        slices.add(number)
        apart = max(apart, abs(height - number))
        window, mask = fill_polygons([contours[at][:, :2] for at in plane], shape)
        canvas.paint(in_slice(window, number), mask, roi.segment.value)
    yield from lost_contours(roi.segment.name, [corners[:, :2] for corners in contours], shape)
    if apart > SLICE_TOLERANCE:
        yield f"{roi.segment.name}: contours up to {apart:.2f} slices beside a slice count for the nearest one"
    yield from empty_slices(roi.segment.name, slices)


def _integer(item: Dataset, tag: int) -> int:
    return int(elements.decimal(item, tag) or 0)


def _colour(item: Dataset) -> tuple[int, int, int] | None:
    values = elements.decimals(item, _ROI_COLOUR)
    if values is None or len(values) != 3:
        return None
    red, green, blue = (min(255, max(0, round(value))) for value in values)
    return red, green, blue
