"""Files of an XNAT resource on disk, compared in size and MD5 with what XNAT lists."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Protocol

import requests
from urllib3.exceptions import HTTPError

from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.zipstream import BadZipError, Buffer, zip_members
from monailabel_xnat.errors import NotInArchiveError, TransferError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
# Steps that may wait for the writing thread, each with a block at most: the memory that a download takes.
_STEPS_AHEAD = 16
_NAMED_IN_ERRORS = 3


class Receiver(Protocol):
    """Takes files as they arrive, one at a time; from another thread than it was given by.

    A file that is downloaded again comes again.
    """

    def add(self, path: Path) -> None:
        """Take a file that is on the disk."""

    def take(self, path: Path, content: bytes) -> None:
        """Take a small file that has not been written, and write it to its path if it is needed there."""


def download_files(
    session: Session,
    resource: str,
    files: Sequence[RemoteFile],
    folder: Path,
    receiver: Receiver | None = None,
) -> None:
    """Download files of a resource, all in one request; a transfer that breaks off is repeated once.

    Parameters
    ----------
    session : Session
        The connection.
    resource : str
        Path of the resource, ``/data/.../resources/DICOM``, percent-encoded.
    files : sequence of RemoteFile
        Which files, as listed. Each is compared with its listed size and MD5 where XNAT knows them.
    folder : Path
        An existing folder; sub-folders are made as in the resource. After a failure it may hold some of the files.
    receiver : Receiver or None
        Who is told of each file as soon as it is there and compared.

    Raises
    ------
    TransferError
        If what came is not what was listed, after the second time.
    ServerError
        If XNAT fails.
    """
    for file in files:
        _check_path(file, resource)
    if len(files) == 1 and _download_alone(session, files[0], folder / files[0].path):
        if receiver:
            receiver.add(folder / files[0].path)
        return
    _repeated_once(session, lambda: _download_zip(session, resource, files, folder, receiver))


def download_file(session: Session, file: RemoteFile, target: Path) -> None:
    """Download one file of a resource; a transfer that breaks off is repeated once.

    Parameters
    ----------
    session : Session
        The connection.
    file : RemoteFile
        The file, as listed.
    target : Path
        Where to write it; after a failure a part of it may be there.

    Raises
    ------
    TransferError
        If what came is not what was listed, after the second time.
    NotInArchiveError
        If XNAT does not have it.
    ServerError
        If XNAT fails.
    """
    _repeated_once(session, lambda: _download_one(session, file, target))


def _repeated_once(session: Session, download: Callable[[], None]) -> None:
    try:
        download()
    except TransferError as error:
        session.wait(
            next(session.backoff.pauses(), 0.0), f"downloading once more, {error.hint or type(error).__name__}"
        )
        download()


def _download_alone(session: Session, file: RemoteFile, target: Path) -> bool:
    """Download the only file of a resource; False where XNAT does not find it by its own name.

    XNAT decodes file names in addresses by rules of its own (FileList), which not every name survives.
    """
    try:
        download_file(session, file, target)
    except NotInArchiveError:
        return False
    return True


def _download_one(session: Session, file: RemoteFile, target: Path) -> None:
    with session.stream(file.uri) as response, _Writer() as writer:
        writer.write(_blocks(response), _CheckedFile(file, target))


def _download_zip(
    session: Session,
    resource: str,
    files: Sequence[RemoteFile],
    folder: Path,
    receiver: Receiver | None,
) -> None:
    expected = {_normal(file.path): file for file in files}
    label = resource.rpartition("/")[2]
    with session.pace.hard(), session.stream(f"{resource}/files", {"format": "zip"}) as response, _Writer() as writer:
        try:
            for member in zip_members(_blocks(response)):
                file = expected.pop(_path_in_resource(member.name, expected), None)
                if file is not None:
                    writer.write(member.content, _CheckedFile(file, folder / file.path, receiver))
        except BadZipError as error:
            raise _broken(f"the zip of {label} is not whole: {error}", resource) from None
    if expected:
        raise _broken(f"the zip of {label} lacks {_named(file.path for file in expected.values())}", resource)


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body in large blocks, however small the chunks are that the server sends.

    requests gives chunk by chunk, of 8 kB from a Tomcat: to handle each would take longer than to receive it.
    """
    if response.headers.get("Content-Encoding"):
        yield from response.iter_content(_BLOCK)
        return
    try:
        while block := response.raw.read(_BLOCK):
            yield block
    except HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error


class _CheckedFile:
    """A file that is written block by block and compared with what XNAT lists; closes itself when it fails."""

    def __init__(self, file: RemoteFile, target: Path, receiver: Receiver | None = None) -> None:
        self._file = file
        self._target = target
        self._receiver = receiver
        self._stream: IO[bytes] | None = None
        self._digest = hashlib.md5(usedforsecurity=False) if file.md5 else None
        self._size = 0

    def write(self, blocks: Sequence[Buffer]) -> None:
        """Write some blocks."""
        try:
            self._measure(blocks)
            if self._stream is None:
                self._target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._stream = open(self._target, "wb", opener=_private)  # noqa: SIM115 - closed in two places
            for block in blocks:
                self._stream.write(block)
        except BaseException:
            self.close()
            raise

    def finish(self, blocks: Sequence[Buffer]) -> None:
        """Write the last blocks, close the file and compare it as a whole; a small file may go to the receiver."""
        if self._stream is None and self._receiver:
            self._measure(blocks)
            self._compare()
            self._receiver.take(self._target, b"".join(blocks))
            return
        self.write(blocks)
        self.close()
        self._compare()
        if self._receiver:
            self._receiver.add(self._target)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _measure(self, blocks: Sequence[Buffer]) -> None:
        self._size += sum(map(len, blocks))
        if self._file.size is not None and self._size > self._file.size:  # it may never end
            self._refuse(f"more than the {self._file.size} bytes that XNAT lists")
        if self._digest is not None:
            for block in blocks:
                self._digest.update(block)

    def _compare(self) -> None:
        if self._file.size not in (None, self._size):
            self._refuse(f"{self._size} bytes instead of {self._file.size}")
        if self._digest is not None and self._digest.hexdigest() != self._file.md5:
            self._refuse("another MD5 digest than XNAT lists")

    def _refuse(self, problem: str) -> None:
        raise _broken(f"{self._file.path} came with {problem}", self._file.uri)


class _Writer:
    """Does what it is given in turn, on a thread of its own, so that writing goes on while the next bytes arrive.

    After a failure it does nothing more, and raises it at the next call or at the end.
    """

    def __init__(self) -> None:
        self._steps: queue.Queue[Callable[[], None] | None] = queue.Queue(_STEPS_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="xnat-download", daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._steps.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def write(self, content: Iterable[Buffer], file: _CheckedFile) -> None:
        """Write a file in a worker thread; a small one in one step, because handing it over takes longer."""
        waiting: list[Buffer] = []
        size = 0
        try:
            for block in content:
                waiting.append(block)
                size += len(block)
                if size >= _BLOCK:
                    self._do(partial(file.write, waiting))
                    waiting, size = [], 0
        except BaseException:
            self._steps.put(file.close)
            raise
        self._do(partial(file.finish, waiting))

    def _do(self, step: Callable[[], None]) -> None:
        """Hand a step to the worker thread; waits while too many are queued."""
        if self._error is not None:
            raise self._error
        self._steps.put(step)

    def _run(self) -> None:
        for step in iter(self._steps.get, None):
            if self._error is None:
                try:
                    step()
                except BaseException as error:  # noqa: BLE001 - raised where the download is waited for
                    self._error = error


def _path_in_resource(name: str, expected: Iterable[str]) -> str:
    """Find out which listed file a member is; the head of its name differs between XNAT's versions and settings."""
    path = _normal(name)
    inside = path.partition("/resources/")[2].partition("/files/")[2]
    if inside in expected:
        return inside
    while path and path not in expected:
        path = path.partition("/")[2]
    return path


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _check_path(file: RemoteFile, resource: str) -> None:
    """Refuse names that would leave the folder, whoever has put them into XNAT."""
    parts = file.path.replace("\\", "/").split("/")
    outside = bool(PureWindowsPath(file.path).drive) or any(part in ("", ".", "..") for part in parts)
    if outside or "\0" in file.path:
        raise TransferError(
            f"XNAT lists a file with the name {file.path!r}, which leaves its folder",
            hint="rename or remove that file in XNAT",
            url=resource,
        )


def _named(paths: Iterable[str]) -> str:
    names = sorted(paths)
    more = f" and {len(names) - _NAMED_IN_ERRORS} more files" if len(names) > _NAMED_IN_ERRORS else ""
    return ", ".join(names[:_NAMED_IN_ERRORS]) + more


def _broken(problem: str, url: str) -> TransferError:
    hint = "try again; if it stays so, refresh the catalog of the resource in XNAT"
    return TransferError(problem, hint=hint, url=url)
