"""The ways in which MONAI Label's processes come up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from clinic import PROJECT, clinic, drawn_on
from label_server import COMMAND, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with clinic(tmp_path_factory.mktemp("workers"), options=("--workers", "2")) as served:
        yield served


def test_two_workers_serve_one_archive(server, tmp_path):
    until = time.monotonic() + 240
    while server.log.read_text().count("Application startup complete") < 2:
        assert time.monotonic() < until, "the second worker did not come up"
        time.sleep(0.5)
    image = server.image()
    for _ in range(10):  # each time a new connection, so that both processes are asked
        assert requests.get(f"{server.url}/info/", timeout=120).json()["datastore"]["total"] == 3
    content = requests.get(f"{server.url}/datastore/image", params={"image": image}, timeout=120).content
    server.save_label(image, drawn_on(content, tmp_path)).raise_for_status()
    until, seen = time.monotonic() + 60, 0
    while seen < 10:  # ten times in a row, so from both
        completed = requests.get(f"{server.url}/info/", timeout=120).json()["datastore"]["completed"]
        seen = seen + 1 if completed == 1 else 0
        assert time.monotonic() < until, "a worker does not show what another one has saved"
        time.sleep(0.2)


def test_torchrun_starts_processes_of_an_unmodified_app_that_train_on_the_archive(server, tmp_path):
    """With the file that ``--dryrun`` writes for the shell: the environment of a server's own training process."""
    image = server.image()
    label = drawn_on(server.get("/datastore/image", image=image).content, tmp_path)
    server.save_label(image, label).raise_for_status()
    # There is no server that MONAI Label could ask for scores after the training.
    without_server = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "OMP_NUM_THREADS": "1"}
    environ = {**environment(server.sandbox, tmp_path), **without_server}
    options = ["--app", server.app, "--studies", server.sandbox.url, "--conf", "xnat_project", PROJECT, "--dryrun"]
    words = [sys.executable, "-c", COMMAND, "start_server", *options]
    subprocess.run(words, cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=300)

    script = '. ./.env; exec "$0" --standalone --nproc_per_node 2 -m monailabel.interfaces.utils.app -m train -r "$1"'
    torchrun, request = str(Path(sys.executable).with_name("torchrun")), json.dumps({"model": "threshold"})
    run = subprocess.run(
        ["bash", "-c", script, torchrun, request],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    first, second = json.loads((server.app / "cases.json").read_text())
    assert first == second
    assert all(Path(case["image"]).is_file() and Path(case["label"]).is_file() for case in first)
    assert any(Path(case["image"]).name.startswith(PROJECT) for case in first)
