"""A zip written while it is sent: members stored uncompressed, sizes after the data, as XNAT's does."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_BLOCK = 1 << 18


class _Pipe:
    """What ZipFile writes to; it cannot seek, so sizes go into data descriptors."""

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


def zip_blocks(members: Sequence[tuple[str, Path]]) -> Iterator[bytes]:
    """Give the zip of some files, block by block."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:  # type: ignore[arg-type]
        for name, file in members:
            with file.open("rb") as source, archive.open(zipfile.ZipInfo(name), "w") as target:
                for block in iter(lambda: source.read(_BLOCK), b""):
                    target.write(block)
                    yield pipe.take()
            yield pipe.take()
    yield pipe.take()
