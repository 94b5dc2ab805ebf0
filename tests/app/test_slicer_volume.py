"""3D Slicer uploads a volume of its own, and then uses the volume's name, whatever id it got."""

from __future__ import annotations

import json
import shutil
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

from label_server import environment, label_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

APP = Path(__file__).parent / "small_app"


def volume(path, seed):
    values = np.random.default_rng(seed).integers(0, 99, (3, 4, 5)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    return path, values


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    with Sandbox() as sandbox:
        admin = requests.Session()
        admin.auth = (sandbox.username, sandbox.password)
        admin.put(f"{sandbox.url}/data/projects/SLICER").raise_for_status()
        conf = {"datastore": "xnat", "xnat_project": "SLICER", "xnat_max_age": "1"}
        environ = {**environment(sandbox, folder), "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
        with label_server(folder / "app", sandbox.url, conf, environ) as url:
            yield url, sandbox, admin


def put_image(url, name, path):
    with path.open("rb") as stream:
        return requests.put(
            f"{url}/datastore/", params={"image": name}, files={"file": (path.name, stream)}, timeout=60
        )


def put_label(url, name, path):
    form = {"params": json.dumps({"label_info": [{"name": "organ", "idx": 1}]})}
    with path.open("rb") as stream:
        files = {"label": (path.name, stream)}
        return requests.put(f"{url}/datastore/label", params={"image": name}, data=form, files=files, timeout=60)


def infer(url, name):
    words = {"params": (None, json.dumps({"result_extension": ".nii.gz"}))}
    query = {"image": name, "output": "image"}
    return requests.post(f"{url}/infer/threshold", params=query, files=words, timeout=60)


def test_a_volume_is_uploaded_inferred_and_labelled_under_its_name(served, tmp_path):
    url, sandbox, _ = served
    name = "2: CT chest & abdomen"
    path, values = volume(tmp_path / "tmpab12.nii.gz", 0)
    first = put_image(url, name, path)
    assert first.status_code == 200
    again, _ = volume(tmp_path / "tmpcd34.nii.gz", 0)
    assert put_image(url, name, again).json() == first.json()

    mask = infer(url, name)
    assert mask.status_code == 200
    (tmp_path / "mask.nii.gz").write_bytes(mask.content)
    assert (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))) == (values > 50)).all()
    assert put_label(url, name, tmp_path / "mask.nii.gz").status_code == 200

    assert requests.get(f"{url}/datastore/image", params={"image": name}, timeout=60).content == path.read_bytes()
    assert requests.get(f"{url}/datastore/image/info", params={"image": name}, timeout=60).json()["scan"] == "1"
    query = {"label": name, "tag": "final"}
    assert requests.get(f"{url}/datastore/label", params=query, timeout=60).status_code == 200
    assert requests.get(f"{url}/datastore/label/info", params=query, timeout=60).json()["label_info"]

    other, _ = volume(tmp_path / "other.nii.gz", 1)
    refused = put_image(url, name, other)
    assert refused.status_code == 409
    assert "rename it" in refused.json()["detail"]

    login = (sandbox.url, sandbox.username, sandbox.password, "SLICER")
    with closing(XNATDatastore(*login, cache_path=tmp_path / "cache", environ={})) as datastore:
        (image,) = datastore.list_images()
        assert datastore.get_labels_by_image_id(name) == {"final": image}


def test_a_name_that_two_images_bear_is_409_in_every_call_and_the_label_is_kept(served, tmp_path):
    url, sandbox, admin = served
    for seed, name in enumerate("ab"):
        path, _ = volume(tmp_path / f"{name}.nii.gz", 10 + seed)
        assert put_image(url, name, path).status_code == 200
    login = (sandbox.url, sandbox.username, sandbox.password, "SLICER")
    with closing(XNATDatastore(*login, cache_path=tmp_path / "cache", environ={})) as datastore:
        images = [datastore.get_image_info(name) for name in "ab"]
    kind = "xnat:mrScanData"
    scan = f"{sandbox.url}/data/experiments/{images[1]['experiment']}/scans/1"
    admin.put(scan, params={"xsiType": kind, f"{kind}/series_description": "a"}).raise_for_status()
    until = time.monotonic() + 60
    while requests.get(f"{url}/datastore/image/info", params={"image": "a"}, timeout=60).status_code != 409:
        assert time.monotonic() < until
        time.sleep(0.5)
    mask = tmp_path / "mask.nii.gz"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(mask))
    answers = [
        requests.get(f"{url}/datastore/image", params={"image": "a"}, timeout=60),
        requests.get(f"{url}/datastore/label", params={"label": "a", "tag": "final"}, timeout=60),
        infer(url, "a"),
        put_label(url, "a", mask),
    ]
    for answer in answers:
        assert answer.status_code == 409
        assert all(image["experiment"] in answer.json()["detail"] for image in images)
    assert requests.get(f"{url}/info/", timeout=60).json()["datastore"]["unassigned"] == 1


def test_a_label_under_a_name_that_nobody_knows_is_404_and_kept(served, tmp_path):
    url, _, _ = served
    mask = tmp_path / "mask.nii.gz"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(mask))
    before = requests.get(f"{url}/info/", timeout=60).json()["datastore"].get("unassigned", 0)
    answer = put_label(url, "never uploaded", mask)
    assert answer.status_code == 404
    assert "The label is not lost" in answer.json()["detail"]
    assert requests.get(f"{url}/info/", timeout=60).json()["datastore"]["unassigned"] == before + 1
