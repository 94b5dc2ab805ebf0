"""Choosing the images of one DICOM series from all files of a folder.

MONAI's ITKReader sometimes reads a folder differently. Where that matters, both results are compared.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import pydicom

from monailabel_xnat.convert.dicom.alike import HeaderReader
from monailabel_xnat.convert.dicom.headers import ImageHeader, OtherFile, is_mosaic
from monailabel_xnat.convert.geometry import LPS_TO_RAS
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.itk import itk_affine, simpleitk
from monailabel_xnat.errors import ImageConversionError, NoImageError, name_some

Source = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]

_NAMES_SHOWN = 5

# ITKReader splits a series by these elements: GDCM's "series details", and the one that monai.data.ITKReader.read adds.
_DETAILS = ("SeriesNumber", "SequenceName", "SliceThickness", "Rows", "Columns", "SeriesDate")


@dataclass(frozen=True)
class Series:
    """The images of one series.

    Parameters
    ----------
    images : tuple of ImageHeader
        One for each file, in the order of the paths; never empty.
    notes : tuple of str
        Which files were left out, and what else users should know.
    others : tuple of ImageHeader
        Images of other series in the same scan of an archive.
    joined : bool
        Whether each image has its own Series Instance UID, and they are one series only because the archive keeps them
        as one scan.
    """

    images: tuple[ImageHeader, ...]
    notes: tuple[str, ...]
    others: tuple[ImageHeader, ...] = ()
    joined: bool = False


def read_series(source: Source, series_uid: str | None = None, *, one_scan: bool = False) -> Series:
    """Read the headers of all files and choose one series.

    Parameters
    ----------
    source : path or sequence of paths
        A folder, which is searched with its sub-folders, or files. The names of the files do not matter.
    series_uid : str, optional
        Series Instance UID of the series to take. It is needed only if there are images of several series.
    one_scan : bool
        As for `choose_series`.

    Raises
    ------
    NoImageError
        If there is no image, or no image of that series.
    ImageConversionError
        If a file is damaged, if there are several series and no ``series_uid``, or if the images are mosaics without
        Siemens' header or differ in size.
    """
    reader = HeaderReader()
    headers = [reader.read(path) for path in list_files(source)]
    return choose_series(headers, name_of_source(source), series_uid, one_scan=one_scan)


def choose_series(
    headers: Sequence[ImageHeader | OtherFile], place: str, series_uid: str | None = None, *, one_scan: bool = False
) -> Series:
    """Choose the images of one series from the headers of all files.

    Parameters
    ----------
    headers : sequence of ImageHeader or OtherFile
        The headers of all files, in the order of the paths.
    place : str
        Where the files lie, for messages.
    series_uid : str, optional
        As for `read_series`.
    one_scan : bool
        Whether an archive keeps the files as one scan. Then images of which each has its own series UID are one series,
        because some anonymisers give a new series UID to each image.

    Raises
    ------
    NoImageError, ImageConversionError
        As `read_series`.
    """
    images = [header for header in headers if isinstance(header, ImageHeader)]
    others = [header for header in headers if isinstance(header, OtherFile)]
    if not images:
        found = _count_kinds(others) or "nothing"
        raise NoImageError(f"no DICOM image in {place}: found {found}", hint="choose a scan that holds images")
    joined = one_scan and _has_a_series_each(images)
    chosen = images if joined else _choose(images, series_uid)
    _refuse_mosaics(chosen)
    _refuse_mixed_sizes(chosen)
    beside = [image for image in images if image.series_uid != chosen[0].series_uid] if one_scan and not joined else []
    return Series(tuple(chosen), tuple(_notes(others, images, chosen)), tuple(beside), joined)


def list_files(source: Source) -> list[Path]:
    """Return the files of a folder and its sub-folders, or the given files, sorted by path.

    Raises
    ------
    NoImageError
        If the folder or a file does not exist.
    """
    if isinstance(source, (str, os.PathLike)):
        root = Path(source)
        if root.is_file():
            return [root]
        if not root.is_dir():
            raise NoImageError(f"no such folder: {root}", hint="check the path")
        return sorted(path for path in root.rglob("*") if path.is_file())
    paths = [Path(path) for path in source]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise NoImageError(f"no such file: {missing[0]}", hint="check the path")
    return sorted(paths)


def name_of_source(source: Source) -> str:
    """Return how messages call the place of the files: the path, or "the given files"."""
    return str(source) if isinstance(source, (str, os.PathLike)) else "the given files"


def name_files(paths: Iterable[Path]) -> str:
    """Return file names as text for a message; after five names it only says how many more there are."""
    return name_some((path.name for path in dict.fromkeys(paths)), _NAMES_SHOWN)


def _count_kinds(others: Sequence[OtherFile]) -> str:
    counts = Counter(other.kind for other in others)
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))


def _choose(images: Sequence[ImageHeader], series_uid: str | None) -> list[ImageHeader]:
    uids = sorted({image.series_uid for image in images})
    if series_uid is None and len(uids) == 1:
        return list(images)
    present = "; ".join(_describe(uid, images) for uid in uids)
    if series_uid is None:
        message = f"{len(uids)} series lie together: {present}"
        raise ImageConversionError(message, hint="give the Series Instance UID of the one that is meant")
    chosen = [image for image in images if image.series_uid == series_uid]
    if not chosen:
        message = f"no image of series {series_uid}; found: {present}"
        raise NoImageError(message, hint="give the Series Instance UID of one of these")
    return chosen


def _has_a_series_each(images: Sequence[ImageHeader]) -> bool:
    """Return whether these are several images of one study and one kind, each with its own Series Instance UID."""
    alike = {(image.study_uid, image.sop_class, image.modality) for image in images}
    single = all(len(image.frames) == 1 and image.frames[0].plane for image in images)
    return len({image.series_uid for image in images}) == len(images) > 1 and len(alike) == 1 and single


def _describe(uid: str, images: Sequence[ImageHeader]) -> str:
    members = [image for image in images if image.series_uid == uid]
    first = members[0]
    about = " ".join(part for part in (first.modality, first.series_number, first.description) if part)
    return f"{uid or '(no UID)'} ({about}, {len(members)} files)"


def _refuse_mosaics(images: Sequence[ImageHeader]) -> None:
    mosaics = [image.path for image in images if is_mosaic(image.image_type) and not image.tiles]
    if mosaics:
        raise ImageConversionError(
            f"{len(mosaics)} of {len(images)} files are mosaics, many slices tiled into one picture, and have "
            f"no private header of Siemens or United Imaging that says where the slices lie: {name_files(mosaics)}",
            hint="export the series without mosaic (as enhanced MR), or convert it and attach it as NIFTI",
        )


def _refuse_mixed_sizes(images: Sequence[ImageHeader]) -> None:
    sizes = Counter((image.columns, image.rows, image.samples) for image in images)
    if len(sizes) == 1:
        return
    parts = []
    for size, count in sizes.most_common():
        members = [image.path for image in images if (image.columns, image.rows, image.samples) == size]
        channels = f" with {size[2]} samples" if size[2] > 1 else ""
        parts.append(f"{count} of {size[0]}x{size[1]}{channels} ({name_files(members)})")
    raise ImageConversionError(
        f"images of different size in one series: {'; '.join(parts)}",
        hint="remove the images that do not belong to the volume, or choose another scan",
    )


def _notes(others: Sequence[OtherFile], images: Sequence[ImageHeader], chosen: Sequence[ImageHeader]) -> Iterable[str]:
    if others:
        yield f"ignored beside the images: {_count_kinds(others)}"
    for scaling in dict.fromkeys(image.dose_scaling for image in chosen if image.dose_scaling):
        yield f"Dose Grid Scaling is not applied: a value times {scaling} is the dose"
    if len(chosen) < len(images):
        yield f"ignored {len(images) - len(chosen)} images of other series"


def require_grid_in_folder(folder: Path, grid: Grid) -> None:
    """Check that MONAI's ITKReader reads the grid of the labels from a folder of DICOM files.

    ITK splits a series by values that may differ within it (slice thickness, series date) and reads only one part. It
    also does not read sub-folders, and does not notice missing slices. Then the image would not fit its label.
    The check uses SimpleITK, which orders and reads files with the same code as the package itk that MONAI uses, and
    which can be loaded in any thread.

    Parameters
    ----------
    folder : Path
        The DICOM files.
    grid : Grid
        The grid of the image, as converted from the same files.

    Raises
    ------
    ImageConversionError
        If ITK reads another grid, finds several series, or cannot read the folder.
    """
    reader: Any = simpleitk().ImageSeriesReader
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise _differs(f"{len(series)} series in the folder" if series else "no DICOM in the folder", grid)
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    for keyword, values in _details(files).items():
        if len(values) > 1:
            raise _differs(f"{len(values)} series, for {keyword} is {', '.join(sorted(values)[:3])}", grid)
    try:
        image: Any = simpleitk().ReadImage(files[0] if len(files) == 1 else files)
    except RuntimeError as error:
        raise _differs(f"an error ({str(error).strip().splitlines()[-1]})", grid) from None
    if image.GetDimension() != len(grid.shape):
        raise _differs(f"an image of {image.GetDimension()} dimensions", grid)
    read = Grid(tuple(image.GetSize()), LPS_TO_RAS @ itk_affine(image))
    if not read.matches(grid):
        raise _differs(str(read), grid)


def _details(files: Iterable[str]) -> dict[str, set[str]]:
    """Return all values that the files have in each element by which ITKReader splits a series."""
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
