"""Where incoming bytes wait until they are complete; reading of archives that come, writing of archives that go."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import secrets
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast


@dataclass(frozen=True)
class Staged:
    """A complete file that waits. `digest` is its MD5 in hex, and `size` is in bytes."""

    path: Path
    size: int
    digest: str


class Staging:
    """A folder on the same disk as the archive, so that a file can be moved to its place in one step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def take(self, source: BinaryIO, *, to_disk: bool = True) -> Staged:
        """Copy a whole stream to a file that waits.

        Parameters
        ----------
        source
            The stream.
        to_disk
            Whether the bytes must reach the disk, so that they survive a crash of the computer, not only of the server.
        """
        digest, size = hashlib.md5(usedforsecurity=False), 0
        path = self._folder / secrets.token_hex(16)
        with path.open("xb") as target:
            for block in iter(lambda: source.read(_BLOCK), b""):
                target.write(block)
                digest.update(block)
                size += len(block)
            if to_disk:
                target.flush()
                os.fsync(target.fileno())
        return Staged(path, size, digest.hexdigest())

    def holds(self, name: str) -> bool:
        """Return whether a file still waits."""
        return (self._folder / name).exists()

    @staticmethod
    def move(staged: Staged, target: Path) -> None:
        """Move a file to its place."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged.path.replace(target)

    def drop(self, staged: Staged) -> None:
        """Delete a file that is not wanted."""
        staged.path.unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a temporary folder."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield Path(folder)

    def clear(self) -> None:
        """Delete all files that wait."""
        shutil.rmtree(self._folder)
        self._folder.mkdir(mode=0o700)


def checked_path(path: str) -> str:
    """Return a relative path in its plain form.

    Raises
    ------
    ValueError
        If the path is empty or leaves its folder.
    """
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is not a path inside a resource")
    return "/".join(parts)


ARCHIVE_SUFFIXES = (".zip", ".jar", ".rar", ".ear", ".gar", ".xar", ".tar", ".tgz", ".tar.gz", ".gz")
_GZIP = b"\x1f\x8b"


class BadArchiveError(ValueError):
    """The upload is not an archive, or is damaged."""


def unpack(body: BinaryIO, name: str, take: Callable[[str, BinaryIO], None]) -> None:
    """Call a function for each file in a zip or a tar, or for the one file in a gzip.

    Parameters
    ----------
    body
        The archive. Its kind is recognised by its content.
    name
        Its name. The content of a plain gzip gets its name from this.
    take
        Called with the path and the content of each file.

    Raises
    ------
    BadArchiveError
        If it is none of these kinds, or damaged.
    ValueError
        If a path leaves its folder.
    """
    try:
        for path, content in _members(body, name):
            take(checked_path(path), cast("BinaryIO", content))
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise BadArchiveError(f"the uploaded archive is damaged: {error}") from error
    except (NotImplementedError, RuntimeError) as error:  # an unknown compression, or a password
        raise BadArchiveError(f"the uploaded archive cannot be read: {error}") from error


def _members(body: BinaryIO, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(body):
        yield from _zip_members(body)
    elif _is_tar(body):
        yield from _tar_members(body)
    elif _starts_with_gzip(body):
        with gzip.open(body) as content:
            yield name[: -len(".gz")] if name.lower().endswith(".gz") else name, content  # type: ignore[misc]
    else:
        raise BadArchiveError("the upload is neither zip nor tar nor gzip")


def _zip_members(body: BinaryIO) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(body) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as content:
                    yield info.filename, content


def _tar_members(body: BinaryIO) -> Iterator[tuple[str, IO[bytes]]]:
    body.seek(0)
    with tarfile.open(fileobj=body) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content


def _is_tar(body: BinaryIO) -> bool:
    body.seek(0)
    try:
        with tarfile.open(fileobj=body):
            return True
    except (tarfile.TarError, EOFError, zlib.error):
        return False


def _starts_with_gzip(body: BinaryIO) -> bool:
    body.seek(0)
    start = body.read(len(_GZIP))
    body.seek(0)
    return start == _GZIP


_BLOCK = 1 << 18


class _Pipe:
    """The stream that an archive is written to. It cannot seek, so a zip has the sizes of members after their bytes."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def write(self, block: bytes) -> int:
        self._blocks.append(bytes(block))
        return len(block)

    def flush(self) -> None:
        """Do nothing. Blocks are taken when they come."""

    def take(self) -> bytes:
        block = b"".join(self._blocks)
        self._blocks.clear()
        return block


def zip_blocks(members: Sequence[tuple[str, Path]], level: int = 0) -> Iterator[bytes]:
    """Yield the blocks of a zip of some files.

    Parameters
    ----------
    members
        The name in the zip and the file, for each member.
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
    # The format has no times before 1980.
    info = zipfile.ZipInfo(name, max(time.localtime(status.st_mtime)[:6], (1980, 1, 1, 0, 0, 0)))
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = level  # type: ignore[attr-defined]
    # The size that is set here only decides whether the 64-bit form is needed.
    info.file_size = status.st_size
    return info


def tar_blocks(members: Sequence[tuple[str, Path]], compressed: bool) -> Iterator[bytes]:
    """Yield the blocks of a tar of some files; `compressed` uses gzip."""
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
