"""A small HTTP server that sends files like XNAT, in every form of zip, and breaks off where a test wants."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Unseekable(io.RawIOBase):
    """A stream that makes zipfile write sizes after the members, as a streaming server does."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += bytes(data)
        return len(data)


def make_zip(
    files: dict[str, bytes], *, head="S1/scans/1-T1/resources/DICOM/files/", packed=False, streamed=True
) -> bytes:
    """Return a zip of files like XNAT's: below session, scan and resource."""
    target = Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(head + name, content)
    return bytes(target.data) if isinstance(target, Unseekable) else target.getvalue()


class ArchiveDouble:
    """A context manager that serves the resources in ``resources`` (path below the site: {file: content}).

    ``answers`` maps a path, with ``?zip`` after it for the zip, to a function that returns (content type, body,
    announced length or None for chunked). ``asked`` lists the paths of the requests.
    """

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, bytes]] = {}
        self.answers: dict[str, Callable[[], tuple[str, bytes, int | None]]] = {}
        self.asked: list[str] = []
        self.with_digests = True
        self.json_items: dict[str, object] = {}
        self.logins = 0

    def __enter__(self) -> ArchiveDouble:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 20  # without a buffer, each answer waits 40 ms for an acknowledgement

            def log_message(self, *_):
                pass

            def do_PUT(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                double.logins += self.path.startswith("/data/services/auth")
                self.reply("text/plain", b"A" * 32)

            do_DELETE = do_PUT  # noqa: N815

            def do_GET(self):
                double.serve(self)

            def reply(self, kind: str, body: bytes, length: int | None = -1, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if length is None:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for start in range(0, len(body), 5000):
                        piece = body[start : start + 5000]
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.write(b"0\r\n\r\n")
                    return
                self.send_header("Content-Length", str(len(body) if length == -1 else length))
                self.end_headers()
                self.wfile.write(body)
                if length not in (-1, len(body)):
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, handler) -> None:
        parts = urlsplit(handler.path)
        if parts.path in ("/data/auth", "/data/JSESSION"):
            handler.reply("text/plain", b"User 'u' is logged in" if parts.path == "/data/auth" else b"A" * 32)
            return
        zipped = "format=zip" in parts.query
        asked = parts.path + ("?zip" if zipped else "")
        self.asked.append(asked)
        if asked in self.answers:
            handler.reply(*self.answers[asked]())
            return
        if parts.path in self.json_items:
            handler.reply("application/json", json.dumps(self.json_items[parts.path]).encode())
            return
        resource, _, name = parts.path.partition("/files")
        files = self.resources.get(resource, {})
        if zipped:
            label = resource.rpartition("/")[2]
            head = f"S1/scans/1-T1/resources/{label}/files/"
            handler.reply("application/zip", make_zip(files, head=head), None)
        elif not name:
            handler.reply("application/json", json.dumps(self.listing(files)).encode())
        elif unquote(name[1:]) in files:
            handler.reply("application/octet-stream", files[unquote(name[1:])])
        else:
            handler.reply("text/html", b"<html><h3>Unable to find file.</h3></html>", status=404)

    def listing(self, files: dict[str, bytes]) -> object:
        rows = [
            {
                "Name": name.rpartition("/")[2],
                "Size": str(len(content)),
                "URI": f"/data/experiments/E/scans/1/resources/17/files/{name}",
                "digest": hashlib.md5(content).hexdigest() if self.with_digests else "",
            }
            for name, content in files.items()
        ]
        return {"ResultSet": {"Result": rows}}
