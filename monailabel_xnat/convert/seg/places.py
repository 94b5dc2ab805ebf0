"""Where the frames of a DICOM SEG lie.

Their positions decide. A frame whose position contradicts the image that it refers to is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.frames import frame_count, read_frames
from monailabel_xnat.convert.dicom.objects import SliceFinder, frame_references
from monailabel_xnat.convert.geometry import LPS_TO_RAS, ORIENTATION_TOLERANCE, Floats, Plane, axis_codes, voxel_spacing
from monailabel_xnat.convert.grid import PLANE_TOLERANCE, Grid
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

_SHOWN = 3
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230
_PLANE_ORIENTATION = 0x00209116
_PIXEL_MEASURES = 0x00289110
_ORIENTATION = 0x00200037
_PIXEL_SPACING = 0x00280030


@dataclass(frozen=True)
class Placement:
    """The voxels that a frame covers.

    Parameters
    ----------
    index : tuple of int and slice
        The part of the volume (i, j, k): one axis is fixed, and the others may run backwards.
    transposed : bool
        Whether that part must be transposed to get (rows, columns), because its first axis counts the columns of the
        frame.
    window : tuple of slice
        The part of the frame (rows, columns) that lies inside the grid.
    """

    index: tuple[int | slice, ...]
    transposed: bool
    window: tuple[slice, slice]

    @property
    def is_turned(self) -> bool:
        """Whether the rows and columns of the frame run otherwise than those of the slices."""
        in_slice = [part.step or 1 for part in self.index[:2] if isinstance(part, slice)]
        return not self.transposed or in_slice != [1, 1]

    def view(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the covered part of a volume (i, j, k) as (rows, columns) of the window."""
        part = volume[self.index]
        return part.T if self.transposed else part


def place_plane(plane: Plane, rows: int, columns: int, grid: Grid) -> Placement:
    """Return the voxels that a frame covers, whatever direction its rows and columns have.

    Parameters
    ----------
    plane : Plane
        Where the frame lies.
    rows, columns : int
        Size of the frame in pixels.
    grid : Grid
        The grid of the image.

    Returns
    -------
    Placement
        The covered voxels. Its window is empty if the frame lies beside the grid.

    Raises
    ------
    LabelGeometryError
        If a pixel is farther than `PLANE_TOLERANCE` from the centre of a voxel. The message shows both geometries.
    """
    first, along_row, along_column = _in_voxels(plane, grid)
    axes = int(np.argmax(np.abs(along_column))), int(np.argmax(np.abs(along_row)))
    start = np.rint(first)
    steps = np.zeros((2, 3))
    for step, axis, way in zip(steps, axes, (along_column, along_row), strict=True):
        step[axis] = np.sign(way[axis])
    corners = np.array([[0, 0], [0, columns - 1], [rows - 1, 0], [rows - 1, columns - 1], [1, 1]], dtype=np.float64)
    found = first + corners @ np.array([along_column, along_row])
    off = float(np.abs(found - start - corners @ steps).max())
    is_across = grid.shear is not None and 2 in axes
    if axes[0] == axes[1] or off > PLANE_TOLERANCE or is_across:
        raise _off_grid(plane, rows, columns, grid, off)
    index: list[int | slice] = [int(value) for value in start]
    window = []
    for axis, step, count in zip(axes, steps, (rows, columns), strict=True):
        covered, inside = _overlap(int(start[axis]), int(step[axis]), count, grid.shape[axis])
        index[axis] = covered
        window.append(inside)
    fixed = 3 - sum(axes)
    if not 0 <= int(start[fixed]) < grid.shape[fixed]:
        index[fixed] = 0
        index[axes[0]], window[0] = slice(0, 0), slice(0, 0)
    return Placement(tuple(index), axes[0] > axes[1], (window[0], window[1]))


def _in_voxels(plane: Plane, grid: Grid) -> tuple[Floats, Floats, Floats]:
    """Return the first pixel, the step along a row and the step along a column, each (3,), in voxels of the grid."""
    to_voxels = np.linalg.inv(LPS_TO_RAS @ grid.affine)
    first = grid.voxels_of(np.array([plane.position]))[0]
    along_row = to_voxels[:3, :3] @ np.multiply(plane.orientation[:3], plane.spacing[1])
    along_column = to_voxels[:3, :3] @ np.multiply(plane.orientation[3:], plane.spacing[0])
    return first, along_row, along_column


def _overlap(start: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Return which part of an axis of ``size`` voxels a row of pixels covers, and which of the pixels lie in it.

    The row has ``count`` pixels, starts at the voxel ``start`` and runs in the direction ``step``, 1 or -1.
    """
    if step > 0:
        low, high = max(0, -start), min(count, size - start)
    else:
        low, high = max(0, start - size + 1), min(count, start + 1)
    if high <= low:
        return slice(0, 0), slice(0, 0)
    stop = start + step * high
    return slice(start + step * low, None if stop < 0 else stop, step), slice(low, high)


def _off_grid(plane: Plane, rows: int, columns: int, grid: Grid, off: float) -> LabelGeometryError:
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(plane.orientation[:3], plane.spacing[1])
    affine[:3, 1] = np.multiply(plane.orientation[3:], plane.spacing[0])
    affine[:3, 2] = plane.normal * plane.thickness
    affine[:3, 3] = plane.position
    frame = Grid((columns, rows, 1), LPS_TO_RAS @ affine)
    return LabelGeometryError(
        f"the segmentation does not lie on the grid of its image. Frame: {frame}. Image: {grid}. "
        f"Pixels lie up to {off:.2f} voxels off the voxel centres (axes {axis_codes(frame.affine)[:2]} of the frame)",
        hint="segment the series that the image was made of, or resample the segmentation to it and save again",
    )


@dataclass(frozen=True)
class FramePlace:
    """The place of one frame.

    Parameters
    ----------
    placement : Placement
        The voxels that it covers.
    drawn_on : frozenset of int
        The slices of the images that it refers to; empty if they are not known.
    beside : tuple of int
        By how many columns and rows a frame that is as large as the slices is shifted against them. It is (0, 0) for a
        frame of another size, which may be a part of a slice.
    """

    placement: Placement
    drawn_on: frozenset[int]
    beside: tuple[int, int] = (0, 0)

    def slices(self, mask: npt.NDArray[np.bool_]) -> list[int]:
        """Return the slices (third index) in which a mask of the frame's window has voxels."""
        part = self.placement.index[2]
        if not isinstance(part, slice):
            return [part] if mask.any() else []
        # The frame lies across the slices, so each of its columns or rows lies in another slice. The last axis of the
        # volume counts the slices: it counts the rows of a transposed frame, and the columns of any other.
        marked = mask.any(axis=1 if self.placement.transposed else 0)
        length = len(marked)
        places = part.start + (part.step or 1) * np.arange(length)
        return [int(place) for place in places[marked]]


@dataclass
class Contradictions:
    """Collects the frames whose place differs from the place of the images that they refer to.

    Parameters
    ----------
    grid : Grid
        The grid of the image.
    """

    grid: Grid
    _found: dict[int, tuple[int, int]] = field(default_factory=dict)
    _beside: dict[int, tuple[int, int]] = field(default_factory=dict)
    _turned: set[int] = field(default_factory=set)

    @property
    def notes(self) -> list[str]:
        """Notes on what is unusual, but no contradiction."""
        note = (
            f"rows and columns of {len(self._turned)} frames run otherwise than those of their images: read as they say"
        )
        return [note] if self._turned else []

    def look_at(self, frame: int, place: FramePlace, mask: npt.NDArray[np.bool_]) -> None:
        """Compare the voxels that a frame marks with the images that it refers to.

        Parameters
        ----------
        frame : int
            Index of the frame, from 0.
        place : FramePlace
            Its place.
        mask : ndarray (rows, columns), bool
            What it marks within its window.
        """
        if not place.drawn_on:
            return
        if place.placement.is_turned:
            self._turned.add(frame)
        if any(place.beside) and mask.any():
            self._beside[frame] = place.beside
        for marked in place.slices(mask):
            nearest = min(place.drawn_on, key=lambda drawn: abs(drawn - marked))
            known = self._found.get(frame, (0, 0))
            if abs(nearest - marked) > abs(known[0] - known[1]):
                self._found[frame] = marked, nearest

    def refuse(self, name: str, count: int) -> None:
        """Refuse a segmentation if one of its frames contradicts the image that it refers to.

        Parameters
        ----------
        name : str
            Name of the file, for the message.
        count : int
            How many frames it has.

        Raises
        ------
        LabelGeometryError
            If there is such a frame. The message names frames and distances.
        """
        frames = sorted(self._found.keys() | self._beside.keys())
        if not frames:
            return
        shown = [f"frame {frame + 1} {self._where(frame)}" for frame in frames[:_SHOWN]]
        more = "; ..." if len(frames) > _SHOWN else ""
        farthest = max(map(self._distance, frames))
        raise LabelGeometryError(
            f"{len(frames)} of {count} frames of {name} have positions that contradict the images that they refer "
            f"to, by up to {farthest:.1f} mm: {'; '.join(shown)}{more} (slices count from 0)",
            hint="it was read at neither place; save it again with a newer version of the program that made it",
        )

    def _where(self, frame: int) -> str:
        if frame in self._found:
            marked, drawn = self._found[frame]
            away = f"{abs(marked - drawn) * voxel_spacing(self.grid.affine)[2]:.1f} mm away"
            return f"marks slice {marked}, but refers to the image of slice {drawn}, {away}"
        columns, rows = self._beside[frame]
        return f"lies {columns} columns and {rows} rows beside its image, {self._distance(frame):.1f} mm away"

    def _distance(self, frame: int) -> float:
        """Return the distance of a frame from the image that it refers to, in mm."""
        marked, drawn = self._found.get(frame, (0, 0))
        steps = (*self._beside.get(frame, (0, 0)), marked - drawn)
        return float(np.linalg.norm(np.multiply(steps, voxel_spacing(self.grid.affine))))


def place_frames(dataset: Dataset, grid: Grid) -> list[FramePlace]:
    """Return the place of each frame.

    The position of a frame decides. A frame without a position lies on the image that it refers to.

    Parameters
    ----------
    dataset : Dataset
        A DICOM SEG.
    grid : Grid
        The grid of the image. Its `sources` say which slice each DICOM image became.

    Raises
    ------
    LabelFileError
        If a frame has no position and does not refer to one image, or frames are not described.
    LabelGeometryError
        If a frame does not lie on the grid, or a frame without a position differs from the image that it refers to.
    """
    count = frame_count(dataset)
    rows, columns = elements.integer(dataset, _ROWS), elements.integer(dataset, _COLUMNS)
    described = len(elements.items(dataset, _FRAME_GROUPS))
    if described != count:
        raise LabelFileError(
            f"the DICOM SEG has {count} frames, but functional groups, "
            f"which say where in the patient they lie, of {described}",
            hint="store it again from the program that made it",
        )
    planes = [frame.plane for frame in read_frames(Path(), dataset, count, 0.0)]
    drawn_on = _drawn_on(dataset, grid)
    missing = [frame for frame, plane in enumerate(planes) if plane is None]
    for frame in missing:
        planes[frame] = _plane_of_image(dataset, frame, drawn_on.get(frame, frozenset()), grid)
    placed = [plane for plane in planes if plane is not None]
    if len(placed) < count:
        message = f"{count - len(placed)} of {count} frames of the DICOM SEG do not say where in the patient they lie"
        raise LabelFileError(
            message, hint="only segmentations can be read whose frames have a position, or refer to one slice each"
        )
    # Frames of several segments often lie at the same place, so each place is computed once.
    found = {plane: place_plane(plane, rows, columns, grid) for plane in dict.fromkeys(placed)}
    beside = {plane: _beside(placement, (columns, rows), grid) for plane, placement in found.items()}
    return [
        FramePlace(found[plane], drawn_on.get(frame, frozenset()), beside[plane]) for frame, plane in enumerate(placed)
    ]


def _beside(placement: Placement, size: tuple[int, int], grid: Grid) -> tuple[int, int]:
    """Return by how many columns and rows a frame that is as large as the slices is shifted against them."""
    across, down = placement.index[:2]
    if size != grid.shape[:2] or placement.is_turned or not isinstance(across, slice) or not isinstance(down, slice):
        return 0, 0
    return across.start - placement.window[1].start, down.start - placement.window[0].start


def _drawn_on(dataset: Dataset, grid: Grid) -> dict[int, frozenset[int]]:
    """Return for each frame the slices of the images that it refers to, as far as they are known."""
    references = frame_references(dataset)
    if not any(references):
        return {}
    finder = SliceFinder(grid.sources())
    return {frame: found for frame, images in enumerate(references) if (found := finder.slices(images))}


def _plane_of_image(dataset: Dataset, frame: int, drawn_on: frozenset[int], grid: Grid) -> Plane | None:
    """Return the place of the one image that a frame refers to; None if it refers to none, or to several."""
    if len(drawn_on) != 1:
        return None
    rows, columns = elements.integer(dataset, _ROWS), elements.integer(dataset, _COLUMNS)
    image = _slice_plane(grid, *drawn_on)
    orientation = _macro(dataset, frame, _PLANE_ORIENTATION, _ORIENTATION, 6)
    spacing = _macro(dataset, frame, _PIXEL_MEASURES, _PIXEL_SPACING, 2)
    differs = (columns, rows) != grid.shape[:2]
    differs |= orientation is not None and bool(
        np.abs(np.subtract(orientation, image.orientation)).max() > 10 * ORIENTATION_TOLERANCE
    )
    differs |= spacing is not None and not np.allclose(spacing, image.spacing, rtol=1e-2)
    if differs:
        raise LabelGeometryError(
            f"frame {frame + 1} of the DICOM SEG has no position, and is not like the image that it refers to: "
            f"{columns} x {rows} pixels of {spacing or 'unknown'} mm, orientation {orientation or 'unknown'}. "
            f"Image: {grid}",
            hint="save the segmentation again with positions",
        )
    return image


def _slice_plane(grid: Grid, place: int) -> Plane:
    """Return the plane of a slice of the grid, which runs along columns, rows and slices."""
    affine = LPS_TO_RAS @ grid.affine
    spacing = voxel_spacing(affine)
    position = grid.place_of_slice(place)
    directions: npt.NDArray[Any] = (affine[:3, :2] / spacing[:2]).T.ravel()
    return Plane(
        tuple(map(float, position)),  # type: ignore[arg-type]
        tuple(map(float, directions)),  # type: ignore[arg-type]
        (float(spacing[1]), float(spacing[0])),
    )


def _macro(dataset: Dataset, frame: int, group: int, tag: int, count: int) -> tuple[float, ...] | None:
    """Return numbers from a functional group of a frame, or from the group that all frames share."""
    frames = elements.items(dataset, _FRAME_GROUPS)
    shared = elements.items(dataset, _SHARED_GROUPS)
    for item in (*frames[frame : frame + 1], *shared[:1]):
        found = elements.items(item, group)
        if found:
            return elements.decimals(found[0], tag, count)
    return None
