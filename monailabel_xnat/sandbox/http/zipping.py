"""Zip and tar archives written while they are sent, of a length that nobody knows beforehand."""

from __future__ import annotations

import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

_BLOCK = 1 << 18


class _Pipe:
    """What the archive is written to. It cannot seek, so a zip puts the sizes of its members behind their bytes."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def write(self, block: bytes) -> int:
        self._blocks.append(bytes(block))
        return len(block)

    def flush(self) -> None:
        """Do nothing: blocks are taken as they come."""

    def take(self) -> bytes:
        block = b"".join(self._blocks)
        self._blocks.clear()
        return block


def zip_blocks(members: Sequence[tuple[str, Path]], level: int = 0) -> Iterator[bytes]:
    """Return the zip of some files, block by block.

    Parameters
    ----------
    members
        Name in the zip, and file.
    level
        0 stores the bytes as they are, in deflate's uncompressed form, as Java's ZipOutputStream does for XNAT.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(cast("IO[bytes]", pipe), "w") as archive:
        for name, file in members:
            with file.open("rb") as source, archive.open(_zip_info(name, file, level), "w") as target:
                for block in iter(lambda: source.read(_BLOCK), b""):
                    target.write(block)
                    yield pipe.take()
            yield pipe.take()
    yield pipe.take()


def _zip_info(name: str, file: Path, level: int) -> zipfile.ZipInfo:
    status = file.stat()
    # The format cannot tell times before 1980.
    info = zipfile.ZipInfo(name, max(time.localtime(status.st_mtime)[:6], (1980, 1, 1, 0, 0, 0)))
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = level  # type: ignore[attr-defined]
    # Known beforehand, it only decides whether the 64-bit form is needed.
    info.file_size = status.st_size
    return info


def tar_blocks(members: Sequence[tuple[str, Path]], compressed: bool) -> Iterator[bytes]:
    """Return the tar of some files, block by block; `compressed` with gzip."""
    pipe = _Pipe()
    target = cast("IO[bytes]", pipe)
    with (
        tarfile.open(fileobj=target, mode="w|gz") if compressed else tarfile.open(fileobj=target, mode="w|") as archive
    ):
        for name, file in members:
            info = tarfile.TarInfo(name)
            status = file.stat()
            info.size, info.mtime = status.st_size, int(status.st_mtime)
            with file.open("rb") as source:
                archive.addfile(info, source)
            yield pipe.take()
    yield pipe.take()
