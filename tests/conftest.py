"""Fixtures for the tests of all parts. The fixtures for XNAT come from monailabel_xnat.pytest_plugin."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from filelock import FileLock

from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.sandbox.demo import write_demo

pytest_plugins = ["pytester"]
# Apps train, which needs torch. If it is not installed (see .ci/matrix), all other tests can run.
collect_ignore = [] if find_spec("torch") else ["app", "examples"]


def pytest_configure():
    """Let Ctrl-C reach the programs that tests start. A shell makes programs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    """Add the switch that `make check` uses."""
    parser.addoption("--quick", action="store_true", help="run each test once, with its first parameters; no slow ones")


def pytest_collection_modifyitems(config, items):
    """With --quick, keep only the first of the tests that one function makes.

    Tests directly in this folder are cheap, and stay.
    """
    if not config.getoption("--quick"):
        return
    kept, functions = [], set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        is_first = function not in functions or item.path.parent == Path(__file__).parent
        if is_first and not item.get_closest_marker("slow"):
            functions.add(function)
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session")
def demo_dicom(tmp_path_factory):
    """The demo project on disk (see DemoData), written once for all test processes of a run. Do not change it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    written = shared / "demo.pickle"
    with FileLock(shared / "demo.lock"):
        if not written.exists():
            written.write_bytes(pickle.dumps(write_demo(shared / "demo")))
        return pickle.loads(written.read_bytes())


@pytest.fixture
def open_session(tmp_path):
    """Return a function that opens a connection with some settings and a cache of its own, closed after the test."""
    with ExitStack() as opened:

        def open_session(backoff=None, owner=None, environ=None, **settings):
            loaded = Settings.load({"cache_path": tmp_path, **settings}, environ=environ or {})
            return opened.enter_context(closing(Session(loaded, backoff, owner=owner)))

        yield open_session


@pytest.fixture(scope="session")
def put_scans():
    """Return a function that stores NIfTI images (bytes by scan ID) in CT session ``e`` of subject ``s`` in ``P``."""

    def put(sandbox, images, fields=None):
        with requests.Session() as admin:
            admin.auth = (sandbox.username, sandbox.password)
            project = f"{sandbox.url}/data/projects/P"
            session = f"{project}/subjects/s/experiments/e"
            for path in (project, f"{project}/subjects/s", f"{session}?xsiType=xnat:ctSessionData"):
                admin.put(path).raise_for_status()
            headers = {"Content-Type": "application/octet-stream"}
            for scan, image in images.items():
                shown = {"xsiType": "xnat:ctScanData", **(fields or {}).get(scan, {})}
                admin.put(f"{session}/scans/{scan}", params=shown).raise_for_status()
                file = f"{session}/scans/{scan}/resources/NIFTI/files/i.nii"
                admin.put(file, data=image, headers=headers).raise_for_status()

    return put


@pytest.fixture(scope="session")
def dask_cluster():
    """Return a function that runs a Dask scheduler and two workers, each a process, and yields address and workers."""

    @contextmanager
    def cluster(environ, folder):
        contact = folder / "scheduler.json"

        def start(*words):
            command = [sys.executable, "-m", *words]
            return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        own = ["--host", "127.0.0.1", "--scheduler-file", str(contact)]
        own_dashboard = ["--dashboard-address", "127.0.0.1:0"]  # it always starts, and must not be visible to others
        running = [start("distributed.cli.dask_scheduler", *own, "--port", "0", *own_dashboard)]
        try:
            for _ in range(2):
                alone = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder)]
                running.append(start("distributed.cli.dask_worker", *own, *alone))
            until = time.monotonic() + 120
            while not contact.exists() and time.monotonic() < until:
                time.sleep(0.1)
            yield json.loads(contact.read_text())["address"], running[1:]
        finally:
            for process in running:
                process.kill()
                process.wait()

    return cluster
