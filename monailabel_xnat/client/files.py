"""The files of an XNAT resource: their list, and reading small files that are compared with the list."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

from monailabel_xnat.client.answers import http_time, whole_number
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.errors import ServerError, TransferError

_CHUNK = 1 << 20
_TRIES = 2
_OK = 200


@dataclass(frozen=True)
class RemoteFile:
    """One file of a resource.

    Parameters
    ----------
    path : str
        Path in the resource, with sub-folders.
    size : int or None
        Size in bytes; None if XNAT does not say.
    md5 : str
        Hexadecimal MD5 digest; empty if XNAT has not computed one.
    uri : str
        Path of the file below the site's address, percent-encoded.
    """

    path: str
    size: int | None
    md5: str
    uri: str

    def fits(self, size: int, md5: str) -> bool:
        """Return whether a content is the one that XNAT lists, as far as XNAT says its size and MD5."""
        return self.size in (None, size) and self.md5 in ("", md5)


def list_files(session: Session, resource: str) -> list[RemoteFile]:
    """List the files of one resource.

    Parameters
    ----------
    session : Session
        The connection.
    resource : str
        Path of the resource, ``/data/.../resources/DICOM``, percent-encoded. If it does not exist, the list is empty.

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
    """List the files of all resources of a scan, by the label of the resource.

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
    """Measures of what XNAT sent: size in bytes, and hexadecimal digests."""

    size: int
    md5: str
    sha256: str


def fetch(session: Session, file: RemoteFile, target: Path) -> Fetched:
    """Download a file of a resource to the disk, and return its size and digests.

    Nothing is compared here: the caller does that.

    Raises
    ------
    NotInArchiveError
        If XNAT does not have it.
    TransferError
        If the transfer breaks off.
    ServerError
        If XNAT fails.
    """
    with target.open("wb") as stream:
        measured = _Measured(stream)
        session.download(file.uri, measured)
        stream.flush()
        os.fsync(stream.fileno())
    return measured.result


def fetch_listed(session: Session, file: RemoteFile, target: Path, what: str) -> str:
    """Download a file of a resource, compare it with XNAT's list, and return its HTTP header ``Last-Modified``.

    The header is "" if there is none.

    Parameters
    ----------
    session : Session
        The connection.
    file : RemoteFile
        The file, as XNAT lists it.
    target : Path
        Where to write it.
    what : str
        Name of the file for the error message: "the ROI collection 'A'".

    Raises
    ------
    TransferError
        If the transfer breaks off, or the file has another size or MD5 than XNAT lists.
    ServerError
        If XNAT fails.
    """
    with session.stream(file.uri) as response, target.open("wb") as stream:
        measured = _Measured(stream)
        for chunk in response.iter_content(_CHUNK):
            measured.write(chunk)
        modified: str = response.headers.get("Last-Modified", "")
    if not file.fits(measured.result.size, measured.result.md5):
        raise TransferError(
            f"XNAT sent other data than it lists for {what}",
            hint="try again; if it stays, save it again from the viewer",
            url=file.uri,
        )
    return modified


def read_digests(session: Session, file: RemoteFile) -> Fetched:
    """Read a file of a resource without storing it, and return its size and digests; see :func:`fetch`."""
    measured = _Measured(None)
    session.download(file.uri, measured)
    return measured.result


def modified_at(session: Session, file: RemoteFile) -> datetime | None:
    """Return when a file was stored, in whole seconds; None if XNAT does not say. This takes a request."""
    answer = session.request("HEAD", file.uri)
    return http_time(answer.headers.get("Last-Modified", ""))


class _Measured(io.RawIOBase):
    """A stream that measures what is written to it, and passes it on to another stream if there is one."""

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
        """The measures of what has been written so far."""
        md5, sha256 = (digest.hexdigest() for digest in self._digests)
        return Fetched(self._size, md5, sha256)


@contextmanager
def _known_form(path: str) -> Iterator[None]:
    """Raise a TransferError if the block fails on a row that does not have the columns of a list of files."""
    try:
        yield
    except (KeyError, AttributeError, TypeError):
        raise TransferError(
            f"XNAT listed the files of {unquote(path)} in an unknown form", hint="try again", url=path
        ) from None


def _remote_file(row: dict[str, str], resource: str) -> RemoteFile:
    # Only the URI contains the sub-folders, after the numeric id of the resource (XNAT's class FileList).
    _, _, path = row["URI"].partition("/files/")
    path = path or row["Name"]
    return RemoteFile(
        path=path,
        size=whole_number(str(row.get("Size") or "")),
        md5=(row.get("digest") or "").lower(),
        uri=f"{resource}/files{quoted(*path.split('/'))}",
    )


class Counts(NamedTuple):
    """How many files and bytes a resource holds, as XNAT has counted them.

    Parameters
    ----------
    files, size : int or None
        Number of files, and their size in bytes; None if XNAT has not counted.
    """

    files: int | None
    size: int | None


NOTHING = Counts(0, 0)
"""The counts of a resource that does not exist."""


def list_whole(session: Session, parent: str, label: str, shown: Counts, wanted: str = "") -> list[RemoteFile]:
    """List the files of a resource, and compare the list with XNAT's own counts, so that no file is overlooked.

    Parameters
    ----------
    session : Session
        The connection.
    parent : str
        Path of what holds the resource, percent-encoded.
    label : str
        Label of the resource.
    shown : Counts
        The counts that the catalog shows. If the list differs from them, somebody may have written since then, and
        XNAT is asked for its present counts.
    wanted : str
        Path of the file that the caller needs; empty: any. If the catalog shows no counts and the list lacks this
        file, XNAT is asked for its counts as well.

    Raises
    ------
    TransferError
        If the list is shorter than XNAT's counts, also when both are read again.
    ServerError
        If XNAT fails.
    """
    resource = parent + quoted("resources", label)
    files = _list(session, resource)
    is_enough = any(file.path == wanted for file in files) or not wanted
    if _counted(files) == shown or (shown.files is None and is_enough):
        return files
    for _ in range(_TRIES):
        counts = _ask_counts(session, parent, label)
        if not _is_short(files, counts):
            return files
        files = _list(session, resource)
    found = _counted(files)
    raise TransferError(
        f"XNAT lists {found.files} files with {found.size} bytes in {unquote(resource)}, "
        f"and counts {counts.files} with {counts.size} bytes",
        hint="try again; if it stays, refresh the catalog of that resource in XNAT",
        url=resource,
    )


def lost(file: RemoteFile) -> TransferError:
    """Return the error for a file that XNAT lists but does not have."""
    return TransferError(
        f"XNAT lists {unquote(file.path)} and answers that it has no such file",
        hint="try again; if it stays, refresh the catalog of its resource in XNAT",
        url=file.uri,
    )


@contextmanager
def no_page() -> Iterator[None]:
    """Raise a TransferError for a web page that comes with status 200: it is not what was asked for."""
    try:
        yield
    except ServerError as error:
        if error.status != _OK:
            raise
        raise TransferError(error.message, hint=error.hint, url=error.url, status=error.status) from error


def _list(session: Session, resource: str) -> list[RemoteFile]:
    with no_page():
        return list_files(session, resource)


def _counted(files: Sequence[RemoteFile]) -> Counts:
    sizes = [file.size for file in files if file.size is not None]
    return Counts(len(files), sum(sizes) if len(sizes) == len(files) else None)


def _is_short(files: Sequence[RemoteFile], counts: Counts) -> bool:
    found = _counted(files)
    too_few = counts.files is not None and len(files) < counts.files
    return too_few or (counts.size is not None and found.size is not None and found.size < counts.size)


def _ask_counts(session: Session, parent: str, label: str) -> Counts:
    """Return XNAT's counts of a resource. Two simultaneous first writers can make two of one label: these are added."""
    with no_page():
        rows = [row for row in session.rows(f"{parent}/resources") if row.get("label") == label]
    return Counts(*(_sum(rows, column) for column in ("file_count", "file_size")))


def _sum(rows: Sequence[dict[str, str]], column: str) -> int | None:
    numbers = [whole_number(str(row.get(column) or "")) for row in rows]
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
