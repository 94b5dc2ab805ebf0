"""Image files other than DICOM and NIfTI, read by SimpleITK."""

from __future__ import annotations

import bz2
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert.geometry import LPS_TO_RAS, VOXEL_SIZES, Floats, is_possible, voxel_spacing

_LONGEST_HEADER = 1 << 20
_BLOCK = 1 << 20
_LARGEST_VOXEL = 8
_DEFLATE_RATIO = 1032
"""How many bytes one byte of a deflated stream can hold at most. No other format that ITK reads packs more densely."""

_END = re.compile(rb"\r?\n\r?\n")
_ENCODING = re.compile(rb"^(encoding:[ \t]*)(?:bzip2|bz2)(?=[ \t]*\r?$)", re.MULTILINE | re.IGNORECASE)
_SIZES = re.compile(rb"^sizes:([ \t\d]+)\r?$", re.MULTILINE)
_DETACHED = re.compile(rb"^data ?file:", re.MULTILINE | re.IGNORECASE)


def simpleitk() -> Any:
    """Return the module SimpleITK. It is imported at first use, because that takes longer than the whole package."""
    import SimpleITK

    return SimpleITK


def png_of(image: Any) -> bytes:
    """Return the content of a PNG file for a two-dimensional image of SimpleITK: grey, or red, green and blue."""
    with TemporaryDirectory(prefix="picture-") as folder:
        path = Path(folder, "picture.png")  # SimpleITK chooses the format by the ending of the name
        simpleitk().WriteImage(image, str(path), useCompression=True)
        return path.read_bytes()


@dataclass(frozen=True)
class ItkFile:
    """The content of an image file.

    Parameters
    ----------
    values : ndarray (i, j, k) or (i, j, k, components)
        The voxels, in the data type of the file; a 2-D image has one slice.
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
    return (*reader.GetSize(), 1)[:3], _placed(reader)


def read_itk_dimension(path: Path) -> int:
    """Return how many dimensions an image file has, read from its header.

    Raises
    ------
    ValueError
        If SimpleITK cannot read the file.
    """
    return int(_with_header(path).GetDimension())


def read_itk_file(path: Path, accept: Callable[[tuple[int, ...]], None] = lambda shape: None) -> ItkFile:
    """Read an image file with SimpleITK.

    Parameters
    ----------
    path : Path
        The file.
    accept : callable
        Called with the sizes (i, j, k, ..., components) before any voxel is read or unpacked. An error that it raises
        ends the reading.

    Raises
    ------
    ValueError
        If SimpleITK cannot read the file, or the file is too small for the voxels that its header promises.
    """
    reader = _with_header(path)
    shape = (*(*reader.GetSize(), 1)[:3], *reader.GetSize()[3:], reader.GetNumberOfComponents())
    accept(shape)
    # Each value takes at least one byte. The check is left out where the voxels may lie in another file.
    if math.prod(shape) > _DEFLATE_RATIO * path.stat().st_size and not _names_another_file(path):
        raise ValueError(f"it is truncated: {path.stat().st_size} bytes cannot hold {math.prod(shape)} values")
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(_reason(error)) from error
    values = itk_values(image)
    values = values.T if image.GetNumberOfComponentsPerPixel() == 1 else np.moveaxis(values.T, 0, -1)
    if image.GetDimension() == 2:
        values = np.expand_dims(values, 2)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    return ItkFile(values, _placed(image), fields)


def itk_reader(path: Path, image_io: str = "") -> Any:
    """Return SimpleITK's reader for one file; ``image_io`` names the format where the file name does not."""
    reader = simpleitk().ImageFileReader()
    if image_io:
        reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    return reader


def itk_values(image: Any) -> npt.NDArray[Any]:
    """Return a copy of the voxels of an image, slowest index (k, j, i) first, components last."""
    values: npt.NDArray[Any] = simpleitk().GetArrayFromImage(image)
    return values


def itk_affine(image: Any) -> Floats:
    """Return the affine (4, 4), voxel index to LPS in mm, of an image or of a reader that has read a header."""
    size = min(image.GetDimension(), 3)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:size, :size]
    affine: Floats = np.eye(4)
    # A reader returns a spacing of 0 as it is in the header; ITK's images have 1 instead.
    affine[:size, :size] = direction * [spacing or 1.0 for spacing in image.GetSpacing()[:size]]
    affine[:size, 3] = image.GetOrigin()[:size]
    return affine


def _names_another_file(path: Path) -> bool:
    """Return whether the voxels may lie in another file beside the header."""
    if not path.name.lower().endswith(".nrrd"):
        return not path.name.lower().endswith(".mha")
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER)
    end = _END.search(head)
    return bool(_DETACHED.search(head, 0, end.start() if end else len(head)))


def _placed(image: Any) -> Floats:
    """Return the affine of an image, voxel index to RAS in mm; refuse one with impossible numbers."""
    affine = np.asarray(LPS_TO_RAS @ itk_affine(image), dtype=np.float64)
    if not is_possible(affine):
        smallest, largest = VOXEL_SIZES
        raise ValueError(
            f"its header says that its voxels are {voxel_spacing(affine).tolist()} mm large, the first at "
            f"{affine[:3, 3].tolist()} mm: finite numbers, and voxels of {smallest:g} to {largest:g} mm, are expected"
        )
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


@contextmanager
def without_bzip2(path: Path, accept: Callable[[tuple[int, ...]], None] = lambda shape: None) -> Iterator[Path]:
    """Yield a file with the same voxels that ITK can read: the file itself, or a temporary one.

    ITK cannot read NRRD files that are compressed with bzip2, so these are unpacked into a temporary file.

    Parameters
    ----------
    path : Path
        The file.
    accept : callable
        As for `read_itk_file`. It is called for a file that must be unpacked, before that happens.

    Raises
    ------
    ValueError
        If the compressed data are damaged, or hold more than the header promises.
    """
    head = b""
    if path.name.lower().endswith(".nrrd"):
        with path.open("rb") as stream:
            head = stream.read(_LONGEST_HEADER)
    end = _END.search(head)
    if not (end and _ENCODING.search(head, 0, end.start()) and not _DETACHED.search(head, 0, end.start())):
        yield path
        return
    with TemporaryDirectory(prefix="nrrd-") as folder:
        sizes = _SIZES.search(head, 0, end.start())
        shape = tuple(map(int, sizes[1].split())) if sizes else ()
        # In NRRD the components are the first axis.
        accept((*shape[-3:], math.prod(shape[:-3])))
        plain = Path(folder) / path.name
        _write_plain(path, head[: end.start()], end.end(), math.prod(shape) if shape else 0, plain)
        yield plain


def _write_plain(path: Path, head: bytes, offset: int, values: int, target: Path) -> None:
    left = _LARGEST_VOXEL * values
    decompressor = bz2.BZ2Decompressor()
    with path.open("rb") as stream, target.open("xb") as plain:
        plain.write(_ENCODING.sub(rb"\1raw", head) + b"\n\n")
        stream.seek(offset)
        while not decompressor.eof:
            block = stream.read(_BLOCK) if decompressor.needs_input else b""
            if decompressor.needs_input and not block:
                raise ValueError("it is truncated: its compressed voxels end too early")
            try:
                part = decompressor.decompress(block, _BLOCK)
            except OSError as error:
                raise ValueError(f"its compressed voxels are damaged: {error}") from error
            left -= len(part)
            if left < 0:
                raise ValueError("it holds more voxels than its header says")
            plain.write(part)
