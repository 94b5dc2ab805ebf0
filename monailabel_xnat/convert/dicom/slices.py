"""The values of the frames of a volume, read ahead where possible.

Plainly uncompressed slices are copied from the file, which is several times faster than any decoder. The first and
the last such slice of a volume are decoded by SimpleITK too; unless they are identical, all slices are decoded as
:mod:`monailabel_xnat.convert.dicom.decoding` says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from monailabel_xnat.convert.dicom.decoding import decode, decode_file
from monailabel_xnat.convert.dicom.frames import Frame
from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.convert.dicom.pixels import SliceValues, copy_slice, is_plain
from monailabel_xnat.errors import ImageConversionError

logger = logging.getLogger(__name__)

DECODING_THREADS = min(2, os.cpu_count() or 1)
"""More threads read no faster, and the server has other work."""

Headers = Mapping[Path, ImageHeader]


class SliceReader:
    """Reads the values of frames; to be closed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="xnat-decode")
        self._decoded: dict[Path, Future[list[SliceValues]]] = {}
        self._copied: dict[Path, SliceValues | None] = {}

    def start(self, header: ImageHeader) -> None:
        """Read the frames of a file that is likely asked for: copy them now, or have them decoded meanwhile.

        Raises
        ------
        ImageConversionError
            If the file is truncated.
        """
        if is_plain(header):
            self._copied[header.path] = copy_slice(header)
        else:
            self._decoded[header.path] = self._pool.submit(decode_file, header)

    def forget(self, path: Path) -> None:
        """Drop what was read of a file."""
        self._copied.pop(path, None)
        self._decoded.pop(path, None)

    def read(self, frames: Sequence[Frame], headers: Headers) -> list[SliceValues]:
        """Give the values of frames, in their order.

        Parameters
        ----------
        frames : sequence of Frame
            What to read.
        headers : mapping of Path to ImageHeader
            The headers of all files that the frames are in.

        Raises
        ------
        ImageConversionError
            If a file cannot be decoded, or one decodes to another size than the others; it is named.
        """
        paths = list(dict.fromkeys(frame.path for frame in frames))
        for path in paths:
            if path not in self._copied and path not in self._decoded:
                self.start(headers[path])
        copied = self._copies(frames, headers)
        if copied is not None:
            return copied
        self._copied.clear()
        for path in paths:
            if path not in self._decoded:
                self._decoded[path] = self._pool.submit(decode_file, headers[path])
        decoded = {path: self._decoded[path].result() for path in paths}
        slices = [decoded[frame.path][frame.index] for frame in frames]
        _refuse_other_sizes(frames, slices)
        return slices

    def close(self) -> None:
        """Stop decoding."""
        self._pool.shutdown(cancel_futures=True)

    def _copies(self, frames: Sequence[Frame], headers: Headers) -> list[SliceValues] | None:
        """Give copied slices; None unless all are, and are what SimpleITK reads."""
        if not all(frame.path in self._copied for frame in frames):
            return None
        slices = [self._copied[frame.path] for frame in frames]
        whole = [part for part in slices if part is not None]
        if len(whole) == len(slices) and all(_is_as_decoded(frames[at], whole[at], headers) for at in (0, -1)):
            return whole
        logger.debug("Uncompressed slices differ from what SimpleITK reads, so all are decoded")
        return None


def read_slices(frames: Sequence[Frame], headers: Headers) -> list[SliceValues]:
    """Read the values of frames at once; see :meth:`SliceReader.read`."""
    reader = SliceReader()
    try:
        return reader.read(frames, headers)
    finally:
        reader.close()


def _is_as_decoded(frame: Frame, copied: SliceValues, headers: Headers) -> bool:
    try:
        expected = decode(headers[frame.path])[0]
    except ImageConversionError:
        # It stumbles over something in the header; the pixels are as long as the header says, and plain.
        return True
    return np.array_equal(copied.values(expected.dtype), expected)


def _refuse_other_sizes(frames: Sequence[Frame], slices: Sequence[SliceValues]) -> None:
    first = slices[0].stored.shape
    for frame, part in zip(frames, slices):
        if part.stored.shape != first:
            raise ImageConversionError(
                f"{frame.path.name} decodes to {part.stored.shape}, {frames[0].path.name} to {first}",
                hint="remove the image that does not belong to the volume",
            )
