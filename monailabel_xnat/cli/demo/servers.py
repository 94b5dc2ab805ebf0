"""The two servers of the demo: an XNAT sandbox with the demo project, and MONAI Label with the example app on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox
from monailabel_xnat.sandbox.demo import DemoCase, DemoData, write_demo

APP = Path(__file__).with_name("organs_app")
# The demo's user may read, write and change, but not delete: what an annotation service should be in XNAT.
USER = "member"
START_SECONDS = 180.0
STOP_SECONDS = 30.0


@contextmanager
def archive(work: Path) -> Iterator[tuple[Sandbox, DemoData]]:
    """Run an XNAT sandbox that holds the demo project, its labelled cases included."""
    demo = write_demo(work / "demo")
    with Sandbox(work / "archive") as sandbox:
        sandbox.import_dicom(demo.dicom, demo.project)
        save_labels(sandbox, demo, work / "seed-cache")
        yield sandbox, demo


def save_labels(sandbox: Sandbox, demo: DemoData, cache: Path) -> None:
    """Store the known truth as final label of the cases that come labelled, as a script would."""
    datastore = XNATDatastore(
        sandbox.url,
        USER,
        sandbox.users[USER],
        demo.project,
        cache_path=cache,
        series_description="!*localizer*",
    )
    try:
        images = image_ids(datastore.json())
        for case in demo.cases:
            if case.labelled:
                datastore.save_label(images[case.subject], str(case.truth), "final", label_info(demo))
    finally:
        datastore.close()


def image_ids(everything: dict[str, Any]) -> dict[str, str]:
    """Return the image id of each patient, from what MONAI Label answers to ``GET /datastore/?output=all``."""
    return {item["image"]["info"]["PatientID"]: image for image, item in everything["objects"].items()}


def label_info(demo: DemoData) -> dict[str, Any]:
    """Return which voxel value is which organ, as 3D Slicer does when it submits a label."""
    return {"label_info": [{"name": name, "idx": value} for name, value in demo.labels.items()], "client_id": "demo"}


def case_of(demo: DemoData, images: dict[str, str], image: str) -> DemoCase:
    """Find the case that an image id belongs to."""
    return next(case for case in demo.cases if images[case.subject] == image)


class MonaiLabelServer:
    """A MONAI Label server with the example app, in a process of its own, on the scans of an XNAT project.

    Parameters
    ----------
    sandbox
        The XNAT.
    project
        Its project.
    work
        Folder for the app's copy, its models and logs, and the datastore's cache.
    port
        Where to listen.
    """

    def __init__(self, sandbox: Sandbox, project: str, work: Path, port: int) -> None:
        self._app = work / "organs_app"
        if not self._app.exists():
            shutil.copytree(APP, self._app, ignore=shutil.ignore_patterns("__pycache__", "model"))
        self.log = work / "monailabel.log"
        self.url = f"http://127.0.0.1:{port}"
        # A login and a password never go on a command line, nor into --conf, which MONAI Label logs.
        self._environment = {
            **os.environ,
            "MONAI_LABEL_XNAT_USERNAME": USER,
            "MONAI_LABEL_XNAT_PASSWORD": sandbox.users[USER],
            "MONAI_LABEL_XNAT_CACHE_PATH": str(work / "cache"),
            "MONAI_LABEL_TRACKING_ENABLED": "false",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PYTHONWARNINGS": "ignore",
        }
        conf = {"datastore": "xnat", "xnat_project": project, "xnat_series_description": "!*localizer*"}
        self.command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(self._app)]
        self.command += ["--studies", sandbox.url, "--host", "127.0.0.1", "--port", str(port)]
        for key, value in conf.items():
            self.command += ["--conf", key, value]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MonaiLabelServer:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._app.parent,
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # A training that is still under way is a child of the server, in the group that the server leads.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                requests.get(f"{self.url}/info/", timeout=30).raise_for_status()
            except requests.RequestException:
                time.sleep(0.5)
            else:
                return
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"MONAI Label did not start; the end of {self.log}:\n{tail}")


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
