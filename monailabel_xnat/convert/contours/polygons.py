"""Filling polygons on a raster: which pixels belong to a shape that was drawn as contours.

RTSTRUCT and AIM follow the same rule. The centre of a pixel decides: the pixel belongs to the shape if its centre
lies on a contour or inside the contours, by the even-odd rule over all of them together. Contours that follow the
edges of pixels therefore give exactly these pixels. So do contours that tools trace through the centres of the
outermost pixels of a mask, also around its holes. A contour without any area has no inside: it marks the pixels
that it runs through.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import Floats
from monailabel_xnat.convert.labelmap import View
from monailabel_xnat.errors import LabelFileError

ON_CONTOUR = 1e-3
"""A centre that is nearer to a contour than this, in pixels, counts as on it. Contours that run through centres miss
them by some ten thousandths of a pixel: coordinates are stored as text of at most 16 characters, and some tools
compute them in float32."""

Window = tuple[slice, slice]
Mask = npt.NDArray[np.bool_]

_TOGETHER = 1 << 18
"""How many crossings of edges with rows or columns are computed at once."""

LONGEST_CONTOURS = 8
"""How long the contours of one plane may be together, in pixels, as a multiple of the number of pixels in a slice.
Contours around every single pixel have a length of four times that number."""

FARTHEST_CORNER = 1e100
"""How many pixels (or voxels) a corner may lie from the origin along an axis. Computing with larger numbers would
overflow."""

# A path that cuts a corner of a pixel by less than this does not run through it.
_SHORTEST_PIECE = 4 * ON_CONTOUR


def fill_polygons(
    polygons: Sequence[Floats], shape: tuple[int, int], excluded: Sequence[Floats] = ()
) -> tuple[Window, Mask]:
    """Return the pixels that belong to the shape that several polygons make together.

    By the even-odd rule, a polygon within another is a hole, and a polygon within that hole is an island.

    Parameters
    ----------
    polygons : sequence of ndarray (n, 2)
        Corners (x, y) in pixels: the centre of pixel (0, 0) is at (0, 0). The last corner is joined to the first;
        a polygon may also be a point or a line.
    shape : tuple of int
        Pixels along x and along y.
    excluded : sequence of ndarray (n, 2)
        Polygons that are cut out. Pixels whose centres lie on them stay in the shape, as at the edge of any hole.

    Returns
    -------
    tuple of slice
        The part of the raster (x, y) that the polygons touch.
    ndarray (x, y), bool
        Which pixels of that part belong to the shape.

    Raises
    ------
    LabelFileError
        If the contours are longer than `LONGEST_CONTOURS` allows.
    """
    _refuse_endless([*polygons, *excluded], shape)
    starts, ends = _edges(polygons)
    window = _span(starts[:, 0], shape[0]), _span(starts[:, 1], shape[1])
    mask = _enclosed(starts, ends, window) | _touched(starts, ends, window)
    for polygon in polygons if mask.size else ():
        if is_flat(polygon, shape):
            _mark_path(polygon, window, mask)
    if excluded:
        starts, ends = _edges(excluded)
        mask &= ~_enclosed(starts, ends, window) | _touched(starts, ends, window)
    return window, mask


def in_slice(window: Window, number: int) -> View:
    """Return the part of a volume (i, j, k) that a window of one of its slices covers, for `Canvas.paint`."""
    return lambda volume: volume[window[0], window[1], number]


def is_flat(polygon: Floats, shape: tuple[int, int]) -> bool:
    """Return whether a polygon (n, 2) has no area: a point, a line, or a path that goes back the way it came."""
    _refuse_endless([polygon], shape)
    starts, ends = _edges([polygon])
    if _area(polygon) > ON_CONTOUR * _length(polygon) / 2:
        return False
    # The areas of the two halves of a figure of eight cancel each other, but the halves hold pixels.
    window = _span(starts[:, 0], shape[0]), _span(starts[:, 1], shape[1])
    return not bool((_enclosed(starts, ends, window) & ~_touched(starts, ends, window)).any())


def holds_no_pixel(polygon: Floats, shape: tuple[int, int]) -> bool:
    """Return whether a polygon (n, 2) lies between the centres of pixels, so that it alone marks no pixel."""
    is_thin = _area(polygon) <= _length(polygon)
    return is_thin and not bool(fill_polygons([polygon], shape)[1].any())


def _refuse_endless(polygons: Sequence[Floats], shape: tuple[int, int]) -> None:
    """Refuse contours that are longer than any shape made of pixels needs, because filling them would take hours."""
    length = sum(_length(np.clip(polygon, -1.0, np.array(shape))) for polygon in polygons)
    if length > LONGEST_CONTOURS * (shape[0] + 1) * (shape[1] + 1):
        raise LabelFileError(
            f"the contours of one plane are {length:.0f} pixels long, in an image of {shape[0]} x {shape[1]} pixels",
            hint="draw them again: contours enclose the voxels of a structure",
        )


def _edges(polygons: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Return where the edges of closed polygons start and end."""
    return np.concatenate(polygons), np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])


def _area(polygon: Floats) -> float:
    # Coordinates count from the first corner, so that a polygon far from the origin loses no digits.
    x, y = (polygon - polygon[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y))) / 2


def _length(polygon: Floats) -> float:
    return float(np.linalg.norm(np.roll(polygon, -1, axis=0) - polygon, axis=1).sum())


def _span(values: Floats, size: int) -> slice:
    """Return the pixels from the least to the largest value; both ends are included."""
    low, high = np.clip((values.min() - 0.5, values.max() + 0.5), -1.0, size + 1.0)
    start = max(0, int(np.floor(low)))
    return slice(start, max(start, min(size, int(np.ceil(high)) + 1)))


def _enclosed(starts: Floats, ends: Floats, window: Window) -> Mask:
    """Return the pixels whose centres lie inside by the even-odd rule; a centre on an edge may count or not."""
    (left, right), (bottom, top) = ((part.start, part.stop) for part in window)
    width, height = right - left, top - bottom
    # Each edge runs from its lower end to its upper end, so that both directions of an edge give the same numbers.
    flipped = (starts[:, 1] > ends[:, 1])[:, np.newaxis]
    low, high = np.where(flipped, ends, starts), np.where(flipped, starts, ends)
    first = np.clip(np.ceil(low[:, 1]), bottom, top).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1]), bottom, top).astype(np.int64)
    changes = np.zeros(height * (width + 1), dtype=np.int64)
    for edges, rows in _counted(first, last):
        slope = (high[edges, 0] - low[edges, 0]) / (high[edges, 1] - low[edges, 1])
        places = low[edges, 0] + (rows - low[edges, 1]) * slope
        # For every pixel to the right of a crossing, inside and outside change places.
        columns = np.clip(np.ceil(places), left, right).astype(np.int64) - left
        changes += np.bincount((rows - bottom) * (width + 1) + columns, minlength=len(changes))
    crossed = np.cumsum(changes.reshape(height, width + 1)[:, :-1], axis=1)
    return np.asarray((crossed % 2 == 1).T)


def _touched(starts: Floats, ends: Floats, window: Window) -> Mask:
    """Return the pixels whose centres lie on an edge."""
    mask = np.zeros([part.stop - part.start for part in window], dtype=bool)
    steps = ends - starts
    steep = np.abs(steps[:, 1]) > np.abs(steps[:, 0])
    for along, across, chosen in ((0, 1, ~steep), (1, 0, steep)):
        # Walk along the axis to which the edge is closer in direction: then only the nearest centre at each step can
        # lie on the edge.
        start, end, step = starts[chosen], ends[chosen], steps[chosen]
        limits = window[along].start, window[along].stop
        first = np.clip(np.ceil(np.minimum(start, end)[:, along] - ON_CONTOUR), *limits).astype(np.int64)
        last = np.clip(np.floor(np.maximum(start, end)[:, along] + ON_CONTOUR) + 1, *limits).astype(np.int64)
        # A point is an edge of length 0, so avoid a division by 0.
        lengths = np.hypot(step[:, 0], step[:, 1])
        cosines = np.abs(np.divide(step[:, along], lengths, out=np.ones_like(lengths), where=lengths > 0))
        for edges, places in _counted(first, last):
            begin, move, length = start[edges], step[edges], lengths[edges]
            share = np.divide(places - begin[:, along], move[:, along], out=np.zeros_like(length), where=length > 0)
            found = begin[:, across] + share * move[:, across]
            nearest = np.rint(found)
            on = (np.abs(found - nearest) * cosines[edges] <= ON_CONTOUR) & (nearest >= window[across].start)
            on &= nearest < window[across].stop
            index = [np.empty(0, np.int64)] * 2
            index[along] = places[on] - window[along].start
            index[across] = nearest[on].astype(np.int64) - window[across].start
            mask[index[0], index[1]] = True
    return mask


def _counted(
    first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return, for each edge, the whole numbers from ``first`` up to ``last``, without ``last`` itself.

    They come as pairs of arrays: the index of the edge for each number, and the numbers. There are several pairs,
    because thousands of edges that each cross the whole picture would take gigabytes at once.
    """
    counts = np.maximum(last - first, 0)
    totals = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = totals[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(totals, done + _TOGETHER, side="right")))
        part = counts[begin:end]
        edges = np.repeat(np.arange(begin, end), part)
        yield edges, np.arange(len(edges)) - np.repeat(np.cumsum(part) - part, part) + first[edges]
        begin = end


def _mark_path(polygon: Floats, window: Window, mask: Mask) -> None:
    """Mark the pixels that a polygon without area runs through."""
    origin = np.array([part.start for part in window])
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        for middle in _pieces(start - origin, end - origin, mask.shape):
            low = np.ceil(middle - 0.5 - ON_CONTOUR).astype(int)
            high = np.floor(middle + 0.5 + ON_CONTOUR).astype(int)
            if (low < 0).any() or (high >= mask.shape).any():
                low, high = np.maximum(low, 0), np.minimum(high, np.array(mask.shape) - 1)
                if (low > high).any():
                    continue
            # A path between two pixels touches both alike: mark one of them, unless one is marked already.
            if not mask[low[0] : high[0] + 1, low[1] : high[1] + 1].any():
                mask[high[0], high[1]] = True


def _pieces(start: Floats, end: Floats, shape: tuple[int, ...]) -> Iterator[Floats]:
    """Cut an edge of a polygon where it crosses the edges of pixels, and return the middle of each piece."""
    step = end - start
    cuts = [np.array([0.0, 1.0])]
    for axis, size in enumerate(shape):
        if step[axis]:
            low, high = np.clip(sorted((start[axis], end[axis])), -1.0, float(size))
            cuts.append((np.arange(np.ceil(low - 0.5), np.floor(high - 0.5) + 1) + 0.5 - start[axis]) / step[axis])
    places = np.unique(np.clip(np.concatenate(cuts), 0.0, 1.0))
    length = float(np.linalg.norm(step))
    if length <= _SHORTEST_PIECE:
        yield (start + end) / 2
        return
    for first, last in itertools.pairwise(places):
        if (last - first) * length > _SHORTEST_PIECE:
            yield start + (first + last) / 2 * step


def lost_contours(name: str, contours: Sequence[Floats], shape: tuple[int, int]) -> Iterator[str]:
    """Return a note on how many contours of a structure hold no voxel's centre; nothing if there are none.

    Parameters
    ----------
    name : str
        Name of the structure, for the note.
    contours : sequence of ndarray (n, 2)
        Its contours: corners (x, y) in pixels.
    shape : tuple of int
        Pixels along x and along y.
    """
    lost = sum(holds_no_pixel(corners, shape) for corners in contours)
    if lost:
        yield f"{name}: {lost} contours lie between the centres of voxels and mark none on their own"


def empty_slices(name: str, slices: Collection[int]) -> Iterator[str]:
    """Return a note on how many slices between the first and the last of a structure have no contour, if any."""
    missing = max(slices) - min(slices) + 1 - len(set(slices)) if slices else 0
    if missing:
        yield f"{name}: {missing} slices between its contours have none and stay empty"
