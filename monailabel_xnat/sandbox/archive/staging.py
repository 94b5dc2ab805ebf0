"""Where incoming bytes wait until they are whole."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Staged:
    """A whole file that waits; `digest` is its MD5 in hex, `size` in bytes."""

    path: Path
    size: int
    digest: str


class Staging:
    """A folder on the same disk as the archive, so that a file moves into its place in one step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def take(self, source: BinaryIO, *, to_disk: bool = True) -> Staged:
        """Copy a stream to its end.

        Parameters
        ----------
        source
            The stream.
        to_disk
            Whether the bytes must have reached the disk, and so outlive the computer, not only the server.
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
        """Put a file into its place."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged.path.replace(target)

    def drop(self, staged: Staged) -> None:
        """Forget a file that is not wanted."""
        staged.path.unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Return a folder for a while."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield Path(folder)

    def clear(self) -> None:
        """Forget what waits."""
        shutil.rmtree(self._folder)
        self._folder.mkdir(mode=0o700)


def checked_path(path: str) -> str:
    """Return a relative path in plain form.

    Raises
    ------
    ValueError
        If it is empty or leaves its folder.
    """
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is no path inside a resource")
    return "/".join(parts)
