"""The answer to a request for one file: whole, a range of it, or not modified."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path, PurePosixPath

from monailabel_xnat.sandbox.http.replies import HTTPError, Reply
from monailabel_xnat.sandbox.http.request import Request

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
    """The bytes of a file as it was when it was opened, even if it is replaced while they are sent."""

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
    """Answer GET or HEAD of a file as Restlet does: one range is honoured, several are not, and there is no ETag.

    Raises
    ------
    HTTPError
        416 for several ranges, or one past the end.
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
    """Return the media type that XNAT sends for a file name; DICOM and NIfTI are plain bytes to it."""
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


def _is_known(since: str, modified: float) -> bool:
    try:
        return bool(since) and int(modified) <= parsedate_to_datetime(since).timestamp()
    except ValueError:
        return False


def _asked_range(header: str, size: int) -> tuple[int, int] | None:
    """Read a ``Range`` header as start and stop; None where it is none that is understood."""
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
    """Make a name fit for a header."""
    return name.encode("ascii", "replace").decode().replace("\\", "_").replace('"', "_")
