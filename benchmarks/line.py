"""A line of a given speed in front of a server, because there is none between two processes on one machine.

    python benchmarks/line.py http://127.0.0.1:8080 1000

It prints the address at which the server is reached over a line of so many Mbit/s in each direction, shared by all
connections, and ends with its standard input. It adds only the delay of the bytes themselves.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_BLOCK = 1 << 15


@contextmanager
def line(url: str, mbit: float) -> Iterator[str]:
    """Yield the address of a server over a line, in a process of its own."""
    program = [sys.executable, __file__, url, str(mbit)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


class Direction:
    """One direction of the line: bytes wait until those before them have passed."""

    def __init__(self, mbit: float) -> None:
        self._seconds_per_byte = 8 / mbit / 1e6
        self._free = 0.0
        self._lock = threading.Lock()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on what comes until it ends."""
        with suppress(OSError):
            while block := source.recv(_BLOCK):
                with self._lock:
                    self._free = max(self._free, time.monotonic()) + len(block) * self._seconds_per_byte
                    arrival = self._free
                time.sleep(max(0.0, arrival - time.monotonic()))
                target.sendall(block)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def main() -> None:
    """Carry connections until standard input ends."""
    server, mbit = urlsplit(sys.argv[1]), float(sys.argv[2])
    there, back = Direction(mbit), Direction(mbit)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            onward = socket.create_connection((server.hostname, server.port))
            for end in (client, onward):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for direction, source, target in ((there, client, onward), (back, onward, client)):
                threading.Thread(target=direction.carry, args=(source, target), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
