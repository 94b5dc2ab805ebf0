"""Where slices lie in space: planes, their order, and the affine of a stack.

DICOM positions are LPS, in mm: x grows to the patient's left, y to the posterior, z to the superior side
(DICOM PS3.3 C.7.6.2.1.1). NIfTI and MONAI use RAS: the first two axes point the other way. An affine here is
a 4x4 array that takes a voxel index (i, j, k) = (column, row, slice), counted from 0 at the centre of the
first voxel, to mm.

Slices are stacked as ITK's GDCM series reader does it, since MONAI's ITKReader and the viewers count voxels
that way: ascending along the normal = row cosines x column cosines, and with the normal of the first slice as
the third axis. Only frames of a multi-frame file that are stored the other way round stay so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference of a direction cosine within one volume: 0.06 degrees, a quarter of a millimetre at the
edge of a head."""

SPACING_TOLERANCE = 1e-3
"""Largest relative difference of the pixel spacing within one volume."""

SLICE_POSITION_TOLERANCE = 0.01
"""How far a slice may lie from its place on a regular grid, as a share of the slice spacing."""

SLICE_ROUNDING_MM = 0.051
"""Half of a tenth of a millimetre, with room for the rounding of the sum: granted to all positions."""

SLICE_ROUNDING_SHARE = 0.1
"""`SLICE_ROUNDING_MM` is granted only up to this share of the slice spacing (small-animal scanners)."""

SEEN_ROUNDING_SHARE = 0.2
"""What positions with one decimal or more need, by their decimals, is granted up to this share of the slice spacing. A
missing slice puts the others off by a quarter of the spacing at least."""

LATERAL_TOLERANCE = 0.2
"""How far a slice may lie beside the normal through the first slice, as a share of the smaller pixel spacing."""

LARGEST_LATERAL = 0.5
"""The same where positions are rounded coarsely: half a pixel, with which it is still clear which voxel is meant."""

SAME_POSITION_SHARE = 0.1
"""Positions nearer to each other than this share of the pixel spacing are one position; at most 0.01 mm."""

LPS_TO_RAS: Floats = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Multiply an affine from the left by this to go from LPS to RAS, and back."""


@dataclass(frozen=True)
class Plane:
    """The place of one image plane (DICOM PS3.3 C.7.6.2).

    Parameters
    ----------
    position : tuple of float
        Centre of the first pixel (x, y, z), LPS, mm.
    orientation : tuple of float
        Direction cosines of a row (along growing columns), then of a column (along growing rows), LPS.
    spacing : tuple of float
        Distance of neighbouring rows, then of neighbouring columns, mm.
    thickness : float
        Spacing Between Slices or Slice Thickness, mm: the spacing of a stack of one.
    """

    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    thickness: float = 1.0

    @property
    def normal(self) -> Floats:
        """Unit vector row x column, LPS."""
        normal = np.array(cross(self.orientation[:3], self.orientation[3:]))
        return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def cross(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Give the cross product of two vectors; numpy's takes forty times as long for a single one."""
    (a, b, c), (d, e, f) = one, other
    return b * f - c * e, c * d - a * f, a * e - b * d


def distances_along(normal: Floats, positions: Floats) -> Floats:
    """Give the distance of each position (n, 3) from the origin along ``normal``, mm."""
    return np.asarray(positions @ normal, dtype=np.float64)


def affine_of_planes(first: Plane, last: Sequence[float], count: int) -> Floats:
    """Give the affine of a regular stack of planes, as ITK's image series reader computes it.

    Parameters
    ----------
    first : Plane
        The first slice.
    last : sequence of float
        Position of the last slice, LPS, mm.
    count : int
        Number of slices.

    Returns
    -------
    ndarray (4, 4), float64
        Voxel index to LPS, mm.
    """
    row, column = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    normal = first.normal
    # GDCMImageIO makes the cosines orthogonal in this order.
    row = np.cross(column, normal)
    column = np.cross(normal, row)
    step = np.linalg.norm(np.subtract(last, first.position)) / (count - 1) if count > 1 else first.thickness
    affine: Floats = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]
    affine[:3, 1] = column * first.spacing[0]
    # Frames of a multi-frame file may be stored against the normal.
    affine[:3, 2] = normal * step * (-1.0 if np.dot(np.subtract(last, first.position), normal) < 0 else 1.0)
    affine[:3, 3] = first.position
    return affine


def slice_position_tolerance(spacing: float, rounding: float = 0.0) -> float:
    """Return how far (mm) a slice may lie from its place on a grid of this slice spacing.

    Parameters
    ----------
    spacing : float
        Slice spacing, mm.
    rounding : float
        By how much (mm) positions may be rounded along the normal, see `rounding_of`.
    """
    always = min(SLICE_ROUNDING_MM, SLICE_ROUNDING_SHARE * spacing)
    return max(SLICE_POSITION_TOLERANCE * spacing, always, min(rounding, SEEN_ROUNDING_SHARE * spacing))


def rounding_of(positions: Floats) -> float:
    """Return by how much (mm) each coordinate may have been rounded, by the decimals of all; 0 for whole numbers.

    Whole millimetres are taken for exact: too many series have them.
    """
    for decimals in range(1, 6):
        if np.abs(np.round(positions, decimals) - positions).max() < 1e-7:
            is_whole = decimals == 1 and np.abs(np.round(positions) - positions).max() < 1e-7
            return 0.0 if is_whole else 0.501 * 10.0**-decimals
    return 0.0


def off_the_line(distances: Floats) -> float:
    """Return how far (mm) the worst of several distances lies from the best regular grid through all of them."""
    numbers = np.arange(len(distances))

    def width(step: float) -> float:
        left = distances - step * numbers
        return float(left.max() - left.min())

    # The width is convex in the step: a search by thirds finds its minimum.
    gaps = np.diff(distances)
    low, high = float(gaps.min()), float(gaps.max())
    for _ in range(60):
        third = (high - low) / 3.0
        if width(low + third) < width(high - third):
            high -= third
        else:
            low += third
    return width((low + high) / 2.0) / 2.0


def same_position_tolerance(spacing: tuple[float, float]) -> float:
    """Give how near (mm) two slices must be to count as lying at one position."""
    return min(0.01, SAME_POSITION_SHARE * min(spacing))


def group_by_distance(distances: Floats, tolerance: float) -> list[list[int]]:
    """Put the indices of equal distances together, ascending; a group spans at most ``tolerance``."""
    groups: list[list[int]] = []
    start = 0.0
    for index in np.argsort(distances, kind="stable"):
        if groups and distances[index] - start <= tolerance:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
            start = float(distances[index])
    return groups


def orientation_name(orientation: Sequence[float]) -> str:
    """Name the plane of direction cosines: axial, sagittal, coronal, with "oblique" beyond 5 degrees."""
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    name = ("sagittal", "coronal", "axial")[int(np.argmax(normal))]
    return name if normal.max() > np.cos(np.radians(5.0)) else f"oblique {name}"


def axis_codes(affine: Floats) -> str:
    """Name the direction of each voxel axis of a RAS affine by the nearest patient axis, e.g. ``LPS``."""
    codes = ""
    taken: list[int] = []
    for axis in range(3):
        weights = np.abs(affine[:3, axis]).copy()
        weights[taken] = -1.0
        world = int(np.argmax(weights))
        taken.append(world)
        codes += "RAS"[world] if affine[world, axis] > 0 else "LPI"[world]
    return codes


def voxel_spacing(affine: Floats) -> Floats:
    """Give the voxel size (3,) of an affine, mm."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)
