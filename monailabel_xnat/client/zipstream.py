"""Zip archives that are read while they arrive, a chunk at a time in memory.

XNAT makes its zips while it sends them: they are chunked, and sizes and checksums follow the bytes of a member
(xnat-web's class ZipRepresentation). Layout of the records: PKWARE APPNOTE 6.3.10, section 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from isal import isal_zlib

Buffer = bytes | memoryview

_MEMBER = b"PK\x03\x04"
_DESCRIPTOR = b"PK\x07\x08"
_DIRECTORY_END = b"PK\x05\x06"
_AFTER_MEMBERS = (b"PK\x01\x02", _DIRECTORY_END, b"PK\x06\x06", b"PK\x06\x08")
_HEADER = struct.Struct("<H H H 4x I I I H H")  # version, flags, method, (time), CRC, sizes, lengths
_END = struct.Struct("<4s 2H 2H 2I H")

_ENCRYPTED, _SIZES_BEHIND, _UTF8 = 1, 8, 1 << 11
_STORED, _DEFLATED = 0, 8
_ZIP64 = 0x0001
_FULL_32 = 0xFFFFFFFF
_FULL_16 = 0xFFFF
_BLOCK = 1 << 20
# Bytes that are looked at in one step if the end of a member is not known. Bytes behind the end must be copied back.
_PIECE = 1 << 16
_LONGEST_DESCRIPTOR = 24
_LONGEST_END = _END.size + _FULL_16


class BadZipError(ValueError):
    """The bytes are not a complete zip archive."""


@dataclass(frozen=True)
class ZipMember:
    """One member; its content must be read before the next member is asked for.

    Parameters
    ----------
    name : str
        The path in the archive, unchecked: it may lead out of a folder.
    content : iterator of bytes or memoryview
        Its bytes. The iterator raises BadZipError at their end if size or CRC are wrong.
    """

    name: str
    content: Iterator[Buffer]


def zip_members(chunks: Iterable[bytes]) -> Iterator[ZipMember]:
    """Yield the members of a zip archive, in the order in which they arrive; folders are left out.

    Parameters
    ----------
    chunks : iterable of bytes
        The archive, in pieces of any size.

    Raises
    ------
    BadZipError
        If the bytes are not a zip archive, or it ends early.
    """
    source = _Source(chunks)
    count = 0
    while True:
        signature = source.take(4, "it starts like no zip archive" if not count else "it ends early")
        if signature in _AFTER_MEMBERS:
            _check_end(signature, source, count)
            return
        if signature != _MEMBER:
            raise BadZipError("a member does not start like one" if count else "it starts like no zip archive")
        header = _read_header(source)
        content = _content(source, header)
        count += 1
        if not header.name.endswith("/"):
            yield ZipMember(header.name, content)
        for _ in content:  # skip what the caller has not read
            pass


class _Source:
    """The bytes of the archive, with as much look-ahead as a record needs. Views are used, because copies are slow."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._block = memoryview(b"")
        self._at = 0

    def take(self, size: int, problem: str = "it ends early") -> bytes:
        """Return exactly ``size`` bytes."""
        while len(self._block) - self._at < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise BadZipError(problem)
            self._block, self._at = memoryview(bytes(self._block[self._at :]) + chunk), 0
        self._at += size
        return bytes(self._block[self._at - size : self._at])

    def some(self, most: int = _BLOCK) -> memoryview:
        """Return the bytes that have arrived, at least one and at most ``most``; none at the end."""
        while self._at == len(self._block):
            chunk = next(self._chunks, None)
            if chunk is None:
                return memoryview(b"")
            self._block, self._at = memoryview(chunk), 0
        start, self._at = self._at, min(self._at + most, len(self._block))
        return self._block[start : self._at]

    def rewind(self, count: int) -> None:
        """Take back the last ``count`` bytes of those that were returned last."""
        self._at -= count

    def put_back(self, data: bytes) -> None:
        """Take back bytes that were not needed; they may come from several pieces."""
        self._block, self._at = memoryview(data + bytes(self._block[self._at :])), 0


@dataclass(frozen=True)
class _Header:
    name: str
    method: int
    sizes_behind: bool
    crc: int
    packed: int
    size: int


def _read_header(source: _Source) -> _Header:
    _, flags, method, crc, packed, size, name_length, extra_length = _HEADER.unpack(source.take(_HEADER.size))
    raw_name = source.take(name_length)
    extra = source.take(extra_length)
    if flags & _ENCRYPTED:
        raise BadZipError("a member is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise BadZipError(f"a member is packed by method {method}, which is not known here")
    if _FULL_32 in (packed, size):
        packed, size = _long_sizes(extra, packed, size)
    return _Header(_decoded(raw_name, flags), method, bool(flags & _SIZES_BEHIND), crc, packed, size)


def _decoded(name: bytes, flags: int) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        if flags & _UTF8:
            raise BadZipError("a member's name is no UTF-8") from None
        return name.decode("cp437")


def _long_sizes(extra: bytes, packed: int, size: int) -> tuple[int, int]:
    """Return packed and unpacked size from the ZIP64 field, which a member has that is, or could be, beyond 4 GB."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _ZIP64 and length >= 16:
            size, packed = struct.unpack_from("<QQ", extra, 4)
            return packed, size
        extra = extra[4 + length :]
    raise BadZipError("a member's size is missing")


def _content(source: _Source, header: _Header) -> Iterator[Buffer]:
    if header.method == _DEFLATED:
        return _inflated(source, header)
    if header.sizes_behind and not header.packed:
        return _stored_until_descriptor(source)
    return _stored(source, header)


def _stored(source: _Source, header: _Header) -> Iterator[Buffer]:
    left, crc = header.packed, 0
    while left:
        block = source.some()
        if not block:
            raise BadZipError(f"{header.name} ends early")
        if len(block) > left:
            source.rewind(len(block) - left)
            block = block[:left]
        left -= len(block)
        crc = isal_zlib.crc32(block, crc)
        yield block
    _check_content(source, header, crc, header.packed, header.packed)


def _inflated(source: _Source, header: _Header) -> Iterator[Buffer]:
    unpacker = isal_zlib.decompressobj(-15)
    packed = size = crc = 0
    while not unpacker.eof:
        block = unpacker.unconsumed_tail or source.some(_PIECE)
        if not block:
            raise BadZipError(f"{header.name} ends early")
        try:
            data = unpacker.decompress(block, _BLOCK)
        except isal_zlib.error:  # type: ignore[misc]  # its stub calls the class an instance
            raise BadZipError(f"{header.name} is damaged") from None
        packed += len(block) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)
        size += len(data)
        crc = isal_zlib.crc32(data, crc)
        if data:
            yield data
    source.rewind(len(unpacker.unused_data))
    _check_content(source, header, crc, packed, size)


def _stored_until_descriptor(source: _Source) -> Iterator[Buffer]:
    """Yield the bytes of a stored member of unknown size: up to a descriptor that fits the bytes before it."""
    size, crc, window = 0, 0, b""
    while True:
        block = source.some(_PIECE)
        if not block:
            raise BadZipError("a member ends early")
        window += block
        start = window.find(_DESCRIPTOR)
        while start >= 0:
            head = window[:start]
            if len(window) - start < _LONGEST_DESCRIPTOR:
                break
            length = _descriptor_length(window[start:], isal_zlib.crc32(head, crc), size + start, size + start)
            if length:
                yield head
                source.put_back(window[start + length :])
                return
            start = window.find(_DESCRIPTOR, start + 1)
        keep = start if start >= 0 else max(len(window) - len(_DESCRIPTOR) + 1, 0)
        head, window = window[:keep], window[keep:]
        crc = isal_zlib.crc32(head, crc)
        size += len(head)
        if head:
            yield head


def _check_content(source: _Source, header: _Header, crc: int, packed: int, size: int) -> None:
    if header.sizes_behind:
        descriptor = source.take(_LONGEST_DESCRIPTOR)  # the end of the archive, which follows, is longer than that
        length = _descriptor_length(descriptor, crc, packed, size)
        if not length:
            raise BadZipError(f"{header.name} is damaged")
        source.rewind(len(descriptor) - length)
    elif (crc, size) != (header.crc, header.size):
        raise BadZipError(f"{header.name} is damaged")


def _descriptor_length(data: bytes, crc: int, packed: int, size: int) -> int:
    """Return the length of the descriptor at the start of data, if it has this CRC and these sizes; else 0."""
    short = struct.pack("<III", crc, packed & _FULL_32, size & _FULL_32)
    long = struct.pack("<IQQ", crc, packed, size)
    for descriptor in (_DESCRIPTOR + long, _DESCRIPTOR + short, long, short):
        if data.startswith(descriptor):
            return len(descriptor)
    return 0


def _check_end(signature: bytes, source: _Source, count: int) -> None:
    """Raise BadZipError unless the directory at the end is complete and lists as many members as were read."""
    tail = signature
    while True:
        block = source.some()
        if not block:
            break
        tail = (tail + block)[-_LONGEST_END:]
    start = tail.rfind(_DIRECTORY_END)
    if start < 0 or len(tail) - start < _END.size:
        raise BadZipError("it ends early")
    listed = _END.unpack_from(tail, start)[4]
    if listed not in (count & _FULL_16, _FULL_16):
        raise BadZipError(f"it lists {listed} members and holds {count}")
