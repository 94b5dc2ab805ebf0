"""The body of an answer while it is read: how it begins, and when it has ended."""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator
from typing import Any

import requests
import urllib3

from monailabel_xnat.client.pace import Slot

# A login page has a few dozen kilobytes. Only this many bytes of a body are looked at.
_LONGEST_PAGE = 1 << 18


class HeldBody:
    """The raw body of an answer, wrapped so that its slot is released at its end, at a failure or at close.

    All other attributes are those of the raw body.
    """

    def __init__(self, raw: Any, slot: Slot) -> None:
        self._raw = raw
        self._slot = slot
        slot.touch()
        weakref.finalize(self, slot.release)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def __iter__(self) -> Iterator[bytes]:
        return self.stream()

    def read(self, *args: Any, **options: Any) -> bytes:
        """Return bytes of the body."""
        try:
            data: bytes = self._raw.read(*args, **options)
        except BaseException:
            self._slot.release()
            raise
        self._noted()
        return data

    def stream(self, *args: Any, **options: Any) -> Iterator[bytes]:
        """Yield the body in parts."""
        try:
            for part in self._raw.stream(*args, **options):
                self._slot.touch()
                yield part
        except GeneratorExit:  # the reader may continue with another method
            raise
        except BaseException:
            self._slot.release()
            raise
        self._noted()

    def close(self) -> None:
        """Close the body."""
        self._slot.release()
        self._raw.close()

    def release_conn(self) -> None:
        """Return the connection to its pool."""
        self._slot.release()
        release = getattr(self._raw, "release_conn", None)
        if release is not None:
            release()

    def _noted(self) -> None:
        if self._raw.closed:
            self._slot.release()
        else:
            self._slot.touch()


def hold(response: requests.Response, slot: Slot) -> None:
    """Arrange that a slot is released once the body of an answer has been read or closed."""
    if response.raw is None or response.raw.closed:
        slot.release()
    else:
        response.raw = HeldBody(response.raw, slot)


def beginning(response: requests.Response) -> bytes:
    """Return the decoded beginning of the body of an answer. Afterwards the whole body can still be read."""
    if response.raw is None or response.raw.closed:
        was_read = getattr(response, "_content", False) is not False
        return response.content[:_LONGEST_PAGE] if was_read else b""
    raw: Any = response.raw
    try:
        first: bytes = raw.read(_LONGEST_PAGE, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    options = {"headers": raw.headers, "status": raw.status, "reason": raw.reason, "preload_content": False}
    response.raw = urllib3.HTTPResponse(
        _Rejoined(first, raw), original_response=getattr(raw, "_original_response", None), **options
    )
    shown = urllib3.HTTPResponse(io.BytesIO(first), **{**options, "enforce_content_length": False})
    try:
        return bytes(shown.read(decode_content=True))
    except urllib3.exceptions.HTTPError:
        return first


class _Rejoined(io.RawIOBase):
    """A body whose beginning has been read already."""

    def __init__(self, first: bytes, rest: Any) -> None:
        super().__init__()
        self._first = io.BytesIO(first)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        whole = size is None or size < 0
        data: bytes = self._first.read(-1 if whole else size)
        if whole:
            data += self._rest.read(decode_content=False)
        elif not data and size:
            data = self._rest.read(size, decode_content=False)
        if self._rest.closed and self._first.tell() == len(self._first.getbuffer()):
            self.close()
        return data

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._rest.close()
            if hasattr(self._rest, "release_conn"):
                self._rest.release_conn()
