"""The sandbox as an ASGI application: it lets requests in, fails on demand and logs. The router does the rest."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from monailabel_xnat.sandbox.access.accounts import ANONYMOUS, Accounts, Sessions
from monailabel_xnat.sandbox.access.gate import Gate, Permissions
from monailabel_xnat.sandbox.access.xapi import LOGIN_PAGE, Preferences
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.resources import Resources
from monailabel_xnat.sandbox.http import router
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, escaped, html, text


@dataclass
class Fault:
    """One failure that a test asks for.

    Parameters
    ----------
    path
        Regular expression that must match within the path of the request.
    method
        The HTTP method; empty for all methods.
    query
        Regular expression that must match within a value of the request's query.
    times
        How often the failure happens; None for always.
    skip
        How many matching requests pass before the first failure.
    status
        Answer with this status instead.
    retry_after
        The ``Retry-After`` header of that answer.
    delay
        Seconds to wait before the request is handled.
    drop_after
        Cut the connection after this many bytes of the answer's body.
    stall
        Seconds to wait in the middle of the answer's body, after its first byte.
    truncate
        Leave out this many bytes at the end of the answer's body, but end the answer properly.
    login_page
        Answer with XNAT's login page and status 200.
    page
        Answer with this web page (a text) and status 200, as a proxy does during maintenance of the site.
    json
        Answer with this JSON (a text) and status 200.
    lose
        Answer 200 to a write, but do not write.
    expire
        End all sessions before the request is handled.
    stale
        Act as if another writer changed the catalog during a PUT of a file: 500, and the bytes are on disk, but the
        catalog has no entry for them.
    """

    path: str = ""
    method: str = ""
    query: str = ""
    times: int | None = 1
    skip: int = 0
    status: int = 0
    retry_after: str = ""
    delay: float = 0.0
    drop_after: int | None = None
    stall: float = 0.0
    truncate: int = 0
    login_page: bool = False
    page: str = ""
    json: str = ""
    lose: bool = False
    expire: bool = False
    stale: bool = False

    def spoil(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Return the blocks of an answer's body, cut as the failure says."""
        if self.truncate:
            blocks = _without_end(blocks, self.truncate)
        return _first(blocks, self.drop_after) if self.drop_after is not None else iter(blocks)


def _without_end(blocks: Iterable[bytes], length: int) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        held += block
        yield held[:-length]
        held = held[-length:]


def _first(blocks: Iterable[bytes], length: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[:length]
        length -= len(block)
        if length <= 0:
            return


@dataclass
class Faults:
    """The failures that tests have asked for."""

    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: str = "", **what: object) -> Fault:
        """Add and return a failure. The parameters are those of :class:`Fault`."""
        fault = Fault(path, **what)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all failures."""
        with self._lock:
            self._faults.clear()

    def due(self, method: str, path: str, query: Collection[str] = ()) -> Fault | None:
        """Return the failure that this request must meet, or None, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.method not in ("", method) or not re.search(fault.path, path):
                    continue
                if fault.query and not any(re.search(fault.query, value) for value in query):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.times is None:
                    return fault
                if fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


_LENGTH = 100_000


@dataclass
class Served:
    """One request that was answered. `bytes_out` and `seconds` are set when all is sent."""

    method: str
    path: str
    query: dict[str, str]
    user: str
    status: int
    bytes_in: int
    bytes_out: int = 0
    seconds: float = 0.0


class RequestLog:
    """The last 100,000 requests that were served, oldest first. It is safe to read while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: deque[Served] = deque(maxlen=_LENGTH)

    def append(self, served: Served) -> None:
        """Add a request."""
        with self._lock:
            self._served.append(served)

    def clear(self) -> None:
        """Remove all requests."""
        with self._lock:
            self._served.clear()

    def __iter__(self) -> Iterator[Served]:
        with self._lock:
            return iter(list(self._served))

    def __len__(self) -> int:
        with self._lock:
            return len(self._served)


logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_SPOOLED = 1 << 20


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """The body of a request. Before Python 3.11 such files have no method ``seekable``, which zipfile calls."""

    def seekable(self) -> bool:
        return True


class Application:
    """The ASGI application over one archive.

    Parameters
    ----------
    archive, accounts, sessions
        The archive to serve, its users, and their sessions.
    require_login
        False makes an open site: a user who is not logged in is a guest.
    roi_plugin
        Whether the OHIF viewer's plugin is installed.
    context
        The path below which the site is deployed, such as ``/xnat``; empty for the root.
    """

    def __init__(
        self,
        archive: Archive,
        accounts: Accounts,
        sessions: Sessions,
        *,
        require_login: bool = True,
        roi_plugin: bool = True,
        context: str = "",
    ) -> None:
        self._archive = archive
        self._accounts, self._sessions = accounts, sessions
        self._require_login, self._roi_plugin = require_login, roi_plugin
        self._gate = Gate(accounts, sessions, require_login)
        self._context = context
        self.preferences = Preferences(archive, require_login)
        self.resources = Resources(archive)
        self.requests = RequestLog()
        self.faults = Faults()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        started = time.perf_counter()
        with _Spool(_SPOOLED, dir=str(self._archive.folder)) as body:
            began = self.resources.changes.now
            size = await _receive_body(receive, body)
            if size is None:
                return
            request = _request(scope, body, self._context, began)
            fault = self.faults.due(request.method, request.path, request.query.values())
            request.is_stale = fault is not None and fault.stale
            if fault is not None and fault.delay:
                await asyncio.sleep(fault.delay)
            reply = await run_in_threadpool(self._answer, request, fault)
            served = Served(request.method, request.path, request.query, request.user.login, reply.status, size)
            # It is added before the first byte is sent, so that a client with an answer finds its request in the log.
            self.requests.append(served)
            try:
                served.bytes_out = await self._send(reply, request, fault, send)
            finally:
                served.seconds = time.perf_counter() - started

    async def _send(self, reply: Reply, request: Request, fault: Fault | None, send: Send) -> int:
        headers = [*reply.header_list(), *self._gate.cookies(request)]
        blocks = reply.blocks()
        if fault is not None:
            blocks = fault.spoil(blocks)
            if fault.truncate:
                headers = [(name, value) for name, value in headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        sent = 0
        async for block in iterate_in_threadpool(blocks):
            if fault is not None and fault.stall and not sent:
                await send({"type": "http.response.body", "body": block[:1], "more_body": True})
                await asyncio.sleep(fault.stall)
                block, sent = block[1:], 1
            sent += len(block)
            await send({"type": "http.response.body", "body": block, "more_body": True})
        # If an answer is left unfinished, Uvicorn closes its connection.
        if fault is None or fault.drop_after is None or sent < fault.drop_after:
            await send({"type": "http.response.body", "body": b""})
        return sent

    def _answer(self, request: Request, fault: Fault | None) -> Reply:
        try:
            reply = self._failing(fault) if fault is not None else None
            reply = reply or self._gate.admit(request) or self._dispatch(request)
        except HTTPError as error:
            reply = error.text() if request.words[:1] == ["xapi"] else error.page()
        except Exception:
            logger.exception("the sandbox failed to answer %s", request.method)
            reply = HTTPError(500).page()
        return reply.head() if request.method == "HEAD" else reply

    def _failing(self, fault: Fault) -> Reply | None:
        if fault.expire:
            self._sessions.close_all()
        if fault.status:
            headers = [("Retry-After", fault.retry_after)] if fault.retry_after else []
            return HTTPError(fault.status, headers=headers).page()
        if fault.login_page or fault.page:
            return html(fault.page or LOGIN_PAGE)
        if fault.json:
            return Reply(fault.json.encode(), media_type="application/json; charset=UTF-8")
        return text() if fault.lose else None

    def _dispatch(self, request: Request) -> Reply:
        if not request.is_inside:
            raise HTTPError(404)
        visit = router.Visit(
            self._archive,
            self.resources,
            self._accounts,
            self._sessions,
            self.preferences,
            Permissions(self._archive, request.user),
            self._require_login,
            self._roi_plugin,
        )
        return router.answer(request, visit)


def _request(scope: Message, body: Any, context: str, began: int) -> Request:
    path = scope["raw_path"].decode("ascii").partition("?")[0]
    headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
    given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    pairs = [(name, escaped(value)) for name, value in given]
    length = int(headers["content-length"]) if "content-length" in headers else None
    is_inside = path == context or path.startswith(f"{context}/")
    inner = path[len(context) :] if is_inside else path
    return Request(
        scope["method"],
        inner,
        dict(pairs),
        headers,
        body,
        length,
        ANONYMOUS,
        began=began,
        context=context,
        is_inside=is_inside,
        pairs=pairs,
    )


async def _receive_body(receive: Receive, body: Any) -> int | None:
    """Receive the whole body and return its length, or None if the client went away before the end."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        block = message.get("body", b"")
        body.write(block)
        size += len(block)
        more = message.get("more_body", False)
    body.seek(0)
    return size
