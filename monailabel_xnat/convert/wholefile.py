"""Image files that are taken as they are: read to their end once, for readers are silent about what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK

from monailabel_xnat.convert.itk import read_itk_file
from monailabel_xnat.convert.nifti import read_nifti
from monailabel_xnat.errors import ImageError

# Its own type hints cover half of it.
_simpleitk: Any = SimpleITK


def read_whole_image(path: Path) -> npt.NDArray[Any]:
    """Read all voxels of an image file.

    Parameters
    ----------
    path : Path
        NIfTI, or any other format that SimpleITK reads.

    Returns
    -------
    ndarray
        The voxels, in index order.

    Raises
    ------
    ImageError
        If it is no image, or not whole. SimpleITK alone fills what is missing of a ``.nii.gz`` with zeros.
    """
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            return _nifti_values(path)
        return read_itk_file(path).values
    except ValueError as error:
        raise ImageError(f"{path.name} cannot be read as an image: {error}", hint="is the file whole?") from error


def join_header_and_voxels(header: Path, target: Path) -> Path:
    """Put an image whose voxels lie beside its header into one file.

    Raises
    ------
    ImageError
        If SimpleITK cannot read it.
    """
    try:
        _simpleitk.WriteImage(_simpleitk.ReadImage(str(header)), str(target))
    except RuntimeError as error:
        raise ImageError(f"{header.name} cannot be read as an image", hint="are both files whole?") from error
    return target


def _nifti_values(path: Path) -> npt.NDArray[Any]:
    try:
        return read_nifti(path)[1]
    except ValueError as error:
        return _unusual_nifti_values(path, error)


def _unusual_nifti_values(path: Path, problem: ValueError) -> npt.NDArray[Any]:
    """Read NIfTI-2 and colours, which MONAI reads though our own reader does not."""
    try:
        return np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError):
        raise problem from None
