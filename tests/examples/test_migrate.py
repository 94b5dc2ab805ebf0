"""A folder of MONAI Label is moved to XNAT: labels that fit are saved once, with tags and infos; others are named."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import train_site

SCRIPT = Path(__file__).parents[2] / "examples" / "migrate_from_local_datastore.py"
LABEL_INFO = {"label_info": [{"name": "ball", "idx": 1}], "model": "deepedit", "client_id": "ann"}
SAVED_BY_NAME = {("ann_1", "final"), ("ann_1", "original"), ("ben_1_7", "final")}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[SCRIPT.stem]


def write(folder: Path, number: int) -> tuple[str, str]:
    """Write an image and its label, and return their paths."""
    paths = [folder / f"{kind}{number}.nii.gz" for kind in ("image", "label")]
    for path, voxels in zip(paths, train_site.ball(number), strict=True):
        nibabel.save(nibabel.Nifti1Image(voxels, train_site.AFFINE), path)
    return str(paths[0]), str(paths[1])


@pytest.fixture
def datastore(xnat_sandbox, open_xnat_datastore, tmp_path, monkeypatch):
    """An XNAT with three images, and the settings of the user of the script."""
    for name, value in train_site.environment(xnat_sandbox, tmp_path / "script cache").items():
        monkeypatch.setenv(name, value)
    xnat_sandbox.archive.create_project("P")
    datastore = open_xnat_datastore(project="P", roi_write=[])
    for number, place in enumerate(("ann/ann_1/1", "ben/ben_1/7", "cleo/cleo_1/1")):
        datastore.add_image(f"P/{place}", write(tmp_path, number)[0], {})
    return datastore


@pytest.fixture
def local(tmp_path):
    """Write a folder as MONAI Label's LocalDatastore does, and return its index. XNAT knows the first two names."""
    studies = tmp_path / "studies"
    infos = {"final": LABEL_INFO, "original": {"params": {"label_names": {"ball": 1}}}}
    for tag in infos:
        (studies / "labels" / tag).mkdir(parents=True)
    objects = {}
    for number, name in enumerate(("ann_1", "ben_1_7", "patient three", "new")):
        image, label = write(tmp_path, number)
        shutil.copy(image, studies / f"{name}.nii.gz")
        stored = {"name": f"{name}.nii.gz", "ts": 1700000000 + number}
        objects[name] = {"image": {"ext": ".nii.gz", "info": {"ward": "A", **stored}}, "labels": {}}
        for tag in infos if name == "ann_1" else ("final",):
            shutil.copy(label, studies / "labels" / tag / f"{name}.nii.gz")
            objects[name]["labels"][tag] = {"ext": ".nii.gz", "info": {**infos[tag], **stored}}
    index = {"name": "new-dataset", "description": "New", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    return objects


@pytest.fixture
def migrate(script, datastore, tmp_path):
    def migrate(*options, status=None):
        """Run the script, and return what became of each image and tag by its report."""
        report = tmp_path / "report.csv"
        exit_code = script.main([str(tmp_path / "studies"), "--project", "P", "--report", str(report), *options])
        assert status in (None, exit_code)
        datastore.refresh()
        with report.open(newline="") as stream:
            return {(row["image"], row["tag"]): row["outcome"] for row in csv.DictReader(stream)}

    return migrate


def test_a_look_changes_nothing(migrate, local, datastore, tmp_path):
    def contents():
        return {path: path.read_bytes() for path in (tmp_path / "studies").rglob("*") if path.is_file()}

    before = contents()
    outcomes = migrate("--add-images", status=0)
    assert {key for key, outcome in outcomes.items() if outcome == "would be added"} == {
        ("patient three", ""),
        ("new", ""),
    }
    assert {key for key, outcome in outcomes.items() if outcome == "would be saved"} == SAVED_BY_NAME | {
        ("patient three", "final"),
        ("new", "final"),
    }
    assert len(datastore.list_images()) == 3
    assert datastore.status()["label_tags"] == {}
    assert contents() == before


def test_labels_come_with_their_tags_and_infos(migrate, local, datastore):
    outcomes = migrate("--apply", status=1)
    assert {key for key, outcome in outcomes.items() if outcome == "saved"} == SAVED_BY_NAME
    assert outcomes["patient three", "final"] == outcomes["new", "final"] == "not matched"
    ann = datastore.image_id("P/ann/ann_1/1")
    assert set(datastore.get_labels_by_image_id(ann)) == {"final", "original"}
    stored = nibabel.load(datastore.get_label_uri(ann, "final"))
    np.testing.assert_array_equal(np.asarray(stored.dataobj), train_site.ball(0)[1])
    info, before = datastore.get_label_info(ann, "final"), local["ann_1"]["labels"]["final"]["info"]
    assert {key: info[key] for key in before} == before
    assert info["migrated_from"]["file"] == "labels/final/ann_1.nii.gz"


def test_the_same_again_saves_nothing(migrate, local, datastore):
    migrate("--apply")
    outcomes = migrate("--apply")
    assert {key for key, outcome in outcomes.items() if outcome == "in XNAT already"} == SAVED_BY_NAME
    assert "saved" not in outcomes.values()
    # Somebody corrects one in XNAT: that is the label from now on.
    ann = datastore.image_id("P/ann/ann_1/1")
    datastore.save_label(ann, datastore.get_label_uri(ann, "original"), "final", {"client_id": "ben"})
    assert migrate("--apply")["ann_1", "final"] == "in XNAT already"
    assert datastore.get_label_info(ann, "final")["client_id"] == "ben"
    assert len(datastore.label_history(ann, "final")) == 2


def test_a_migration_that_failed_in_the_middle_goes_on(migrate, local, datastore, xnat_sandbox):
    xnat_sandbox.faults.add("/scans/7/resources/MONAILABEL_final", method="PUT", status=403, times=None)
    outcomes = migrate("--apply")
    assert outcomes["ann_1", "final"] == "saved"
    assert outcomes["ben_1_7", "final"] in ("failed", "on its way")
    xnat_sandbox.faults.clear()
    until = time.monotonic() + 60  # the label in the outbox is sent by itself, and not saved a second time
    while migrate("--apply")["ben_1_7", "final"] == "on its way":
        assert time.monotonic() < until
    datastore.refresh()
    assert len(datastore.label_history(datastore.image_id("P/ben/ben_1/7"), "final")) == 1
    assert len(datastore.label_history(datastore.image_id("P/ann/ann_1/1"), "final")) == 1


def test_a_label_that_was_made_in_xnat_stays_the_label(migrate, local, datastore, tmp_path):
    ann = datastore.image_id("P/ann/ann_1/1")
    datastore.save_label(ann, write(tmp_path, 0)[1], "final", {"client_id": "ben"})
    outcomes = migrate("--apply")
    assert outcomes["ann_1", "final"] == "conflict"
    assert outcomes["ann_1", "original"] == "saved"
    assert len(datastore.label_history(ann, "final")) == 1


def test_the_report_with_its_blanks_filled_in_is_a_mapping(migrate, local, datastore, tmp_path):
    migrate("--apply")
    report, mapping = (tmp_path / "report.csv").read_text(), tmp_path / "mapping.csv"
    mapping.write_text(report.replace("patient three,final,,", "patient three,final,P/cleo/cleo_1/1,"))
    assert migrate("--apply", "--mapping", str(mapping))["patient three", "final"] == "saved"
    assert set(datastore.get_labels_by_image_id("P/cleo/cleo_1/1")) == {"final"}


@pytest.mark.parametrize("wrong", ["P/ben/ben_1/7", "P/nobody/nobody_1/1"])
def test_a_mapping_to_another_image_is_not_believed(migrate, local, datastore, tmp_path, wrong):
    mapping = tmp_path / "mapping.csv"
    mapping.write_text(f"image,scan\npatient three,{wrong}\n")
    outcomes = migrate("--apply", "--add-images", "--mapping", str(mapping), status=1)
    assert outcomes["patient three", "final"] == "not matched"
    assert datastore.status()["label_tags"] == {"final": 3, "original": 1}


def test_an_image_whose_axes_were_turned_is_still_the_image(migrate, local, tmp_path):
    path = tmp_path / "studies" / "ann_1.nii.gz"
    turned = nibabel.as_closest_canonical(nibabel.load(path))
    nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj).astype(np.float32), turned.affine), path)
    assert migrate()["ann_1", "final"] == "would be saved"


def test_missing_images_are_added_once(migrate, local, datastore, tmp_path):
    outcomes = migrate("--apply", "--add-images", status=0)
    assert outcomes["new", ""] == "added"
    assert outcomes["new", "final"] == "saved"
    images = datastore.list_images()
    assert datastore.get_image_info(datastore.image_id("new"))["ward"] == "A"
    assert set(migrate("--apply", "--add-images", status=0).values()) == {"in XNAT already"}
    assert datastore.list_images() == images


def test_files_that_the_index_does_not_know_count_as_for_monai_label(migrate, local, tmp_path):
    labels = tmp_path / "studies" / "labels"
    (labels / "version_1").mkdir()
    shutil.copy(write(tmp_path, 0)[1], labels / "version_1" / "ann_1.nii.gz")
    (labels / "final" / "ann_1.nii").write_bytes(b"what was saved over")
    (labels / "final" / "orphan.nii.gz").write_bytes(b"a label without its image")
    outcomes = migrate("--apply")
    assert outcomes["ann_1", "version_1"] == outcomes["ann_1", "final"] == "saved"
    assert outcomes["orphan", "final"] == "not matched"
    (tmp_path / "studies" / "datastore_v2.json").unlink()
    assert migrate()["ben_1_7", "final"] == "in XNAT already"
