"""Images and labels that change in XNAT one after the other: files that do not belong together are never a pair."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

sys.path.insert(0, str(Path(__file__).parents[1] / "images"))

from one_image import AFFINE, SHAPE, Site, nifti, value_of

from monailabel_xnat.errors import LabelGeometryError, UnknownLabelError

SHIFTED = AFFINE + np.array([[0, 0, 0, 2.0]] + [[0, 0, 0, 0]] * 3)
CHANGES = {
    "another shape": ((5, 5, 4), AFFINE),
    "one slice fewer": ((6, 5, 3), AFFINE),
    "a corrected origin": (SHAPE, SHIFTED),
    "a flipped axis": (SHAPE, AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])),
}


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
        return image

    return save


@pytest.mark.parametrize(("shape", "affine"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("again", [False, True])
def test_a_label_is_no_pair_with_an_image_of_another_grid(site, open_datastore, save, tmp_path, shape, affine, again):
    datastore = open_datastore()
    image = save(datastore)
    assert len(datastore.datalist()) == 1
    site.put("NIFTI", "image.nii", nifti(1, shape, affine))
    datastore = open_datastore(cache_path=tmp_path / "empty") if again else datastore
    datastore.refresh()
    assert datastore.datalist() == []
    reason = datastore.status()["left_out"][image]
    assert "the image changed after this label" in reason
    assert "6 x 5 x 4 voxels" in reason
    assert " x ".join(map(str, shape)) in reason
    with pytest.raises(UnknownLabelError):
        datastore.get_dataset_archive()
    for read in (datastore.get_label_uri, datastore.get_label):
        with pytest.raises(LabelGeometryError, match="the image changed after this label"):
            read(image, "final")
    site.put("NIFTI", "image.nii", nifti(1))
    datastore.refresh()
    assert len(datastore.datalist()) == 1, "once the image is as it was, the label fits again"


def test_a_label_that_was_saved_when_the_image_was_understood_otherwise_is_read_voxel_by_voxel(
    site, open_datastore, save
):
    """The image is the same except its header, which now has the earlier position as its second form."""
    datastore = open_datastore()
    save(datastore)
    image = nibabel.Nifti1Image(np.full(SHAPE, 1, np.int16), SHIFTED)
    image.set_sform(SHIFTED, code=1)
    image.set_qform(AFFINE, code=1)
    site.put("NIFTI", "image.nii", image.to_bytes())
    datastore.refresh()
    (pair,) = datastore.datalist()
    assert np.allclose(nibabel.load(pair["image"]).affine, SHIFTED)
    assert np.allclose(nibabel.load(pair["label"]).affine, SHIFTED)
    assert np.asarray(nibabel.load(pair["label"]).dataobj).all()


def test_rounding_is_no_change(site, open_datastore, save):
    datastore = open_datastore()
    image = save(datastore)
    nearly = AFFINE.copy()
    nearly[0, 3] += 0.05
    site.put("NIFTI", "image.nii", nifti(1, SHAPE, nearly))
    datastore.refresh()
    assert len(datastore.datalist()) == 1
    assert datastore.get_label_uri(image, "final")


def test_a_converted_label_of_others_does_not_outlive_the_image(site, open_datastore):
    site.put("SEG", "a.nii", nifti(1, kind="uint8"))
    datastore = open_datastore(label_resource="final:SEG")
    (image,) = datastore.list_images()
    assert len(datastore.datalist()) == 1
    site.put("NIFTI", "image.nii", nifti(1, (6, 5, 4), AFFINE @ np.diag([1.0, 1.0, 1.5, 1.0])))
    datastore.refresh()
    assert datastore.datalist() == []
    assert "the image changed after this label" in datastore.status()["left_out"][image]


@pytest.mark.parametrize("archive", [False, True])
def test_a_replaced_label_of_others_is_trained_on(site, open_datastore, archive):
    site.put("SEG", "a.nii", nifti(1, kind="uint8"))
    datastore = open_datastore(label_resource="final:SEG")
    assert value_of(datastore.datalist()[0]["label"]) == 1
    site.put("SEG", "a.nii", nifti(2, kind="uint8"))
    if archive:
        Path(datastore.get_dataset_archive()).unlink()
        assert value_of(datastore.get_label_uri(datastore.list_images()[0], "final")) == 2
    else:
        assert value_of(datastore.datalist()[0]["label"]) == 2


def test_a_replaced_label_of_others_is_read_after_a_refresh_and_after_a_restart(site, open_datastore):
    site.put("SEG", "a.nii", nifti(1, kind="uint8"))
    datastore = open_datastore(label_resource="final:SEG")
    (image,) = datastore.list_images()
    assert value_of(datastore.get_label_uri(image, "final")) == 1
    site.put("SEG", "a.nii", nifti(2, kind="uint8"))
    datastore.refresh()
    assert value_of(datastore.get_label_uri(image, "final")) == 2
    site.put("SEG", "a.nii", nifti(3, kind="uint8"))
    asked = len(site.sandbox.requests)
    assert value_of(open_datastore(label_resource="final:SEG").get_label_uri(image, "final")) == 2
    again = open_datastore(label_resource="final:SEG", verify_age=0.001)
    assert value_of(again.get_label_uri(image, "final")) == 3
    assert len(site.sandbox.requests) > asked


def test_a_label_of_others_that_cannot_be_compared_is_not_trained_on(site, open_datastore):
    site.put("SEG", "a.nii", nifti(1, kind="uint8"))
    datastore = open_datastore(label_resource="final:SEG")
    (image,) = datastore.list_images()
    assert len(datastore.datalist()) == 1
    site.sandbox.faults.add("SEG/files$", status=500, times=None)
    assert datastore.datalist() == []
    assert "500" in datastore.status()["left_out"][image]
    assert value_of(datastore.get_label_uri(image, "final")) == 1
    site.sandbox.faults.clear()
    assert len(datastore.datalist()) == 1


def other(path: Path, ending: str) -> bytes:
    target = path.with_name(f"other{ending}")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(target))
    return target.read_bytes()


@pytest.fixture
def contents(tmp_path):
    path = tmp_path / "plain.nii"
    path.write_bytes(nifti(1, kind="uint8"))
    return {
        ".nii": path.read_bytes(),
        ".nii.gz": gzip.compress(path.read_bytes()),
        ".nrrd": other(path, ".nrrd"),
        ".mha": other(path, ".mha"),
    }


NAMES = [("a.nii", ".nii.gz"), ("a.nii.gz", ".nii"), ("a.nii", ".nrrd"), ("a.nii.gz", ".mha"), ("a.nii", ".mha")]


@pytest.mark.parametrize(("name", "true"), [*NAMES, ("a.nrrd", ".nii.gz"), ("a.mha", ".nii"), ("a.png", ".nrrd")])
@pytest.mark.parametrize("mounted", [False, True])
def test_an_image_whose_name_lies_is_read_under_a_true_one(
    xnat_sandbox, open_xnat_datastore, contents, tmp_path, name, true, mounted
):
    site = Site(xnat_sandbox)
    site.put("NIFTI", name, contents[true])
    site.put("SEG", "s.nii.gz", contents[".nii.gz"])
    mount = {"asset_path": next(xnat_sandbox.folder.rglob("arc001")).parents[1]} if mounted else {}
    datastore = open_xnat_datastore(project="P", label_resource="final:SEG", **mount)
    (pair,) = datastore.datalist()
    assert pair["image"].endswith(true)
    assert SimpleITK.ReadImage(pair["image"]).GetSize() == SHAPE
    if true.startswith(".nii"):
        assert nibabel.load(pair["image"]).shape == SHAPE


@pytest.mark.parametrize(("name", "true"), NAMES)
@pytest.mark.parametrize("resource", ["SEG", "AI"])
def test_a_label_of_others_whose_name_lies_is_read_under_a_true_one(
    site, open_datastore, contents, name, true, resource
):
    if resource == "AI" and not name.endswith(".nii.gz"):
        pytest.skip("the built-in datastore names all its labels so")
    site.put(resource, name, contents[true])
    datastore = open_datastore(**({"label_resource": "final:SEG"} if resource == "SEG" else {}))
    (image,) = datastore.list_images()
    path = datastore.get_label_uri(image, "final" if resource == "SEG" else "original")
    assert (nibabel.load(path).shape, value_of(path)) == (SHAPE, 1)
    assert len(datastore.datalist()) == (resource == "SEG")


@pytest.mark.parametrize(("name", "true"), NAMES)
def test_a_label_with_a_wrong_file_name_is_saved_by_its_content(site, open_datastore, contents, tmp_path, name, true):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    (tmp_path / name).write_bytes(contents[true])
    datastore.save_label(image, str(tmp_path / name), "final", {})
    (pair,) = datastore.datalist()
    assert value_of(pair["label"]) == 1


@pytest.mark.parametrize(("name", "true"), NAMES)
def test_an_image_whose_name_lies_is_not_added(site, open_datastore, contents, tmp_path, name, true):
    datastore = open_datastore()
    (tmp_path / name).write_bytes(contents[true])
    with pytest.raises(ValueError, match=rf"{name} is not what its name says.*{true}"):
        datastore.add_image("new", str(tmp_path / name), {})
    assert len(datastore.list_images()) == 1
