"""NIfTI-1 files, written slice by slice (https://nifti.nimh.nih.gov/nifti-1)."""

from __future__ import annotations

import os
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from isal import igzip

from monailabel_xnat.convert.geometry import Floats, voxel_spacing

GZIP_LEVEL = 1
"""Of isal's 0..3: a tenth of zlib's time for an eighth more bytes; higher levels gain hardly anything."""

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
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, compress: bool) -> Iterator[IO[bytes]]:
    with path.open("wb", buffering=0 if not compress else _BUFFER_BYTES) as raw:
        if not compress:
            yield raw
            return
        # No name and no time in the gzip header: equal images give equal bytes.
        with igzip.IGzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=raw, mtime=0) as packed:
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
