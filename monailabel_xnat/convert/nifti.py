"""NIfTI-1 files, written slice by slice (https://nifti.nimh.nih.gov/nifti-1)."""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib

from monailabel_xnat.convert.forms import HEADER_SIZE, MILLIMETRES, Forms, parse_forms, with_affine, write_forms
from monailabel_xnat.convert.geometry import Floats

# Its own type hints cover half of it.
_igzip: Any = igzip
_igzip_lib: Any = igzip_lib

GZIP_LEVEL = 1
"""Of isal's 0..3: a tenth of zlib's time for an eighth more bytes; higher levels gain hardly anything."""

LARGEST_SIZE = 32767
"""Of any dimension: NIfTI-1 holds sizes in 16 bits."""

_VOXEL_OFFSET = 352
_BUFFER_BYTES = 1 << 20

_DATATYPES = {
    "uint8": 2,
    "int16": 4,
    "int32": 8,
    "float32": 16,
    "float64": 64,
    "int8": 256,
    "uint16": 512,
    "uint32": 768,
    "int64": 1024,
    "uint64": 1280,
}
_NO_NUMBERS = {
    32: np.dtype("complex64"),
    1792: np.dtype("complex128"),
    128: np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]),
    2304: np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
}
"""Data types that images may have, but label maps and what we write never."""


def write_nifti(
    path: Path,
    shape: Sequence[int],
    affine: Floats,
    dtype: npt.DTypeLike,
    slices: Iterator[npt.NDArray[Any]],
) -> None:
    """Write a NIfTI-1 file, compressed if the name ends in ``.gz``.

    The file appears under its name only when it is whole.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    shape : sequence of int
        Size along i, j, k and, in 4-D, volume or channel.
    affine : ndarray (4, 4)
        Voxel index to RAS, mm. Both sform and qform are set from it, with code 1.
    dtype : dtype
        Data type of the voxels.
    slices : iterator of ndarray
        Blocks of voxels of that type, in the order of the file (i runs fastest).
    """
    header = nifti_header(shape, affine, dtype)
    with replaced_when_whole(path) as temporary, _opened(temporary, str(path).endswith(".gz")) as stream:
        stream.write(header)
        for block in slices:
            stream.write(np.ascontiguousarray(block).data.cast("B"))


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """Return a temporary name in the folder of ``path``; rename it at the end, remove it after a failure."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, compress: bool) -> Iterator[IO[bytes]]:
    with path.open("xb", buffering=_BUFFER_BYTES) as raw:
        if not compress:
            yield raw
            return
        # No name and no time in the gzip header: equal images give equal bytes.
        with _igzip.IGzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=raw, mtime=0) as packed:
            yield packed


def nifti_header(shape: Sequence[int], affine: Floats, dtype: npt.DTypeLike) -> bytes:
    """Make the 352 bytes that stand before the voxels."""
    kind = np.dtype(dtype)
    dim = [len(shape), *shape] + [1] * (7 - len(shape))
    header = bytearray(_VOXEL_OFFSET)
    struct.pack_into("<i", header, 0, HEADER_SIZE)
    struct.pack_into("<c", header, 38, b"r")
    struct.pack_into("<8h", header, 40, *dim)
    struct.pack_into("<2h", header, 70, _DATATYPES[kind.name], kind.itemsize * 8)
    struct.pack_into("<4f", header, 92, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, _VOXEL_OFFSET, 1.0, 0.0)
    struct.pack_into("<b", header, 123, MILLIMETRES)
    write_forms(header, "<", affine)
    header[344:348] = b"n+1\0"
    return bytes(header)


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI-1 header says about the voxels.

    Parameters
    ----------
    shape : tuple of int
        Sizes of all dimensions, i first.
    affine : ndarray (4, 4)
        Voxel index to RAS, mm; see :mod:`monailabel_xnat.convert.forms`.
    dtype : dtype
        As stored, with its byte order.
    offset : int
        Where the voxels begin.
    slope, intercept : float
        Scaling of the stored values.
    """

    shape: tuple[int, ...]
    affine: Floats
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header of a ``.nii`` or ``.nii.gz`` file.

    Raises
    ------
    ValueError
        If it is not NIfTI-1 in one file; the message says what it is instead.
    """
    with _reading(path) as stream:
        return _parse_header(stream.read(HEADER_SIZE))


def read_nifti(path: Path) -> tuple[NiftiHeader, npt.NDArray[Any]]:
    """Read header and voxels of a ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    NiftiHeader
        The header.
    ndarray
        Values in index order (i, j, k, ...); scaled (float64) if the header asks for it.

    Raises
    ------
    ValueError
        If it is not NIfTI-1 in one file, or is truncated.
    """
    with _reading(path) as stream:
        header = _parse_header(stream.read(HEADER_SIZE))
        stream.read(header.offset - HEADER_SIZE)
        stored = np.empty(math.prod(header.shape), dtype=header.dtype)
        missing = stored.nbytes - _read_into(stream, stored.data.cast("B"))
    if missing:
        raise ValueError(f"it is truncated: {missing} of {stored.nbytes} bytes are missing")
    values = stored.reshape(header.shape, order="F")
    if (header.slope, header.intercept) != (1.0, 0.0) and not values.dtype.names:
        values = values * header.slope + header.intercept
    return header, values


def is_second_version(path: Path) -> bool:
    """Return whether a ``.nii`` or ``.nii.gz`` file is NIfTI-2, which nibabel reads."""
    with _reading(path) as stream:
        return stream.read(8)[4:] == b"n+2\0"


def read_forms(path: Path) -> Forms:
    """Read where the header of a ``.nii`` or ``.nii.gz`` file says that its voxels lie.

    Raises
    ------
    ValueError
        If it is not NIfTI-1 in one file; the message says what it is instead.
    """
    with _reading(path) as stream:
        data = stream.read(HEADER_SIZE)
    return parse_forms(data, _byte_order(data))


def copy_with_affine(source: Path, target: Path, affine: Floats) -> None:
    """Copy a ``.nii`` or ``.nii.gz`` file under a header that has one affine (to RAS, mm) in both forms.

    Nothing else of it changes; the copy is compressed if its name says so.
    """
    with _reading(source) as stream, _opened(target, target.name.endswith(".gz")) as copy:
        data = stream.read(HEADER_SIZE)
        copy.write(with_affine(data, _byte_order(data), affine))
        shutil.copyfileobj(stream, copy, _BUFFER_BYTES)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw
            return
        try:
            with _igzip.open(raw, "rb") as stream:
                yield stream
        except (EOFError, zlib.error, gzip.BadGzipFile, _igzip_lib.IsalError) as error:
            raise ValueError(f"it is truncated or damaged: {error}") from error


def _read_into(stream: IO[bytes], buffer: memoryview) -> int:
    done = 0
    while done < len(buffer):
        part = stream.read(min(_BUFFER_BYTES, len(buffer) - done))
        if not part:
            break
        buffer[done : done + len(part)] = part
        done += len(part)
    return done


def _byte_order(data: bytes) -> str:
    """Return the byte order of a header, ``<`` or ``>``."""
    if len(data) < HEADER_SIZE:
        raise ValueError(f"it is no NIfTI file: only {len(data)} bytes")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", data)[0] == HEADER_SIZE), "")
    if not order or data[344:347] != b"n+1":
        second = any(struct.unpack_from(f"{o}i", data)[0] == 540 for o in "<>")
        raise ValueError("it is NIfTI-2, not NIfTI-1" if second else "it is no NIfTI-1 file")
    return order


def _parse_header(data: bytes) -> NiftiHeader:
    order = _byte_order(data)
    dim = struct.unpack_from(f"{order}8h", data, 40)
    code = struct.unpack_from(f"{order}h", data, 70)[0]
    kinds: dict[int, Any] = {number: np.dtype(name) for name, number in _DATATYPES.items()}
    kinds.update(_NO_NUMBERS)
    if code not in kinds or not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ValueError(f"its header makes no sense: dim {dim}, datatype {code}")
    offset, slope, intercept = struct.unpack_from(f"{order}3f", data, 108)
    if slope == 0.0 or not math.isfinite(slope) or not math.isfinite(intercept):
        slope, intercept = 1.0, 0.0
    return NiftiHeader(
        shape=dim[1 : dim[0] + 1],
        affine=parse_forms(data, order).chosen()[0],
        dtype=kinds[code].newbyteorder(order),
        offset=max(int(offset), HEADER_SIZE),
        slope=slope,
        intercept=intercept,
    )
