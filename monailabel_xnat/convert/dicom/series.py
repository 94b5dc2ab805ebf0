"""The images of one DICOM series in a folder, apart from everything else that lies there.

MONAI's ITKReader does not always read a folder as its files say; where that matters the two are compared.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import pydicom

from monailabel_xnat.convert.dicom.headers import ImageHeader, OtherFile, is_mosaic, read_header
from monailabel_xnat.convert.geometry import LPS_TO_RAS
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.itk import itk_affine, simpleitk
from monailabel_xnat.errors import ImageConversionError, NoImageError

Source = Union[str, "os.PathLike[str]", Sequence[Union[str, "os.PathLike[str]"]]]

NAMES_SHOWN = 5
"""How many file names an error lists before it only counts."""

# GDCM's "series details", and the restriction that monai.data.ITKReader.read adds.
_DETAILS = ("SeriesNumber", "SequenceName", "SliceThickness", "Rows", "Columns", "SeriesDate")


@dataclass(frozen=True)
class Series:
    """The images of one series.

    Parameters
    ----------
    images : tuple of ImageHeader
        One for each file, by path; never empty.
    notes : tuple of str
        What was left aside.
    others : tuple of ImageHeader
        Images of other series that lie beside them in one scan of an archive.
    joined : bool
        Whether each image has a Series Instance UID of its own, so that only the archive says that they are one series.
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
        A folder, searched with its sub-folders, or files. Names do not matter.
    series_uid : str, optional
        Series Instance UID of the series to take. Needed only where several series lie together.
    one_scan : bool
        As for `choose_series`.

    Raises
    ------
    NoImageError
        If there is no image, or none of that series.
    ImageConversionError
        If a file is damaged, several series leave the choice open, or what was found is no plain image.
    """
    headers = [read_header(path) for path in list_files(source)]
    return choose_series(headers, where(source), series_uid, one_scan=one_scan)


def choose_series(
    headers: Sequence[ImageHeader | OtherFile], place: str, series_uid: str | None = None, *, one_scan: bool = False
) -> Series:
    """Choose one series of what was found.

    Parameters
    ----------
    headers : sequence of ImageHeader or OtherFile
        The headers of all files, by path.
    place : str
        Where they lie, for messages.
    series_uid : str, optional
        As for `read_series`.
    one_scan : bool
        Whether an archive keeps the files as one scan. Then images that have a series UID each are one series: some
        anonymisers give them out so.

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
    """List the files of a folder and its sub-folders, or the given files, sorted.

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


def where(source: Source) -> str:
    """Return where files lie, for messages."""
    return str(source) if isinstance(source, (str, os.PathLike)) else "the given files"


def name_files(paths: Iterable[Path]) -> str:
    """List file names for a message, cut after `NAMES_SHOWN`."""
    names = [path.name for path in dict.fromkeys(paths)]
    shown = ", ".join(names[:NAMES_SHOWN])
    rest = len(names) - NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


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
    """Return whether each of several single images has a Series Instance UID of its own, within one study."""
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
            f"no header of Siemens (CSA) that says where the slices lie: {name_files(mosaics)}",
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
