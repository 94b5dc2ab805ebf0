"""A walk over the bytes of a DICOM file, from element to element.

It finds the few elements that matter in a fraction of the time that pydicom takes to parse all of them. The walk knows
only the common encodings. A file with anything else (functional groups, big endian or deflated content, damage) is left
to pydicom.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator

FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_PIXEL_DATA = 0x7FE00009
PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF

PIXELS = frozenset((FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA, PIXEL_DATA))

MAGIC_OFFSET = 128
START = MAGIC_OFFSET + 4
"""Where the first element of a file begins, behind the word DICM."""

_FUNCTIONAL_GROUPS = frozenset((0x52009229, 0x52009230))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_FORMS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_FORMS = frozenset(
    (
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
        b"ST", b"TM", b"UI", b"UL", b"US",
    )
)  # fmt: skip

Buffer = mmap.mmap | bytes
"""The bytes of a file."""


class UnplainError(Exception):
    """The walk met something that it cannot read; pydicom reads the file instead."""


class CutError(Exception):
    """An element seems to end beyond the end of the file."""


def find(
    buffer: Buffer, position: int, explicit: bool, wanted: Collection[int], group: int = 0
) -> tuple[dict[int, bytes], int]:
    """Return the wanted elements before the pixel data, or before the end of the file or ``group``, and that place."""
    found: dict[int, bytes] = {}
    for tag, _, value, end in spans(buffer, position, explicit, wanted, group):
        if tag in wanted:
            found[tag] = buffer[value:end]
        position = end
    return found, position


def spans(
    buffer: Buffer, position: int, explicit: bool, wanted: Collection[int], group: int = 0
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the tag, the start, the position of the value, and the end of each element that `find` looks at."""
    size = len(buffer)
    while position < size:
        # Stop at the end of the group: what follows may be deflated.
        if group and struct.unpack_from("<H", buffer, position) != (group,):
            return
        tag, value, end = element_at(buffer, position, explicit, wanted)
        if tag in PIXELS:
            return
        yield tag, position, value, end
        position = end


def element_at(buffer: Buffer, position: int, explicit: bool, wanted: Collection[int]) -> tuple[int, int, int]:
    """Return the tag, the position of the value, and the end of an element. The end of pixel data is not looked for.

    Raises
    ------
    UnplainError
        If only pydicom can read the element.
    CutError, struct.error
        If the element seems to end beyond the end of the file.
    """
    tag, length, value = _element(buffer, position, explicit)
    if tag in PIXELS:
        return tag, value, value
    if tag in _FUNCTIONAL_GROUPS:
        raise UnplainError
    if length == UNDEFINED_LENGTH:
        if tag in wanted:
            raise UnplainError
        return tag, value, _skip_items(buffer, value, explicit)
    if value + length > len(buffer):
        raise CutError
    return tag, value, value + length


def _element(buffer: Buffer, position: int, explicit: bool) -> tuple[int, int, int]:
    """Return the tag and the length of an element, and the position of its value."""
    group, number, length = struct.unpack_from("<HHI", buffer, position)
    tag = group << 16 | number
    if not explicit or group == 0xFFFE:
        return tag, length, position + 8
    kind = buffer[position + 4 : position + 6]
    if kind in _LONG_FORMS:
        (length,) = struct.unpack_from("<I", buffer, position + 8)
        if kind == b"UN" and length == UNDEFINED_LENGTH:
            raise UnplainError  # Its content is in implicit VR, even if the file is in explicit VR.
        return tag, length, position + 12
    if kind not in _SHORT_FORMS:
        return tag, *_unknown_form(buffer, position, tag)
    return tag, length >> 16, position + 8


def _unknown_form(buffer: Buffer, position: int, tag: int) -> tuple[int, int]:
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
    raise UnplainError


def _skip_items(buffer: Buffer, position: int, explicit: bool) -> int:
    """Return the position of the end of a sequence of undefined length."""
    while True:
        tag, length, value = _element(buffer, position, explicit)
        if tag == _SEQUENCE_END:
            return value
        if tag != _ITEM:
            raise UnplainError
        position = value + length
        if length == UNDEFINED_LENGTH:
            position = value
            while True:
                tag, length, value = _element(buffer, position, explicit)
                if tag == _ITEM_END:
                    position = value
                    break
                position = _skip_items(buffer, value, explicit) if length == UNDEFINED_LENGTH else value + length
