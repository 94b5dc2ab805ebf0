"""Running a model on all images that have no label yet, from the command line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import nibabel
import numpy as np
import pytest

from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
APP = """
import logging
import os
import tempfile
import time

import SimpleITK
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType


class Bright(InferTask):
    def __init__(self):
        super().__init__(type=InferType.SEGMENTATION, labels={"organ": 1}, dimension=3, description="bright")

    def is_valid(self):
        return True

    def __call__(self, request):
        # As the tasks of MONAI Label do, which take this level if the request names none.
        logger = logging.getLogger("bright")
        logger.setLevel(request.get("logging", "INFO"))
        logger.info("image %s", request["image"])
        image = SimpleITK.ReadImage(request["image"])
        if SimpleITK.GetArrayViewFromImage(image).max() > 90:
            raise ValueError("too bright")
        result = tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False).name
        SimpleITK.WriteImage(SimpleITK.Cast(image > 50, SimpleITK.sitkUInt8), result)
        return result, {"label_names": {"organ": 1}}


class MyApp(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="Bright", description="", version="1")

    def init_infers(self):
        return {"bright": Bright()}

    def init_trainers(self):
        return {}

    def init_strategies(self):
        return {}

    def init_scoring_methods(self):
        return {}
"""
# The image of scan 3 makes the model fail.
BRIGHTEST = {"1": 60, "2": 80, "3": 99, "4": 70}


@pytest.fixture(scope="module")
def archive(put_scans):
    images = {}
    for scan, value in BRIGHTEST.items():
        array = np.zeros((4, 4, 3), np.int16)
        array[1] = value
        images[scan] = nibabel.Nifti1Image(array, AFFINE).to_bytes()
    with Sandbox() as sandbox:
        put_scans(sandbox, images)
        yield sandbox


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text(APP)
    return tmp_path / "app"


@pytest.fixture
def environ(archive, tmp_path):
    login = {"MONAI_LABEL_XNAT_USERNAME": archive.username, "MONAI_LABEL_XNAT_PASSWORD": archive.password}
    return {**os.environ, **login, "XDG_DATA_HOME": str(tmp_path / "data"), "PYTHONWARNINGS": "ignore"}


def test_one_bad_case_does_not_end_a_batch_and_a_second_run_goes_on(archive, app, environ, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "monailabel_xnat", "batch-infer", "--app", str(app), "--model", "bright"]
        command += [
            "--studies",
            archive.url,
            "--project",
            "P",
            "--cache-path",
            str(tmp_path / "cache"),
            *words,
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=280, check=False)
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    status, first, errors = run("--limit", "1")
    assert (status, list(first.values())) == (0, ["saved"]), errors
    assert "INFO" not in errors  # MONAI Label's account of each transform, with the path of the image
    status, rest, errors = run()
    assert status == 1, errors
    assert not set(first) & set(rest)
    outcomes = {image.rpartition("/")[2]: outcome for image, outcome in {**first, **rest}.items()}
    assert outcomes == {"1": "saved", "2": "saved", "3": "ValueError: too bright", "4": "saved"}

    given = {"project": "P", "cache_path": tmp_path / "datastore", "environ": {}}
    with XNATDatastore(archive.url, archive.username, archive.password, **given) as datastore:
        drafts = datastore.get_labeled_images("original")
        assert sorted(image.rpartition("/")[2] for image in drafts) == ["1", "2", "4"]
        label = np.asarray(nibabel.load(datastore.get_label_uri(drafts[0], "original")).dataobj)
        assert int(label.sum()) == 12
        assert datastore.get_labeled_images() == []


# On many machines

MANY = 6


def test_a_cluster_labels_what_a_killed_worker_did_not(put_scans, dask_cluster, app, tmp_path):
    pytest.importorskip("distributed")
    # The model takes a while and records which process ran it, so that the test can kill a worker while it works.
    note = "with open(NOTES, 'a') as notes: notes.write(f'{os.getpid()} ')"
    slow = APP.replace("        image =", f"        {note}\n        time.sleep(2)\n        image =", 1)
    notes = tmp_path / "notes"
    notes.touch()
    (app / "main.py").write_text(slow.replace("NOTES", repr(str(notes))))
    image = nibabel.Nifti1Image(np.full((4, 4, 3), 80, np.int16), AFFINE).to_bytes()
    with Sandbox() as sandbox:
        put_scans(sandbox, {str(n): image for n in range(1, MANY + 1)})
        environ = {
            **os.environ,
            "MONAI_LABEL_XNAT_USERNAME": sandbox.username,
            "MONAI_LABEL_XNAT_PASSWORD": sandbox.password,
            "XDG_DATA_HOME": str(tmp_path / "data"),
            "PYTHONWARNINGS": "ignore",
        }
        with dask_cluster(environ, tmp_path) as (address, workers):

            def kill_who_works():
                while not notes.read_text().split():
                    time.sleep(0.05)
                victim = int(notes.read_text().split()[0])
                assert victim in {worker.pid for worker in workers}
                os.kill(victim, signal.SIGKILL)

            killer = threading.Thread(target=kill_who_works)
            killer.start()
            command = [sys.executable, "-m", "monailabel_xnat", "batch-infer", "--app", str(app), "--model", "bright"]
            command += ["--studies", sandbox.url, "--project", "P", "--cache-path", str(tmp_path / "cache"), "--json"]
            done = subprocess.run(
                [*command, "--scheduler", address],
                capture_output=True,
                text=True,
                env=environ,
                timeout=400,
                check=False,
            )
            killer.join()
        assert done.returncode == 0, done.stderr + done.stdout
        outcomes = json.loads(done.stdout)
        assert [int(image.rpartition("/")[2]) for image in outcomes] == list(range(1, MANY + 1))
        assert set(outcomes.values()) == {"saved"}
        assert len(set(notes.read_text().split())) == 2
        given = {"project": "P", "cache_path": tmp_path / "datastore", "environ": {}}
        with XNATDatastore(sandbox.url, sandbox.username, sandbox.password, **given) as datastore:
            assert sorted(datastore.get_labeled_images("original")) == sorted(outcomes)


@pytest.mark.filterwarnings("ignore")  # torch warns when MONAI Label is imported
def test_a_task_for_a_worker_is_small_and_holds_no_password(archive, app, monkeypatch):
    from monailabel_xnat.app.jobs import Job, infer_in_worker
    from monailabel_xnat.config import as_conf

    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", "not-to-be-sent")
    given = {"server": archive.url, "username": "ann", "project": "P", "password": "nor-this"}
    conf = as_conf(given, {"xnat_modality": "CT", "models": "bright"}, {"MONAI_LABEL_XNAT_QUALITY": "usable"})
    assert conf == {"xnat_username": "ann", "xnat_project": "P", "xnat_modality": "CT", "xnat_quality": "usable"}
    task = partial(infer_in_worker, Job(str(app), archive.url, tuple(conf.items()), "bright"))
    sent = pickle.dumps((task, "P/XNAT_S00001/XNAT_E00001/1"))
    assert len(sent) < 700
    assert b"not-to-be-sent" not in sent
    assert b"nor-this" not in sent


@pytest.mark.filterwarnings("ignore")  # torch warns when MONAI Label is imported
def test_a_worker_that_does_not_see_the_app_says_so_for_each_image(archive, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from monailabel_xnat.app.jobs import Job, infer_elsewhere

    job = Job(str(tmp_path / "nowhere"), archive.url, (("xnat_project", "P"),), "bright")
    told = []
    with ThreadPoolExecutor(1) as pool:
        outcomes = infer_elsewhere(pool, job, ["b", "a"], lambda image, outcome: told.append(image))
    assert list(outcomes) == ["b", "a"]
    assert sorted(told) == ["a", "b"]
    assert all("there is no MONAI Label app in" in outcome for outcome in outcomes.values())
