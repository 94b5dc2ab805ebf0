"""An app with the mixin: which datastore it gets, in the server's process and in those for training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parents[2] / "examples" / "organs_app"

# MONAI Label does this at its start and again in each training process. Importing it takes some ten seconds.
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from monailabel.interfaces.utils.app import app_instance, clear_cache
from monailabel.config import settings
answers = []
for case in json.load(sys.stdin):
    settings.MONAI_LABEL_DATASTORE = case.get("variable", "")
    try:
        app = app_instance(app_dir=case["app"], studies=case["studies"], conf=case["conf"])
        datastore = app.datastore()
        answer = {"kind": type(datastore).__module__, "images": sorted(datastore.list_images())}
        answer["info"] = app.info()["datastore"]
        getattr(datastore, "close", lambda: None)()
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    answers.append(answer)
    clear_cache()
print("ANSWERS" + json.dumps(answers))
"""


def start_apps(cases, environ):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(cases),
        env={**os.environ, "MONAI_LABEL_TRACKING_ENABLED": "false", **environ},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.rpartition("ANSWERS")[2]), run.stdout + run.stderr


@pytest.mark.slow
def test_the_datastore_is_the_one_asked_for(xnat_sandbox, demo_dicom, tmp_path):
    xnat_sandbox.import_dicom(demo_dicom.cases[0].dicom, "DEMO")
    app, folder = tmp_path / "app", tmp_path / "folder"
    shutil.copytree(APP, app)
    folder.mkdir()
    shutil.copy(demo_dicom.cases[0].truth, folder / "case.nii.gz")
    conf = {"datastore": "xnat", "xnat_project": "DEMO"}
    url = xnat_sandbox.url
    cases = [
        {"studies": url, "conf": conf},
        {"studies": f"{url}/", "conf": {"xnat_project": "DEMO"}, "variable": "xnat"},
        {"studies": str(folder), "conf": {}},
        {"studies": url, "conf": {**conf, "xnat_project": "NOPE"}},
        {"studies": url, "conf": {**conf, "xnat_password": "hunter2"}},
        {"studies": "http://127.0.0.1:9", "conf": conf},
    ]
    environ = {
        "MONAI_LABEL_XNAT_USERNAME": xnat_sandbox.username,
        "MONAI_LABEL_XNAT_PASSWORD": xnat_sandbox.password,
        "MONAI_LABEL_XNAT_CACHE_PATH": str(tmp_path / "cache"),
    }
    answers, output = start_apps([{**case, "app": str(app)} for case in cases], environ)
    by_conf, by_variable, local, unknown_project, password, nobody = answers
    assert by_conf["kind"] == "monailabel_xnat.datastore.datastore"
    assert by_conf["images"] == ["DEMO/XNAT_S00001/XNAT_E00001/2"]
    assert by_conf["info"]["total"] == 1
    assert by_variable == by_conf
    assert local["kind"] == "monailabel.datastore.local"
    assert local["images"] == ["case"]
    assert "no project 'NOPE'" in unknown_project["error"]
    assert "MONAI_LABEL_XNAT_PASSWORD" in password["error"]
    assert "cannot reach http://127.0.0.1:9" in nobody["error"]
    assert xnat_sandbox.password not in output
