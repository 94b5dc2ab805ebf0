"""For all combinations of settings, the training set has pairs on one grid, or says why there is none."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import warnings
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox

SETTINGS = {
    "image_format": ["nifti", "dicom"],
    "image_resource": [None, "NIFTI,DICOM", "NIFTI"],
    "labels": [None, {"spleen": 7, "liver": 3}, {"heart": 1}],
    "compress": [False, True],
    "asset_path": [False, True],
}
OTHERS = [
    {"read_only": True},
    {"roi_tag": "", "roi_write": ""},
    {"roi_tag": "original"},
    {"roi_label": "nothing"},
    {"label_resource": "final:SEGS:*"},
    {"cache_budget": 1e-9},
    {"cache_budget": 0},
    {"prefetch": 0, "connections": 1},
    {"keep_versions": 1},
    {"allow_delete": True, "read_only": True},
    {"min_frames": 1, "quality": "*"},
]


@pytest.fixture(scope="module")
def site(tmp_path_factory, demo_dicom):
    """A sandbox with two labelled images, stored as DICOM and as NIfTI, and a function that opens datastores on it."""
    folder = tmp_path_factory.mktemp("site")
    with Sandbox(folder / "archive") as sandbox:
        for case in demo_dicom.cases[:2]:
            sandbox.import_dicom(case.dicom, "P")
        opened = []

        def open_datastore(mounted=False, cache="cache", **settings):
            login = {"username": sandbox.username, "password": sandbox.password, "environ": {}, "project": "P"}
            given = {"series_description": "!*localizer*", "cache_path": folder / cache, **settings}
            if mounted:
                given["asset_path"] = next((folder / "archive").rglob("arc001")).parent.parent
            opened.append(XNATDatastore(sandbox.url, **login, **{k: v for k, v in given.items() if v is not None}))
            return opened[-1]

        first = open_datastore()
        for image in first.list_images():
            save_box(first, image, folder)
        copy = Path(first.get_image_uri(first.list_images()[0]))
        added = first.add_image("P/nifti/nifti/1", str(shutil.copy(copy, folder / "stored.nii")), {})
        save_box(first, added, folder)
        yield open_datastore
        for datastore in opened:
            datastore.close()


def save_box(datastore, image, folder):
    grid = nibabel.load(datastore.get_image_uri(image))
    array = np.zeros(grid.shape, np.uint8)
    array[2:6, 3:7, 4:8] = 1
    array[8:10, 3:7, 4:8] = 2
    nibabel.save(nibabel.Nifti1Image(array, grid.affine), folder / "box.nii.gz")
    info = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    datastore.save_label(image, str(folder / "box.nii.gz"), "final", info)


def require_pairs_on_one_grid(pairs, reader="ITKReader"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI, torch and ITK about themselves
        from monai.transforms import LoadImaged

        read = [LoadImaged(["image", "label"], reader=reader, image_only=True)(pair) for pair in pairs]
    for pair, data in zip(pairs, read, strict=True):
        assert data["image"].shape == data["label"].shape, pair
        assert np.allclose(data["image"].affine, data["label"].affine, atol=1e-3), pair
        assert data["label"].sum() > 0


def trains_or_says_why(datastore, caplog):
    caplog.clear()
    pairs = datastore.datalist()
    labelled = datastore.get_labeled_images()
    left_out = datastore.status().get("left_out", {})
    require_pairs_on_one_grid(pairs)
    assert len(pairs) + len(left_out) == len(labelled)
    if pairs:
        return len(pairs)
    with pytest.raises(KeyError) as caught:
        datastore.get_dataset_archive()
    if left_out:
        assert next(iter(left_out.values())) in str(caught.value)
        assert next(iter(left_out)) in str(caught.value)
    else:
        assert not labelled
    return 0


@pytest.mark.slow
def test_every_combination_of_settings_trains_or_says_why_not(site, caplog):
    for values in itertools.product(*SETTINGS.values()):
        settings = dict(zip(SETTINGS, values, strict=True))
        trains = 0 if settings["labels"] == {"heart": 1} else 1 if settings["image_resource"] == "NIFTI" else 3
        mounted = settings.pop("asset_path")
        datastore = site(mounted=mounted, prefetch=0, **settings)
        assert trains_or_says_why(datastore, caplog) == trains, (settings, mounted)
        datastore.close()


@pytest.mark.parametrize("image_format", ["nifti", "dicom"])
@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_other_settings_train_with_both_forms(site, caplog, image_format, settings):
    assert trains_or_says_why(site(image_format=image_format, **settings), caplog) == 3


def test_a_folder_of_dicom_is_paired_with_a_label_on_the_grid_that_it_is_read_on(site, tmp_path):
    datastore = site(image_format="dicom", cache="dicom")
    pairs = datastore.datalist()
    folders = [pair for pair in pairs if Path(pair["image"]).is_dir()]
    assert (len(pairs), len(folders)) == (3, 2)
    require_pairs_on_one_grid(pairs)
    by_file = {Path(pair["label"]).name: pair for pair in site().datalist()}
    for pair in folders:
        # The label is the one of the NIfTI file, voxel by voxel.
        one, other = (nibabel.load(found["label"]) for found in (pair, by_file[Path(pair["label"]).name]))
        assert (np.asarray(one.dataobj) == np.asarray(other.dataobj)).all()
    archive = Path(datastore.get_dataset_archive())
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
        manifest = json.loads(packed.read("manifest.json"))
    archive.unlink()
    unpacked = [{kind: str(tmp_path / kind / Path(path).name) for kind, path in pair.items()} for pair in pairs]
    require_pairs_on_one_grid(unpacked)
    assert len({case["image"]["sha256"] for case in manifest["cases"]}) == 3


def test_a_folder_is_checked_once(site, monkeypatch):
    site(image_format="dicom", cache="once").datalist()
    monkeypatch.setattr("monailabel_xnat.convert.dicom.series.require_grid_in_folder", None)
    assert len(site(image_format="dicom", cache="once").datalist()) == 3


def test_a_folder_that_itk_reads_on_another_grid_is_left_out_with_the_reason(
    xnat_sandbox, open_xnat_datastore, demo_dicom, tmp_path, caplog
):
    source = tmp_path / "split"
    files = [path for path in demo_dicom.cases[0].dicom.rglob("*") if path.is_file()]
    source.mkdir()
    headers = [pydicom.dcmread(path) for path in files]
    slices = [header for header in headers if "localizer" not in header.SeriesDescription.lower()]
    for number, header in enumerate(sorted(slices, key=lambda header: header.ImagePositionPatient[2])):
        # For ITK, slices of another thickness are another series, and it keeps one of the two.
        header.SliceThickness = 2.5 if number < len(slices) / 2 else 2.0
        header.save_as(source / f"{number}.dcm")
    xnat_sandbox.import_dicom(source, "P")
    datastore = open_xnat_datastore(project="P", image_format="dicom", prefetch=0)
    (image,) = datastore.list_images()
    by_file = open_xnat_datastore(project="P")
    save_box(by_file, image, tmp_path)
    assert len(by_file.datalist()) == 1
    datastore.refresh()
    caplog.set_level(logging.WARNING)
    assert datastore.datalist() == []
    reason = datastore.status()["left_out"][image]
    assert "ITKReader" in reason
    assert "image_format" in reason
    with pytest.raises(KeyError, match=r"the only labelled image is left out.*ITKReader"):
        datastore.get_dataset_archive()


def test_without_labels_the_archive_says_to_save_one(xnat_sandbox, open_xnat_datastore, demo_dicom):
    xnat_sandbox.import_dicom(demo_dicom.cases[0].dicom, "P")
    with pytest.raises(KeyError, match="save a label first"):
        open_xnat_datastore(project="P", image_format="dicom").get_dataset_archive()
