"""The training set: what is in it, what is left out and why, and a manifest from which it can be made again."""

from __future__ import annotations

import hashlib
import json
import pickle
import stat
import zipfile
from pathlib import Path

import pytest


@pytest.fixture
def open_datastore(xnat_sandbox, demo_dicom, open_xnat_datastore):
    for case in demo_dicom.cases[:3]:
        xnat_sandbox.import_dicom(case.dicom, "DEMO")

    def open_datastore(**settings):
        return open_xnat_datastore(project="DEMO", series_description="!*localizer*", **settings)

    return open_datastore


@pytest.fixture
def datastore(open_datastore, demo_dicom):
    datastore = open_datastore()
    images = {datastore.get_image_info(image)["PatientID"]: image for image in datastore.list_images()}
    for case in demo_dicom.cases[:2]:
        datastore.save_label(images[case.subject], str(case.truth), "final", {"client_id": "ann"})
    return datastore


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_manifest_tells_which_bytes_were_trained_on_and_whose(datastore):
    pairs = datastore.datalist()
    (path,) = (datastore._settings.server_folder / "manifests").glob("*.json")
    manifest = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (manifest["server"], manifest["made_by"], manifest["left_out"]) == (datastore._settings.server, "admin", {})
    assert [case["image"]["sha256"] for case in manifest["cases"]] == [sha256(pair["image"]) for pair in pairs]
    assert [case["label"]["sha256"] for case in manifest["cases"]] == [sha256(pair["label"]) for pair in pairs]
    for case in manifest["cases"]:
        assert case["label"]["saved_by"] == "admin"
        version = f"{case['image_id']}@{case['label']['version']}"
        assert sha256(datastore.get_label_uri(version, "final")) == case["label"]["sha256"]


def test_the_training_set_says_of_each_case_whose_it_is_and_which(datastore):
    pairs, cases = datastore.datalist(), datastore.training_set()
    assert [{"image": case["image"], "label": case["label"]} for case in cases] == pairs
    assert [case["image_sha256"] for case in cases] == [sha256(pair["image"]) for pair in pairs]
    assert [case["label_sha256"] for case in cases] == [sha256(pair["label"]) for pair in pairs]
    for case in cases:
        assert case["image_id"] == "/".join(case[part] for part in ("project", "subject", "experiment", "scan"))
        assert datastore.get_label_uri(f"{case['image_id']}@{case['label_version']}", "final") != ""
    manifest = json.loads(cases.manifest.read_text())
    assert [case["image_id"] for case in manifest["cases"]] == [case["image_id"] for case in cases]
    held_out = {cases[0]["subject"]}
    training = [case for case in cases if case["subject"] not in held_out]
    assert len(training) == len(cases) - 1
    again = pickle.loads(pickle.dumps(cases))
    assert (again, again.manifest, again.left_out) == (cases, cases.manifest, {})


def test_the_same_training_set_has_one_manifest(datastore):
    datastore.datalist()
    datastore.datalist()
    assert len(list((datastore._settings.server_folder / "manifests").glob("*"))) == 1


def test_the_archive_holds_its_manifest(datastore):
    path = Path(datastore.get_dataset_archive(1))
    with zipfile.ZipFile(path) as archive:
        (case,) = json.loads(archive.read("manifest.json"))["cases"]
        assert hashlib.sha256(archive.read(f"image/{case['image']['file']}")).hexdigest() == case["image"]["sha256"]
        assert hashlib.sha256(archive.read(f"label/{case['label']['file']}")).hexdigest() == case["label"]["sha256"]
    path.unlink()


def test_what_cannot_be_read_is_left_out_by_name_and_reason(xnat_sandbox, datastore, open_datastore, tmp_path, caplog):
    broken = datastore.get_labeled_images()[0]
    experiment = broken.split("/")[2]
    again = open_datastore(cache_path=tmp_path / "empty cache")
    xnat_sandbox.faults.add(f"/{experiment}/.*/DICOM/files", method="GET", status=500, times=None)
    pairs = again.datalist()
    assert len(pairs) == 1
    assert "500" in again.status()["left_out"][broken]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("1 of 2 labelled images are left out" in warning for warning in warnings)
    assert not any(broken in warning for warning in warnings)
