"""A plain DICOM file that is not on the disk: its pixels stay in memory anyway until the volume is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True)
class HeldFile:
    """The bytes of a file.

    Parameters
    ----------
    head : bytes
        What stands before the pixels.
    pixels : ndarray (rows, columns)
        The pixels as stored, little endian.
    tail : bytes
        What stands behind them.
    """

    head: bytes
    pixels: npt.NDArray[Any]
    tail: bytes

    def write(self, path: Path) -> None:
        """Write the file as it was."""
        write_private(path, self.head, self.pixels.data.cast("B"), self.tail)


def write_private(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file, and the folders above it that are missing, for this user only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "wb", opener=_private) as stream:
        for part in parts:
            stream.write(part)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
