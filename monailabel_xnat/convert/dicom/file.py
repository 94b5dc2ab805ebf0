"""Reading a DICOM file: its top-level elements, and whether its pixel data is complete.

A walk over the file finds the few elements that matter in a fraction of the time that pydicom takes to parse all of
them. The walk knows only the common encodings. A file with anything else (functional groups, big endian or deflated
content, damage) is read by pydicom.
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
from monailabel_xnat.errors import ImageConversionError, XNATDatastoreError

RESTORE = "download the scan again, or restore the file in the archive"
"""The hint in errors about a damaged file."""

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_PIXEL_DATA = 0x7FE00009
PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF

_MAGIC_OFFSET = 128
_DICOM_SUFFIXES = frozenset(("", ".dcm", ".dicom", ".dic", ".ima", ".img"))
_PIXELS = frozenset((FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA, PIXEL_DATA))
_MEDIA_CLASS = 0x00020002
_SYNTAX = 0x00020010
_FUNCTIONAL_GROUPS = frozenset((0x52009229, 0x52009230))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_FORMS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_FORMS = frozenset(
    (
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
        b"ST", b"TM", b"UI", b"UL", b"US",
    )
)  # fmt: skip

_ALWAYS_BELIEVED = 1 << 28
"""How many bytes of pixels a file may promise, however few bytes its compressed pixels have: black slices are stored
in very few bytes."""

_HIGHEST_RATIO = 1000
"""How many bytes of pixels one compressed byte can hold at most, for a file that promises more than that."""

_LARGEST_INFLATED = 1 << 30
"""How many bytes a deflated file may hold. pydicom inflates all of it before anything can be read."""

_Buffer = mmap.mmap | bytes


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


class _UnplainError(Exception):
    """The walk met something that it cannot read; pydicom reads the file instead."""


class _CutError(Exception):
    """An element seems to end beyond the end of the file."""


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
    start = stream.read(_MAGIC_OFFSET + 4)
    if not _looks_like_dicom(start):
        if not start.strip(b"\0") and len(start) < _MAGIC_OFFSET + 4 and path.suffix.lower() in _DICOM_SUFFIXES:
            raise ImageConversionError(f"{path.name} is truncated: it has {len(start)} bytes", hint=RESTORE)
        return None
    cut = False
    if start[_MAGIC_OFFSET:] == b"DICM":
        with _content(stream) as buffer:
            try:
                return _walk(buffer, wanted)
            except _UnplainError:
                pass
            except (_CutError, struct.error):
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
def _content(stream: BinaryIO) -> Iterator[_Buffer]:
    if isinstance(stream, io.BytesIO):
        yield stream.getvalue()
    else:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            yield buffer


def _looks_like_dicom(start: bytes) -> bool:
    """Return whether a file starts like DICOM: with "DICM" after 128 bytes, or with an element of group 2 or 8.

    Old files lack the former (the preamble of DICOM PS3.10).
    """
    if start[_MAGIC_OFFSET:] == b"DICM":
        return True
    if len(start) < _MAGIC_OFFSET or start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element, length = struct.unpack_from("<HI", start, 2)
    return element <= 0x70 and ((start[4:6].isalpha() and start[4:6].isupper()) or length < _MAGIC_OFFSET)


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


def _walk(buffer: _Buffer, wanted: Collection[int]) -> DicomFile:
    """Read elements without pydicom."""
    meta, position = _find(buffer, _MAGIC_OFFSET + 4, True, (_MEDIA_CLASS, _SYNTAX), group=2)
    syntax = meta.get(_SYNTAX, b"").decode("ascii", "replace").strip("\0 ")
    if syntax == DEFLATED:
        _refuse_swollen(buffer, position)
    if syntax in ("", DEFLATED, BIG_ENDIAN):
        raise _UnplainError
    found, end = _find(buffer, position, syntax != IMPLICIT, wanted)
    return DicomFile(found, meta.get(_MEDIA_CLASS, b"").decode("ascii", "replace").strip("\0 "), syntax, end)


def _refuse_swollen(buffer: _Buffer, position: int) -> None:
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
    start = stream.read(_MAGIC_OFFSET + 4)
    if start[_MAGIC_OFFSET:] == b"DICM":
        with _content(stream) as buffer:
            try:
                meta, position = _find(buffer, _MAGIC_OFFSET + 4, True, (_SYNTAX,), group=2)
            except (_UnplainError, _CutError, struct.error):
                meta, position = {}, 0
            if meta.get(_SYNTAX, b"").strip(b"\0 ") == DEFLATED.encode():
                _refuse_swollen(buffer, position)
    stream.seek(0)


def _find(
    buffer: _Buffer, position: int, explicit: bool, wanted: Collection[int], group: int = 0
) -> tuple[dict[int, bytes], int]:
    """Return the wanted elements before the pixel data, or before the end of the file or ``group``, and that place."""
    found: dict[int, bytes] = {}
    size = len(buffer)
    while position < size:
        # Stop at the end of the group: what follows may be deflated.
        if group and struct.unpack_from("<H", buffer, position) != (group,):
            break
        tag, length, value = _element(buffer, position, explicit)
        if tag in _PIXELS:
            break
        if tag in _FUNCTIONAL_GROUPS:
            raise _UnplainError
        if length == UNDEFINED_LENGTH:
            if tag in wanted:
                raise _UnplainError
            position = _skip_items(buffer, value, explicit)
            continue
        position = value + length
        if position > size:
            raise _CutError
        if tag in wanted:
            found[tag] = buffer[value:position]
    return found, position


def _element(buffer: _Buffer, position: int, explicit: bool) -> tuple[int, int, int]:
    """Return the tag and the length of an element, and the position of its value."""
    group, number, length = struct.unpack_from("<HHI", buffer, position)
    tag = group << 16 | number
    if not explicit or group == 0xFFFE:
        return tag, length, position + 8
    kind = buffer[position + 4 : position + 6]
    if kind in _LONG_FORMS:
        (length,) = struct.unpack_from("<I", buffer, position + 8)
        if kind == b"UN" and length == UNDEFINED_LENGTH:
            raise _UnplainError  # Its content is in implicit VR, even if the file is in explicit VR.
        return tag, length, position + 12
    if kind not in _SHORT_FORMS:
        return tag, *_unknown_form(buffer, position, tag)
    return tag, length >> 16, position + 8


def _unknown_form(buffer: _Buffer, position: int, tag: int) -> tuple[int, int]:
    """Return the length and the position of a value whose VR is unknown.

    An element has one of two forms. The right one is the one after which another element follows.
    """
    lengths = struct.unpack_from("<H", buffer, position + 6)[0], struct.unpack_from("<I", buffer, position + 8)[0]
    for length, value in ((lengths[1], position + 12), (lengths[0], position + 8)):
        after = value + length
        if after == len(buffer):
            return length, value
        if after + 8 <= len(buffer):
            group, number = struct.unpack_from("<2H", buffer, after)
            if group << 16 | number > tag and bytes(buffer[after + 4 : after + 6]) in _LONG_FORMS | _SHORT_FORMS:
                return length, value
    raise _UnplainError


def _skip_items(buffer: _Buffer, position: int, explicit: bool) -> int:
    """Return the position of the end of a sequence of undefined length."""
    while True:
        tag, length, value = _element(buffer, position, explicit)
        if tag == _SEQUENCE_END:
            return value
        if tag != _ITEM:
            raise _UnplainError
        position = value + length
        if length == UNDEFINED_LENGTH:
            position = value
            while True:
                tag, length, value = _element(buffer, position, explicit)
                if tag == _ITEM_END:
                    position = value
                    break
                position = _skip_items(buffer, value, explicit) if length == UNDEFINED_LENGTH else value + length


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
    """Return the tag and the length of an element; (0, 0) at the end of the file."""
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
