"""NRRD files whose voxels are compressed by bzip2, which ITK does not read."""

from __future__ import annotations

import bz2
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_LONGEST_HEADER = 1 << 20
_BLOCK = 1 << 20
_LARGEST_VOXEL = 8
_END = re.compile(rb"\r?\n\r?\n")
_ENCODING = re.compile(rb"^(encoding:[ \t]*)(?:bzip2|bz2)(?=[ \t]*\r?$)", re.MULTILINE | re.IGNORECASE)
_SIZES = re.compile(rb"^sizes:([ \t\d]+)\r?$", re.MULTILINE)
_DETACHED = re.compile(rb"^data ?file:", re.MULTILINE | re.IGNORECASE)


@contextmanager
def without_bzip2(path: Path) -> Iterator[Path]:
    """Yield a file with the same voxels that ITK reads: the file itself, or a temporary one.

    Raises
    ------
    ValueError
        If what is compressed is damaged, or is more than the header promises.
    """
    head = b""
    if path.name.lower().endswith(".nrrd"):
        with path.open("rb") as stream:
            head = stream.read(_LONGEST_HEADER)
    end = _END.search(head)
    if not (end and _ENCODING.search(head, 0, end.start()) and not _DETACHED.search(head, 0, end.start())):
        yield path
        return
    with TemporaryDirectory(prefix="nrrd-") as folder:
        plain = Path(folder) / path.name
        _write_plain(path, head[: end.start()], end.end(), plain)
        yield plain


def _write_plain(path: Path, head: bytes, offset: int, target: Path) -> None:
    sizes = _SIZES.search(head)
    left = _LARGEST_VOXEL * math.prod(map(int, sizes[1].split())) if sizes else 0
    decompressor = bz2.BZ2Decompressor()
    with path.open("rb") as stream, target.open("xb") as plain:
        plain.write(_ENCODING.sub(rb"\1raw", head) + b"\n\n")
        stream.seek(offset)
        while not decompressor.eof:
            block = stream.read(_BLOCK) if decompressor.needs_input else b""
            if decompressor.needs_input and not block:
                raise ValueError("it is truncated: its compressed voxels end too early")
            try:
                part = decompressor.decompress(block, _BLOCK)
            except OSError as error:
                raise ValueError(f"its compressed voxels are damaged: {error}") from error
            left -= len(part)
            if left < 0:
                raise ValueError("it holds more voxels than its header says")
            plain.write(part)
