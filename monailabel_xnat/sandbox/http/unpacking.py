"""The members of an uploaded archive."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, Callable, cast

from monailabel_xnat.sandbox.archive.staging import checked_path

ARCHIVE_SUFFIXES = (".zip", ".jar", ".rar", ".ear", ".gar", ".xar", ".tar", ".tgz", ".tar.gz", ".gz")
_GZIP = b"\x1f\x8b"


class BadArchiveError(ValueError):
    """An upload that is no archive, or a damaged one."""


def unpack(body: BinaryIO, name: str, take: Callable[[str, BinaryIO], None]) -> None:
    """Go through the files in a zip or a tar, or the one in a gzip.

    Parameters
    ----------
    body
        The archive; recognised by its content.
    name
        Its name, which names the content of a plain gzip.
    take
        Called with path and content of each file.

    Raises
    ------
    BadArchiveError
        If it is none of these, or damaged.
    ValueError
        If a path leaves the folder.
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
