"""Reading the values of the frames of a volume, ahead of time where possible.

Uncompressed slices of a simple kind are copied from the file, which is several times faster than any decoder. As a
check, SimpleITK also decodes the first and the last slice. If one of them differs from the copy, all slices are
decoded by :mod:`monailabel_xnat.convert.dicom.decoding`. Compressed slices of a usual kind are decoded in groups
(:mod:`monailabel_xnat.convert.dicom.together`), with the same check.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from monailabel_xnat.convert.dicom.decoding import decode
from monailabel_xnat.convert.dicom.frames import Frame
from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.convert.dicom.pixels import Array, SliceValues
from monailabel_xnat.convert.dicom.together import Decoded, Kind, decode_files, kind_of
from monailabel_xnat.errors import ImageConversionError

logger = logging.getLogger(__name__)

DECODING_THREADS = min(2, os.cpu_count() or 1)
"""How many threads decode. More threads are no faster, and the server has other work to do."""

Headers = Mapping[Path, ImageHeader]


class SliceReader:
    """Reads the values of frames. It has threads of its own, so it must be closed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="xnat-decode")
        self._copied: dict[Path, SliceValues | None] = {}
        self._waiting: dict[Kind, list[ImageHeader]] = {}
        # For each file, the group in which it is decoded, and its place there.
        self._decoded: dict[Path, tuple[Future[list[Decoded]], int]] = {}

    def start(self, header: ImageHeader) -> None:
        """Start to read a file that will probably be needed: copy its slice now, or decode it in another thread.

        Raises
        ------
        ImageConversionError
            If the file is truncated.
        """
        if is_plain(header):
            self._copied[header.path] = copy_slice(header)
            return
        kind = kind_of(header)
        group = [header] if kind is None else [*self._waiting.pop(kind, ()), header]
        if kind is None or len(group) >= kind.group:
            self._decode(group)
        else:
            self._waiting[kind] = group

    def forget(self, path: Path) -> None:
        """Forget what was read from a file."""
        self._copied.pop(path, None)
        self._decoded.pop(path, None)
        for group in self._waiting.values():
            group[:] = [header for header in group if header.path != path]

    def read(self, frames: Sequence[Frame], headers: Headers) -> list[SliceValues]:
        """Return the values of frames, in their order.

        Parameters
        ----------
        frames : sequence of Frame
            The frames to read.
        headers : mapping of Path to ImageHeader
            The headers of all files that hold these frames.

        Raises
        ------
        ImageConversionError
            If a file cannot be decoded, or has another size than the others when it is decoded. The message names it.
        """
        paths = list(dict.fromkeys(frame.path for frame in frames))
        waiting = {header.path for group in self._waiting.values() for header in group}
        for path in paths:
            if path not in self._copied and path not in self._decoded and path not in waiting:
                self.start(headers[path])
        for group in self._waiting.values():  # the last ones, in one part for each thread
            share = -(-len(group) // DECODING_THREADS)
            for start in range(0, len(group), share or 1):
                self._decode(group[start : start + share])
        self._waiting.clear()
        copied = self._copies(frames, headers)
        if copied is not None:
            return copied
        self._copied.clear()
        slices = self._decoded_slices(frames, headers)
        if any(self._is_of_group(path) for path in paths) and not all(
            _is_as_decoded(frames[at], slices[at], headers) for at in (0, -1)
        ):
            logger.debug("Slices that were decoded in groups differ from single ones, so each is decoded by itself")
            for path in paths:
                self._decode([headers[path]])
            slices = self._decoded_slices(frames, headers)
        _refuse_other_sizes(frames, slices)
        return slices

    def close(self) -> None:
        """Wait for running decoders, and drop the ones that have not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, group: Sequence[ImageHeader]) -> None:
        """Decode files of one kind in another thread."""
        decoded = self._pool.submit(decode_files, group)
        self._decoded.update((header.path, (decoded, place)) for place, header in enumerate(group))

    def _decoded_slices(self, frames: Sequence[Frame], headers: Headers) -> list[SliceValues]:
        """Return the decoded values of frames; a file that nobody has begun to decode is decoded now."""
        paths = list(dict.fromkeys(frame.path for frame in frames))
        for path in paths:
            if path not in self._decoded:
                self._decode([headers[path]])
        found: dict[Path, list[SliceValues]] = {}
        for path in paths:
            group, place = self._decoded[path]
            values = group.result()[place]
            if isinstance(values, ImageConversionError):
                raise values
            found[path] = values
        return [found[frame.path][frame.index] for frame in frames]

    def _is_of_group(self, path: Path) -> bool:
        return len(self._decoded[path][0].result()) > 1

    def _copies(self, frames: Sequence[Frame], headers: Headers) -> list[SliceValues] | None:
        """Return the copied slices; None unless all slices were copied and SimpleITK confirms the first and last."""
        if not all(frame.path in self._copied for frame in frames):
            return None
        slices = [self._copied[frame.path] for frame in frames]
        whole = [part for part in slices if part is not None]
        if len(whole) == len(slices) and all(_is_as_decoded(frames[at], whole[at], headers) for at in (0, -1)):
            return whole
        logger.debug("Uncompressed slices differ from what SimpleITK reads, so all are decoded")
        return None


def read_slices(frames: Sequence[Frame], headers: Headers) -> list[SliceValues]:
    """Return the values of frames; see :meth:`SliceReader.read`."""
    reader = SliceReader()
    try:
        return reader.read(frames, headers)
    finally:
        reader.close()


def _is_as_decoded(frame: Frame, copied: SliceValues, headers: Headers) -> bool:
    try:
        expected = decode(headers[frame.path])[0]
    except ImageConversionError:
        # SimpleITK refuses something in the header. The pixels are uncompressed and as long as the header says.
        return True
    return np.array_equal(copied.values(expected.dtype), expected)


def _refuse_other_sizes(frames: Sequence[Frame], slices: Sequence[SliceValues]) -> None:
    first = slices[0].stored.shape
    for frame, part in zip(frames, slices, strict=True):
        if part.stored.shape != first:
            raise ImageConversionError(
                f"{frame.path.name} decodes to {part.stored.shape}, {frames[0].path.name} to {first}",
                hint="remove the image that does not belong to the volume",
            )


def is_plain(header: ImageHeader) -> bool:
    """Return whether the pixel data of a file may be copied without a decoder."""
    length = header.frame_bytes
    return header.pixel_offset >= 0 and header.pixel_length in (length, length + length % 2) and header.is_simple


def copy_slice(header: ImageHeader) -> SliceValues | None:
    """Return the raw pixel data of a file for which `is_plain` is true; None if bits above Bits Stored are used.

    Raises
    ------
    ImageConversionError
        If the file is truncated.
    """
    stored = _copy_stored(header)
    if not _within_bits(stored, header):
        return None
    frame = header.frames[0]
    return SliceValues.of(stored, frame.slope, frame.intercept)


def _copy_stored(header: ImageHeader) -> Array:
    kind = f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}"
    if header.held is not None:
        held: Array = np.frombuffer(header.held, kind, header.rows * header.columns, header.pixel_offset)
        return held.reshape(header.rows, header.columns)
    stored: Array = np.empty((header.rows, header.columns), dtype=kind)
    with header.path.open("rb", buffering=0) as stream:
        stream.seek(header.pixel_offset)
        read = stream.readinto(stored.data.cast("B"))
    if read != stored.nbytes:
        message = f"{header.path.name} is truncated: {read} of {stored.nbytes} bytes of pixel data"
        raise ImageConversionError(message, hint="download the scan again")
    return stored


def _within_bits(stored: Array, header: ImageHeader) -> bool:
    """Return whether the bits above Bits Stored hold only the sign."""
    if header.bits_stored == header.bits_allocated:
        return True
    if header.signed:
        limit = 1 << (header.bits_stored - 1)
        return bool(-limit <= stored.min() and stored.max() < limit)
    return bool(stored.max() < 1 << header.bits_stored)
