"""Writing files to XNAT, with proof that they are stored.

XNAT answers 200 also to a PUT that it ignored (the name exists, or the user may not edit), and it loses an entry when
two clients write to one resource at once. So the list of files is read back, and size and MD5 digest are compared.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from monailabel_xnat.client.files import RemoteFile, list_files, read_digests
from monailabel_xnat.client.login import GUEST, LOGIN_HINT
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import file_digest, locked, must_work, private_folder, text_digest
from monailabel_xnat.errors import (
    AccessDeniedError,
    NotInArchiveError,
    ServerError,
    ServerTimeoutError,
    TransferError,
)

logger = logging.getLogger(__name__)

# How often a file is sent that XNAT accepted but does not list; other clients may be writing to the resource.
_ATTEMPTS = 3
_FIRST_PAUSE = 0.2
_CONFLICT = 409
_FAILED = 500
# The number of lock files for all resources. Two resources that share one wait for each other, which is rare.
_STRIPES = 64
# An addition moves a whole image, and several may wait for their turn: they wait this many times the usual time.
_LONGEST_ADDITION = 10
_ABOVE_EXPERIMENT = re.compile(r"^/data/projects/[^/]+/subjects/[^/]+/experiments/")
_held = threading.local()


class Fingerprint(NamedTuple):
    """Size in bytes and hexadecimal MD5 digest of a content, to tell it from others; XNAT computes MD5 as well."""

    size: int
    md5: str


@dataclass(frozen=True)
class Upload:
    """One file to store.

    Parameters
    ----------
    name : str
        Its name in the resource: ASCII without blanks, as XNAT changes other names on some of its ways.
    source : Path or bytes
        Its content; XNAT does not accept empty files.
    format, content : str
        XNAT's description of it, such as ``NIFTI`` and ``SEG``.
    """

    name: str
    source: Path | bytes
    format: str
    content: str

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Size and digest of the content."""
        if isinstance(self.source, bytes):
            return Fingerprint(len(self.source), hashlib.md5(self.source, usedforsecurity=False).hexdigest())
        return Fingerprint(self.source.stat().st_size, file_digest(self.source, "md5"))


def upload(
    session: Session,
    resource: str,
    name: str,
    source: Path | bytes,
    *,
    format: str,  # noqa: A002 - XNAT's word for it
    content: str,
    overwrite: bool = False,
) -> RemoteFile:
    """Store one file, and make sure that XNAT has it; see :func:`upload_files`.

    Returns
    -------
    RemoteFile
        The file as XNAT lists it.
    """
    files = upload_files(session, resource, [Upload(name, source, format, content)], overwrite=overwrite)
    return next(file for file in files if file.path == name)


def upload_files(
    session: Session,
    resource: str,
    uploads: Sequence[Upload],
    *,
    overwrite: bool = False,
    exists: bool | None = None,
) -> list[RemoteFile]:
    """Store files in a resource, in the given order, and make sure that XNAT has them.

    The resource is made if it does not exist. A file that is there already with the same size and digest is not sent
    again, so an upload may be repeated.

    Parameters
    ----------
    session : Session
        The connection.
    resource : str
        Path of the resource, ``/data/.../resources/LABEL``, percent-encoded.
    uploads : sequence of Upload
        The files.
    overwrite : bool
        Whether files with these names but other content may be replaced.
    exists : bool or None
        Whether the resource exists, as far as known. Only for files with names that nobody else uses: they are sent
        without a look at what is there. None: XNAT is asked first.

    Returns
    -------
    list of RemoteFile
        All files of the resource, as XNAT lists them afterwards.

    Raises
    ------
    AccessDeniedError
        If the user may not write there, also if XNAT does not report that.
    TransferError
        If the stored file differs from the one that was sent, or XNAT already has another file with that name.
    ServerError
        If XNAT fails.
    """
    with writing(session.settings, resource):
        files = list_files(session, resource) if exists is None else []
        missing = _missing(session, uploads, files)
        if not overwrite:
            _require_free_names(missing, files, resource)
        if not (exists or files) and missing:
            _create_resource(session, resource, missing[0])
        failure: ServerError | None = None
        for attempt in range(_ATTEMPTS):
            if not missing:
                return files
            if attempt:
                _pause(session, attempt)
            for item in missing:
                failure = _put(session, resource, item, overwrite=overwrite or attempt > 0)
            files = list_files(session, resource)
            missing = _missing(session, missing, files)
            if not overwrite:
                # Another writer was quicker, perhaps on another machine. Do not overwrite: it may use its file already.
                _require_free_names(missing, files, resource)
    if not missing:
        return files
    raise failure or _not_stored(session, resource, missing[0], files)


def _missing(session: Session, uploads: Sequence[Upload], files: list[RemoteFile]) -> list[Upload]:
    stored = {file.path: file for file in files}
    return [item for item in uploads if item.name not in stored or not holds(session, stored[item.name], item)]


def holds(session: Session, file: RemoteFile, item: Upload) -> bool:
    """Return whether a stored file has the content of an upload. If the site keeps no digests, the file is read."""
    if file.size not in (None, item.fingerprint.size):
        return False
    return (file.md5 or read_digests(session, file).md5) == item.fingerprint.md5


def _require_free_names(uploads: Sequence[Upload], files: list[RemoteFile], resource: str) -> None:
    taken = {file.path for file in files}.intersection(item.name for item in uploads)
    if taken:
        raise TransferError(
            f"XNAT already holds another file {min(taken)} in {unquote(resource)}",
            hint="choose another name",
            url=resource,
        )


def _create_resource(session: Session, resource: str, item: Upload) -> None:
    """Make the resource before its first file: two first files at once would make two resources with one label.

    XNAT's class FileList does that.
    """
    try:
        session.request("PUT", resource, query={"format": item.format, "content": item.content})
    except AccessDeniedError as error:
        raise denied(session, resource, "has no permission to edit in") from error
    except ServerError as error:
        if error.status != _CONFLICT:
            raise


def _put(session: Session, resource: str, item: Upload, *, overwrite: bool) -> ServerError | None:
    """Send one file. Return the error if XNAT answers 500: concurrent writers cause that; the file may be stored."""
    query = {"format": item.format, "content": item.content, **({"overwrite": "true"} if overwrite else {})}
    source = item.source
    try:
        session.request(
            "PUT",
            f"{resource}/files{quoted(item.name)}",
            query=query,
            body=source if isinstance(source, bytes) else lambda: source.open("rb"),
            # XNAT stores the body as the file only for content types that it knows (its class ResourceModifierA).
            headers={"Content-Type": "application/octet-stream"},
        )
    except AccessDeniedError as error:
        raise denied(session, resource, "has no permission to edit in") from error
    except ServerError as error:
        if error.status != _FAILED:
            raise
        return error
    return None


def _pause(session: Session, attempt: int) -> None:
    session.verify_login()
    # Not security-relevant: the jitter keeps writers on several machines from colliding again.
    time.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311


def _not_stored(session: Session, resource: str, item: Upload, files: list[RemoteFile]) -> ServerError:
    found = next((file for file in files if file.path == item.name), None)
    if found is None:
        return denied(
            session,
            resource,
            "has no permission to edit in",
            seen="XNAT said yes and stored nothing, as it does where ",
        )
    sent = item.fingerprint
    return TransferError(
        f"XNAT holds {found.size} bytes (MD5 {found.md5 or 'unknown'}) as {item.name}, "
        f"but {sent.size} bytes (MD5 {sent.md5}) were sent",
        hint="try again; if it stays, see the log of the XNAT server",
        url=resource,
    )


def denied(
    session: Session, path: str, deed: str, *, project: str = "", seen: str = "", status: int | None = None
) -> AccessDeniedError:
    """Return the error that says which user may not do something, in which project, and who can change that.

    Parameters
    ----------
    session : Session
        The connection.
    path : str
        Path of the object that was to be changed.
    deed : str
        What the user may not do; the project follows: ``may not delete in``.
    project : str
        The project that owns the object; empty: it is found by the path.
    seen : str
        How the refusal was noticed, if XNAT did not report it. It stands at the start of the message.
    status : int or None
        The HTTP status; None if XNAT did not report a refusal.
    """
    project = project or owner_of(session, path)
    if session.known_user == GUEST:
        hint = LOGIN_HINT
    elif "delete" in deed:
        hint = "an owner of the project can; in XNAT members may write but not delete"
    else:
        is_shared = project_of(path) != project
        about = "the session is shared from that project, where rights are missing: " if is_shared else ""
        hint = f"{about}an owner of project {project!r} can make this user a member of it"
    return AccessDeniedError(
        f"{seen}user {session.user!r} {deed} project {project!r}", hint=hint, url=path, status=status
    )


def owner_of(session: Session, path: str) -> str:
    """Return the project that decides who may change the object at a path; "" if it cannot be found.

    For a session XNAT is asked, because its owner may be another project than the one in the path. The result is used
    in error messages.
    """
    _, found, rest = path.partition("/experiments/")
    if found:
        try:
            item = session.json(f"/data/experiments/{rest.partition('/')[0]}")
            return str(item["items"][0]["data_fields"]["project"])
        except (ServerError, LookupError, TypeError, AttributeError):
            pass
    return project_of(path)


def project_of(path: str) -> str:
    """Return the project in a path ``/data/projects/<project>/...``; empty if there is none."""
    _, found, rest = path.partition("/projects/")
    return unquote(rest.partition("/")[0]) if found else ""


@contextmanager
def writing(settings: Settings, resource: str) -> Iterator[None]:
    """Lock a resource within the block, so that only one thread on this machine writes to it; it may be nested.

    Parameters
    ----------
    settings : Settings
        They name the folder for the locks; ``timeout`` is how long to wait.
    resource : str
        Path of the resource.

    Raises
    ------
    ServerTimeoutError
        If another writer does not finish in time.
    CacheError
        If the folder cannot be used.
    """
    # A session has one path below each of its projects, and one without a project. All must use the same lock.
    place = _ABOVE_EXPERIMENT.sub("/data/experiments/", resource)
    with _holding(_lock_file(settings, "", place), resource, settings.timeout):
        yield


@contextmanager
def adding(settings: Settings, *places: str) -> Iterator[None]:
    """Lock places within the block, so that only one thread on this machine adds images to them.

    :func:`writing` may be used inside of this block; this must not be used inside of :func:`writing`.

    Parameters
    ----------
    settings : Settings
        They name the folder for the locks; ten times ``timeout`` is how long to wait.
    *places : str
        Texts that name the places, for example a study and a session.

    Raises
    ------
    ServerTimeoutError
        If another addition does not finish in time.
    CacheError
        If the folder cannot be used.
    """
    with ExitStack() as held:
        # All callers take the locks in the same order, so no two of them can wait for each other.
        for path in sorted({_lock_file(settings, "add-", place) for place in places}):
            held.enter_context(_holding(path, places[0], _LONGEST_ADDITION * settings.timeout))
        yield


def _lock_file(settings: Settings, prefix: str, place: str) -> Path:
    folder = settings.server_folder / "locks"
    with must_work(f"use the folder {folder}", "choose another with the setting cache_path"):
        private_folder(folder)
    return folder / f"{prefix}{int(text_digest(place), 16) % _STRIPES:02d}.lock"


@contextmanager
def _holding(path: Path, place: str, timeout: float) -> Iterator[None]:
    paths = _held.__dict__.setdefault("paths", set())
    if path in paths:
        yield
        return
    with locked(path, timeout=timeout) as is_held:
        if not is_held:
            raise ServerTimeoutError(
                f"another process of this machine has been writing to {place} for too long",
                hint="end it if it hangs, and try again",
                url=place,
            )
        paths.add(path)
        try:
            yield
        finally:
            paths.discard(path)


def remove_file(session: Session, file: RemoteFile, files: Sequence[RemoteFile]) -> None:
    """Delete one file of a resource.

    Parameters
    ----------
    session : Session
        The connection.
    file : RemoteFile
        The file to delete. If it does not exist any more, nothing happens.
    files : sequence of RemoteFile
        All files that the resource holds now.

    Raises
    ------
    AccessDeniedError
        If the user may not delete: in XNAT members of a project may write but not delete.
    ServerError
        If XNAT would delete other files as well: it deletes all whose path starts with the given path.
    """
    others = [other.path for other in files if other.path != file.path and other.path.startswith(file.path)]
    if others:
        raise ServerError(
            f"{file.path} cannot be deleted alone: XNAT would delete {', '.join(others)} as well", url=file.uri
        )
    try:
        session.request("DELETE", file.uri)
    except NotInArchiveError:
        return
    except AccessDeniedError as error:
        raise denied(session, file.uri, "may not delete in", status=error.status) from error
