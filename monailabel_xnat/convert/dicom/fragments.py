"""The fragments of compressed pixel data (DICOM PS3.5 A.4), put together to one stream for each frame.

GDCM takes each fragment for a frame where a file has several frames. Without an offset table, or without the delimiter
at the end, it may even return wrong frames. So files of several frames are decoded from a plain copy if they are stored
in any other way than one fragment a frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from monailabel_xnat.convert.dicom.file import lacks_offset_table

ITEM = struct.Struct("<2HI")
"""The head of an item: its tag in two parts, and its length."""

ITEM_TAG = (0xFFFE, 0xE000)
_END_TAG = (0xFFFE, 0xE0DD)
# JPEG and JPEG-LS (start of image, followed by another marker), and JPEG 2000.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")


@dataclass(frozen=True)
class Fragments:
    """The items of compressed pixel data.

    Parameters
    ----------
    table : tuple of int or None
        The offsets in the offset table; None if there is no table.
    starts : tuple of int
        The offset of each fragment's item, counted from the first one.
    parts : tuple of memoryview
        The fragments. They are not copied, because the frames of one file may fill the memory.
    is_closed : bool
        Whether the delimiter stands at the end.
    """

    table: tuple[int, ...] | None
    starts: tuple[int, ...]
    parts: tuple[memoryview, ...]
    is_closed: bool

    def is_plain(self, frames: int) -> bool:
        """Return whether there is a table, a fragment for each frame, and the delimiter."""
        return self.table is not None and len(self.parts) == frames and self.is_closed

    def of_frames(self, frames: int) -> list[bytes] | None:
        """Return the compressed stream of each frame; None if nothing says where a frame begins."""
        if len(self.parts) == frames:
            return [bytes(part) for part in self.parts]
        if frames == 1:
            return [b"".join(self.parts)]
        firsts = [self.starts.index(offset) for offset in self.table or () if offset in self.starts]
        if len(firsts) != frames:
            firsts = [number for number, part in enumerate(self.parts) if bytes(part[:4]).startswith(_STARTS)]
        if len(firsts) != frames or firsts[0] != 0 or firsts != sorted(firsts):
            return None
        ends = [*firsts[1:], len(self.parts)]
        return [b"".join(self.parts[first:end]) for first, end in zip(firsts, ends, strict=True)]


def split(content: bytes) -> Fragments:
    """Return the fragments of pixel data.

    Parameters
    ----------
    content : bytes
        The value of the element, from its first item on, with or without the delimiter and what follows it.
    """
    view = memoryview(content)
    items: list[memoryview] = []
    positions: list[int] = []
    position, is_closed = 0, False
    while position + ITEM.size <= len(view):
        *tag, length = ITEM.unpack_from(view, position)
        if tuple(tag) != ITEM_TAG:
            is_closed = tuple(tag) == _END_TAG
            break
        positions.append(position)
        position += ITEM.size
        items.append(view[position : position + length])
        position += length
    table: tuple[int, ...] | None = None
    if items and not lacks_offset_table(content):
        table = struct.unpack(f"<{len(items[0]) // 4}I", items[0][: len(items[0]) // 4 * 4])
        items, positions = items[1:], positions[1:]
    origin = positions[0] if positions else 0
    return Fragments(table, tuple(at - origin for at in positions), tuple(items), is_closed)
