"""The files of an XNAT resource, as XNAT lists them."""

from __future__ import annotations

from dataclasses import dataclass
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
    try:
        return [_remote_file(row, resource) for row in rows]
    except (KeyError, AttributeError, TypeError):
        raise TransferError(
            f"XNAT listed the files of {unquote(resource)} in a form that is not known", hint="try again", url=resource
        ) from None


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
    """
    found: dict[str, list[RemoteFile]] = {}
    for row in session.rows(f"{holder}/files"):
        label = row["collection"]
        found.setdefault(label, []).append(_remote_file(row, holder + quoted("resources", label)))
    return found


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
