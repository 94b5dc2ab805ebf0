"""Decoding several compressed files at a time.

SimpleITK's reader for one file reads the header of a file three times, and its reader for a series only once. For small
slices this is half of the time that a decoder takes. But the series reader gives all slices the data type of the first
one, and would cut off larger values of the others without a warning. So only files that cannot differ in their data
type are decoded together (:func:`kind_of`). All others, and all files of a group in which one cannot be read, are
decoded one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless

from monailabel_xnat.convert.dicom.decoding import decode_file, is_within_bits
from monailabel_xnat.convert.dicom.fragments import ITEM, ITEM_TAG
from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.convert.dicom.pixels import Array, SliceValues
from monailabel_xnat.convert.itk import simpleitk
from monailabel_xnat.errors import ImageConversionError

Decoded = list[SliceValues] | ImageConversionError
"""The values of all frames of a file, or why it cannot be decoded."""

_MOST_BYTES = 1 << 22
_MOST_FILES = 16
"""A larger group is hardly any faster, and its slices are in memory twice for a moment."""

_SYNTAXES = frozenset((JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000))
# GDCM scales MR images also by a Real World Value Mapping (0040,9096) and by private elements of Philips (class
# ImageHelper). They can differ from file to file, and the data type with them.
_OTHER_SCALINGS = (b"\x40\x00\x96\x90", b"Philips MR Imaging DD")
# Encapsulated Pixel Data has an undefined length (DICOM PS3.5 A.4).
_PIXEL_DATA = (b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff", b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff")
# Markers of JPEG (ITU-T T.81 B.1.1.3, T.87 for JPEG-LS) and of JPEG 2000 (T.800 A.2).
_START = b"\xff\xd8"
_START_2000 = b"\xff\x4f\xff\x51"
_START_OF_SCAN = 0xDA
_FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Kind:
    """All that decides how SimpleITK decodes a file; the values of files of one kind have one data type.

    Parameters
    ----------
    header : ImageHeader
        The header without what each file has of its own.
    scaling : tuple of float
        Rescale Slope and Intercept.
    stream : bytes
        The part of the compressed stream that states the size, the bits and the sign of its samples.
    """

    header: ImageHeader
    scaling: tuple[float, float]
    stream: bytes

    @property
    def group(self) -> int:
        """How many such files are decoded at a time."""
        return min(_MOST_FILES, max(1, _MOST_BYTES // self.header.frame_bytes))


def kind_of(header: ImageHeader) -> Kind | None:
    """Return the kind of a file on the disk; None if it must be decoded by itself."""
    if header.transfer_syntax not in _SYNTAXES or not header.is_simple:
        return None
    content = header.path.read_bytes()
    starts = [at for mark in _PIXEL_DATA if (at := content.find(mark)) >= 0]
    # An icon in the header may be compressed as well.
    if len(starts) != 1 or content.count(_PIXEL_DATA[0]) + content.count(_PIXEL_DATA[1]) != 1:
        return None
    if any(content.find(mark, 0, starts[0]) >= 0 for mark in _OTHER_SCALINGS):
        return None
    stream = _stated(content, starts[0] + len(_PIXEL_DATA[0]))
    if not stream:
        return None
    frame = header.frames[0]
    bare = replace(header, path=Path(), sop_instance_uid="", pixel_length=0, frames=(), held=None)
    return Kind(bare, (frame.slope, frame.intercept), stream)


def decode_files(headers: Sequence[ImageHeader]) -> list[Decoded]:
    """Return the values of each of some files of one kind, or why it cannot be decoded."""
    if len(headers) > 1:
        try:
            return [[part] for part in _decode_series(headers)]
        except (RuntimeError, ImageConversionError):
            pass  # One file spoils all. Each by itself says which one it is.
    return [_decoded(header) for header in headers]


def _decoded(header: ImageHeader) -> Decoded:
    try:
        return decode_file(header)
    except ImageConversionError as error:
        return error


def _decode_series(headers: Sequence[ImageHeader]) -> list[SliceValues]:
    """Return the slices of some files as SimpleITK reads them, one for each file."""
    reader = simpleitk().ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(header.file()) for header in headers])
    # The files are in no order here, and SimpleITK would warn of missing slices.
    reader.SetSpacingWarningRelThreshold(float("inf"))
    image = reader.Execute()
    # The array is not a copy: the image must live until its slices are copied below.
    values: Array = simpleitk().GetArrayViewFromImage(image)
    first = headers[0]
    if values.shape != (len(headers), first.rows, first.columns):
        raise ImageConversionError("the files decode to another size", hint="decode them one by one")
    slices = [SliceValues.of(part).compact() for part in values]
    if not all(is_within_bits(part, first) for part in slices):
        raise ImageConversionError("some values have more bits than are stored", hint="decode them one by one")
    return slices


def _stated(content: bytes, position: int) -> bytes:
    """Return what the first compressed frame states of its samples; b"" if that is not clear.

    Parameters
    ----------
    content : bytes
        The file.
    position : int
        Where the first item of the pixel data begins: the offset table, with the frames behind it.
    """
    try:
        *tag, table = ITEM.unpack_from(content, position)
        *next_tag, length = ITEM.unpack_from(content, position + ITEM.size + table)
        if tuple(tag) != ITEM_TAG or tuple(next_tag) != ITEM_TAG:
            return b""
        start = position + 2 * ITEM.size + table
        stream = memoryview(content)[start : start + length]
        if stream[:4] == _START_2000:
            return bytes(stream[4 : 4 + struct.unpack_from(">H", stream, 4)[0]])
        at = len(_START) if stream[:2] == _START else len(stream)
        while stream[at] == 0xFF and stream[at + 1] != _START_OF_SCAN:
            end = at + 2 + struct.unpack_from(">H", stream, at + 2)[0]
            if stream[at + 1] in _FRAME_HEADERS:
                return bytes(stream[at:end])
            at = end
    except (struct.error, IndexError):
        pass
    return b""
