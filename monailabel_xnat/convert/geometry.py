"""Where slices lie in space: planes, their order, and the affine of a stack.

DICOM positions are LPS, in mm: x grows to the patient's left, y to the posterior, z to the superior side
(DICOM PS3.3 C.7.6.2.1.1). NIfTI and MONAI use RAS: the first two axes point the other way. An affine here is
a 4x4 array that takes a voxel index (i, j, k) = (column, row, slice), counted from 0 at the centre of the
first voxel, to mm.

Slices are stacked as ITK's GDCM series reader does it, because MONAI's ITKReader and the viewers count voxels
in this order. Slices ascend along the normal (row cosines x column cosines), and the normal of the first slice is the
third axis. There is one exception: frames of a multi-frame file that are stored in descending order keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference of a direction cosine within one volume. This is 0.06 degrees, or a quarter of a millimetre at
the edge of a head."""


VOXEL_SIZES = 1e-6, 1e6
"""Smallest and largest voxel size that an image may have, in mm: from a nanometre to a kilometre. A header with other
sizes is damaged, and computing with its numbers makes no sense."""

FARTHEST = 1e9
"""How far from the origin an image may lie along an axis, mm."""

LPS_TO_RAS: Floats = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Matrix (4, 4) that turns LPS into RAS and RAS into LPS, when an affine is multiplied by it from the left."""


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
        Spacing Between Slices or Slice Thickness, mm. It is the slice spacing of a volume of one slice.
    """

    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    thickness: float = 1.0

    @property
    def normal(self) -> Floats:
        """Unit vector (3,) of the cross product row x column, LPS."""
        normal = np.array(cross(self.orientation[:3], self.orientation[3:]))
        return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def cross(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return the cross product of two vectors. For a single pair, numpy takes forty times as long."""
    (a, b, c), (d, e, f) = one, other
    return b * f - c * e, c * d - a * f, a * e - b * d


def distances_along(normal: Floats, positions: Floats) -> Floats:
    """Return the distance of each position (n, 3) from the origin along ``normal``, mm."""
    return np.asarray(positions @ normal, dtype=np.float64)


def affine_of_planes(first: Plane, last: Sequence[float], count: int) -> Floats:
    """Return the affine of a regular stack of planes, as ITK's image series reader computes it.

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


def group_by_distance(distances: Floats, tolerance: float) -> list[list[int]]:
    """Return groups of indices whose distances are equal within ``tolerance``, in ascending order.

    The smallest and the largest distance of a group differ by at most ``tolerance``.
    """
    groups: list[list[int]] = []
    start = 0.0
    for index in np.argsort(distances, kind="stable"):
        if groups and distances[index] - start <= tolerance:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
            start = float(distances[index])
    return groups


def axis_codes(affine: Floats) -> str:
    """Return the direction of each voxel axis of an affine (to RAS) as the nearest patient axis, e.g. ``LPS``."""
    codes = ""
    taken: list[int] = []
    for axis in range(3):
        weights = np.abs(affine[:3, axis]).copy()
        weights[taken] = -1.0
        world = int(np.argmax(weights))
        taken.append(world)
        codes += "RAS"[world] if affine[world, axis] > 0 else "LPI"[world]
    return codes


def has_possible_sizes(sizes: npt.ArrayLike) -> bool:
    """Return whether voxel sizes (mm) are numbers within `VOXEL_SIZES`."""
    smallest, largest = VOXEL_SIZES
    # NaN compares as false, so it is refused as well. For a few numbers this is faster than numpy's comparison.
    return all(smallest <= size <= largest for size in np.ravel(sizes).tolist())


def is_possible(affine: Floats) -> bool:
    """Return whether an affine is finite, has voxels of a possible size and lies within `FARTHEST` of the origin."""
    return bool(np.abs(affine).max() <= FARTHEST) and has_possible_sizes(voxel_spacing(affine))


def voxel_spacing(affine: Floats) -> Floats:
    """Return the voxel size (3,) of an affine, mm."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)
