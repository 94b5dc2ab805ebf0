"""The ways in which MONAI Label's processes come up."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from clinic import clinic, drawn_on

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
    for _ in range(10):  # each a connection of its own, so that both are asked
        assert requests.get(f"{server.url}/info/", timeout=120).json()["datastore"]["total"] == 3
    content = requests.get(f"{server.url}/datastore/image", params={"image": image}, timeout=120).content
    server.save_label(image, drawn_on(content, tmp_path)).raise_for_status()
    until, seen = time.monotonic() + 60, 0
    while seen < 10:  # ten times in a row: from both
        completed = requests.get(f"{server.url}/info/", timeout=120).json()["datastore"]["completed"]
        seen = seen + 1 if completed == 1 else 0
        assert time.monotonic() < until, "a worker does not show what another one has saved"
        time.sleep(0.2)
