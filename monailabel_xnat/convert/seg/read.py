"""Reading DICOM SEG objects of all programs, in all encodings of their pixels that can be decoded here."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_pixel_data_frame
from pydicom.uid import UID

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.file import DEFLATED, EXPLICIT, IMPLICIT
from monailabel_xnat.convert.dicom.frames import frame_count
from monailabel_xnat.convert.dicom.objects import SEG_CLASSES, damage_named, open_object
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.convert.labelmap import Canvas, LabelMap, most_voxels
from monailabel_xnat.convert.seg.places import Contradictions, place_frames
from monailabel_xnat.convert.seg.segments import read_segments
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

Pictures = Callable[[int], npt.NDArray[Any]]
"""Returns the pixels (rows, columns) of the frame with an index; they are bool if each is stored as a single bit."""

_ROWS = 0x00280010
_COLUMNS = 0x00280011
_BITS_ALLOCATED = 0x00280100
_PLAIN = frozenset((IMPLICIT, EXPLICIT, DEFLATED))
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_RLE = "1.2.840.10008.1.2.5"
_RLE_HEADER = 64

_PADDING = 0x00280120
_TYPE = 0x00620001
_LARGEST_FRACTION = 0x0062000E
_IDENTIFICATION = 0x0062000A
_REFERENCED_NUMBER = 0x0062000B
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230


@dataclass(frozen=True, eq=False)
class _Mask:
    """What a frame marks: its pixels and their value or values.

    ``unclaimed`` holds the numbers of segments that the file does not describe, with the count of their pixels.
    """

    frame: int
    pixels: npt.NDArray[np.bool_]
    value: int | npt.NDArray[Any]
    unclaimed: Mapping[int, int]


def read_pictures(dataset: Dataset, grid: Grid, segments: int) -> Pictures:
    """Return a function that returns the pixels of one frame of a DICOM SEG.

    Parameters
    ----------
    dataset : Dataset
        The SEG.
    grid : Grid
        The grid of the image.
    segments : int
        How many segments the SEG describes.

    Returns
    -------
    Pictures
        Takes the index of a frame, counted from 0, and returns its pixels, an array (rows, columns).

    Raises
    ------
    LabelFileError
        If pixels are missing or cannot be decoded. Where frames are compressed one by one, the returned function raises
        it for the damaged frame.
    LabelGeometryError
        If the SEG has more pixels than its segments can fill in the image.
    """
    count = frame_count(dataset)
    rows, columns = elements.integer(dataset, _ROWS), elements.integer(dataset, _COLUMNS)
    if not (rows and columns):
        raise LabelFileError(
            f"the frames of the DICOM SEG have {rows} rows and {columns} columns; at least 1 is expected",
            hint="store it again from the program that made it",
        )
    most = most_voxels(grid)
    if rows * columns > most or count * rows * columns > most * segments:
        raise LabelGeometryError(
            f"the DICOM SEG has {count} frames of {columns} x {rows} pixels, more than {segments} segments can fill in "
            f"the image: {grid}",
            hint="read it with the image that it was drawn on",
        )
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
        # A frame begins right after the one before, which may be within a byte (DICOM PS3.5 8.1.1).
        first, skipped = divmod(frame * size, 8)
        plain = np.unpackbits(data[first : first + (skipped + size + 7) // 8], bitorder="little")
        return plain[skipped : skipped + size].view(np.bool_).reshape(rows, columns)

    return unpacked


def _unpacked_pictures(
    dataset: Dataset, count: int, rows: int, columns: int, bits: int, unpack: Callable[[bytes, int], bytes]
) -> Pictures:
    """Return the function for frames that are compressed one by one. Single bits are packed into bytes per frame."""
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
    """Decompress a deflate stream without a header (DICOM PS3.5 8.2.16), up to the size of a frame."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, expected)


def _run_lengths(data: bytes, expected: int) -> bytes:
    """Decode the one RLE segment of a frame of packed bits (DICOM PS3.5 annex G), up to the size of a frame."""
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


def read_seg(path: Path, grid: Grid) -> LabelMap:
    """Read a DICOM SEG onto the grid of its image.

    Each frame is placed by its position and orientation; the order and the direction in which frames are stored do not
    matter. A frame without a position is placed on the image that it refers to. Where segments overlap, the voxel
    belongs to the segment with the higher number. In a fractional segment, values of at least half of the maximum
    count.

    Parameters
    ----------
    path : Path
        A SEG of type BINARY, FRACTIONAL or LABELMAP (DICOM PS3.3 A.51).
    grid : Grid
        The grid of the image.

    Returns
    -------
    LabelMap
        Array (i, j, k), uint8 or uint16. The values are the segment numbers. For a SEG that `write_seg` wrote, they are
        the values of the original label.

    Raises
    ------
    LabelFileError
        If the file is not a SEG, is damaged, is compressed in a way that cannot be read here, or has voxels of a
        segment that it does not describe.
    LabelGeometryError
        If frames do not lie on the grid, voxels lie outside the image, or frames contradict the images that they
        refer to.
    """
    dataset = open_object(path, SEG_CLASSES, "DICOM SEG")
    with damage_named(path.name):
        segments, values, notes = read_segments(dataset)
        # The pixels come first: they prove that the stated number of frames is true.
        pictures = read_pictures(dataset, grid, len(segments))
        places = place_frames(dataset, grid)
        canvas = Canvas(grid, max(_largest_number(dataset), *values.values()))
        masks, remarks = _masks(dataset, pictures, values, len(places))
        outside = 0
        unclaimed: Counter[int] = Counter()
        contradictions = Contradictions(grid)
        for mask in masks:
            placement = places[mask.frame].placement
            inside = mask.pixels[placement.window]
            if inside.size < mask.pixels.size:
                outside += int(np.count_nonzero(mask.pixels)) - int(np.count_nonzero(inside))
            unclaimed.update(mask.unclaimed)
            contradictions.look_at(mask.frame, places[mask.frame], inside)
            value = mask.value if isinstance(mask.value, int) else mask.value[placement.window]
            canvas.paint(placement.view, inside, value)
        _refuse_unclaimed(path.name, +unclaimed)
        contradictions.refuse(path.name, len(places))
    if outside:
        raise LabelGeometryError(
            f"{outside} voxels of the segmentation {path.name} lie outside its image: {grid}",
            hint="read it with the image that it was drawn on",
        )
    notes += [*remarks, *contradictions.notes]
    if canvas.overlap:
        notes.append(f"{canvas.overlap} voxels belong to several segments: each has the one of the highest number")
    return LabelMap(canvas.label_array(), grid.affine.copy(), segments, tuple(notes))


def _refuse_unclaimed(name: str, voxels: Mapping[int, int]) -> None:
    if voxels:
        listed = ", ".join(f"{number} ({count} voxels)" for number, count in sorted(voxels.items()))
        raise LabelFileError(
            f"{name} has voxels of segments that it does not describe: {listed}",
            hint="store it again from the program that made it",
        )


def _masks(
    dataset: Dataset, pictures: Pictures, values: Mapping[int, int], count: int
) -> tuple[Iterator[_Mask], list[str]]:
    """Return the masks in the order in which they are painted, and notes."""
    if _type(dataset) == "LABELMAP":
        return _labelled_masks(dataset, pictures, values, count), []
    threshold, notes = _threshold(dataset, pictures, count)
    return _segment_masks(dataset, pictures, values, threshold), notes


def _labelled_masks(dataset: Dataset, pictures: Pictures, values: Mapping[int, int], count: int) -> Iterator[_Mask]:
    """Return one mask for each frame of a label map object, with the value of each pixel."""
    background = {0, elements.integer(dataset, _PADDING)}
    for frame in range(count):
        picture = pictures(frame)
        if picture.dtype == np.bool_:
            picture = picture.view(np.uint8)
        # Look numbers up in tables: one pass over the pixels for each of thousands of numbers would take hours.
        counts = np.bincount(picture.ravel())
        present = [int(number) for number in np.flatnonzero(counts) if number not in background]
        is_marked, table = np.zeros(len(counts), dtype=bool), np.zeros(len(counts), dtype=np.uint16)
        for number in present:
            is_marked[number], table[number] = True, values.get(number, 0)
        unclaimed = {number: int(counts[number]) for number in present if number not in values}
        yield _Mask(frame, is_marked[picture], table[picture], unclaimed)


def _segment_masks(
    dataset: Dataset, pictures: Pictures, values: Mapping[int, int], threshold: float
) -> Iterator[_Mask]:
    """Return the mask of each frame, in ascending order of the segment numbers."""
    numbers = _frame_numbers(dataset)
    for frame in sorted(range(len(numbers)), key=numbers.__getitem__):
        picture, number = pictures(frame), numbers[frame]
        pixels = picture if picture.dtype == np.bool_ else picture >= threshold
        unclaimed = {} if number in values else {number: int(np.count_nonzero(pixels))}
        yield _Mask(frame, pixels, values.get(number, 0), unclaimed)


def _frame_numbers(dataset: Dataset) -> list[int]:
    """Return the segment number of each frame."""
    (shared,) = elements.items(dataset, _SHARED_GROUPS)[:1] or [Dataset()]
    numbers = []
    for group in elements.items(dataset, _FRAME_GROUPS):
        found = elements.items(group, _IDENTIFICATION) or elements.items(shared, _IDENTIFICATION)
        numbers.append(elements.integer(found[0], _REFERENCED_NUMBER) if found else 0)
    if not all(numbers):
        frame = numbers.index(0) + 1
        raise LabelFileError(f"frame {frame} of the DICOM SEG names no segment", hint="store the segmentation again")
    return numbers


def _type(dataset: Dataset) -> str:
    return elements.text(dataset, _TYPE) or "BINARY"


def _threshold(dataset: Dataset, pictures: Pictures, count: int) -> tuple[float, list[str]]:
    """Return the least pixel value that counts as inside, and notes."""
    if _type(dataset) != "FRACTIONAL":
        return 1.0, []
    half = elements.integer(dataset, _LARGEST_FRACTION, 255) / 2
    # dcmjs stores compressed masks of 0 and 1 as FRACTIONAL with a maximum of 255.
    if half > 1 and all(pictures(frame).max(initial=0) <= 1 for frame in range(count)):
        return 1.0, [f"fractional segments that hold 0 and 1 alone, of at most {2 * half:g}: taken as masks"]
    return half, [f"fractional segments: voxels count from {half:g} on"]


def _largest_number(dataset: Dataset) -> int:
    """Return the largest segment number that the pixels of a label map may hold."""
    return int(2 ** elements.integer(dataset, _BITS_ALLOCATED, 1) - 1) if _type(dataset) == "LABELMAP" else 0
