"""MONAI Label's server, in which a slow request does not delay quick ones.

MONAI Label answers nearly all requests on the thread of its event loop. While an image is fetched and converted, or a
model runs, no other request is answered, not even ``/info/``. Here, requests that may be slow are handled on other
threads. Their work is still done one after the other, because apps of MONAI Label rely on that: a request for an image
waits while the model runs for another user. Only bodies are received and sent while another request works.

``monailabel-xnat start_server`` uses this server. MONAI Label's own launcher does so with the option ``--uvicorn_app
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
# A GET of these only reads the progress of a task. Any other method may start a task and wait for it.
_TASKS = ("/train", "/batch", "/scoring")
# The number of threads: slow requests that are being received, handled or answered at a time.
_THREADS = 32


class QuickFirst:
    """An ASGI application that handles slow requests on other threads.

    Parameters
    ----------
    application : ASGI application
        The application of MONAI Label that answers the requests.
    prefix : str
        The prefix of all its paths.
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
        """Answer a request on this thread. It has its turn from the end of its body until the start of its answer."""
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
