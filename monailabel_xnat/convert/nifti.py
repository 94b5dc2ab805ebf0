"""NIfTI-1 files, written slice by slice (https://nifti.nimh.nih.gov/nifti-1)."""

from __future__ import annotations

import gzip
import math
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

from monailabel_xnat.convert.geometry import Floats, voxel_spacing

# Its own type hints cover half of it.
_igzip: Any = igzip
_igzip_lib: Any = igzip_lib

GZIP_LEVEL = 1
"""Of isal's 0..3: a tenth of zlib's time for an eighth more bytes; higher levels gain hardly anything."""

LARGEST_SIZE = 32767
"""Of any dimension: NIfTI-1 holds sizes in 16 bits."""

_HEADER_SIZE = 348
_VOXEL_OFFSET = 352
_BUFFER_BYTES = 1 << 20
_MILLIMETRES = 2
_SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT: coordinates of the scanner, as DICOM's are."""

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
    """Give a temporary name in the folder of ``path``; rename it at the end, remove it after a failure."""
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
    spacing = voxel_spacing(affine)
    quaternion, handedness = quaternion_of(affine)
    dim = [len(shape), *shape] + [1] * (7 - len(shape))
    pixdim = [handedness, *spacing, 1.0, 1.0, 1.0, 1.0]
    header = bytearray(_VOXEL_OFFSET)
    struct.pack_into("<i", header, 0, _HEADER_SIZE)
    struct.pack_into("<c", header, 38, b"r")
    struct.pack_into("<8h", header, 40, *dim)
    struct.pack_into("<2h", header, 70, _DATATYPES[kind.name], kind.itemsize * 8)
    struct.pack_into("<8f", header, 76, *pixdim)
    struct.pack_into("<3f", header, 108, _VOXEL_OFFSET, 1.0, 0.0)
    struct.pack_into("<b", header, 123, _MILLIMETRES)
    struct.pack_into("<2h", header, 252, _SCANNER, _SCANNER)
    struct.pack_into("<6f", header, 256, *quaternion, *affine[:3, 3])
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)


def quaternion_of(affine: Floats) -> tuple[tuple[float, float, float], float]:
    """Give quaternion (b, c, d) and handedness (1 or -1, NIfTI's qfac) of an affine's rotation."""
    rotation = affine[:3, :3] / voxel_spacing(affine)
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation = rotation * (1.0, 1.0, handedness)
    # The eigenvector method is exact for every rotation, half turns included.
    ((xx, xy, xz), (yx, yy, yz), (zx, zy, zz)) = rotation
    matrix = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, zx + xz],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, zx + xz, zy + yz, zz - xx - yy],
        ]
    )
    values, vectors = np.linalg.eigh(matrix)
    a, b, c, d = vectors[:, int(np.argmax(values))]
    sign = -1.0 if a < 0 else 1.0
    return (float(sign * b), float(sign * c), float(sign * d)), handedness


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI-1 header says about the voxels.

    Parameters
    ----------
    shape : tuple of int
        Sizes of all dimensions, i first.
    affine : ndarray (4, 4)
        Voxel index to RAS, mm: the sform; without one the qform; without either the voxel sizes alone.
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
        return _parse_header(stream.read(_HEADER_SIZE))


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
        header = _parse_header(stream.read(_HEADER_SIZE))
        stream.read(header.offset - _HEADER_SIZE)
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


def _parse_header(data: bytes) -> NiftiHeader:
    if len(data) < _HEADER_SIZE:
        raise ValueError(f"it is no NIfTI file: only {len(data)} bytes")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", data)[0] == _HEADER_SIZE), "")
    if not order or data[344:347] != b"n+1":
        second = any(struct.unpack_from(f"{o}i", data)[0] == 540 for o in "<>")
        raise ValueError("it is NIfTI-2, not NIfTI-1" if second else "it is no NIfTI-1 file")
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
        affine=_parse_affine(data, order),
        dtype=kinds[code].newbyteorder(order),
        offset=max(int(offset), _HEADER_SIZE),
        slope=slope,
        intercept=intercept,
    )


def _parse_affine(data: bytes, order: str) -> Floats:
    affine: Floats = np.eye(4)
    pixdim = struct.unpack_from(f"{order}8f", data, 76)
    qform, sform = struct.unpack_from(f"{order}2h", data, 252)
    if sform > 0:
        affine[:3] = np.reshape(struct.unpack_from(f"{order}12f", data, 280), (3, 4))
        return affine
    affine[:3, :3] = np.diag(np.where(np.abs(pixdim[1:4]) > 0, np.abs(pixdim[1:4]), 1.0))
    if qform > 0:
        b, c, d, *origin = struct.unpack_from(f"{order}6f", data, 256)
        affine[:3, :3] = _rotation_of(b, c, d) @ affine[:3, :3]
        affine[:3, 2] *= -1.0 if pixdim[0] < 0 else 1.0
        affine[:3, 3] = origin
    return affine


def _rotation_of(b: float, c: float, d: float) -> Floats:
    """Give the rotation matrix (3, 3) of a unit quaternion whose first part is left out."""
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    a, b, c, d = np.array([a, b, c, d]) / math.sqrt(a * a + b * b + c * c + d * d)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
