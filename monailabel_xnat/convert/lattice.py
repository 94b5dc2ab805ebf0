"""Grids that share one lattice: the same voxels, of which each covers a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import voxel_spacing
from monailabel_xnat.convert.grid import Grid


@dataclass(frozen=True)
class Fit:
    """An array that was cropped and padded to another extent.

    Parameters
    ----------
    array : ndarray (i, j, k)
        Of the shape that was asked for; 0 where there was nothing.
    outside : int
        How many voxels other than 0 were cropped.
    """

    array: npt.NDArray[Any]
    outside: int


def lattice_offset(one: Grid, other: Grid, tolerance: float) -> tuple[int, int, int] | None:
    """Return the index in ``other`` of the first voxel of ``one``; None if their voxels do not coincide.

    Parameters
    ----------
    one, other : Grid
        Two grids whose axes run the same way.
    tolerance : float
        How far apart voxels may lie to count as the same, as a share of the smallest voxel size.
    """
    to_other = np.linalg.inv(other.affine)
    first = to_other[:3, :3] @ one.affine[:3, 3] + to_other[:3, 3]
    offset = np.rint(first)
    if np.abs(offset).max() > np.iinfo(np.int32).max:
        return None
    moved = other.affine.copy()
    moved[:3, 3] += other.affine[:3, :3] @ offset
    smallest = float(min(voxel_spacing(one.affine).min(), voxel_spacing(other.affine).min()))
    if one.offset_from(Grid(one.shape, moved)) > tolerance * smallest:
        return None
    return int(offset[0]), int(offset[1]), int(offset[2])


def fit(array: npt.NDArray[Any], offset: tuple[int, int, int], shape: tuple[int, ...]) -> Fit:
    """Crop and pad an array.

    Parameters
    ----------
    array : ndarray (i, j, k)
        Voxels.
    offset : tuple of int
        Where its first voxel lies in the new array.
    shape : tuple of int
        The shape of the new array.
    """
    fitted = np.zeros(shape, dtype=array.dtype, order="F")
    there, here = [], []
    for start, size, new in zip(offset, array.shape, shape):
        low, high = max(0, start), max(0, start, min(new, start + size))
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    inside = array[tuple(here)]
    fitted[tuple(there)] = inside
    return Fit(fitted, int(np.count_nonzero(array)) - int(np.count_nonzero(inside)))
