"""The pixels of a DICOM SEG, frame by frame, in whatever way they are stored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_pixel_data_frame
from pydicom.uid import UID

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.file import DEFLATED, EXPLICIT, IMPLICIT
from monailabel_xnat.errors import LabelFileError

Pictures = Callable[[int], npt.NDArray[Any]]
"""Gives the pixels (rows, columns) of the frame of an index; bool where they are single bits."""

_ROWS = 0x00280010
_COLUMNS = 0x00280011
_BITS_ALLOCATED = 0x00280100
_PLAIN = frozenset((IMPLICIT, EXPLICIT, DEFLATED))
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_RLE = "1.2.840.10008.1.2.5"
_RLE_HEADER = 64


def read_pictures(dataset: Dataset, count: int) -> Pictures:
    """Return access to the frames of a DICOM SEG.

    Parameters
    ----------
    dataset : Dataset
        The SEG.
    count : int
        Number of frames.

    Raises
    ------
    LabelFileError
        If pixels are missing or cannot be decoded; of some compressed ones only when their frame is asked for.
    """
    rows, columns = elements.integer(dataset, _ROWS), elements.integer(dataset, _COLUMNS)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", IMPLICIT))
    bits = elements.integer(dataset, _BITS_ALLOCATED, 1)
    if bits in (1, 8, 16):
        if syntax in _PLAIN:
            return _plain_pictures(dataset, count, rows, columns, bits)
        if syntax == _DEFLATED_FRAMES:
            return _unpacked_pictures(dataset, count, rows, columns, bits, _inflated)
        if syntax == _RLE and bits == 1:
            return _unpacked_pictures(dataset, count, rows, columns, bits, _run_lengths)
    return _decoded_pictures(dataset, syntax, count, rows, columns)


def _plain_pictures(dataset: Dataset, count: int, rows: int, columns: int, bits: int) -> Pictures:
    size = rows * columns
    data = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    expected = (count * size * bits + 7) // 8
    if len(data) < expected:
        raise _truncated(len(data), expected)
    if bits > 1:
        stack = data[:expected].view(f"<u{bits // 8}").reshape(count, rows, columns)
        return lambda frame: stack[frame]

    def unpacked(frame: int) -> npt.NDArray[Any]:
        # A frame begins where the one before ends, be it within a byte (DICOM PS3.5 8.1.1).
        first, skipped = divmod(frame * size, 8)
        plain = np.unpackbits(data[first : first + (skipped + size + 7) // 8], bitorder="little")
        return plain[skipped : skipped + size].view(np.bool_).reshape(rows, columns)

    return unpacked


def _unpacked_pictures(
    dataset: Dataset, count: int, rows: int, columns: int, bits: int, unpack: Callable[[bytes, int], bytes]
) -> Pictures:
    """Return access to frames that were compressed one by one, single bits packed into bytes for each of them."""
    frames = list(generate_pixel_data_frame(dataset.PixelData, count))
    if len(frames) != count:
        raise LabelFileError(f"the DICOM SEG has pixels of {len(frames)} of {count} frames", hint="download it again")
    expected = (rows * columns * bits + 7) // 8

    def unpacked(frame: int) -> npt.NDArray[Any]:
        try:
            content = unpack(frames[frame], expected)
        except (ValueError, IndexError, struct.error, zlib.error) as error:
            raise _undecodable(f"frame {frame + 1}", error) from error
        if len(content) < expected:
            raise _truncated(len(content), expected)
        data = np.frombuffer(content, np.uint8, expected)
        if bits > 1:
            return data.view(f"<u{bits // 8}").reshape(rows, columns)
        plain = np.unpackbits(data, count=rows * columns, bitorder="little")
        return plain.view(np.bool_).reshape(rows, columns)

    return unpacked


def _inflated(data: bytes, expected: int) -> bytes:
    """Decompress a bare deflate stream (DICOM PS3.5 8.2.16), as far as a frame goes."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, expected)


def _run_lengths(data: bytes, expected: int) -> bytes:
    """Decode the one RLE segment of a frame of packed bits (DICOM PS3.5 annex G), as far as a frame goes."""
    segments, start = struct.unpack_from("<2I", data)
    if segments != 1 or start < _RLE_HEADER:
        raise ValueError(f"{segments} RLE segments, the first at {start}")
    content = bytearray()
    position = start
    while len(content) < expected and position + 1 < len(data):
        code = data[position]
        if code < 128:
            content += data[position + 1 : position + 2 + code]
            position += 2 + code
        elif code > 128:
            content += data[position + 1 : position + 2] * (257 - code)
            position += 2
        else:
            position += 1
    return bytes(content)


def _decoded_pictures(dataset: Dataset, syntax: str, count: int, rows: int, columns: int) -> Pictures:
    try:
        stack = dataset.pixel_array.reshape(count, rows, columns)
    except Exception as error:
        raise _undecodable(UID(syntax).name, error) from error
    return lambda frame: stack[frame]


def _undecodable(what: str, error: Exception) -> LabelFileError:
    return LabelFileError(
        f"the pixels of the DICOM SEG cannot be decoded ({what}): {error}", hint="store it uncompressed"
    )


def _truncated(found: int, expected: int) -> LabelFileError:
    return LabelFileError(
        f"the DICOM SEG is truncated: {found} of {expected} bytes of pixel data", hint="download it again"
    )
