"""The pixel data element of a file: where it is, and whether it is whole."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import pydicom

from monailabel_xnat.convert.dicom.file import (
    BIG_ENDIAN,
    DEFLATED,
    DOUBLE_PIXEL_DATA,
    EXPLICIT,
    FLOAT_PIXEL_DATA,
    IMPLICIT,
    PIXEL_DATA,
    RESTORE,
    UNDEFINED_LENGTH,
    file_size,
)
from monailabel_xnat.errors import ImageConversionError


def has_float_pixels(stream: BinaryIO, syntax: str) -> bool:
    """Tell whether floating point pixel data follows (parametric maps), which SimpleITK does not read."""
    position = stream.tell()
    tag, _ = _element_start(stream, syntax)
    stream.seek(position)
    return tag in (FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA)


def locate_pixel_data(path: Path, stream: BinaryIO, syntax: str, expected: int, frames: int) -> tuple[int, int]:
    """Find the pixel data and check that it is whole.

    Parameters
    ----------
    path : Path
        The file.
    stream : binary file
        The open file, at the pixel data element or at its end.
    syntax : str
        UID of the transfer syntax.
    expected : int
        Bytes of uncompressed pixel data that the header promises.
    frames : int
        Number of frames.

    Returns
    -------
    offset : int
        Where raw little endian pixel data begins; -1 if it is stored in another way.
    length : int
        Its length as the element states it.

    Raises
    ------
    ImageConversionError
        If there is none, or less than promised.
    """
    if syntax == DEFLATED:
        _check_length(path, _inflated_length(stream), expected)
        return -1, expected
    size = file_size(stream)
    tag, length = _element_start(stream, syntax)
    if tag != PIXEL_DATA:
        message = f"{path.name} has no pixel data; it has {size} bytes, and may be truncated"
        raise ImageConversionError(message, hint=RESTORE)
    offset = stream.tell()
    if length == UNDEFINED_LENGTH:
        _check_fragments(path, stream, frames)
        return -1, size - offset
    if syntax not in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
        return -1, length
    _check_length(path, min(length, size - offset), expected)
    return (-1 if syntax == BIG_ENDIAN else offset), length


def _element_start(stream: BinaryIO, syntax: str) -> tuple[int, int]:
    """Read tag and length of an element; (0, 0) at the end of the file."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    size = 8 if syntax == IMPLICIT else 12
    start = stream.read(size)
    if len(start) < size:
        return 0, 0
    group, number = struct.unpack_from(f"{order}HH", start)
    (length,) = struct.unpack_from(f"{order}I", start, size - 4)
    return group << 16 | number, length


def _check_length(path: Path, length: int, expected: int) -> None:
    if length < expected:
        message = f"{path.name} is truncated: {length} of {expected} bytes of pixel data"
        raise ImageConversionError(message, hint=RESTORE)


def _inflated_length(stream: BinaryIO) -> int:
    stream.seek(0)
    dataset = pydicom.dcmread(stream, specific_tags=[PIXEL_DATA])
    return len(dataset.PixelData) if PIXEL_DATA in dataset else 0


def lacks_offset_table(start: bytes) -> bool:
    """Return whether encapsulated pixel data begins with a frame instead of an offset table.

    Parameters
    ----------
    start : bytes
        Its first 12 bytes at least.
    """
    length = int.from_bytes(start[4:8], "little")
    return length > 0 and start[8:12] != b"\0\0\0\0"


def _check_fragments(path: Path, stream: BinaryIO, frames: int) -> None:
    """Walk the fragments of compressed pixel data (DICOM PS3.5 A.4) to see that the last one is whole."""
    size = file_size(stream)
    position = stream.tell()
    start = stream.read(12)
    # The first item is the offset table, which begins with a 0; some writers leave it out.
    count = 0 if lacks_offset_table(start) else -1
    while True:
        stream.seek(position)
        start = stream.read(8)
        group, number, length = struct.unpack("<HHI", start) if len(start) == 8 else (0, 0, 0)
        if (group, number) == (0xFFFE, 0xE0DD):
            break
        position += 8 + length
        if (group, number) != (0xFFFE, 0xE000) or position > size:
            # Some writers leave out the delimiter at the end: nothing is missing then.
            if not start and count >= frames:
                break
            message = f"{path.name} is truncated: its compressed pixel data ends in fragment {count + 1}"
            raise ImageConversionError(message, hint=RESTORE)
        count += 1
    if count < 1:
        raise ImageConversionError(f"{path.name} has no pixel data: no fragment is stored", hint=RESTORE)
