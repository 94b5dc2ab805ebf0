"""MONAI Label's sample apps, unmodified, started on XNAT with one command."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK

from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from label_server import COMMAND, copied_app, environment, label_server
from series_writer import SeriesWriter
from small_bundle import write_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SPLEEN = {"models": "segmentation_spleen", "use_pretrained_model": "false", "sam2": "false"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Three CT series of 100 slices, two with a spleen as final label. The network needs this size."""
    folder = tmp_path_factory.mktemp("archive")
    with Sandbox() as sandbox:
        for number in range(3):
            series = SeriesWriter(folder / f"case{number}", spacing=(1.0, 1.0), step=1.0)
            slices = np.random.default_rng(number).integers(0, 200, (100, 100, 100)).astype(np.int16)
            slices[30:60, 30:60, 30:60] += 150
            series.write(slices)
            sandbox.import_dicom(series.folder, "SPLEENS")
        login = sandbox.url, sandbox.username, sandbox.password
        with closing(XNATDatastore(*login, "SPLEENS", cache_path=folder / "cache", environ={})) as datastore:
            for image in datastore.list_images()[:2]:
                info = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
                datastore.save_label(image, str(organs_on(datastore.get_image_uri(image), folder)), "final", info)
        yield sandbox


def organs_on(image, folder):
    """A label as a viewer numbers it: first the liver, then the spleen. The model knows only the spleen, as 1."""
    source = SimpleITK.ReadImage(image)
    voxels = np.zeros(source.GetSize()[::-1], np.uint8)
    voxels[:20, 30:60, 30:60] = 1
    voxels[30:60, 30:60, 30:60] = 2
    label = SimpleITK.GetImageFromArray(voxels)
    label.CopyInformation(source)
    SimpleITK.WriteImage(label, str(folder / "organs.nii.gz"))
    return folder / "organs.nii.gz"


@pytest.fixture(scope="module")
def radiology(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiology")
    conf = {"datastore": "xnat", "xnat_project": "SPLEENS", "skip_scoring": "false", **SPLEEN}
    app = copied_app("radiology", folder)
    # The test starts the scoring. Otherwise each training and next sample would start one, too.
    environ = {**environment(archive, folder), "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
    with label_server(app, archive.url, conf, environ) as url:
        yield url, app


def datastore_of(url):
    return requests.get(f"{url}/info/", timeout=120).json()["datastore"]


def finished(url, task):
    """Wait for a background task and return what the server tells about it."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        answer = requests.get(f"{url}/{task}", params={"all": "true"}, timeout=120).json()
        if answer and answer[-1]["status"] not in ("SUBMITTED", "RUNNING"):
            return answer[-1]
        time.sleep(1)
    raise AssertionError(f"{task} did not end")


def test_radiology_finds_the_images_and_labels_of_the_archive(radiology):
    status = datastore_of(radiology[0])
    assert (status["total"], status["completed"]) == (3, 2)


def test_radiology_keeps_its_models_and_logs_in_its_own_folder(radiology):
    _, app = radiology
    assert (app / "logs" / "app.log").stat().st_size > 0
    assert (app / "model").is_dir()


def test_radiology_hands_out_the_unlabelled_image_and_infers_on_it(radiology):
    url, _ = radiology
    sample = requests.post(f"{url}/activelearning/random", json={}, timeout=300).json()
    assert sample["id"] == unlabelled(url)
    answer = requests.post(
        f"{url}/infer/segmentation_spleen", params={"image": sample["id"], "output": "image"}, timeout=600
    )
    assert answer.status_code == 200
    assert answer.content[:2] == b"\x1f\x8b" or len(answer.content) > 100**3


def unlabelled(url):
    objects = requests.get(f"{url}/datastore/", params={"output": "all"}, timeout=300).json()["objects"]
    return next(image for image, about in objects.items() if "final" not in about["labels"])


def test_radiology_trains_an_epoch_infers_in_a_batch_and_scores(radiology):
    url, app = radiology
    waiting = unlabelled(url)
    request = {"max_epochs": 1, "dataset": "Dataset", "pretrained": False, "name": "here", "val_split": 0}
    assert requests.post(f"{url}/train/segmentation_spleen", json=request, timeout=300).ok
    training = finished(url, "train")
    assert training["status"] == "DONE", "\n".join(training["details"])
    assert (app / "model" / "segmentation_spleen.pt").is_file()
    assert "liver became background in 2 of 2 cases: the model has spleen" in "\n".join(training["details"])

    assert requests.post(
        f"{url}/batch/infer/segmentation_spleen", params={"images": "unlabeled"}, json={}, timeout=300
    ).ok
    batch = finished(url, "batch/infer")
    assert batch["status"] == "DONE", "\n".join(batch["details"])
    assert "original" in labels_of(url, waiting)

    assert requests.post(f"{url}/scoring/sum", json={}, timeout=300).ok
    scoring = finished(url, "scoring")
    assert scoring["status"] == "DONE", "\n".join(scoring["details"])


def labels_of(url, image):
    """Wait until the server shows labels of an image that another process has written."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        objects = requests.get(f"{url}/datastore/", params={"output": "all"}, timeout=300).json()["objects"]
        if objects[image]["labels"]:
            return objects[image]["labels"]
        time.sleep(1)
    return {}


@pytest.mark.parametrize(
    ("name", "conf"),
    [
        ("radiology", {**SPLEEN, "heuristic_planner": "true"}),
        ("endoscopy", {"models": "deepedit", "use_pretrained_model": "false", "sam2": "false"}),
        # The models of these apps come from the internet, or from folders that users put into the app.
        ("monaibundle", {"zoo_source": "ngc", "sam2": "false"}),
        ("pathology", {"sam2": "false"}),
        ("vista2d", {"zoo_source": "ngc"}),
    ],
)
def test_each_sample_app_starts_on_the_archive(archive, tmp_path, name, conf):
    """Also without an option that names the datastore: the address in --studies is that of an XNAT."""
    conf = {"xnat_project": "SPLEENS", **conf}
    with label_server(copied_app(name, tmp_path), archive.url, conf, environment(archive, tmp_path)) as url:
        status = datastore_of(url)
    assert (status["total"], status["completed"]) == (3, 2)


@pytest.mark.parametrize("name", ["monaibundle", "vista2d"])
def test_an_app_for_bundles_infers_with_and_trains_a_bundle_in_its_folder(archive, tmp_path, name):
    app = copied_app(name, tmp_path)
    model = write_bundle(app / "model" / "small_bundle") / "models" / "model.pt"
    untrained = model.read_bytes()
    conf = {"xnat_project": "SPLEENS", "zoo_source": "ngc", "sam2": "false", "models": "small_bundle"}
    with label_server(app, archive.url, conf, environment(archive, tmp_path)) as url:
        query = {"image": unlabelled(url), "output": "image"}
        answer = requests.post(f"{url}/infer/small_bundle", params=query, timeout=600)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) > 1000

        request = {"max_epochs": 1, "val_split": 0, "device": "cpu"}
        assert requests.post(f"{url}/train/small_bundle", json=request, timeout=300).ok
        training = finished(url, "train")
    assert training["status"] == "DONE", "\n".join(training["details"])
    assert "liver became background in 2 of 2 cases: the model has spleen" in "\n".join(training["details"])
    assert model.read_bytes() != untrained


def test_the_options_are_those_of_monai_label():
    words = [sys.executable, "-c", COMMAND, "start_server", "--help"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0
    for option in ("--app", "--studies", "--conf", "--workers", "--ssl_keyfile", "--uvicorn_app", "--dryrun"):
        assert option in run.stdout


def test_a_folder_without_an_app_is_named(archive, tmp_path):
    words = [sys.executable, "-c", COMMAND, "start_server", "--app", str(tmp_path), "--studies", archive.url]
    run = subprocess.run(
        words, env=environment(archive, tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 2
    assert f"there is no MONAI Label app in {tmp_path}" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_mixin_that_would_have_no_effect_is_refused_when_the_class_is_made():
    program = """
import warnings; warnings.simplefilter("ignore")
from monailabel.interfaces.app import MONAILabelApp
from monailabel_xnat import XNATAppMixin
class Other(MONAILabelApp):
    def init_remote_datastore(self): ...
class Right(XNATAppMixin, Other, MONAILabelApp):
    def init_datastore(self): ...
for bases in (MONAILabelApp, XNATAppMixin), (Other, XNATAppMixin, MONAILabelApp):
    try:
        type("Wrong", bases, {})
    except TypeError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.count("name XNATAppMixin first") == 2, run.stdout + run.stderr
