"""Starts MONAI Label servers on unmodified sample apps, as a user does from a terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests

SAMPLE_APPS = Path(sys.prefix, "monailabel", "sample-apps")
VISION = Path(__file__).parent / "torch_without_vision_ops"
COMMAND = "import sys; from monailabel_xnat.cli.main import main; sys.exit(main())"


def copied_app(name: str, folder: Path) -> Path:
    """Copy a sample app, as its users do before they start it."""
    app = folder / name
    shutil.copytree(SAMPLE_APPS / name, app, ignore=shutil.ignore_patterns("model", "logs", "__pycache__"))
    return app


def environment(sandbox, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(VISION)))),
        "MONAI_LABEL_XNAT_USERNAME": sandbox.username,
        "MONAI_LABEL_XNAT_PASSWORD": sandbox.password,
        "MONAI_LABEL_XNAT_CACHE_PATH": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
    }


@contextlib.contextmanager
def label_server(
    app: Path, studies: str, conf: Mapping[str, str], environ: Mapping[str, str], *options: str
) -> Iterator[str]:
    """Run ``monailabel-xnat start_server`` until the block ends, and yield the address of its REST API."""
    port = free_port()
    words = [sys.executable, "-c", COMMAND, "start_server", "--app", str(app), "--studies", studies]
    for key, value in conf.items():
        words += ["--conf", key, value]
    words += ["--host", "127.0.0.1", "--port", str(port), *options]
    log = app.parent / f"{app.name}.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            words, env=dict(environ), cwd=app.parent, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(server, f"{url}/info/", log)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # also the processes that it started for training and scoring


def wait_until_up(server: subprocess.Popen, url: str, log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        assert server.poll() is None, f"the server ended:\n{log.read_text()[-4000:]}"
        try:
            if requests.get(url, timeout=120).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
    raise AssertionError(f"the server did not come up:\n{log.read_text()[-4000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
