"""The files of an XNAT resource, as XNAT lists them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.errors import TransferError


@dataclass(frozen=True)
class RemoteFile:
    """One file of a resource.

    Parameters
    ----------
    path : str
        Where it lies in the resource, sub-folders included.
    size : int or None
        Bytes; None where XNAT does not tell.
    md5 : str
        Hexadecimal MD5 digest; empty where XNAT has not computed one.
    uri : str
        Path of the file below the site's address, percent-encoded.
    """

    path: str
    size: int | None
    md5: str
    uri: str


def list_files(session: Session, resource: str) -> list[RemoteFile]:
    """List the files of one resource.

    Parameters
    ----------
    session : Session
        The connection.
    resource : str
        Path of the resource, ``/data/.../resources/DICOM``, percent-encoded. One that does not exist has no files.

    Raises
    ------
    NotInArchiveError
        If the object that should hold the resource does not exist or may not be seen.
    TransferError
        If the answer is not a list of files.
    ServerError
        If XNAT fails.
    """
    rows = session.rows(f"{resource}/files")
    with _known_form(resource):
        return [_remote_file(row, resource) for row in rows]


def list_files_by_resource(session: Session, holder: str) -> dict[str, list[RemoteFile]]:
    """List the files of all resources of a scan, by the labels of the resources.

    Parameters
    ----------
    session : Session
        The connection.
    holder : str
        Path of the scan, percent-encoded.

    Raises
    ------
    NotInArchiveError
        If there is no such scan, or it may not be seen.
    TransferError
        If the answer is not a list of files.
    """
    found: dict[str, list[RemoteFile]] = {}
    rows = session.rows(f"{holder}/files")
    with _known_form(holder):
        for row in rows:
            label = row["collection"]
            found.setdefault(label, []).append(_remote_file(row, holder + quoted("resources", label)))
    return found


class Fetched(NamedTuple):
    """What came: size in bytes, and hexadecimal digests."""

    size: int
    md5: str
    sha256: str


def fetch(session: Session, file: RemoteFile, target: Path) -> Fetched:
    """Write a file of a resource to the disk as it comes, and return what came, for the caller to compare.

    Raises
    ------
    NotInArchiveError
        If XNAT does not have it.
    TransferError
        If it breaks off.
    ServerError
        If XNAT fails.
    """
    with target.open("wb") as stream:
        measured = _Measured(stream)
        session.download(file.uri, measured)
        stream.flush()
        os.fsync(stream.fileno())
    return measured.result


def read_digests(session: Session, file: RemoteFile) -> Fetched:
    """Read a file of a resource and return what came, without keeping it; see :func:`fetch`."""
    measured = _Measured(None)
    session.download(file.uri, measured)
    return measured.result


def modified_at(session: Session, file: RemoteFile) -> datetime | None:
    """Ask when a file was stored, in whole seconds; None if XNAT does not tell."""
    answer = session.request("HEAD", file.uri)
    try:
        return parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
    except (TypeError, ValueError):
        return None


class _Measured(io.RawIOBase):
    """Measures what is written, and writes it on."""

    def __init__(self, stream: BinaryIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._size = 0
        self._digests = hashlib.md5(usedforsecurity=False), hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._size += len(data)
        for digest in self._digests:
            digest.update(data)
        if self._stream is not None:
            self._stream.write(data)
        return len(data)

    @property
    def result(self) -> Fetched:
        """What has been written so far."""
        md5, sha256 = (digest.hexdigest() for digest in self._digests)
        return Fetched(self._size, md5, sha256)


@contextmanager
def _known_form(path: str) -> Iterator[None]:
    """Raise what a row without the columns of a list of files leads to as an answer that was changed on its way."""
    try:
        yield
    except (KeyError, AttributeError, TypeError):
        raise TransferError(
            f"XNAT listed the files of {unquote(path)} in a form that is not known", hint="try again", url=path
        ) from None


def _remote_file(row: dict[str, str], resource: str) -> RemoteFile:
    # Sub-folders stand in the URI only, after the numeric id of the resource (XNAT's FileList).
    _, _, path = row["URI"].partition("/files/")
    path = path or row["Name"]
    size = str(row.get("Size") or "")
    return RemoteFile(
        path=path,
        size=int(size) if size.isdigit() else None,
        md5=(row.get("digest") or "").lower(),
        uri=f"{resource}/files{quoted(*path.split('/'))}",
    )
