"""A proxy in front of a server that changes answers, as broken proxies and sign-on pages do."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import requests

_NOT_PASSED_ON = {"connection", "content-encoding", "content-length", "transfer-encoding", "date", "server", "host"}


class Answer(NamedTuple):
    """The answer that a client gets. The body is sent whole, with its right length."""

    status: int
    body: bytes
    content_type: str
    encoding: str = ""


class _Rule(NamedTuple):
    method: str
    path: re.Pattern[str]
    change: Callable[[Answer], Answer]


class Meddler:
    """Passes requests on to a server, and changes answers whose path matches a rule.

    Parameters
    ----------
    url : str
        The server.
    """

    def __init__(self, url: str) -> None:
        self._target = url
        self._rules: list[_Rule] = []
        meddler = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                if self.rfile is None or not self._has_request():
                    return
                meddler._pass_on(self)
                self.wfile.flush()

            def _has_request(self) -> bool:
                self.raw_requestline = self.rfile.readline(1 << 16)
                self.close_connection = not self.raw_requestline or not self.parse_request()
                return not self.close_connection

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def change(self, path: str, how: Callable[[Answer], Answer], method: str = "GET") -> None:
        """Change answers from now on, if a regular expression matches the path of the request."""
        self._rules.append(_Rule(method, re.compile(path), how))

    def stop(self) -> None:
        """Stop changing answers."""
        self._rules.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        if request.headers.get("Transfer-Encoding"):
            body = b"".join(iter(lambda: _chunk(request), b""))
        else:
            body = request.rfile.read(length)
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _NOT_PASSED_ON}
        reply = requests.request(
            request.command, self._target + request.path, data=body, headers=headers, allow_redirects=False, timeout=60
        )
        answer = Answer(reply.status_code, reply.content, reply.headers.get("Content-Type", ""))
        for rule in self._rules:
            if request.command == rule.method and rule.path.search(request.path.partition("?")[0]):
                answer = rule.change(answer)
        request.send_response_only(answer.status)
        for key, value in reply.raw.headers.items():  # each cookie by itself
            if key.lower() not in (*_NOT_PASSED_ON, "content-type"):
                request.send_header(key, value)
        request.send_header("Content-Type", answer.content_type)
        if answer.encoding:
            request.send_header("Content-Encoding", answer.encoding)
        is_head = request.command == "HEAD"
        request.send_header(
            "Content-Length", reply.headers.get("Content-Length", "0") if is_head else str(len(answer.body))
        )
        request.end_headers()
        if not is_head:
            request.wfile.write(answer.body)


def _chunk(request: BaseHTTPRequestHandler) -> bytes:
    size = int(request.rfile.readline(), 16)
    chunk = request.rfile.read(size)
    request.rfile.readline()
    return chunk
