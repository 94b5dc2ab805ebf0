"""Reading a DICOM file: its top-level elements, and whether its pixel data is complete.

A walk over the file (:mod:`monailabel_xnat.convert.dicom.walk`) finds the few elements that matter. A file that the
walk cannot read is read by pydicom.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom

from monailabel_xnat.convert.dicom.elements import ElementError, Elements
from monailabel_xnat.convert.dicom.walk import (
    DOUBLE_PIXEL_DATA,
    FLOAT_PIXEL_DATA,
    MAGIC_OFFSET,
    PIXEL_DATA,
    START,
    UNDEFINED_LENGTH,
    Buffer,
    CutError,
    UnplainError,
    find,
)
from monailabel_xnat.errors import ImageConversionError, XNATDatastoreError

RESTORE = "download the scan again, or restore the file in the archive"
"""The hint in errors about a damaged file."""

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

_DICOM_SUFFIXES = frozenset(("", ".dcm", ".dicom", ".dic", ".ima", ".img"))
MEDIA_CLASS = 0x00020002
SYNTAX = 0x00020010
_PIXEL_FORMS = frozenset((b"OB\0\0", b"OW\0\0", b"OF\0\0", b"OD\0\0", b"UN\0\0"))
_ALWAYS_BELIEVED = 1 << 28
"""How many bytes of pixels a file may promise, however few bytes its compressed pixels have: black slices are stored
in very few bytes."""

_HIGHEST_RATIO = 1000
"""How many bytes of pixels one compressed byte can hold at most, for a file that promises more than that."""

_LARGEST_INFLATED = 1 << 30
"""How many bytes a deflated file may hold. pydicom inflates all of it before anything can be read."""


@dataclass(frozen=True)
class DicomFile:
    """The elements of a file that were asked for.

    Parameters
    ----------
    elements : mapping of int to bytes, or Dataset
        Top-level elements by tag.
    media_class : str
        SOP class in the file meta information; empty if it is not stated.
    syntax : str
        UID of the transfer syntax.
    end : int
        Position of the pixel data element in the file, in bytes; the size of the file if there is no such element.
    """

    elements: Elements
    media_class: str
    syntax: str
    end: int


def read_dicom(path: Path, stream: BinaryIO, wanted: Collection[int]) -> DicomFile | None:
    """Return elements of a file; None if it is not a DICOM file.

    Parameters
    ----------
    path : Path
        The file, for messages.
    stream : binary file
        The open file, or a BytesIO.
    wanted : collection of int
        Tags of the elements to read.

    Raises
    ------
    ImageConversionError
        If the file is truncated or damaged.
    """
    start = stream.read(START)
    if not _looks_like_dicom(start):
        if not start.strip(b"\0") and len(start) < START and path.suffix.lower() in _DICOM_SUFFIXES:
            raise ImageConversionError(f"{path.name} is truncated: it has {len(start)} bytes", hint=RESTORE)
        return None
    cut = False
    if start[MAGIC_OFFSET:] == b"DICM":
        with _content(stream) as buffer:
            try:
                return _walk(buffer, wanted)
            except UnplainError:
                pass
            except (CutError, struct.error):
                cut = True
            except RecursionError:
                pass  # sequences are nested too deeply; pydicom refuses the file for it, too
    stream.seek(0)
    with damage_named(path):
        file = _parse(stream, wanted)
    if cut and file.end >= file_size(stream):
        raise ImageConversionError(f"{path.name} is truncated: it ends within its header", hint=RESTORE)
    return file


@contextmanager
def _content(stream: BinaryIO) -> Iterator[Buffer]:
    if isinstance(stream, io.BytesIO):
        yield stream.getvalue()
    else:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            yield buffer


def _looks_like_dicom(start: bytes) -> bool:
    """Return whether a file starts like DICOM: with "DICM" after 128 bytes, or with an element of group 2 or 8.

    Old files lack the former (the preamble of DICOM PS3.10).
    """
    if start[MAGIC_OFFSET:] == b"DICM":
        return True
    if len(start) < MAGIC_OFFSET or start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element, length = struct.unpack_from("<HI", start, 2)
    return element <= 0x70 and ((start[4:6].isalpha() and start[4:6].isupper()) or length < MAGIC_OFFSET)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn any error that pydicom raises for a damaged file into an `ImageConversionError` that names the file."""
    try:
        yield
    except XNATDatastoreError:
        raise
    except ElementError as error:
        raise ImageConversionError(f"{path.name}: {error}", hint="repair or remove this file") from error
    except Exception as error:
        # pydicom also raises OSError for damaged sequences. Only an OSError of the system has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"{path.name} is truncated or damaged: {error}"
        raise ImageConversionError(message, hint=RESTORE) from error


def _parse(stream: BinaryIO, wanted: Collection[int]) -> DicomFile:
    """Read elements with pydicom."""
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(wanted), force=True)
    meta = dataset.file_meta
    syntax = str(meta.get("TransferSyntaxUID", "")) or (IMPLICIT if dataset.is_implicit_VR else EXPLICIT)
    return DicomFile(dataset, str(meta.get("MediaStorageSOPClassUID", "")), syntax, stream.tell())


def _walk(buffer: Buffer, wanted: Collection[int]) -> DicomFile:
    """Read elements without pydicom."""
    meta, position = find(buffer, START, True, (MEDIA_CLASS, SYNTAX), group=2)
    syntax = meta.get(SYNTAX, b"").decode("ascii", "replace").strip("\0 ")
    if syntax == DEFLATED:
        _refuse_swollen(buffer, position)
    if syntax in ("", DEFLATED, BIG_ENDIAN):
        raise UnplainError
    found, end = find(buffer, position, syntax != IMPLICIT, wanted)
    return DicomFile(found, meta.get(MEDIA_CLASS, b"").decode("ascii", "replace").strip("\0 "), syntax, end)


def _refuse_swollen(buffer: Buffer, position: int) -> None:
    """Refuse deflated content of more than `_LARGEST_INFLATED` bytes."""
    inflater, found, step = zlib.decompressobj(-zlib.MAX_WBITS), 0, 1 << 16
    for start in range(position, len(buffer), step):
        data = buffer[start : start + step]
        while data and not inflater.eof:
            try:
                found += len(inflater.decompress(data, 1 << 20))
            except zlib.error:
                return  # it is damaged; pydicom raises an error that says how
            data = inflater.unconsumed_tail
        if found > _LARGEST_INFLATED:
            raise ImageConversionError(
                f"its content has more than {_LARGEST_INFLATED} bytes once it is inflated", hint="store it uncompressed"
            )


def require_bounded(stream: BinaryIO) -> None:
    """Refuse a DICOM file whose deflated content is too large, and leave the stream at its start.

    Raises
    ------
    ImageConversionError
        If the content has more than `_LARGEST_INFLATED` bytes once it is inflated.
    """
    start = stream.read(START)
    if start[MAGIC_OFFSET:] == b"DICM":
        with _content(stream) as buffer:
            try:
                meta, position = find(buffer, START, True, (SYNTAX,), group=2)
            except (UnplainError, CutError, struct.error):
                meta, position = {}, 0
            if meta.get(SYNTAX, b"").strip(b"\0 ") == DEFLATED.encode():
                _refuse_swollen(buffer, position)
    stream.seek(0)


def file_size(stream: BinaryIO) -> int:
    """Return the size of an open file in bytes; its position does not change."""
    position = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(position)
    return size


def has_float_pixels(stream: BinaryIO, syntax: str) -> bool:
    """Return whether the next element is floating point pixel data (parametric maps). SimpleITK does not read these."""
    position = stream.tell()
    tag, _ = _element_start(stream, syntax)
    stream.seek(position)
    return tag in (FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA)


def locate_pixel_data(path: Path, stream: BinaryIO, syntax: str, expected: int, frames: int) -> tuple[int, int]:
    """Return where the pixel data begins and how long it is, and check that it is complete.

    Parameters
    ----------
    path : Path
        The file, for messages.
    stream : binary file
        The open file, positioned at the pixel data element or at the end of the file.
    syntax : str
        UID of the transfer syntax.
    expected : int
        How many bytes of uncompressed pixel data the header promises.
    frames : int
        Number of frames.

    Returns
    -------
    offset : int
        Position of raw little endian pixel data in the file; -1 if it is stored in another way.
    length : int
        Length of the pixel data in bytes: the one that the element states, if it states one.

    Raises
    ------
    ImageConversionError
        If there is no pixel data, or less than the header promises.
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
        if expected > max(_ALWAYS_BELIEVED, _HIGHEST_RATIO * (size - offset)):
            raise ImageConversionError(
                f"{path.name} promises {expected} bytes of pixels, which {size - offset} compressed bytes do not hold",
                hint=RESTORE,
            )
        return -1, size - offset
    if syntax not in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
        return -1, length
    _check_length(path, min(length, size - offset), expected)
    return (-1 if syntax == BIG_ENDIAN else offset), length


def _element_start(stream: BinaryIO, syntax: str) -> tuple[int, int]:
    """Return the tag and the length of an element of pixel data, and go to its value; (0, 0) at the end of the file.

    The element itself shows whether its VR is written, because some files state the wrong transfer syntax. The letters
    of its VR cannot be a length, which is even.
    """
    order = ">" if syntax == BIG_ENDIAN else "<"
    position = stream.tell()
    start = stream.read(12)
    is_even = len(start) > 4 and start[4] % 2 == 0 and any(start[4:8])
    size = 12 if start[4:8] in _PIXEL_FORMS or (syntax != IMPLICIT and (syntax == BIG_ENDIAN or not is_even)) else 8
    if len(start) < size:
        return 0, 0
    stream.seek(position + size)
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
        At least the first 12 bytes of the pixel data.
    """
    length = int.from_bytes(start[4:8], "little")
    return length > 0 and start[8:12] != b"\0\0\0\0"


def _check_fragments(path: Path, stream: BinaryIO, frames: int) -> None:
    """Check that no fragment of compressed pixel data (DICOM PS3.5 A.4) is missing or cut."""
    size = file_size(stream)
    position = stream.tell()
    start = stream.read(12)
    # The first item is the offset table, whose first offset is 0. Some programs leave it out.
    count = 0 if lacks_offset_table(start) else -1
    while True:
        stream.seek(position)
        start = stream.read(8)
        group, number, length = struct.unpack("<HHI", start) if len(start) == 8 else (0, 0, 0)
        if (group, number) == (0xFFFE, 0xE0DD):
            break
        position += 8 + length
        if (group, number) != (0xFFFE, 0xE000) or position > size:
            # Some programs leave out the delimiter at the end; nothing is missing then.
            if not start and count >= frames:
                break
            message = f"{path.name} is truncated: its compressed pixel data ends in fragment {count + 1}"
            raise ImageConversionError(message, hint=RESTORE)
        count += 1
    if count < 1:
        raise ImageConversionError(f"{path.name} has no pixel data: no fragment is stored", hint=RESTORE)
    if count < frames:
        message = f"{path.name} is truncated: {count} fragments of compressed pixel data, but {frames} frames"
        raise ImageConversionError(message, hint=RESTORE)
