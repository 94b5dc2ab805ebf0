"""Download of the files of an XNAT resource; size and MD5 are compared with XNAT's list."""

from __future__ import annotations

import hashlib
import logging
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
from monailabel_xnat.disk import private_opener
from monailabel_xnat.errors import NotInArchiveError, TransferError, name_some

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
# Steps that may wait for the writing thread. Each holds about a block at most, which limits the memory of a download.
_STEPS_AHEAD = 16


class Receiver(Protocol):
    """An object that gets files as they arrive, one at a time. Its methods are called from another thread.

    If a download is repeated, a file can come a second time.
    """

    def add(self, path: Path) -> None:
        """Take a file that has been written to the disk."""

    def take(self, path: Path, content: bytes) -> None:
        """Take the content of a small file that was not written. The receiver writes it to the path if needed."""


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
        The files, as XNAT lists them. Each is compared with its listed size and MD5, if XNAT knows these.
    folder : Path
        An existing folder; sub-folders are made as in the resource. After a failure it may hold some of the files.
    receiver : Receiver or None
        Gets each file as soon as it has arrived and been compared.

    Raises
    ------
    TransferError
        If the files differ from the list in the second attempt as well.
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
        If the file differs from the list in the second attempt as well.
    NotInArchiveError
        If XNAT does not have it.
    ServerError
        If XNAT fails.
    """

    def download() -> None:
        with session.stream(file.uri) as response, _Writer() as writer:
            writer.write(_blocks(response), _CheckedFile(file, target))

    _repeated_once(session, download)


def _repeated_once(session: Session, download: Callable[[], None]) -> None:
    try:
        download()
    except TransferError as error:
        session.wait(
            next(session.backoff.pauses(), 0.0), f"downloading once more, {error.hint or type(error).__name__}"
        )
        download()


def _download_alone(session: Session, file: RemoteFile, target: Path) -> bool:
    """Download the only file of a resource, and return whether XNAT found it by its name.

    XNAT's class FileList decodes file names in addresses by rules of its own, and so cannot find some names.
    """
    try:
        download_file(session, file, target)
    except NotInArchiveError:
        return False
    return True


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
        raise _broken(
            f"the zip of {label} lacks {name_some(sorted(file.path for file in expected.values()))}", resource
        )


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body in large blocks, even if the server sends small chunks.

    requests yields each chunk by itself. Tomcat sends chunks of 8 kB: to handle one takes longer than to receive it.
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
    """A file that is written block by block and compared with XNAT's list. It is closed when something fails."""

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
                self._stream = open(self._target, "wb", opener=private_opener)  # noqa: SIM115 - closed in two places
            for block in blocks:
                self._stream.write(block)
        except BaseException:
            self.close()
            raise

    def finish(self, blocks: Sequence[Buffer]) -> None:
        """Write the last blocks, close the file and compare it; a small file goes to the receiver without writing."""
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
        if self._file.size is not None and self._size > self._file.size:  # stop now: the rest may never end
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
    """Writes files on a thread of its own, in the given order, while the next bytes arrive.

    After a failure it writes nothing more, and raises the error at the next call or at the end of the block.
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
        """Write a file in the worker thread. A small file is one step: each step costs more than writing it."""
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
        """Pass a step to the worker thread; wait while too many steps are queued."""
        if self._error is not None:
            raise self._error
        self._steps.put(step)

    def _run(self) -> None:
        for step in iter(self._steps.get, None):
            if self._error is None:
                try:
                    step()
                except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the download
                    self._error = error


def _path_in_resource(name: str, expected: Iterable[str]) -> str:
    """Return the path in the resource of a zip member, whose name starts differently in each XNAT version or setting.

    If no listed file fits, the result is not in ``expected``.
    """
    path = _normal(name)
    inside = path.partition("/resources/")[2].partition("/files/")[2]
    if inside in expected:
        return inside
    while path and path not in expected:
        path = path.partition("/")[2]
    return path


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _check_path(file: RemoteFile, resource: str) -> None:
    """Refuse a file name that leads out of the folder: anybody may have put it into XNAT."""
    parts = file.path.replace("\\", "/").split("/")
    outside = bool(PureWindowsPath(file.path).drive) or any(part in ("", ".", "..") for part in parts)
    if outside or "\0" in file.path:
        raise TransferError(
            f"XNAT lists a file with the name {file.path!r}, which leaves its folder",
            hint="rename or remove that file in XNAT",
            url=resource,
        )


def _broken(problem: str, url: str) -> TransferError:
    hint = "try again; if it stays so, refresh the catalog of the resource in XNAT"
    return TransferError(problem, hint=hint, url=url)
