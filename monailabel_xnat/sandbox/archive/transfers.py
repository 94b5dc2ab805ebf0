"""The bytes of a file: PUT with XNAT's special rules (FileList, RequestUtil), and GET of a whole file or a range."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from monailabel_xnat.sandbox.archive.catalogs import Holder
from monailabel_xnat.sandbox.archive.model import Resource
from monailabel_xnat.sandbox.archive.resources import BEFORE_ALL, ConcurrentModificationError, Incoming, Resources
from monailabel_xnat.sandbox.archive.staging import ARCHIVE_SUFFIXES, checked_path, unpack
from monailabel_xnat.sandbox.http.messages import MULTIPART, HTTPError, Reply, Request, form_files, html, text

_UPLOAD_TYPES = re.compile(
    r"application/(octet-stream|zip|x-zip-compressed|dicom|x-tar|tar|gzip|x-gzip|x-compressed|x-gtar|pdf|rtf|msword"
    r"|vnd\..*|excel|powerpoint)|text/(plain|xml|csv|html)|image/.*|video/.*"
)
_RESOURCE_VALUES = ("format", "content", "description", "tags")


class Uploads:
    """Stores the files of requests."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def put(self, request: Request, holder: Holder, label: str, path: str) -> Reply:
        """Store the files of a request. The caller has checked the right to write.

        Returns
        -------
        Reply
            Status 200. The body is empty, or has the names of files that were there before and were not changed.

        Raises
        ------
        HTTPError
            400 for a body that XNAT does not take as a file, or a path that leaves the resource; 403 for an unknown
            resource number; 406 for a form in the body; 500 for a body without length, a damaged archive or another
            writer.
        """
        _require_file(request)
        incoming: list[Incoming] = []
        try:
            self._receive(request, path, incoming)
            return self._store(request, self._resource(request, holder, label), incoming)
        except ConcurrentModificationError as error:
            raise HTTPError(500, f"ConcurrentModificationException: {error}") from error
        except ValueError as error:
            raise HTTPError(500 if request.flag("extract") else 400, str(error)) from error
        except OSError as error:  # a folder in the place of a file, a name that is too long, a full disk
            raise HTTPError(500, f"{type(error).__name__}: {error.strerror}") from error
        finally:
            for item in incoming:
                self._resources.staging.drop(item.staged)

    def _resource(self, request: Request, holder: Holder, label: str) -> Resource:
        """Return the resource that existed when the request arrived, or make one. Two requests at once make two."""
        for found in self._resources.of(holder.owner):
            known = self._resources.changes.existed(found.id, request.began)
            if known and (str(found.id) if label.isdigit() else found.label) == label:
                return found
        if label.isdigit():
            raise HTTPError(403)
        values = {name: request.query[name] for name in ("format", "content") if name in request.query}
        return self._resources.create(holder.owner, label, **values)

    def _receive(self, request: Request, path: str, incoming: list[Incoming]) -> None:
        values = {name: request.query.get(name, "") for name in _RESOURCE_VALUES}

        def take(name: str, content: BinaryIO) -> None:
            incoming.append(Incoming(name, self._resources.stage(content), values))

        with form_files(request, path) as files:
            for name, content in files:
                if request.flag("extract") and name.lower().endswith(ARCHIVE_SUFFIXES):
                    unpack(content, name.rpartition("/")[2], take)
                else:
                    take(checked_path(name), content)

    def _store(self, request: Request, resource: Resource, incoming: Sequence[Incoming]) -> Reply:
        duplicates = self._resources.put(
            resource,
            incoming,
            request.user.login,
            since=BEFORE_ALL if request.is_stale else request.began,
            overwrite=request.flag("overwrite"),
            update_stats=request.query.get("update-stats", "true").lower() not in ("false", "0"),
        )
        return html(json.dumps({"duplicates": duplicates})) if duplicates else text()


def _require_file(request: Request) -> None:
    """Refuse a body that is not a file for XNAT."""
    form, in_body = request.content_type == MULTIPART, request.flag("inbody")
    if form and in_body:
        raise HTTPError(406)
    if not (form or in_body or _UPLOAD_TYPES.fullmatch(request.content_type)):
        raise HTTPError(
            400,
            "You tried to PUT a payload without inbody=true and without a Content-Type that stands for a file: "
            f"{request.content_type or 'none'}.",
        )
    if not request.length and request.content_type != "application/zip":
        raise HTTPError(500, "The body has no length.")


_MEDIA_TYPES = {
    ".txt": "text/plain",
    ".log": "text/plain",
    ".csv": "text/csv",
    ".xml": "text/xml",
    ".html": "text/html",
    ".json": "application/json",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".pdf": "application/pdf",
    ".zip": "application/zip",
}
_BLOCK = 1 << 18
_RANGE = re.compile(r"(\d*)-(\d*)")


class _Content:
    """The bytes that a file had when it was opened, even if the file is replaced while they are sent."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb")
        status = os.fstat(self._stream.fileno())
        self.size = status.st_size
        self.modified = status.st_mtime

    def __del__(self) -> None:
        # An answer that is never sent must not leave its file open.
        self._stream.close()

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        with self._stream as stream:
            stream.seek(start)
            while start < stop:
                block = stream.read(min(_BLOCK, stop - start))
                start += len(block)
                yield block


def file_reply(request: Request, path: Path) -> Reply:
    """Answer GET or HEAD of a file as Restlet does: it sends one range, but not several, and no ETag.

    Raises
    ------
    HTTPError
        416 for several ranges, or for a range past the end.
    """
    content = _Content(path)
    headers = [
        ("Last-Modified", formatdate(content.modified, usegmt=True)),
        ("Cache-Control", "must-revalidate"),
    ]
    if _is_known(request.headers.get("if-modified-since", ""), content.modified):
        return Reply((), 304, "", headers)
    headers.append(("Content-Disposition", f'attachment; filename="{_quoted(path.name)}"'))
    start, stop, status = 0, content.size, 200
    asked = _asked_range(request.headers.get("range", ""), content.size)
    if asked is not None:
        (start, stop), status = asked, 206
        headers += [("Content-Range", f"bytes {start}-{stop - 1}/{content.size}"), ("Accept-Ranges", "bytes")]
    blocks: Iterator[bytes] = iter(()) if request.method == "HEAD" else content.blocks(start, stop)
    return Reply(blocks, status, media_type(path.name), headers, length=stop - start)


def media_type(name: str) -> str:
    """Return the media type that XNAT sends for a file name. DICOM and NIfTI are plain bytes for XNAT."""
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


def _is_known(since: str, modified: float) -> bool:
    try:
        return bool(since) and int(modified) <= parsedate_to_datetime(since).timestamp()
    except ValueError:
        return False


def _asked_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and stop of a ``Range`` header, or None if it is not understood."""
    unit, _, ranges = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    if "," in ranges:
        raise HTTPError(416)
    found = _RANGE.fullmatch(ranges.strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return None
    if start >= stop:
        raise HTTPError(416, headers=[("Content-Range", f"bytes */{size}")])
    return start, stop


def _quoted(name: str) -> str:
    """Return a name that is safe in a header."""
    return name.encode("ascii", "replace").decode().replace("\\", "_").replace('"', "_")
