"""Label maps: read from what clients send, put on the grid of the image, written as NIfTI."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import Floats, axis_codes, voxel_spacing
from monailabel_xnat.convert.grid import GRID_TOLERANCE, Grid
from monailabel_xnat.convert.itk import read_itk_file
from monailabel_xnat.convert.lattice import fit, lattice_offset
from monailabel_xnat.convert.nifti import is_second_version, read_nifti, write_nifti
from monailabel_xnat.convert.nrrd import without_bzip2
from monailabel_xnat.convert.segments import Segment, merge_components, parse_segments
from monailabel_xnat.convert.voxels import label_values, whole_numbers
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

# Its own type hints cover half of it.
_nibabel: Any = nibabel

_OTHER_FORM = "lies on another form of the image's header (sform, qform): taken voxel by voxel"

_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A segmentation, one number for each voxel.

    Parameters
    ----------
    array : ndarray (i, j, k), uint8 or uint16
        0 is background.
    affine : ndarray (4, 4), float64
        Voxel index to RAS, mm.
    segments : tuple of Segment
        What the file says about the numbers; empty if it says nothing.
    notes : tuple of str
        What was changed on the way.
    """

    array: npt.NDArray[Any]
    affine: Floats
    segments: tuple[Segment, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid that the label lies on."""
        return Grid(tuple(self.array.shape), self.affine)


def read_label(path: Path) -> LabelMap:
    """Read a label map.

    Segments of a ``.seg.nrrd`` that overlap (kept in layers by 3D Slicer) are merged: where several claim a
    voxel the one later in the header has it.

    Parameters
    ----------
    path : Path
        ``.nii``, ``.nii.gz``, ``.nrrd``, ``.seg.nrrd``, ``.mha`` or ``.mhd``.

    Raises
    ------
    LabelFileError
        If the file is missing, empty, damaged or no label map: values that are negative, fractional or above
        65535, or several channels that are not one for each number.
    """
    if not path.is_file():
        raise LabelFileError(f"no such label file: {path.name}", hint="check the path")
    if path.stat().st_size == 0:
        raise LabelFileError(f"the label file is empty: {path.name}", hint="save the segmentation again")
    if not path.name.lower().endswith(_SUFFIXES):
        known = ", ".join(_SUFFIXES)
        raise LabelFileError(f"not a label file: {path.name}", hint=f"save the segmentation as one of {known}")
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            affine, values = _read_nifti(path)
            array, notes = label_values(values)
            return LabelMap(array, affine, notes=notes)
        return _read_itk_label(path)
    except ValueError as error:
        raise LabelFileError(
            f"{path.name} is no label map: {error}",
            hint="send one volume of whole numbers from 0 to 65535, as NIfTI, NRRD or MetaImage",
        ) from error


def to_grid(label: LabelMap, grid: Grid, tolerance: float = GRID_TOLERANCE, *, any_extent: bool = False) -> LabelMap:
    """Put a label on the grid of its image, without resampling.

    A label whose axes are those of the grid in another order or direction is reoriented, which loses nothing. One that
    lies where another program puts the voxels of the image (:attr:`Grid.others`) is taken voxel by voxel.

    Parameters
    ----------
    label : LabelMap
        Any label map.
    grid : Grid
        The grid of the image.
    tolerance : float
        How far apart voxels may lie to count as the same, as a share of the smallest voxel size.
    any_extent : bool
        Whether a label may cover another part of the same lattice of voxels. It is cropped or padded, and refused if
        labelled voxels lie outside the image.

    Returns
    -------
    LabelMap
        With the shape and the affine of ``grid``.

    Raises
    ------
    LabelGeometryError
        If it lies on another grid, or may be meant in two ways. The message shows both and how they differ.
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


def write_label(label: LabelMap, path: Path) -> None:
    """Write a label map as NIfTI; equal labels give equal bytes.

    Parameters
    ----------
    label : LabelMap
        What to write; the file holds its array as uint8 or uint16, and its affine.
    path : Path
        ``.nii.gz`` or ``.nii``. It appears only when it is whole.
    """

    def slices() -> Iterator[npt.NDArray[Any]]:
        yield from (label.array[:, :, k].T for k in range(label.array.shape[2]))

    write_nifti(path, label.array.shape, label.affine, label.array.dtype, slices())


def _read_nifti(path: Path) -> tuple[Floats, npt.NDArray[Any]]:
    """Read the affine and the voxels of a NIfTI file, of version 1 or 2."""
    if not is_second_version(path):
        header, values = read_nifti(path)
        return header.affine, values
    try:
        image = _nibabel.load(path)
        return np.asarray(image.affine, dtype=np.float64), np.asanyarray(image.dataobj)
    except (OSError, EOFError, zlib.error, _nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"it is truncated or damaged: {error}") from error


def _read_itk_label(path: Path) -> LabelMap:
    with without_bzip2(path) as plain:
        file = read_itk_file(plain)
    fields = parse_segments(file.fields)
    if not fields:
        array, notes = label_values(file.values)
        return LabelMap(array, file.affine, notes=notes)
    stack, rounded = whole_numbers(file.values if file.values.ndim == 4 else file.values[..., np.newaxis])
    merged, segments, notes = merge_components(stack, fields)
    return LabelMap(whole_numbers(merged)[0], file.affine, segments, (*rounded, *notes))


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
    fitted = fit(label.array, offset, grid.shape)
    if fitted.outside:
        raise _geometry_error(label.grid, grid, f"{fitted.outside} labelled voxels lie outside the image. ")
    before, after = (" x ".join(map(str, shape)) for shape in (label.array.shape, grid.shape))
    note = f"cropped or padded from {before} to the {after} voxels of the image, without loss: the lattice is the same"
    return replace(label, array=fitted.array, notes=(*label.notes, note))


def _reoriented(label: LabelMap, grid: Grid) -> LabelMap | None:
    """Permute and flip the axes of a label so that they run as those of a grid; None if they cannot."""
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
    """Refuse a label that a program may have turned to RAS, or that was drawn on another form."""
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
