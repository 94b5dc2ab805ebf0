"""Files replaced in XNAT by others of equal number and size: this is noticed, and the old ones are not used again."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from one_image import AFFINE, SHAPE, Site, nifti, value_of
from scan_bench import make_series


@pytest.fixture
def site(xnat_sandbox):
    site = Site(xnat_sandbox)
    site.put("NIFTI", "image.nii", nifti(1))
    return site


@pytest.fixture
def open_datastore(site, open_xnat_datastore):
    def open_datastore(**settings):
        return open_xnat_datastore(**{"project": "P", **settings})

    return open_datastore


@pytest.fixture
def save(tmp_path):
    def save(datastore):
        (image,) = datastore.list_images()
        path = tmp_path / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), path)
        datastore.save_label(image, str(path), "final", {})

    return save


def test_a_replaced_image_is_served_after_a_refresh(site, open_datastore):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    assert value_of(datastore.get_image_uri(image)) == 1
    site.put("NIFTI", "image.nii", nifti(0))
    datastore.refresh()
    assert value_of(datastore.get_image_uri(image)) == 0
    asked = len(site.sandbox.requests)
    assert value_of(datastore.get_image_uri(image)) == 0
    assert len(site.sandbox.requests) == asked, "a warm hit makes no request"


def test_the_info_of_an_image_does_not_lead_to_a_file_that_may_have_been_replaced(site, open_datastore):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    path = datastore.get_image_uri(image)
    assert datastore.get_image_info(image)["path"] == path
    site.put("NIFTI", "image.nii", nifti(0))
    datastore.refresh()
    info = datastore.get_image_info(image)
    assert info["name"] == Path(path).name
    assert not {"path", "checksum"} & set(info)
    assert "path" not in datastore.json()["objects"][image]["image"]["info"]
    assert value_of(datastore.get_image_uri(image)) == 0
    assert value_of(datastore.get_image_info(image)["path"]) == 0


def test_a_refresh_compares_each_image_once(site, open_datastore):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    path = datastore.get_image_uri(image)
    datastore.refresh()
    asked = site.asked_for_files()
    assert [datastore.get_image_uri(image) for _ in range(3)] == [path] * 3
    assert site.asked_for_files() == asked + 1


@pytest.mark.parametrize("archive", [False, True])
def test_a_replaced_image_is_trained_on_without_a_refresh(site, open_datastore, save, archive):
    datastore = open_datastore()
    save(datastore)
    ((pair),) = datastore.datalist()
    assert value_of(pair["image"]) == 1
    site.put("NIFTI", "image.nii", nifti(0))
    if archive:
        Path(datastore.get_dataset_archive()).unlink()
        assert value_of(datastore.get_image_uri(datastore.list_images()[0])) == 0
    else:
        assert value_of(datastore.datalist()[0]["image"]) == 0


def test_after_a_restart_an_old_comparison_is_repeated_and_a_young_one_is_not(site, open_datastore):
    first = open_datastore()
    (image,) = first.list_images()
    path = Path(first.get_image_uri(image))
    site.put("NIFTI", "image.nii", nifti(0))
    asked = site.asked_for_files()
    assert open_datastore().get_image_uri(image) == str(path)
    assert site.asked_for_files() == asked
    record = path.with_name(f"{path.name}.json")
    facts = json.loads(record.read_text())
    assert abs(facts["compared"] - time.time()) < 60
    record.write_text(json.dumps({**facts, "compared": time.time() - 86401}))
    assert value_of(open_datastore().get_image_uri(image)) == 0


def test_the_time_between_comparisons_can_be_set(site, open_datastore):
    datastore = open_datastore(verify_age=0.05)
    (image,) = datastore.list_images()
    assert value_of(datastore.get_image_uri(image)) == 1
    site.put("NIFTI", "image.nii", nifti(0))
    time.sleep(0.1)
    assert value_of(datastore.get_image_uri(image)) == 0


@pytest.mark.parametrize("image_format", ["nifti", "dicom"])
@pytest.mark.parametrize("mounted", [False, True])
def test_slices_whose_pixels_were_blacked_out(xnat_sandbox, open_xnat_datastore, tmp_path, image_format, mounted):
    site = Site(xnat_sandbox)
    series = make_series(tmp_path / "series")
    for name, content in series.items():
        site.put("DICOM", name, content)
    mount = {"asset_path": next(xnat_sandbox.folder.rglob("arc001")).parents[1]} if mounted else {}
    datastore = open_xnat_datastore(project="P", image_format=image_format, **mount)
    (image,) = datastore.list_images()
    datastore.get_image_uri(image)
    redacted = {name: content[:-240] + bytes(240) for name, content in series.items()}
    for name, content in redacted.items():
        site.put("DICOM", name, content)
    datastore.refresh()
    uri = datastore.get_image_uri(image)
    if image_format == "dicom":
        assert {name: Path(uri, name).read_bytes() for name in redacted} == redacted
    else:
        assert not np.asarray(nibabel.load(uri).dataobj).any()


def test_a_file_mounted_in_place_that_was_replaced(site, open_datastore, caplog):
    mount = next(site.sandbox.folder.rglob("arc001")).parents[1]
    datastore = open_datastore(asset_path=mount)
    (image,) = datastore.list_images()
    assert value_of(datastore.get_image_uri(image)) == 1
    site.put("NIFTI", "image.nii", nifti(0))
    datastore.refresh()
    path = datastore.get_image_uri(image)
    assert (value_of(path), Path(path).resolve().is_relative_to(mount.resolve())) == (0, True)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_image_that_cannot_be_compared_now_is_served_with_a_warning_once_in_a_while(site, open_datastore, caplog):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    path = datastore.get_image_uri(image)
    datastore.refresh()
    site.sandbox.faults.add("/files$", status=500, times=None)
    asked = site.asked_for_files()
    assert [datastore.get_image_uri(image) for _ in range(3)] == [path] * 3
    assert site.asked_for_files() == asked + 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "could not be compared" in warning
    assert image not in warning


@pytest.mark.parametrize("status", [403, 404])
def test_an_image_that_xnat_no_longer_gives_is_not_served(site, open_datastore, status):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    datastore.get_image_uri(image)
    datastore.refresh()
    site.sandbox.faults.add("/files$", status=status, times=None)
    with pytest.raises(OSError, match=str(status)):
        datastore.get_image_uri(image)


def test_an_image_that_cannot_be_compared_is_not_trained_on(site, open_datastore, save):
    datastore = open_datastore()
    save(datastore)
    assert len(datastore.datalist()) == 1
    site.put("NIFTI", "image.nii", nifti(0))
    site.sandbox.faults.add("NIFTI/files$", status=500, times=None)
    assert datastore.datalist() == []
    assert "500" in datastore.status()["left_out"][datastore.list_images()[0]]
    site.sandbox.faults.clear()
    assert value_of(datastore.datalist()[0]["image"]) == 0
