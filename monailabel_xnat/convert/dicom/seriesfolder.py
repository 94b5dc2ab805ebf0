"""What MONAI's ITKReader makes of a folder of DICOM files, which is not always what the files say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydicom
import SimpleITK

from monailabel_xnat.convert.geometry import LPS_TO_RAS
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.itk import itk_affine
from monailabel_xnat.errors import ImageConversionError

# GDCM's "series details", and the restriction that monai.data.ITKReader.read adds.
_DETAILS = ("SeriesNumber", "SequenceName", "SliceThickness", "Rows", "Columns", "SeriesDate")


def require_grid_in_folder(folder: Path, grid: Grid) -> None:
    """Check that MONAI's ITKReader gives a folder the grid on which the labels of its image lie.

    ITK splits a series by values that may differ within it (slice thickness, series date), reads only one part, looks
    into no sub-folder, and does not notice missing slices. Then the image would not fit its label. SimpleITK orders and
    reads the files by the same code as the package itk, which MONAI uses, and can be loaded in any thread.

    Parameters
    ----------
    folder : Path
        The DICOM files.
    grid : Grid
        The grid of the image, as converted from the same files.

    Raises
    ------
    ImageConversionError
        If it reads another grid, several series, or nothing.
    """
    reader: Any = SimpleITK.ImageSeriesReader
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise _differs(f"{len(series)} series in the folder" if series else "no DICOM in the folder", grid)
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    for keyword, values in _details(files).items():
        if len(values) > 1:
            raise _differs(f"{len(values)} series, for {keyword} is {', '.join(sorted(values)[:3])}", grid)
    try:
        image: Any = SimpleITK.ReadImage(files[0] if len(files) == 1 else files)
    except RuntimeError as error:
        raise _differs(f"an error ({str(error).strip().splitlines()[-1]})", grid) from None
    if image.GetDimension() != len(grid.shape):
        raise _differs(f"an image of {image.GetDimension()} dimensions", grid)
    read = Grid(tuple(image.GetSize()), LPS_TO_RAS @ itk_affine(image))
    if not read.matches(grid):
        raise _differs(str(read), grid)


def _details(files: Iterable[str]) -> dict[str, set[str]]:
    """Return the different values of each element by which ITKReader splits a series."""
    found: dict[str, set[str]] = {keyword: set() for keyword in _DETAILS}
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_DETAILS))
        for keyword, values in found.items():
            values.add(str(header.get(keyword, "")))
    return found


def _differs(found: str, grid: Grid) -> ImageConversionError:
    return ImageConversionError(
        f"MONAI's ITKReader finds {found}, but the label lies on {grid}",
        hint="train on NIfTI files, which are converted exactly: set image_format to nifti",
    )
