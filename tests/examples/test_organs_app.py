"""The example app on a folder of images, as copies of it are used first: infer, train, infer again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

APP = Path(__file__).parents[2] / "examples" / "organs_app"

pytestmark = pytest.mark.slow

# MONAI Label and torch are imported in a process of their own, so that their warnings are no failures here.
PROGRAM = """
import json, shutil, sys, warnings
warnings.simplefilter("ignore")
from monailabel.interfaces.utils.app import app_instance
case = json.load(sys.stdin)
app = app_instance(app_dir=case["app"], studies=case["studies"], conf={})
answers = {"info": app.info(), "torchvision": "torchvision" in sys.modules}
def infer(image, name):
    result = app.infer({"model": "organs", "image": image, "result_extension": ".nii.gz"})
    shutil.move(result["file"], case["results"] + "/" + name)
    return result["params"]["label_names"]
answers["names"] = infer("waiting", "before.nii.gz")
infer(case["dicom"], "dicom.nii.gz")
stats = app.train({"model": "organs", "max_epochs": 1})
answers["epoch"] = stats["epoch"]
answers["stats"] = app.info()["train_stats"]["organs"]
infer("waiting", "after.nii.gz")
answers["again"] = app.train({"model": "organs", "max_epochs": 1, "val_split": 0.5})["eval"]
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def loop(demo_dicom, tmp_path_factory):
    """Run the app on two labelled cases and one that waits. Return what the app answered, and its folder."""
    folder = tmp_path_factory.mktemp("organs")
    studies, results = folder / "studies", folder / "results"
    (studies / "labels" / "final").mkdir(parents=True)
    results.mkdir()
    shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__", "model"))
    oblique = next(case for case in demo_dicom.cases if case.oblique)
    labelled = [case for case in demo_dicom.cases if case is not oblique][:2]
    for name, case in zip(("waiting", "one", "two"), (oblique, *labelled), strict=True):
        write_image(case.dicom, studies / f"{name}.nii.gz")
    for name, case in zip(("one", "two"), labelled, strict=True):
        shutil.copy(case.truth, studies / "labels" / "final" / f"{name}.nii.gz")
    words = {"app": folder / "app", "studies": studies, "results": results, "dicom": oblique.dicom}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps({key: str(path) for key, path in words.items()}),
        env={**os.environ, "MONAI_LABEL_TRACKING_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.rpartition("ANSWERS")[2]), folder


def write_image(dicom, target):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(dicom)))
    SimpleITK.WriteImage(reader.Execute(), str(target))


def test_it_offers_one_model_to_run_and_to_train(loop):
    info = loop[0]["info"]
    assert info["labels"] == ["liver", "spleen", "kidneys"]
    assert list(info["models"]) == list(info["trainers"]) == ["organs"]
    assert set(info["strategies"]) == {"random", "first"}
    assert info["datastore"]["completed"] == 2


def test_it_needs_no_torchvision(loop):
    assert loop[0]["torchvision"] is False


@pytest.mark.parametrize("name", ["before", "dicom", "after"])
def test_a_result_lies_on_the_grid_of_its_image(loop, name):
    folder = loop[1]
    image = nibabel.load(folder / "studies" / "waiting.nii.gz")
    result = nibabel.load(folder / "results" / f"{name}.nii.gz")
    assert result.shape == image.shape
    # Viewers compare direction cosines within 1e-5.
    assert np.allclose(result.affine, image.affine, atol=1e-4)
    assert result.get_data_dtype() == np.uint8
    assert set(np.unique(result.dataobj)) <= {0, 1, 2, 3}


def test_a_file_and_its_dicom_folder_give_the_same_result(loop):
    one, other = (nibabel.load(loop[1] / "results" / f"{name}.nii.gz") for name in ("before", "dicom"))
    assert (np.asarray(one.dataobj) != np.asarray(other.dataobj)).mean() < 1e-3


def test_results_say_which_value_is_which_organ(loop):
    assert loop[0]["names"] == {"liver": 1, "spleen": 2, "kidneys": 3}


def test_training_replaces_the_network_that_inference_runs(loop):
    answers, folder = loop
    assert answers["epoch"] == 1
    assert answers["stats"]["train"]["metrics"]["train_mean_dice"] > 0
    assert (folder / "app" / "model" / "organs.pt").is_file()
    before, after = (nibabel.load(folder / "results" / f"{name}.nii.gz") for name in ("before", "after"))
    assert (np.asarray(before.dataobj) != np.asarray(after.dataobj)).any()


def test_a_part_of_the_cases_can_be_held_back_to_choose_the_best_weights(loop):
    assert loop[0]["again"]["key_metric_name"] == "val_mean_dice"


ORDER_PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from monailabel.interfaces.utils.app import app_instance
case = json.load(sys.stdin)
app = app_instance(app_dir=case["app"], studies=case["studies"], conf={"datastore": "xnat"})
datastore = app.datastore()
image = datastore.list_images()[0]
datastore.save_label(image, case["label"], "final", {"label_info": case["label_info"]})
# What the trainer gets to see, without the training itself.
type(app._trainers["organs"]).__call__ = lambda self, request, datastore: datastore.datalist()
print("ANSWERS" + json.dumps(app.train({"model": "organs"})))
datastore.close()
"""


def test_segments_in_the_order_of_a_viewer_are_trained_by_their_names(xnat_sandbox, demo_dicom, tmp_path):
    case = next(case for case in demo_dicom.cases if case.session != demo_dicom.cases[0].session)
    xnat_sandbox.import_dicom(case.dicom, "DEMO")
    shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__", "model"))
    truth = nibabel.load(case.truth)
    organs = np.asarray(truth.dataobj)
    drawn = np.array([0, 3, 1, 2], np.uint8)[organs]
    nibabel.save(nibabel.Nifti1Image(drawn, truth.affine), tmp_path / "drawn.nii.gz")
    names = [{"name": "Spleen", "idx": 1}, {"name": "Kidneys", "idx": 2}, {"name": "Liver", "idx": 3}]
    paths = {"app": str(tmp_path / "app"), "label": str(tmp_path / "drawn.nii.gz")}
    words = {**paths, "studies": xnat_sandbox.url, "label_info": names}
    login = {
        "MONAI_LABEL_XNAT_USERNAME": xnat_sandbox.username,
        "MONAI_LABEL_XNAT_PASSWORD": xnat_sandbox.password,
        "MONAI_LABEL_XNAT_CACHE_PATH": str(tmp_path / "cache"),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    run = subprocess.run(
        [sys.executable, "-c", ORDER_PROGRAM],
        input=json.dumps(words),
        env={**os.environ, **login},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (pair,) = json.loads(run.stdout.rpartition("ANSWERS")[2])
    assert np.array_equal(np.asarray(nibabel.load(pair["label"]).dataobj), organs)
