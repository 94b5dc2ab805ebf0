"""A sandbox with DICOM series in it, in a process of its own: its work must not slow down what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROJECT = "BENCH"


@contextmanager
def served(*folders: str) -> Iterator[dict[str, str]]:
    """Serve folders of DICOM files; give url, user, password and the ID of the last session."""
    program = [sys.executable, "-W", "ignore", __file__, *folders]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


def main() -> None:
    """Serve the folders that are named until standard input ends."""
    from monailabel_xnat.sandbox import Sandbox

    # MONAI Label's built-in datastore asks for its CSRF token before it logs in, which only an open site answers.
    with Sandbox(require_login=False) as sandbox:
        session = ""
        for folder in sys.argv[1:]:
            session = sandbox.import_dicom(folder, PROJECT)[0].rpartition("/")[2]
        given = {"url": sandbox.url, "user": sandbox.username, "password": sandbox.password, "session": session}
        sys.stdout.write(json.dumps(given) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
