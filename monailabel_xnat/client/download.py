"""Files of an XNAT resource on disk, proven to be what XNAT lists."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PureWindowsPath

from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.zipstream import BadZipError, Buffer, zip_members
from monailabel_xnat.errors import NotInArchiveError, TransferError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_NAMED_IN_ERRORS = 3


def download_files(session: Session, resource: str, files: Sequence[RemoteFile], folder: Path) -> None:
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
        return
    _repeated_once(lambda: _download_zip(session, resource, files, folder))


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
    _repeated_once(lambda: _download_one(session, file, target))


def _repeated_once(download: Callable[[], None]) -> None:
    try:
        download()
    except TransferError as error:
        logger.info("downloading once more: %s", error.hint or type(error).__name__)
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
    with session.stream(file.uri) as response:
        _write(response.iter_content(_BLOCK), file, target)


def _download_zip(session: Session, resource: str, files: Sequence[RemoteFile], folder: Path) -> None:
    expected = {_normal(file.path): file for file in files}
    label = resource.rpartition("/")[2]
    with session.stream(f"{resource}/files", {"format": "zip"}) as response:
        try:
            for member in zip_members(response.iter_content(_BLOCK)):
                file = expected.pop(_path_in_resource(member.name, expected), None)
                if file is not None:
                    _write(member.content, file, folder / file.path)
        except BadZipError as error:
            raise _broken(f"the zip of {label} is not whole: {error}", resource) from None
    if expected:
        raise _broken(f"the zip of {label} lacks {_named(file.path for file in expected.values())}", resource)


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


def _write(content: Iterable[Buffer], file: RemoteFile, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False) if file.md5 else None
    size = 0
    with open(target, "wb", opener=_private) as stream:
        for block in content:
            stream.write(block)
            size += len(block)
            if file.size is not None and size > file.size:
                break  # more than listed: wrong already, and it may never end
            if digest is not None:
                digest.update(block)
    if file.size is not None and size != file.size:
        more = "more than " if size > file.size else ""
        raise _broken(
            f"{file.path} came with {more}{min(size, file.size) if more else size} bytes instead of {file.size}",
            file.uri,
        )
    if digest is not None and digest.hexdigest() != file.md5:
        raise _broken(f"{file.path} came with another MD5 digest than XNAT lists", file.uri)


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
