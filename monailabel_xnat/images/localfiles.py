"""Files and folders on this machine under another name, or packed into one."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO, BinaryIO


def linked(source: Path, link: Path) -> Path:
    """Put a mounted file or folder under another name without copying it, where the system can."""
    try:
        link.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except (OSError, NotImplementedError):
        if source.is_dir():
            shutil.copytree(source, link)
        else:
            shutil.copyfile(source, link)
    return link


def zipped(folder: Path) -> BinaryIO:
    """Pack a folder into a temporary file, opened for reading, that goes when it is closed."""
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - handed out open
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    file.seek(0)
    return file  # type: ignore[return-value]
