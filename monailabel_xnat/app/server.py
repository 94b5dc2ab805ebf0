"""MONAI Label's server, in which a slow request does not hold up the quick ones.

MONAI Label answers nearly all requests on the one thread of its event loop. While an image is fetched and converted, or
a model runs, nobody else gets an answer, not even from ``/info/``. Here, requests that may be slow are handled on other
threads. Their work is done one after the other, as before, for apps of MONAI Label rely on that: who asks for an image
still waits while the model runs for somebody else. Bodies come and go while others work.

``monailabel-xnat start_server`` serves this, and so does MONAI Label's own launcher with the option ``--uvicorn_app
monailabel_xnat.app.server:app``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monailabel.config import settings as _settings

from monailabel_xnat.app.rest import app as _monai_label

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_SLOW = ("/infer", "/activelearning", "/datastore")
# A client that asks for these looks how a task is getting on; any other method may start one and wait for it.
_TASKS = ("/train", "/batch", "/scoring")
# Bodies that are being sent or received at a time.
_THREADS = 32


class QuickFirst:
    """An application that hands slow requests to other threads.

    Parameters
    ----------
    application : ASGI application
        MONAI Label's, or what is made of it.
    prefix : str
        What stands before its paths.
    """

    def __init__(self, application: Application, prefix: str = "") -> None:
        self._application = application
        self._prefix = prefix
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="monailabel-slow")
        self._turn = threading.Lock()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, as the ASGI specification says."""
        if not self._may_be_slow(scope):
            await self._application(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._handle, scope, receive, send, loop)

    def _may_be_slow(self, scope: MutableMapping[str, Any]) -> bool:
        if scope["type"] != "http":
            return False
        path = scope["path"].removeprefix(self._prefix)
        return path.startswith(_SLOW) or (path.startswith(_TASKS) and scope["method"] not in ("GET", "HEAD"))

    def _handle(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, server: asyncio.AbstractEventLoop
    ) -> None:
        """Answer a request on this thread; it has its turn from when it is here as a whole until it is answered."""
        has_turn = False

        def take_turn() -> None:
            nonlocal has_turn
            has_turn = has_turn or self._turn.acquire()

        def give_turn() -> None:
            nonlocal has_turn
            if has_turn:
                has_turn = False
                self._turn.release()

        async def receive_here() -> Message:
            message: Message = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(receive()), server))
            if message["type"] == "http.request" and not message.get("more_body"):
                take_turn()
            return message

        async def send_here(message: Message) -> None:
            give_turn()
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(send(message)), server))

        headers = {name.lower(): value for name, value in scope["headers"]}
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            take_turn()
        try:
            asyncio.run(_awaited(self._application(scope, receive_here, send_here)))
        finally:
            give_turn()


async def _awaited(waiting: Awaitable[Any]) -> Any:
    return await waiting


app = QuickFirst(_monai_label, _settings.MONAI_LABEL_API_STR)
