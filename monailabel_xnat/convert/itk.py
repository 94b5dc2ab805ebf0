"""Image files other than DICOM and NIfTI, read by SimpleITK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import LPS_TO_RAS, Floats


def _simpleitk() -> Any:
    """Give SimpleITK, loaded at first use: it takes longer than all the rest of this package."""
    import SimpleITK

    return SimpleITK


@dataclass(frozen=True)
class ItkFile:
    """An image file.

    Parameters
    ----------
    values : ndarray (i, j, k) or (i, j, k, components)
        The voxels; a 2-D image has one slice.
    affine : ndarray (4, 4)
        Voxel index to RAS, mm.
    fields : mapping of str to str
        The keys and values in the file's header.
    """

    values: npt.NDArray[Any]
    affine: Floats
    fields: Mapping[str, str]


def read_itk_geometry(path: Path) -> tuple[tuple[int, ...], Floats]:
    """Read the shape (i, j, k) and the affine (to RAS, mm) of an image file from its header.

    Raises
    ------
    ValueError
        If SimpleITK cannot read the file.
    """
    reader = _with_header(path)
    return (*reader.GetSize(), 1)[:3], np.asarray(LPS_TO_RAS @ itk_affine(reader))


def read_itk_dimension(path: Path) -> int:
    """Read how many dimensions an image file has, from its header.

    Raises
    ------
    ValueError
        If SimpleITK cannot read the file.
    """
    return int(_with_header(path).GetDimension())


def read_itk_file(path: Path) -> ItkFile:
    """Read an image file.

    Raises
    ------
    ValueError
        If SimpleITK cannot read it.
    """
    reader = itk_reader(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(_reason(error)) from error
    values = itk_values(image)
    values = values.T if image.GetNumberOfComponentsPerPixel() == 1 else np.moveaxis(values.T, 0, -1)
    if image.GetDimension() == 2:
        values = np.expand_dims(values, 2)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    return ItkFile(values, np.asarray(LPS_TO_RAS @ itk_affine(image)), fields)


def itk_reader(path: Path, image_io: str = "") -> Any:
    """Make SimpleITK's reader for one file; ``image_io`` names the format where the file name does not."""
    reader = _simpleitk().ImageFileReader()
    if image_io:
        reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    return reader


def itk_values(image: Any) -> npt.NDArray[Any]:
    """Copy the voxels of an image, slowest index first, components last."""
    values: npt.NDArray[Any] = _simpleitk().GetArrayFromImage(image)
    return values


def itk_affine(image: Any) -> Floats:
    """Give the affine, voxel index to LPS in mm, of an image or of a reader that has read its header."""
    size = min(image.GetDimension(), 3)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:size, :size]
    affine: Floats = np.eye(4)
    # A reader hands on a spacing of 0 from a header; ITK's images have 1 where they have none.
    affine[:size, :size] = direction * [spacing or 1.0 for spacing in image.GetSpacing()[:size]]
    affine[:size, 3] = image.GetOrigin()[:size]
    return affine


def _with_header(path: Path) -> Any:
    """Return a reader that has read the header of a file."""
    reader = itk_reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(_reason(error)) from error
    return reader


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"SimpleITK cannot read it: {lines[-1] if lines else 'no reason given'}"
