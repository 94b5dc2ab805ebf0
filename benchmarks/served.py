"""A sandbox with something in it, in a process of its own: its work must not slow down what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import requests

PROJECT = "BENCH"
EMPTY_PROJECT = "EMPTY"


@dataclass
class Server:
    """A server in another process, to which one can talk."""

    login: dict[str, str]
    commands: IO[str]
    answers: IO[str]

    def take_log(self) -> dict[str, Any]:
        """Return what was served since the last time: ``requests``, ``bytes``, path and query of the ``largest``."""
        self.commands.write("log\n")
        self.commands.flush()
        log: dict[str, Any] = json.loads(self.answers.readline())
        return log


@contextmanager
def served(*folders: str) -> Iterator[dict[str, str]]:
    """Serve folders of DICOM files; give url, user, password and the ID of the last session."""
    with _running(*folders) as server:
        yield server.login


@contextmanager
def served_sessions(sessions: int, scans: int) -> Iterator[Server]:
    """Serve a project of many sessions, metadata without files, and an empty one."""
    with _running("--sessions", str(sessions), str(scans)) as server:
        yield server


@contextmanager
def served_images(image: str, count: int) -> Iterator[Server]:
    """Serve a project of many sessions of one scan each, which holds an image file; all hold the same."""
    with _running("--images", image, str(count)) as server:
        yield server


@contextmanager
def _running(*words: str) -> Iterator[Server]:
    program = [sys.executable, "-W", "ignore", __file__, *words]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Server(json.loads(process.stdout.readline()), process.stdin, process.stdout)
        process.stdin.close()


def main() -> None:
    """Serve what is asked for until standard input ends."""
    from monailabel_xnat.sandbox import Sandbox

    # MONAI Label's built-in datastore asks for its CSRF token before it logs in, which only an open site answers.
    with Sandbox(require_login=False) as sandbox:
        session = ""
        if sys.argv[1:2] == ["--sessions"]:
            for project in (PROJECT, EMPTY_PROJECT):
                sandbox.archive.create_project(project)
            sandbox.archive.seed_sessions(PROJECT, sessions=int(sys.argv[2]), scans=int(sys.argv[3]))
        elif sys.argv[1:2] == ["--images"]:
            sandbox.archive.create_project(PROJECT)
            sandbox.archive.seed_sessions(PROJECT, sessions=int(sys.argv[3]), scans=1, resources=())
            _put_into_all(sandbox, Path(sys.argv[2]).read_bytes())
            sandbox.requests.clear()
        else:
            for folder in sys.argv[1:]:
                session = sandbox.import_dicom(folder, PROJECT)[0].rpartition("/")[2]
        _say({"url": sandbox.url, "user": sandbox.username, "password": sandbox.password, "session": session})
        for _ in sys.stdin:
            log = list(sandbox.requests)
            sandbox.requests.clear()
            largest = max(log, key=lambda request: request.bytes_out, default=None)
            address = f"{largest.path}?{urlencode(largest.query)}" if largest else ""
            _say({"requests": len(log), "bytes": sum(request.bytes_out for request in log), "largest": address})


def _put_into_all(sandbox: Any, image: bytes) -> None:
    """Put an image file into the one scan of each session."""
    with requests.Session() as admin:
        admin.auth = (sandbox.username, sandbox.password)
        query = {"format": "json", "columns": "ID"}
        rows = admin.get(f"{sandbox.url}/data/projects/{PROJECT}/experiments", params=query, timeout=600).json()
        for row in rows["ResultSet"]["Result"]:
            file = f"{sandbox.url}/data/experiments/{row['ID']}/scans/1/resources/NIFTI/files/image.nii.gz"
            headers = {"Content-Type": "application/octet-stream"}
            admin.put(file, data=image, headers=headers, timeout=600).raise_for_status()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
