"""NIfTI files, written and read block by block (https://nifti.nimh.nih.gov)."""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib
from nibabel.spatialimages import HeaderDataError

from monailabel_xnat.convert.forms import Forms, parse_forms, set_affine
from monailabel_xnat.convert.geometry import Floats
from monailabel_xnat.disk import DigestedFile, whole

# nibabel's own type hints cover only half of it; isal has none.
_nibabel: Any = nibabel
_igzip: Any = igzip
_igzip_lib: Any = igzip_lib

GZIP_LEVEL = 1
"""Level of isal, from 0 to 3. Level 1 takes a tenth of zlib's time and an eighth more bytes. Higher levels gain hardly
anything."""

LARGEST_SIZE = 32767
"""Largest size of a dimension: NIfTI-1 holds sizes in 16 bits, with a sign."""

_HEADER_SIZES = {1: 348, 2: 540}
"""Size of the header in bytes, by version of NIfTI."""

_VOXEL_OFFSET = 352
_BUFFER_BYTES = 1 << 20
_MOST_EXTENSIONS = 1 << 28
_DEFLATE_RATIO = 1032
"""How many bytes one byte of a deflated stream can hold at most."""


_LARGER_THAN_DOUBLE = (1536, 2048)
"""Data types (FLOAT128, COMPLEX256) whose format differs between machines."""


def write_nifti(
    path: Path,
    shape: Sequence[int],
    affine: Floats,
    dtype: npt.DTypeLike,
    slices: Iterator[npt.NDArray[Any]],
) -> str:
    """Write a NIfTI-1 file, compressed if the name ends in ``.gz``, and return its SHA-256, hexadecimal.

    The file appears under its name only when it is whole.

    Parameters
    ----------
    path : Path
        The file to write: ``.nii`` or ``.nii.gz``.
    shape : sequence of int
        Sizes along i, j, k and, in a 4-D file, along the volumes or channels.
    affine : ndarray (4, 4)
        Voxel index to RAS, mm. Both sform and qform are set from it, with code 1.
    dtype : dtype
        Data type of the voxels.
    slices : iterator of ndarray
        Blocks of voxels of that type, in the order of the file (i runs fastest). They must not be changed later.
    """
    header = _nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"], header["regular"] = _VOXEL_OFFSET, b"r"
    set_affine(header, affine)
    with whole(path) as temporary, DigestedFile(temporary) as file:
        with _packing(file, str(path).endswith(".gz")) as stream:
            stream.write(header.binaryblock.ljust(_VOXEL_OFFSET, b"\0"))
            for block in slices:
                stream.write(np.ascontiguousarray(block).data.cast("B"))
        return file.sha256


@contextmanager
def _packing(raw: Any, compress: bool) -> Iterator[Any]:
    if not compress:
        yield raw
        return
    # The gzip header gets no name and no time, so that equal images give equal bytes.
    with _igzip.IGzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=raw, mtime=0) as packed:
        yield packed


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header says about the voxels.

    Parameters
    ----------
    shape : tuple of int
        Sizes of all dimensions, i first.
    affine : ndarray (4, 4)
        Voxel index to RAS, mm; see :mod:`monailabel_xnat.convert.forms`.
    dtype : dtype
        Data type as stored, with its byte order.
    offset : int
        Position in the (unpacked) file at which the voxels begin, in bytes.
    slope, intercept : float
        Scaling of the stored values: value = stored x slope + intercept.
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
        If it is not a NIfTI-1 file with header and voxels in one; the message says what it is instead.
    """
    with _reading(path) as stream:
        return _parsed(_header_of(stream))


def read_nifti(
    path: Path, accept: Callable[[tuple[int, ...]], None] = lambda shape: None
) -> tuple[NiftiHeader, npt.NDArray[Any]]:
    """Read the header and the voxels of a ``.nii`` or ``.nii.gz`` file, NIfTI-1 or NIfTI-2.

    Parameters
    ----------
    path : Path
        The file.
    accept : callable
        Called with the shape before any voxel is read or unpacked. An error that it raises ends the reading.

    Returns
    -------
    NiftiHeader
        The header.
    ndarray
        Values in index order (i, j, k, ...), in the stored data type, or scaled if the header asks for it.

    Raises
    ------
    ValueError
        If it is not a NIfTI file with header and voxels in one, or is truncated. The file counts as truncated, too, if
        its header promises more than a file of this size can hold.
    """
    with _reading(path) as stream:
        found = _header_of(stream, (1, 2))
        header = _parsed(found)
        accept(header.shape)
        require_promised_bytes(path, header)
        to_skip = header.offset - len(found.binaryblock)
        while to_skip > 0 and (part := stream.read(min(to_skip, _BUFFER_BYTES))):
            to_skip -= len(part)
        # np.empty reserves memory only; the system supplies it as the voxels arrive.
        stored = np.empty(math.prod(header.shape), dtype=header.dtype)
        missing = stored.nbytes - _read_into(stream, stored.data.cast("B"))
    if missing:
        raise ValueError(f"it is truncated: {missing} of {stored.nbytes} bytes are missing")
    values = stored.reshape(header.shape, order="F")
    if (header.slope, header.intercept) != (1.0, 0.0) and not values.dtype.names:
        values = values * header.slope + header.intercept
    return header, values


def require_promised_bytes(path: Path, header: NiftiHeader | None = None) -> None:
    """Refuse a file that cannot hold as many voxels as its header promises.

    Parameters
    ----------
    path : Path
        A ``.nii`` or ``.nii.gz`` file, NIfTI-1 or NIfTI-2.
    header : NiftiHeader, optional
        Its header, if the caller has read it.

    Raises
    ------
    ValueError
        If the file is too small; the message says how many bytes are missing.
    """
    with path.open("rb") as stream:
        ratio = _DEFLATE_RATIO if stream.read(2) == b"\x1f\x8b" else 1
    if header is None:
        with _reading(path) as stream:
            header = _parsed(_header_of(stream, (1, 2)))
    promised = math.prod(header.shape) * header.dtype.itemsize
    most = max(0, path.stat().st_size * ratio - header.offset)
    if promised > most:
        raise ValueError(f"it is truncated: {promised - most} of {promised} bytes are missing")


def read_forms(path: Path) -> Forms:
    """Read what the header of a ``.nii`` or ``.nii.gz`` file says about the place of its voxels.

    Raises
    ------
    ValueError
        If it is not a NIfTI-1 file with header and voxels in one; the message says what it is instead.
    """
    with _reading(path) as stream:
        return parse_forms(_header_of(stream))


def copy_with_affine(source: Path, target: Path, affine: Floats) -> None:
    """Copy a ``.nii`` or ``.nii.gz`` file and write one affine (voxel index to RAS, mm) into both forms of its header.

    Nothing else changes. The copy is compressed if its name ends in ``.gz``.
    """
    with (
        _reading(source) as stream,
        target.open("xb", buffering=_BUFFER_BYTES) as file,
        _packing(file, target.name.endswith(".gz")) as copy,
    ):
        header = _header_of(stream)
        set_affine(header, affine)
        copy.write(header.binaryblock)
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


def _header_of(stream: IO[bytes], versions: Sequence[int] = (1,)) -> Any:
    """Read the header and return it as an object of nibabel; the stream then stands right behind the header."""
    data = stream.read(_HEADER_SIZES[1])
    if len(data) < _HEADER_SIZES[1]:
        raise ValueError(f"it is no NIfTI file: only {len(data)} bytes")
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", data)
        if size == _HEADER_SIZES[1] and data[344:347] == b"n+1":
            return _nibabel.Nifti1Header(data, order, check=False)
        if size == _HEADER_SIZES[2] and data[4:7] == b"n+2":
            if 2 not in versions:
                raise ValueError("it is NIfTI-2, not NIfTI-1")
            data += stream.read(size - len(data))
            if len(data) < size:
                raise ValueError(f"it is no NIfTI file: only {len(data)} bytes")
            return _nibabel.Nifti2Header(data, order, check=False)
    raise ValueError("it is no NIfTI-1 file")


def _parsed(header: Any) -> NiftiHeader:
    dim, code = tuple(int(size) for size in header["dim"]), int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError:
        dtype = np.dtype("V")
    if not dtype.itemsize or code in _LARGER_THAN_DOUBLE or not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ValueError(f"its header makes no sense: dim {dim}, datatype {code}")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or not math.isfinite(slope) or not math.isfinite(intercept):
        slope, intercept = 1.0, 0.0
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MOST_EXTENSIONS:
        raise ValueError(f"its header makes no sense: voxels begin at byte {offset:g}")
    return NiftiHeader(
        shape=dim[1 : dim[0] + 1],
        affine=parse_forms(header).chosen()[0],
        dtype=dtype,
        offset=max(int(offset), len(header.binaryblock)),
        slope=slope,
        intercept=intercept,
    )
