"""Image files other than DICOM, handed out so that every program puts their voxels at the same place.

nibabel, ITK and MONAI's readers understand many headers differently (:mod:`monailabel_xnat.convert.forms`). A file that
all of them understand in the same way is handed out as it is. For any other file a new one is written: NIfTI-1 with the
same voxels in the same order, and with one affine in both forms. The affines that other programs may have read from the
original are kept. A label that was drawn with such a program has the same voxel indices as the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from monailabel_xnat.convert.forms import Forms, shear_of, without_shear
from monailabel_xnat.convert.geometry import Floats, voxel_spacing
from monailabel_xnat.convert.grid import GRID_TOLERANCE, Grid
from monailabel_xnat.convert.itk import read_itk_dimension, read_itk_file, read_itk_geometry, simpleitk
from monailabel_xnat.convert.nifti import (
    LARGEST_SIZE,
    copy_with_affine,
    read_forms,
    read_nifti,
    require_promised_bytes,
    write_nifti,
)
from monailabel_xnat.errors import ImageError

# nibabel's own type hints cover only half of it.
_nibabel: Any = nibabel

ALIKE = 0.01
"""How far apart two readers may put a voxel of one file, as a share of the smallest voxel size."""

QUATERNION = 0.5
"""How far the qform may be from the sform, as a share of the smallest voxel size, where all readers take the sform
(code 1). A quaternion in 32 bits cannot hold a rotation near a half turn any better."""

# What nibabel raises for damaged headers, also for those that promise more voxels than any memory holds.
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, MemoryError, ImageFileError, HeaderDataError)
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NIFTI = (".nii", ".nii.gz")
_SPACE = re.compile(rb"^space:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_LONGEST_HEADER = 1 << 16
_LPS = ("left-posterior-superior", "lps")
_KNOWN = (*_LPS, "right-anterior-superior", "ras", "left-anterior-superior", "las")


@dataclass(frozen=True, eq=False)
class HandedOut:
    """An image file that is handed out.

    Parameters
    ----------
    path : Path
        The file itself, or a new file that was written in its place.
    note : str
        What is unusual about its header; "" if nothing is.
    others : tuple of ndarray (4, 4)
        Affines (voxel index to RAS) that other programs may have read from the original file.
    """

    path: Path
    note: str = ""
    others: tuple[Floats, ...] = ()


def hand_out(path: Path, folder: Path, pair: Path | None = None) -> HandedOut:
    """Return an image file that all readers understand in the same way: this file, or a new one.

    Parameters
    ----------
    path : Path
        The image file; it is only read. Pictures (PNG, JPEG, TIFF) have no place in space, and are handed out as they
        are.
    folder : Path
        Where a new file is written if one is needed.
    pair : Path, optional
        The header file that `unpaired` made this image from. ITK may place its voxels differently.

    Raises
    ------
    ImageError
        If its header says nothing usable about the place of the voxels, or has axes that are not at right angles.
    """
    name = path.name.lower()
    if name.endswith(_PICTURES):
        return HandedOut(path)
    try:
        return _nifti(path, folder, pair) if name.endswith(_NIFTI) else _other(path, folder / "alike.nii.gz")
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"{path.name} cannot be placed: {error}", hint="repair its header, or convert the image again"
        ) from error


def unpaired(header: Path, target: Path) -> Path:
    """Write an image with header and voxels in two files (Analyze or NIfTI) as one NIfTI-1 file.

    Parameters
    ----------
    header : Path
        The header file; the file with the voxels lies beside it.
    target : Path
        The file to write.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    ImageError
        If nibabel cannot read the image.
    """
    try:
        image = _nibabel.load(header)
        _save(image, target)
    except _UNREADABLE as error:
        raise ImageError(
            f"{header.name} cannot be read as an image", hint="check that both files are complete"
        ) from error
    return target


def _nifti(path: Path, folder: Path, pair: Path | None) -> HandedOut:
    target = folder / f"alike{''.join(path.suffixes[-2:]) if path.name.endswith('.gz') else '.nii'}"
    source = path
    try:
        forms = read_forms(path)
    except ValueError:
        # It may be NIfTI-2, whose forms are read after it is written as NIfTI-1.
        source = _first_version(path, folder)
        forms = read_forms(source)
    affine, note = forms.chosen()
    affine = _straight(affine, forms.shape, path.name)
    grid = Grid(forms.shape, affine)
    others = _others([*forms.others(), *_as_itk_places(pair or path, forms)], grid)
    differing = [
        form for form in (forms.sform, forms.qform) if form is not None and _differ(form, grid, GRID_TOLERANCE)
    ]
    if differing and not note:
        note = "its header says two things (sform and qform); the sform counts"
    if source is path and not note and _is_plain(path, forms, grid):
        return HandedOut(path, "", others)
    copy_with_affine(source, target, affine)
    _prove(target, grid)
    return HandedOut(target, note, others)


def _other(path: Path, target: Path) -> HandedOut:
    shape, affine = read_itk_geometry(path)
    grid = Grid(shape, _straight(affine, shape, path.name))
    space = _space_of_nrrd(path) if path.name.lower().endswith(".nrrd") else _LPS[0]
    is_flat = read_itk_dimension(path) < 3
    if space in _LPS and not is_flat:
        return HandedOut(path)
    values = read_itk_file(path).values
    if max(values.shape) > LARGEST_SIZE:
        raise ValueError(f"a side of more than {LARGEST_SIZE} voxels does not fit into NIfTI")
    write_nifti(target, values.shape, grid.affine, values.dtype, iter([values.T]))
    _prove(target, grid)
    if space in _KNOWN:
        return HandedOut(target)
    named = f"names the space {space}, which readers understand differently" if space else "names no space"
    return HandedOut(target, f"its header {named}: its voxels lie where ITK puts them")


def _as_itk_places(path: Path, forms: Forms) -> list[Floats]:
    """Return a list with the affine that ITK reads; empty if ITK refuses the file or numbers are not finite."""
    stated = [forms.sizes, *(form for form in (forms.sform, forms.qform) if form is not None)]
    if not all(np.isfinite(numbers).all() for numbers in stated):
        return []
    try:
        return [read_itk_geometry(path)[1]]
    except ValueError:
        return []


def _first_version(path: Path, folder: Path) -> Path:
    """Write a NIfTI-2 file as NIfTI-1."""
    target = folder / "first.nii"
    require_promised_bytes(path)
    try:
        _save(_nibabel.load(path), target)
    except _UNREADABLE as error:
        raise ValueError(str(error)) from error
    return target


def _save(image: Any, target: Path) -> None:
    """Save an image as NIfTI-1 with its own header; a form that this header does not state stays unstated."""
    values = np.asanyarray(image.dataobj)
    header = image.header if isinstance(image.header, _nibabel.Nifti1Header) else None
    written = _nibabel.Nifti1Image(values, image.affine, header)
    if header is not None:
        for form in ("sform", "qform"):
            written.header[f"{form}_code"] = header[f"{form}_code"]
    written.header.set_data_dtype(values.dtype)
    _nibabel.save(written, target)


def _straight(affine: Floats, shape: tuple[int, ...], name: str) -> Floats:
    """Return the affine with axes at right angles; refuse a sheared one, which neither qform nor ITK can hold."""
    straight = without_shear(affine, shape)
    off = Grid(shape, affine).offset_from(Grid(shape, straight))
    smallest = float(voxel_spacing(affine).min())
    if off > GRID_TOLERANCE * smallest:
        raise ImageError(
            f"the axes of {name} are not at right angles: sheared by {shear_of(affine):.2f} degrees, which moves "
            f"voxels by up to {off:.3f} mm",
            hint="resample the image to axes at right angles: readers refuse or distort such a header",
        )
    return affine if off < 1e-6 * smallest else straight


def _is_plain(path: Path, forms: Forms, grid: Grid) -> bool:
    """Return whether all readers read the affine of ``grid`` from a NIfTI header."""
    if forms.dimensions < 3 or (forms.sform is None and forms.qform is None):
        return False
    # MONAI's NibabelReader distrusts an affine that has other voxel sizes than the header states.
    if np.abs(forms.sizes - voxel_spacing(grid.affine)).max() > 1e-4 * voxel_spacing(grid.affine).min():
        return False
    tolerance = QUATERNION if forms.sform_code == 1 else ALIKE
    if any(form is not None and _differ(form, grid, tolerance) for form in (forms.sform, forms.qform)):
        return False
    placed = _as_itk_places(path, forms)
    return bool(placed) and not _differ(placed[0], grid, ALIKE)


def _differ(form: Floats, grid: Grid, tolerance: float) -> bool:
    return not Grid(grid.shape, form).matches(grid, tolerance)


def _others(found: Iterable[Floats], grid: Grid) -> tuple[Floats, ...]:
    """Return the affines that differ from the grid's and from each other."""
    kept: list[Floats] = []
    for affine in found:
        if not any(_alike(affine, other, grid) for other in (grid.affine, *kept)):
            kept.append(affine)
    return tuple(kept)


def _alike(one: Floats, other: Floats, grid: Grid) -> bool:
    return Grid(grid.shape, one).matches(Grid(grid.shape, other), ALIKE)


def _space_of_nrrd(path: Path) -> str:
    """Return the space that the header of an NRRD file names, in lower case; "" if it names none."""
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER).partition(b"\n\n")[0].replace(b"\r\n", b"\n")
    return next((space.decode("ascii", "replace").lower() for space in _SPACE.findall(head)), "")


def _prove(path: Path, grid: Grid) -> None:
    """Read a file that was just written with ITK and with nibabel; refuse it if one puts its voxels elsewhere."""
    read = {
        "ITK": Grid(*read_itk_geometry(path)),
        "nibabel": Grid(grid.shape, np.asarray(_nibabel.load(path).affine)),
    }
    for reader, found in read.items():
        if not found.matches(grid, GRID_TOLERANCE):
            raise ValueError(f"{reader} understands the file that was written for it as {found}, instead of {grid}")


def read_whole_image(path: Path) -> npt.NDArray[Any]:
    """Read all voxels of an image file.

    Parameters
    ----------
    path : Path
        NIfTI, or any other format that SimpleITK reads.

    Returns
    -------
    ndarray
        The voxels in index order (i, j, k, ...), in the data type of the file or as its header scales them.

    Raises
    ------
    ImageError
        If it is not an image, or not whole. SimpleITK would fill missing voxels of a ``.nii.gz`` with zeros, so NIfTI
        is not read with it.
    """
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            return read_nifti(path)[1]
        return read_itk_file(path).values
    except ValueError as error:
        raise ImageError(
            f"{path.name} cannot be read as an image: {error}", hint="check that the file is complete"
        ) from error


def join_header_and_voxels(header: Path, target: Path) -> Path:
    """Write an image with header and voxels in two files (e.g. ``.mhd`` and ``.raw``) as one file.

    Parameters
    ----------
    header : Path
        The header file; the file with the voxels lies beside it.
    target : Path
        The file to write. Its name says the format.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    ImageError
        If SimpleITK cannot read it.
    """
    try:
        simpleitk().WriteImage(simpleitk().ReadImage(str(header)), str(target))
    except RuntimeError as error:
        raise ImageError(
            f"{header.name} cannot be read as an image", hint="check that both files are complete"
        ) from error
    return target
