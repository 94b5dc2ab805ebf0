"""Label maps: numbers of segments on a grid of voxels, painted, counted, and put on the grid of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import Floats, axis_codes, voxel_spacing
from monailabel_xnat.convert.grid import GRID_TOLERANCE, Grid
from monailabel_xnat.errors import LabelGeometryError

_OTHER_FORM = "lies on another form of the image's header (sform, qform): taken voxel by voxel"


PADDING = 64
"""How many voxels a label may extend beyond its image on each side, in addition to half of the image's size: some
programs add a margin around a segmentation. A larger label is refused after its header, before its voxels are read."""

MOST_CHANNELS = 256
"""How many channels, or layers of overlapping segments, a label may have. Each takes as much memory as a label."""

LARGEST_VALUE = 65535
"""Largest value of a voxel: the largest number that uint16 holds."""

View = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Returns the part of a volume (i, j, k) that a picture covers, as a view with the axes of the picture."""


@dataclass(frozen=True)
class Segment:
    """What a number in a label map means.

    Parameters
    ----------
    value : int
        The number.
    name : str
        Its name.
    colour : tuple of int, or None
        Red, green, blue, 0 to 255.
    """

    value: int
    name: str
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A segmentation with one number for each voxel.

    Parameters
    ----------
    array : ndarray (i, j, k), uint8 or uint16
        The number of each voxel; 0 is background.
    affine : ndarray (4, 4), float64
        Voxel index to RAS, mm.
    segments : tuple of Segment
        What the file says about the numbers; empty if it says nothing.
    notes : tuple of str
        What was changed when the label was read, in words.
    """

    array: npt.NDArray[Any]
    affine: Floats
    segments: tuple[Segment, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid that the label lies on."""
        return Grid(tuple(self.array.shape), self.affine)


def refuse_larger(shape: tuple[int, ...], image: Grid) -> None:
    """Refuse a label that is larger than its image with the largest margin that a program may add.

    Parameters
    ----------
    shape : tuple of int
        Sizes (i, j, k, ...), with the axes in any order; further dimensions are channels.
    image : Grid
        The grid of the image.

    Raises
    ------
    LabelGeometryError
        If it has more voxels than `most_voxels`, or more channels than `MOST_CHANNELS`.
    """
    most = most_voxels(image)
    if math.prod(shape[:3]) > most or math.prod(shape[3:]) > MOST_CHANNELS:
        sizes, size = (" x ".join(map(str, sizes)) for sizes in (shape, image.shape))
        raise LabelGeometryError(
            f"the label has {sizes} values, but its image has {size} voxels: at most {most} voxels, in at most "
            f"{MOST_CHANNELS} channels, are expected",
            hint="segment the image that was handed out",
        )


def most_voxels(image: Grid) -> int:
    """Return how many voxels a label of an image may have; see `PADDING`."""
    return math.prod(2 * (size + PADDING) for size in image.shape)


def to_grid(label: LabelMap, grid: Grid, tolerance: float = GRID_TOLERANCE, *, any_extent: bool = False) -> LabelMap:
    """Put a label on the grid of its image, without resampling.

    A label whose axes are the axes of the grid in another order or direction is reoriented, which loses nothing. A
    label that lies where another program puts the voxels of the image (:attr:`Grid.others`) keeps its voxel indices
    and gets the affine of the grid.

    Parameters
    ----------
    label : LabelMap
        Any label map.
    grid : Grid
        The grid of the image.
    tolerance : float
        How far apart voxels may lie to count as the same, as a share of the smallest voxel size.
    any_extent : bool
        Whether a label may cover another part of the same lattice of voxels. Such a label is cropped or padded; it is
        refused if labelled voxels lie outside the image.

    Returns
    -------
    LabelMap
        The label with the shape and the affine of ``grid``, and notes on what was changed.

    Raises
    ------
    LabelGeometryError
        If it lies on another grid, or can be understood in two ways. The message shows both grids.
    """
    if label.grid.matches(grid, tolerance):
        return replace(label, affine=grid.affine.copy())
    turned = _reoriented(label, grid)
    fits = turned is not None and turned.grid.matches(grid, tolerance)
    if grid.is_other_form(label.grid, tolerance):
        if fits and axis_codes(label.affine) == "RAS":
            raise _ambiguous(label.grid, grid)
        return replace(label, affine=grid.affine.copy(), notes=(*label.notes, _OTHER_FORM))
    fitted = turned
    if turned is not None and not fits:
        fitted = _fitted(turned, grid, tolerance) if any_extent else None
    if fitted is None:
        raise _geometry_error(label.grid, grid)
    before, after = axis_codes(label.affine), axis_codes(grid.affine)
    note = [f"reoriented from {before} to {after} axes, without resampling"] if before != after else []
    return replace(fitted, affine=grid.affine.copy(), notes=(*fitted.notes, *note))


def _fitted(label: LabelMap, grid: Grid, tolerance: float) -> LabelMap | None:
    """Crop or pad a label that lies on the lattice of a grid; None if it does not.

    Raises
    ------
    LabelGeometryError
        If labelled voxels lie outside the grid.
    """
    offset = lattice_offset(label.grid, grid, tolerance)
    if offset is None:
        return None
    fitted = np.zeros(grid.shape, dtype=label.array.dtype, order="F")
    there, here = [], []
    for start, size, new in zip(offset, label.array.shape, grid.shape, strict=True):
        low, high = max(0, start), max(0, start, min(new, start + size))
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    inside = label.array[tuple(here)]
    outside = int(np.count_nonzero(label.array)) - int(np.count_nonzero(inside))
    if outside:
        raise _geometry_error(label.grid, grid, f"{outside} labelled voxels lie outside the image. ")
    fitted[tuple(there)] = inside
    before, after = (" x ".join(map(str, shape)) for shape in (label.array.shape, grid.shape))
    note = f"cropped or padded from {before} to the {after} voxels of the image, without loss: the lattice is the same"
    return replace(label, array=fitted, notes=(*label.notes, note))


def _reoriented(label: LabelMap, grid: Grid) -> LabelMap | None:
    """Permute and flip the axes of a label so that they run like the axes of a grid; return None if they cannot."""
    directions = [affine[:3, :3] / voxel_spacing(affine) for affine in (label.affine, grid.affine)]
    cosines = directions[0].T @ directions[1]
    order = [int(np.argmax(np.abs(cosines[:, axis]))) for axis in range(3)]
    if sorted(order) != [0, 1, 2]:
        return None
    flipped = tuple(axis for axis in range(3) if cosines[order[axis], axis] < 0)
    array = np.flip(label.array.transpose(order), flipped)
    affine = label.affine.copy()
    affine[:3, :3] = label.affine[:3, :3][:, order]
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1.0
    return replace(label, array=array, affine=affine)


def _ambiguous(label: Grid, image: Grid) -> LabelGeometryError:
    """Return the error for a label that can be understood in two ways.

    A program may have turned its axes to RAS, or it was drawn on another form of the image's header.
    """
    return LabelGeometryError(
        f"the label can be meant in two ways: its axes run to {axis_codes(label.affine)}, which is what the file of "
        f"the image says in another form, and what the image is with its axes turned. Label: {label}. Image: {image}",
        hint="save the segmentation on the image that was handed out, with its axes as they are",
    )


def _geometry_error(label: Grid, image: Grid, outside: str = "") -> LabelGeometryError:
    return LabelGeometryError(
        f"the label does not lie on the grid of its image. {outside}{differences(label, image)}",
        hint="segment the image that was handed out, or resample the segmentation to it and save again",
    )


def differences(label: Grid, image: Grid) -> str:
    """Return in words and numbers how the grid of a label differs from that of its image."""
    return f"Label: {label}. Image: {image}. They differ: {'; '.join(_differences(label, image))}"


def _differences(label: Grid, image: Grid) -> Iterator[str]:
    if label.shape != image.shape:
        yield f"shape {label.shape} against {image.shape}"
    spacings = voxel_spacing(label.affine), voxel_spacing(image.affine)
    if np.abs(spacings[0] - spacings[1]).max() > 1e-4:
        yield "spacing by " + ", ".join(f"{value:+.4g}" for value in spacings[0] - spacings[1]) + " mm"
    directions = [affine[:3, :3] / voxel_spacing(affine) for affine in (label.affine, image.affine)]
    cosine = np.clip(np.sum(directions[0] * directions[1], axis=0), -1.0, 1.0)
    if cosine.min() < 1 - 1e-6:
        yield f"axis directions by up to {np.degrees(np.arccos(cosine.min())):.2f} degrees"
    shift = float(np.linalg.norm(label.affine[:3, 3] - image.affine[:3, 3]))
    if shift > 1e-3:
        yield f"origin by {shift:.3f} mm"
    if label.shape == image.shape:
        yield f"voxels by up to {label.offset_from(image):.3f} mm"


class Canvas:
    """Voxels of a grid, all 0 at first. A voxel that several segments claim belongs to the segment painted last.

    Parameters
    ----------
    grid : Grid
        The grid of the image.
    largest : int
        The largest value that will be painted.
    """

    def __init__(self, grid: Grid, largest: int) -> None:
        dtype = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
        # In Fortran order a slice is one block of memory, as it is in a NIfTI file.
        self.array: npt.NDArray[Any] = np.zeros(grid.shape, dtype=dtype, order="F")
        self._claimed_twice: npt.NDArray[np.bool_] | None = None

    def paint(self, view: View, mask: npt.NDArray[np.bool_], value: int | npt.NDArray[Any]) -> None:
        """Write a value, or an array of values, to the voxels of a view where ``mask`` is true.

        Parameters
        ----------
        view : callable
            Returns the covered part of the volume, with the axes of ``mask``.
        mask : ndarray, bool
            Which voxels of that part are written.
        value : int, or ndarray of the shape of ``mask``
            What is written.
        """
        target = view(self.array)
        taken = mask & (target != 0) & (target != value)
        if taken.any():
            if self._claimed_twice is None:
                self._claimed_twice = np.zeros(self.array.shape, dtype=bool, order="F")
            view(self._claimed_twice)[taken] = True
        np.copyto(target, np.asarray(value).astype(target.dtype), where=mask)

    @property
    def overlap(self) -> int:
        """How many voxels were claimed by more than one segment."""
        return 0 if self._claimed_twice is None else int(np.count_nonzero(self._claimed_twice))

    def label_array(self) -> npt.NDArray[Any]:
        """Return the label map (i, j, k), as uint8 if that can hold its values, else as uint16."""
        if self.array.dtype == np.uint16 and self.array.max(initial=0) <= np.iinfo(np.uint8).max:
            return self.array.astype(np.uint8)
        return self.array


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


def unclaimed(array: npt.NDArray[Any], segments: Sequence[Segment]) -> str:
    """Return the values of a label map that no segment has, with their voxel counts, as text; "" if there are none.

    Parameters
    ----------
    array : ndarray (i, j, k)
        Whole numbers; 0 is background.
    segments : sequence of Segment
        The segments that are known.
    """
    counts = voxel_counts(array)
    counts[[0, *(segment.value for segment in segments if segment.value < len(counts))]] = 0
    return ", ".join(f"{value} ({counts[value]} voxels)" for value in np.flatnonzero(counts))


def voxel_counts(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return how many voxels each value has, from 0 to the largest value.

    Slices are counted one by one, because bincount needs 8 bytes of memory for each voxel that it is given.

    Parameters
    ----------
    array : ndarray (i, j, k), uint8 or uint16
        The label map.
    """
    bits = 8 * array.itemsize
    largest = np.iinfo(array.dtype).max if bits == 8 else int(array.max(initial=0))
    counts = np.zeros(largest + 1, np.int64)
    first, each = np.uint64((1 << bits) - 1), np.uint64(sum(1 << shift for shift in range(0, 64, bits)))
    for k in range(array.shape[2]):
        voxels = array[:, :, k].ravel(order="K")
        # Labels are mostly background and large areas: eight bytes are counted at a time where they are equal.
        if voxels.nbytes % 8 == 0:
            words = voxels.view(np.uint64)
            words = words[words != 0]
            values = words & first
            is_even = values * each == words
            counts += (64 // bits) * np.bincount(values[is_even].view(np.int64), minlength=len(counts))
            voxels = words[~is_even].view(voxels.dtype)
        counts += np.bincount(voxels, minlength=len(counts))
    counts[0] = array.size - counts[1:].sum()
    return counts[: int(np.flatnonzero(counts).max(initial=0)) + 1]
