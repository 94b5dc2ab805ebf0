"""A label map in the making: segments are painted into it one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.grid import Grid

View = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Gives the part of a volume (i, j, k) that a picture covers, as a view that is laid out as the picture."""


class Canvas:
    """Voxels of a grid, 0 at first. Where several segments claim a voxel the one painted last has it.

    Parameters
    ----------
    grid : Grid
        The grid of the image.
    largest : int
        The largest value that will be painted.
    """

    def __init__(self, grid: Grid, largest: int) -> None:
        dtype = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
        # Fortran order: a slice is one block, and NIfTI stores it so.
        self.array: npt.NDArray[Any] = np.zeros(grid.shape, dtype=dtype, order="F")
        self._claimed_twice: npt.NDArray[np.bool_] | None = None

    def paint(self, view: View, mask: npt.NDArray[np.bool_], value: int) -> None:
        """Give ``value`` to the voxels of a view where ``mask``, of the same shape, is true."""
        target = view(self.array)
        taken = mask & (target != 0) & (target != value)
        if taken.any():
            if self._claimed_twice is None:
                self._claimed_twice = np.zeros(self.array.shape, dtype=bool, order="F")
            view(self._claimed_twice)[taken] = True
        np.copyto(target, target.dtype.type(value), where=mask)

    @property
    def overlap(self) -> int:
        """How many voxels were claimed by more than one segment."""
        return 0 if self._claimed_twice is None else int(np.count_nonzero(self._claimed_twice))

    def label_array(self) -> npt.NDArray[Any]:
        """Give the label map (i, j, k), as uint8 where that holds its values."""
        if self.array.dtype == np.uint16 and self.array.max(initial=0) <= np.iinfo(np.uint8).max:
            return self.array.astype(np.uint8)
        return self.array
