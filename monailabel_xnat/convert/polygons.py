"""Filling polygons on a raster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import Floats

Window = tuple[slice, slice]


def fill_polygons(polygons: Sequence[Floats], shape: tuple[int, int]) -> tuple[Window, npt.NDArray[np.bool_]]:
    """Find the pixels whose centres lie inside, by the even-odd rule over all polygons together.

    So a polygon within another is a hole, one within the hole an island, and the two ways along the channel of a
    keyhole cancel out. A centre on the border belongs to one side only: shapes that touch neither share nor lose it.

    Parameters
    ----------
    polygons : sequence of ndarray (n, 2)
        Corners (x, y) in pixels: the centre of pixel (0, 0) is at (0, 0). The last corner is joined to the first.
    shape : tuple of int
        Pixels along x and along y.

    Returns
    -------
    tuple of slice
        The part of the raster (x, y) that the polygons touch.
    ndarray (x, y), bool
        The pixels of that part.
    """
    starts = np.concatenate(polygons)
    window = tuple(_span(starts[:, axis], shape[axis]) for axis in (0, 1))
    (left, right), (bottom, top) = window
    slices = slice(left, right), slice(bottom, top)
    if right <= left or top <= bottom:
        return slices, np.zeros((max(0, right - left), max(0, top - bottom)), dtype=bool)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    places, rows = _crossings(starts, ends, bottom, top)
    # Every pixel to the right of a crossing is on the other side of it.
    width, height = right - left, top - bottom
    columns = np.clip(np.ceil(places), left, right).astype(np.int64) - left
    changes = np.bincount((rows - bottom) * (width + 1) + columns, minlength=height * (width + 1))
    crossed = np.cumsum(changes.reshape(height, width + 1)[:, :-1], axis=1)
    return slices, (crossed % 2 == 1).T


def _span(values: Floats, size: int) -> tuple[int, int]:
    """Give the range of pixels whose centres lie between the least and the largest value."""
    return max(0, int(np.ceil(values.min()))), min(size, int(np.floor(values.max())) + 1)


def _crossings(starts: Floats, ends: Floats, bottom: int, top: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Give where edges cross the rows from ``bottom`` to before ``top``: x and the row of each crossing."""
    # From the lower end to the upper one, so that an edge passed in both ways gives the same numbers.
    flipped = (starts[:, 1] > ends[:, 1])[:, np.newaxis]
    low, high = np.where(flipped, ends, starts), np.where(flipped, starts, ends)
    first = np.clip(np.ceil(low[:, 1]), bottom, top).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1]), bottom, top).astype(np.int64)
    counts = last - first
    edges = np.repeat(np.arange(len(low)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    slope = (high[edges, 0] - low[edges, 0]) / (high[edges, 1] - low[edges, 1])
    return low[edges, 0] + (rows - low[edges, 1]) * slope, rows
