"""A server on a loopback socket that accepts every login and then behaves as a test wants, down to single bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

OK = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
LISTING = b'{"ResultSet": {"Result": [{"ID": "P"}], "totalRecords": "1"}}'


def answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    return OK % (kind, len(body), body)


def redirect(status: int, target: str) -> bytes:
    return b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, target.encode())


def drip(connection: socket.socket, content: bytes, seconds: float = 0.2) -> None:
    """Send a byte now and then, as long as the client listens."""
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(seconds)


class OddServer:
    """A context manager that answers requests.

    ``behave`` gets the connection and the whole request, for all requests except the login. What it returns is sent.
    ``login`` gets both for the login.
    """

    def __init__(self, behave: Callable[[socket.socket, bytes], bytes | None] | None = None) -> None:
        self.behave = behave or (lambda connection, request: answer(LISTING))
        self.login: Callable[[socket.socket, bytes], bytes | None] = self.let_in
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> OddServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def asked(self, path: str) -> int:
        return sum(f" {path}" in request.decode("latin-1").partition("\r\n")[0] for request in self.requests)

    @staticmethod
    def let_in(connection: socket.socket, request: bytes) -> bytes:
        asks_who = b"/data/auth " in request.partition(b"\r\n")[0]
        return answer(b"User 'u' is logged in" if asks_who else b"A" * 32, b"text/plain")

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while request := self._read(connection):
                    self.requests.append(request)
                    path = request.split(b" ", 2)[1]
                    is_login = path.endswith((b"/data/auth", b"/data/JSESSION", b"/data/services/auth"))
                    reply = (self.login if is_login else self.behave)(connection, request)
                    if reply is None:
                        return
                    connection.sendall(reply)
            except OSError:  # the client has closed the connection
                return

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (block := connection.recv(65536)):
                return b""
            request += block
        head, _, body = request.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.partition(b":")[2]):
                    if not (block := connection.recv(65536)):
                        return b""
                    body += block
        return head + b"\r\n\r\n" + body
