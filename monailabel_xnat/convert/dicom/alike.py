"""The headers of the files of a series, which are alike but for a few elements.

What was learnt from the first files lets the rest be read in a fraction of the time: a header is compared with the
earlier one in runs of equal bytes, and only the elements between the runs are read. Where anything else differs, the
file is read as if it were the only one, so that the result never depends on the files before it.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from monailabel_xnat.convert.dicom.elements import ElementError
from monailabel_xnat.convert.dicom.file import BIG_ENDIAN, DEFLATED, IMPLICIT, MEDIA_CLASS, SYNTAX
from monailabel_xnat.convert.dicom.headers import (
    OF_EACH_FILE,
    TAGS,
    ImageHeader,
    OtherFile,
    is_mosaic,
    placed,
    read_header,
)
from monailabel_xnat.convert.dicom.walk import (
    MAGIC_OFFSET,
    PIXEL_DATA,
    START,
    Buffer,
    CutError,
    UnplainError,
    element_at,
    spans,
)
from monailabel_xnat.errors import ImageConversionError

_MOST_LAYOUTS = 4
"""Of one series: some of its files may have elements that others lack."""

_MOST_LESSONS = 24
"""How often something is learnt from a file; files that still differ then differ too much for it to pay."""

# All that decides how the rest is to be understood must be equal.
_SAME = (TAGS | {MEDIA_CLASS, SYNTAX}) - OF_EACH_FILE
_PIXELS_BEGIN = struct.pack("<2H", PIXEL_DATA >> 16, PIXEL_DATA & 0xFFFF)
_UNREADABLE = (UnplainError, CutError, struct.error, RecursionError)


class HeaderReader:
    """Reads the headers of files, most of which are of one series."""

    def __init__(self) -> None:
        self._layouts: list[_Layout] = []
        self._lessons = _MOST_LESSONS

    def read(self, path: Path, content: bytes | None = None) -> ImageHeader | OtherFile:
        """Read the header of a file; as :func:`monailabel_xnat.convert.dicom.headers.read_header`."""
        if self._layouts:
            with _opened(path, content) as (stream, buffer):
                for layout in self._layouts:
                    header = layout.read(path, stream, buffer)
                    if header is not None:
                        return header
        full = read_header(path, content)
        if isinstance(full, ImageHeader) and self._lessons and not is_mosaic(full.image_type):
            self._lessons -= 1
            self._learn(full)
        return full

    def _learn(self, header: ImageHeader) -> None:
        with _opened(header.path, header.held) as (_, buffer):
            found = _elements_of(buffer, header.transfer_syntax)
        if found and not any(layout.widen(found) for layout in self._layouts):
            self._layouts = [_Layout(header, found), *self._layouts[: _MOST_LAYOUTS - 1]]


@dataclass(frozen=True)
class _Element:
    tag: int
    explicit: bool
    whole: bytes
    value: bytes


class _Layout:
    """The elements of a header, in their order, and which of them differ from file to file."""

    def __init__(self, header: ImageHeader, found: Sequence[_Element]) -> None:
        self._header = header
        self._found = found
        self._differing: set[int] = set()
        self._join()

    def widen(self, found: Sequence[_Element]) -> bool:
        """Take in the header of another file; False if its elements, or what must be equal in them, differ."""
        if [(one.tag, one.explicit) for one in found] != [(one.tag, one.explicit) for one in self._found]:
            return False
        differing = {
            at for at, (one, other) in enumerate(zip(found, self._found, strict=True)) if one.whole != other.whole
        }
        if any(found[at].tag in _SAME for at in differing):
            return False
        self._differing |= differing
        self._join()
        return True

    def read(self, path: Path, stream: BinaryIO, buffer: Buffer) -> ImageHeader | None:
        """Read the header of a file of this layout; None if it has another, or anything is wrong with it."""
        if buffer[MAGIC_OFFSET:START] != b"DICM":
            return None
        values, position = dict(self._values), START
        try:
            for run, tag, explicit in self._runs:
                start = position + len(run)
                if buffer[position:start] != run:
                    return None
                found, value, position = element_at(buffer, start, explicit, TAGS)
                if found != tag:
                    return None
                if tag in TAGS:
                    values[tag] = buffer[value:position]
            end = position + len(self._last)
            if buffer[position : end + len(_PIXELS_BEGIN)] != self._last + _PIXELS_BEGIN:
                return None
            stream.seek(end)
            return placed(self._header, path, stream, values)
        except (*_UNREADABLE, ElementError, ImageConversionError):
            return None

    def _join(self) -> None:
        """Join the elements that are equal in all files to runs, each up to one that differs."""
        self._runs: list[tuple[bytes, int, bool]] = []
        self._values: dict[int, bytes] = {}
        self._last = b""
        for at, element in enumerate(self._found):
            if at in self._differing:
                self._runs.append((self._last, element.tag, element.explicit))
                self._last = b""
                continue
            self._last += element.whole
            if element.tag in TAGS:
                self._values[element.tag] = element.value


def _elements_of(buffer: Buffer, syntax: str) -> list[_Element]:
    """Return the elements before the pixels of a plainly encoded file; none if it is not plain in every respect."""
    found: list[_Element] = []
    position = START
    try:
        for group, explicit, wanted in ((2, True, (MEDIA_CLASS, SYNTAX)), (0, syntax != IMPLICIT, TAGS)):
            for tag, start, value, end in spans(buffer, position, explicit, wanted, group):
                found.append(_Element(tag, explicit, buffer[start:end], buffer[value:end]))
                position = end
    except _UNREADABLE:
        return []
    tags = [element.tag for element in found]
    stated = next((element.value for element in found if element.tag == SYNTAX), b"")
    is_plain = (
        buffer[MAGIC_OFFSET:START] == b"DICM"
        and len(set(tags)) == len(tags)
        and stated.decode("ascii", "replace").strip("\0 ") == syntax
        and syntax not in (DEFLATED, BIG_ENDIAN)
        and buffer[position : position + len(_PIXELS_BEGIN)] == _PIXELS_BEGIN
    )
    return found if is_plain else []


@contextmanager
def _opened(path: Path, content: bytes | None) -> Iterator[tuple[BinaryIO, Buffer]]:
    if content is not None:
        yield io.BytesIO(content), content
        return
    with path.open("rb") as stream:
        if not stream.read(1):
            yield stream, b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            yield stream, buffer
