"""Images fetched by the workers of a Dask cluster, of which one is killed while it works."""

from __future__ import annotations

import json
import os
import signal
import threading

import nibabel
import numpy as np
import pytest

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.sandbox import Sandbox

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCANS = 8


@pytest.fixture(scope="module")
def archive(put_scans):
    numbers = range(1, SCANS + 1)
    images = {str(n): nibabel.Nifti1Image(np.full((4, 4, 3), n, np.int16), np.eye(4)).to_bytes() for n in numbers}
    with Sandbox() as sandbox:
        put_scans(sandbox, images)
        yield sandbox


@pytest.fixture
def cluster(archive, dask_cluster, tmp_path):
    """Start a scheduler and two workers, and yield the address and the workers."""
    login = {"MONAI_LABEL_XNAT_USERNAME": archive.username, "MONAI_LABEL_XNAT_PASSWORD": archive.password}
    with dask_cluster({**os.environ, **login, "PYTHONWARNINGS": "ignore"}, tmp_path) as found:
        yield found


@pytest.fixture
def words(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", archive.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.password)
    return ["--studies", archive.url, "--cache-path", str(tmp_path / "cache"), "--project", "P", "--json"]


@pytest.mark.filterwarnings("ignore")  # Dask's own warnings
def test_a_cluster_fetches_what_a_killed_worker_did_not(archive, cluster, words, tmp_path, capsys):
    address, workers = cluster
    # Answers take a while, so that a worker is killed while it works.
    archive.faults.add("/resources/NIFTI", method="GET", delay=0.3, times=None)
    killer = threading.Timer(6, lambda: os.kill(workers[0].pid, signal.SIGKILL))
    killer.start()
    try:
        assert main(["prefetch", "--scheduler", address, *words]) == 0
    finally:
        killer.cancel()
        archive.faults.clear()
    report = json.loads(capsys.readouterr().out)
    assert len(report["fetched"]) == SCANS
    assert [int(image.rpartition("/")[2]) for image in report["fetched"]] == list(range(1, SCANS + 1))


@pytest.mark.filterwarnings("ignore")
def test_the_client_of_dask_is_taken_as_an_executor(archive, cluster, words, tmp_path):
    given = {"project": "P", "cache_path": tmp_path / "other", "environ": {}}
    with (
        distributed.Client(cluster[0]) as client,
        XNATDatastore(archive.url, archive.username, archive.password, **given) as datastore,
    ):
        report = datastore.prefetch(datastore.list_images(), executor=client)
        assert len(report.fetched) == SCANS
        assert report.failed == {}


def test_a_missing_scheduler_is_an_error_of_one_line(words, capsys, monkeypatch):
    monkeypatch.setattr("monailabel_xnat.cli.common._SCHEDULER_SECONDS", 1)
    assert main(["prefetch", "--scheduler", "tcp://127.0.0.1:9", *words]) == 2
    assert "no Dask scheduler answers" in capsys.readouterr().err
