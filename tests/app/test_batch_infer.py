"""A model over all images that have no label yet, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
APP = """
import tempfile

import SimpleITK
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType


class Bright(InferTask):
    def __init__(self):
        super().__init__(type=InferType.SEGMENTATION, labels={"organ": 1}, dimension=3, description="bright")

    def is_valid(self):
        return True

    def __call__(self, request):
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


def test_one_bad_case_does_not_end_a_batch_and_a_second_run_goes_on(archive, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    (app / "main.py").write_text(APP)
    environ = {
        **os.environ,
        "MONAI_LABEL_XNAT_USERNAME": archive.username,
        "MONAI_LABEL_XNAT_PASSWORD": archive.password,
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "PYTHONWARNINGS": "ignore",
    }

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
