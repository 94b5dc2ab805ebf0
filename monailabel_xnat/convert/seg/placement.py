"""Where a frame of a segmentation lies in the voxel grid of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import LPS_TO_RAS, Floats, Plane, axis_codes
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.errors import LabelGeometryError

PLANE_TOLERANCE = 0.25
"""How far the pixels of a frame may lie from voxel centres along each axis, in voxels. A slice may lie beside the
straight line by a fifth of a pixel (`LATERAL_TOLERANCE`), which a frame with the position of that slice repeats;
with half a voxel it would be open which one is meant."""


@dataclass(frozen=True)
class Placement:
    """The voxels that a frame covers.

    Parameters
    ----------
    index : tuple of int and slice
        The part of the volume; one axis is fixed, another may run backwards.
    transposed : bool
        Whether the columns of the frame come after its rows among the axes of the volume.
    window : tuple of slice
        The part of the frame (rows, columns) that lies inside the grid.
    """

    index: tuple[int | slice, ...]
    transposed: bool
    window: tuple[slice, slice]

    @property
    def is_turned(self) -> bool:
        """Whether rows and columns of the frame are not those of the slices (columns first), in this direction."""
        in_slice = [part.step or 1 for part in self.index[:2] if isinstance(part, slice)]
        return not self.transposed or in_slice != [1, 1]

    def view(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the covered part of a volume (i, j, k) as (rows, columns) of the window."""
        part = volume[self.index]
        return part.T if self.transposed else part


def place_plane(plane: Plane, rows: int, columns: int, grid: Grid) -> Placement:
    """Find the voxels that a frame covers, in whatever direction it runs.

    Parameters
    ----------
    plane : Plane
        Where the frame lies.
    rows, columns : int
        Its size.
    grid : Grid
        The grid of the image.

    Returns
    -------
    Placement
        Its window is empty where the frame lies beside the grid.

    Raises
    ------
    LabelGeometryError
        If the pixels do not lie on voxel centres. The message shows both geometries.
    """
    first, along_row, along_column = _in_voxels(plane, grid)
    axes = int(np.argmax(np.abs(along_column))), int(np.argmax(np.abs(along_row)))
    start = np.rint(first)
    steps = np.zeros((2, 3))
    for step, axis, way in zip(steps, axes, (along_column, along_row)):
        step[axis] = np.sign(way[axis])
    corners = np.array([[0, 0], [0, columns - 1], [rows - 1, 0], [rows - 1, columns - 1], [1, 1]], dtype=np.float64)
    found = first + corners @ np.array([along_column, along_row])
    off = float(np.abs(found - start - corners @ steps).max())
    is_across = grid.shear is not None and 2 in axes
    if axes[0] == axes[1] or off > PLANE_TOLERANCE or is_across:
        raise _off_grid(plane, rows, columns, grid, off)
    index: list[int | slice] = [int(value) for value in start]
    window = []
    for axis, step, count in zip(axes, steps, (rows, columns)):
        covered, inside = _overlap(int(start[axis]), int(step[axis]), count, grid.shape[axis])
        index[axis] = covered
        window.append(inside)
    fixed = 3 - sum(axes)
    if not 0 <= int(start[fixed]) < grid.shape[fixed]:
        index[fixed] = 0
        index[axes[0]], window[0] = slice(0, 0), slice(0, 0)
    return Placement(tuple(index), axes[0] > axes[1], (window[0], window[1]))


def _in_voxels(plane: Plane, grid: Grid) -> tuple[Floats, Floats, Floats]:
    """Give the first pixel, the step along a row and the step along a column in voxels of the grid."""
    to_voxels = np.linalg.inv(LPS_TO_RAS @ grid.affine)
    first = grid.voxels_of(np.array([plane.position]))[0]
    along_row = to_voxels[:3, :3] @ np.multiply(plane.orientation[:3], plane.spacing[1])
    along_column = to_voxels[:3, :3] @ np.multiply(plane.orientation[3:], plane.spacing[0])
    return first, along_row, along_column


def _overlap(start: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Intersect ``count`` pixels from ``start`` on, in direction ``step``, with an axis of ``size`` voxels."""
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
