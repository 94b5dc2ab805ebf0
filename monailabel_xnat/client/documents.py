"""Small files of ours in XNAT, most of them JSON: made of plain values, read whole, and compared with XNAT's list."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar
from urllib.parse import unquote

from monailabel_xnat.client.answers import http_time
from monailabel_xnat.client.files import Counts, RemoteFile, list_files, list_whole, lost, no_page
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import MalformedFileError, NotInArchiveError, TransferError

Content = TypeVar("Content")

_TRIES = 2
# A file gets at most this many blanks, which costs nothing. After this many changes a size may come again.
_SIZE_CYCLE = 1024


def read_small(session: Session, file: RemoteFile) -> bytes:
    """Return the content of a small file after comparing its size and MD5 with XNAT's list, as far as it has them.

    Raises
    ------
    NotInArchiveError
        If the file no longer exists.
    TransferError
        If XNAT sends something else.
    ServerError
        If XNAT fails.
    """
    with no_page():
        content = session.request("GET", file.uri).content
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if not file.fits(len(content), digest):
        listed = f"{file.size} bytes" if file.size is not None else "a file of unknown size"
        raise TransferError(
            f"XNAT sent {len(content)} bytes (MD5 {digest}) for {unquote(file.path)}, but it lists {listed} "
            f"(MD5 {file.md5 or 'unknown'})",
            hint="try again; if it stays, look for a proxy or sign-on page that changes answers",
            url=file.uri,
        )
    return content


def read_object(session: Session, file: RemoteFile, check: Callable[[dict[str, Any]], Content]) -> Content:
    """Return the content of a small JSON file, after :func:`read_small` and ``check`` have both accepted it.

    Parameters
    ----------
    session : Session
        The connection.
    file : RemoteFile
        The file, as XNAT lists it.
    check : callable
        Gets the JSON object, and returns what the caller needs from it. If the object does not have the expected form,
        it raises a ValueError that says what is wrong.

    Raises
    ------
    MalformedFileError
        If the file is the one that XNAT lists, but is not such an object.
    NotInArchiveError, TransferError, ServerError
        As for :func:`read_small`.
    """
    content = read_small(session, file)
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError(f"a JSON object was expected, not a {type(found).__name__}")
        return check(found)
    except (ValueError, RecursionError) as error:
        reason = "it is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        raise MalformedFileError(
            f"XNAT holds {unquote(file.path)} in a form that cannot be used: {reason}",
            hint="try again; if it stays, the file was damaged or replaced in XNAT",
            url=file.uri,
        ) from None


def find_object(
    session: Session, parent: str, label: str, name: str, shown: Counts, check: Callable[[dict[str, Any]], Content]
) -> tuple[RemoteFile, Content] | None:
    """Return a small JSON file of a resource, as XNAT lists it now, and its content; None if there is none.

    If the file differs from the list, both are read once more: somebody may have written in between.

    Parameters
    ----------
    session : Session
        The connection.
    parent, label, shown
        As for :func:`list_whole`.
    name : str
        Path of the file in the resource.
    check : callable
        As for :func:`read_object`.

    Raises
    ------
    TransferError
        If the file differs in size or MD5 from XNAT's list, has not the expected form (MalformedFileError), or if the
        list is not complete.
    ServerError
        If XNAT fails.
    """
    tries = 0
    while True:
        tries += 1
        files = list_whole(session, parent, label, shown, wanted=name)
        file = next((file for file in files if file.path == name), None)
        if file is None:
            return None
        try:
            return file, read_object(session, file, check)
        except (NotInArchiveError, TransferError) as error:
            if tries < _TRIES:
                continue
            if isinstance(error, NotInArchiveError):
                raise lost(file) from error
            raise


def read_settled(session: Session, resource: str, name: str, age: float) -> tuple[RemoteFile, bytes] | None:
    """Return a small file and what XNAT sends for it, without comparing them, if it was last changed a while ago.

    XNAT stores a file first and lists it then. If it ends between the two, its list does not fit the file for ever.

    Parameters
    ----------
    session : Session
        The connection.
    resource : str
        Path of the resource, percent-encoded.
    name : str
        Path of the file in the resource.
    age : float
        Seconds for which the file must not have been changed, by XNAT's own clock.

    Returns
    -------
    tuple of RemoteFile and bytes, or None
        None if there is no such file, if somebody may be writing it now, or if XNAT does not tell when it was changed.

    Raises
    ------
    ServerError
        If XNAT fails.
    """
    file = next((file for file in list_files(session, resource) if file.path == name), None)
    if file is None:
        return None
    with no_page():
        answer = session.request("GET", file.uri)
    changed, now = (http_time(answer.headers.get(key, "")) for key in ("Last-Modified", "Date"))
    if changed is None or now is None or (now - changed).total_seconds() < age:
        return None
    return file, answer.content


def plain(value: Any) -> Any:
    """Return a copy of a value that contains only what JSON knows.

    Parameters
    ----------
    value : object
        Nested mappings, sequences, sets, enums, paths, NumPy scalars and arrays. NaN and infinity, which JSON does
        not know, become None.

    Raises
    ------
    TypeError
        If the value contains something else.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return _plain_number(value)
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # values of NumPy and torch; neither is imported here
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON: {value!r:.100}")


def resized(content: bytes, previous_size: int) -> bytes:
    """Return JSON with blanks added at its end, so that its size differs from that of the file which it replaces.

    XNAT's listing shows sizes: by them other processes notice the change.

    Parameters
    ----------
    content : bytes
        The JSON that is to be stored.
    previous_size : int
        Size of the file that it replaces, in bytes. The new size is one byte more than that, modulo 1024.
    """
    return content + b" " * ((previous_size + 1 - len(content)) % _SIZE_CYCLE)


def _plain_number(value: Any) -> Any:
    # numpy.float64 is a subclass of float, and there are subclasses of str: return only the base types.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            number = kind(value)
            return None if isinstance(number, float) and not math.isfinite(number) else number
    return value
