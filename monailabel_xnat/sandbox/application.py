"""The sandbox as an ASGI application: who asks, faults, the way to the handlers, the log of requests."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import tempfile
import threading
import time
from collections.abc import Awaitable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Callable
from urllib.parse import parse_qsl

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from monailabel_xnat.sandbox.accounts import ANONYMOUS, Accounts, Session, Sessions
from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.faults import Fault, Faults
from monailabel_xnat.sandbox.filehandlers import Files
from monailabel_xnat.sandbox.importing import import_archive
from monailabel_xnat.sandbox.objects import Objects
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError, Reply, html, text
from monailabel_xnat.sandbox.request import Finder, Request
from monailabel_xnat.sandbox.resources import Resources
from monailabel_xnat.sandbox.roi import RoiCollections
from monailabel_xnat.sandbox.site import LOGIN_PAGE, Site, front_page

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
_SPOOLED = 1 << 20
_BROWSERS = re.compile("MSIE|Mozilla|AppleWebKit|Opera")


@dataclass
class Served:
    """One request that was answered; `bytes_out` and `seconds` are there once all is sent."""

    method: str
    path: str
    query: dict[str, str]
    user: str
    status: int
    bytes_in: int
    bytes_out: int = 0
    seconds: float = 0.0


class RequestLog:
    """The requests served, oldest first; safe to read while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: list[Served] = []

    def append(self, served: Served) -> None:
        """Note a request."""
        with self._lock:
            self._served.append(served)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._served.clear()

    def __iter__(self) -> Iterator[Served]:
        with self._lock:
            return iter(list(self._served))

    def __len__(self) -> int:
        with self._lock:
            return len(self._served)


class Application:
    """The ASGI application over one archive."""

    def __init__(
        self, archive: Archive, accounts: Accounts, sessions: Sessions, require_login: bool, roi_plugin: bool
    ) -> None:
        self._archive = archive
        self._accounts = accounts
        self._sessions = sessions
        self._require_login = require_login
        self._roi_plugin = roi_plugin
        self.resources = Resources(archive)
        self.requests = RequestLog()
        self.faults = Faults()

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve one connection event."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        started = time.perf_counter()
        path = scope["raw_path"].decode("ascii").partition("?")[0]
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        with tempfile.SpooledTemporaryFile(_SPOOLED, dir=str(self._archive.folder)) as body:
            began = self.resources.changes.now
            size = await _receive_body(receive, body)
            if size is None:
                return
            length = int(headers["content-length"]) if "content-length" in headers else None
            request = Request(scope["method"], path, query, headers, body, length, ANONYMOUS, began=began)  # type: ignore[arg-type]
            fault = self.faults.due(request.method, path)
            if fault is not None and fault.delay:
                await asyncio.sleep(fault.delay)
            reply = await run_in_threadpool(self._answer, request, fault)
            served = Served(request.method, path, query, request.user.login, reply.status, size)
            # Noted before the first byte leaves: who has the answer finds the request in the log.
            self.requests.append(served)
            try:
                served.bytes_out = await self._send(reply, request, fault, send)
            finally:
                served.seconds = time.perf_counter() - started

    async def _send(
        self, reply: Reply, request: Request, fault: Fault | None, send: Callable[[Message], Awaitable[None]]
    ) -> int:
        headers = [*reply.header_list(), *self._cookies(request)]
        if fault is not None and fault.truncate:
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        sent, held = 0, b""
        async for block in iterate_in_threadpool(reply.blocks()):
            if fault is not None and fault.truncate:
                held += block
                block, held = held[: -fault.truncate], held[-fault.truncate :]
            if fault is not None and fault.drop_after is not None:
                left = fault.drop_after - sent
                await send({"type": "http.response.body", "body": block[:left], "more_body": True})
                sent += min(len(block), left)
                if sent >= fault.drop_after:
                    # Uvicorn closes the connection of an answer that was left unfinished.
                    return sent
                continue
            sent += len(block)
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return sent

    def _cookies(self, request: Request) -> list[tuple[bytes, bytes]]:
        now, timeout = int(time.time() * 1000), int(self._sessions.timeout * 1000)
        # The container quotes the value because of its comma, and xnatpy knows it only so.
        cookies = [f'SESSION_EXPIRATION_TIME="{now},{timeout}"; Path=/']
        if request.session is not None and request.session.id not in request.headers.get("cookie", ""):
            cookies.append(f"JSESSIONID={request.session.id}; Path=/; HttpOnly")
        return [(b"set-cookie", cookie.encode("latin-1")) for cookie in cookies]

    def _answer(self, request: Request, fault: Fault | None) -> Reply:
        try:
            if fault is not None:
                reply = self._failing(fault)
                if reply is not None:
                    return reply
            refusal = self._identify(request)
            reply = refusal or self._dispatch(request)
        except HTTPError as error:
            reply = error.text() if request.path.startswith("/xapi") else error.page()
        except Exception:
            logger.exception("the sandbox failed to answer %s", request.method)
            reply = HTTPError(500).page()
        if request.method == "HEAD" and isinstance(reply.body, bytes):
            reply.length, reply.body = len(reply.body), iter(())
        return reply

    def _failing(self, fault: Fault) -> Reply | None:
        if fault.expire:
            self._sessions.close_all()
        if fault.status:
            headers = [("Retry-After", fault.retry_after)] if fault.retry_after else []
            return HTTPError(fault.status, headers=headers).page()
        if fault.login_page:
            return html(LOGIN_PAGE)
        return text() if fault.lose else None

    def _identify(self, request: Request) -> Reply | None:
        """Find out who asks; give an answer where that is refused."""
        cookie = re.search(r"JSESSIONID=([0-9A-Za-z]+)", request.headers.get("cookie", ""))
        session = self._sessions.touch(cookie.group(1)) if cookie else None
        if session is None:
            session = self._by_basic(request)
        if session is not None:
            request.session, request.user = session, session.user
        if not request.user.is_guest:
            return None
        guarded = request.path.startswith(("/data/", "/REST/", "/fs/", "/xapi/"))
        if self._require_login and guarded and not request.path.startswith("/data/services/auth"):
            if _BROWSERS.search(request.headers.get("user-agent", "")):
                return html(LOGIN_PAGE)
            return HTTPError(401, headers=[("WWW-Authenticate", 'Basic realm="XNAT Protected Area"')]).page()
        if session is None and not self._require_login:
            # The container starts an anonymous session for whom it does not know.
            request.session = self._sessions.open(ANONYMOUS)
        return None

    def _by_basic(self, request: Request) -> Session | None:
        kind, _, encoded = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            login, _, password = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise HTTPError(401) from None
        user = self._accounts.check(login, password)
        session = self._sessions.open(user) if user else None
        if session is None:
            raise HTTPError(401)
        return session

    def _dispatch(self, request: Request) -> Reply:
        words = list(request.path.split("/")[1:])
        while words and not words[-1]:
            words.pop()
        may = Permissions(self._archive, request.user)
        site = Site(self._archive, self._accounts, self._sessions, may)
        if not words or words[0] == "app":
            return front_page(request)
        if words[0] == "xapi":
            if words[1:2] == ["roi"]:
                if not self._roi_plugin:
                    raise HTTPError(404)
                return RoiCollections(self._archive, self.resources, may).handle(request, words[2:])
            return site.xapi(request, words[1:])
        if words[0] not in ("data", "REST", "fs"):
            raise HTTPError(404)
        return self._data(request, words[1:], site, may)

    def _data(self, request: Request, words: list[str], site: Site, may: Permissions) -> Reply:
        reply = site.data(request, words)
        if reply is not None:
            return reply
        if words[:2] == ["services", "import"]:
            return import_archive(request, self._archive, self.resources, may)
        if words[:1] == ["archive"]:
            words = words[1:]
        if words[:1] not in (["projects"], ["subjects"], ["experiments"]):
            raise HTTPError(404)
        target = Finder(self._archive, may).find(words)
        if target.files or target.resource is not None or target.collection == "resources":
            return Files(self._archive, self.resources, may).handle(request, target)
        return Objects(self._archive, self.resources, may).handle(request, target)


async def _receive_body(receive: Callable[[], Awaitable[Message]], body: Any) -> int | None:
    """Take the body to its end; None where the client went away before."""
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


async def _lifespan(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
