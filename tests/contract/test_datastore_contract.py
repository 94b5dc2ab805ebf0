"""One behaviour for MONAI Label's apps and viewers: our datastore must do the same as LocalDatastore."""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from monailabel_xnat import XNATDatastore

# `pytest --live-xnat` selects tests that need a site. Fixtures that are chosen by name do not show this need.
pytestmark = pytest.mark.usefixtures("xnat_site")


@pytest.fixture
def folder_datastore(tmp_path, demo_dicom):
    """LocalDatastore with two of the demo's images."""
    pytest.importorskip("torch", reason="MONAI Label's own datastore imports torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monailabel.datastore.local import LocalDatastore
    studies = tmp_path / "studies"
    studies.mkdir()
    for case in demo_dicom.cases[:2]:
        shutil.copy(case.truth, studies / f"{case.subject}.nii.gz")
    return LocalDatastore(str(studies), auto_reload=False)


@pytest.fixture
def archive_datastore(xnat_site, demo_dicom, tmp_path):
    """Our datastore with the same two images, as DICOM in an XNAT."""
    for case in demo_dicom.cases[:2]:
        xnat_site.import_dicom(case.dicom)
    datastore = XNATDatastore(
        xnat_site.url,
        xnat_site.settings.username,
        xnat_site.settings.password,
        xnat_site.project,
        cache_path=tmp_path / "contract-cache",
        series_description="!*localizer*",
    )
    yield datastore
    datastore.close()


# Ours comes first: `--quick` runs the first.
@pytest.fixture(params=["archive_datastore", "folder_datastore"])
def datastore(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def label(tmp_path, demo_dicom):
    return copy_of(demo_dicom.cases[0].truth, tmp_path / "made by a client.nii.gz")


def copy_of(source, target):
    shutil.copy(source, target)
    return str(target)


def first(datastore):
    return sorted(datastore.list_images())[0]


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_images_are_listed_once_each(datastore):
    images = datastore.list_images()
    assert len(images) == len(set(images)) == 2
    assert all(isinstance(image, str) for image in images)


def test_an_image_is_a_file_with_a_stable_path(datastore):
    path = datastore.get_image_uri(first(datastore))
    assert Path(path).is_file()
    assert datastore.get_image_uri(first(datastore)) == path


def test_an_image_can_be_read_as_a_stream(datastore):
    with datastore.get_image(first(datastore)) as stream:
        assert stream.read() == Path(datastore.get_image_uri(first(datastore))).read_bytes()


@pytest.mark.parametrize("image", ["nobody/knows/this/1", "unknown", ""])
def test_an_unknown_image_is_a_value_on_the_reading_side(datastore, image):
    assert datastore.get_image_uri(image) == ""
    assert datastore.get_image_info(image) == {}
    assert datastore.get_image(image) is None
    assert datastore.get_labels_by_image_id(image) == {}
    assert datastore.get_label_by_image_id(image, "final") == ""
    assert datastore.get_label_uri(image, "final") == ""
    assert datastore.get_label(image, "final") is None
    assert datastore.get_label_info(image, "final") == {}


def test_an_unknown_image_is_an_exception_on_the_writing_side(datastore, label):
    with pytest.raises(ImageNotFoundException):
        datastore.save_label("nobody/knows/this/1", label, "final", {})
    with pytest.raises(ImageNotFoundException):
        datastore.update_image_info("nobody/knows/this/1", {"a": 1})
    with pytest.raises(LabelNotFoundException):
        datastore.update_label_info(first(datastore), "final", {"a": 1})


def test_a_saved_label_is_found_in_every_way(datastore, label):
    image = first(datastore)
    assert datastore.save_label(image, label, "final", {"model": "organs"}) == image
    assert datastore.get_labels_by_image_id(image) == {"final": image}
    assert datastore.get_label_by_image_id(image, "final") == image
    assert datastore.get_label_by_image_id(image, "original") == ""
    assert (voxels(datastore.get_label_uri(image, "final")) == voxels(label)).all()
    assert datastore.get_label(image, "final").read() == Path(datastore.get_label_uri(image, "final")).read_bytes()
    assert datastore.get_label_info(image, "final")["model"] == "organs"


def test_saving_takes_a_copy_and_leaves_the_file(datastore, label):
    before = Path(label).read_bytes()
    datastore.save_label(first(datastore), label, "final", {})
    assert Path(label).read_bytes() == before


@pytest.mark.parametrize("info", [None, {}])
def test_a_label_without_info_can_be_saved(datastore, label, info):
    image = first(datastore)
    datastore.save_label(image, label, "final", info)
    assert datastore.get_label_by_image_id(image, "final") == image


def test_tags_are_text_or_monai_labels_enum(datastore, label):
    image = first(datastore)
    datastore.save_label(image, label, DefaultLabelTag.ORIGINAL, {})
    assert datastore.get_labels_by_image_id(image) == {"original": image}
    assert datastore.get_label_by_image_id(image, "original") == image


def test_only_a_final_label_makes_an_image_labelled(datastore, label):
    image, other = sorted(datastore.list_images())
    datastore.save_label(image, label, "original", {})
    assert datastore.get_labeled_images() == []
    assert sorted(datastore.get_unlabeled_images()) == [image, other]
    datastore.save_label(image, label, "final", {})
    assert datastore.get_labeled_images() == [image]
    assert datastore.get_unlabeled_images() == [other]


def test_lists_are_the_caller_s_to_change(datastore):
    datastore.list_images().clear()
    datastore.get_unlabeled_images().clear()
    datastore.get_image_info(first(datastore)).clear()
    assert len(datastore.list_images()) == len(datastore.get_unlabeled_images()) == 2
    assert datastore.get_image_info(first(datastore))


def test_image_info_is_merged_at_the_top_level(datastore):
    image = first(datastore)
    datastore.update_image_info(image, {"strategy": {"random": {"ts": 1}}, "dice": 0.5})
    datastore.update_image_info(image, {"strategy": {"first": {"ts": 2}}})
    info = datastore.get_image_info(image)
    assert info["strategy"]["first"] == {"ts": 2}
    assert info["dice"] == 0.5
    assert Path(info["name"]).name == info["name"]


def test_label_info_is_merged_at_the_top_level(datastore, label):
    image = first(datastore)
    datastore.save_label(image, label, "final", {"client_id": "ann", "params": {"a": 1}})
    datastore.update_label_info(image, "final", {"params": {"b": 2}, "segmentationMeta": {"status": "approved"}})
    info = datastore.get_label_info(image, "final")
    assert info["client_id"] == "ann"
    assert info["params"] == {"b": 2}
    assert info["segmentationMeta"] == {"status": "approved"}


def test_a_removed_label_is_gone_and_removing_it_again_is_no_error(datastore, label):
    image = first(datastore)
    datastore.save_label(image, label, "final", {})
    datastore.save_label(image, label, "original", {})
    datastore.remove_label(image, "final")
    assert datastore.get_labels_by_image_id(image) == {"original": image}
    assert datastore.get_label_uri(image, "final") == ""
    datastore.remove_label(image, "final")


def test_the_datalist_pairs_files_of_one_grid(datastore, label):
    image = first(datastore)
    assert datastore.datalist() == []
    datastore.save_label(image, label, "final", {})
    (pair,) = datastore.datalist()
    assert pair.keys() == {"image", "label"}
    assert pair["image"] == datastore.get_image_uri(image)
    assert nib.load(pair["image"]).shape == nib.load(pair["label"]).shape
    assert np.allclose(nib.load(pair["image"]).affine, nib.load(pair["label"]).affine, atol=1e-3)


def test_the_archive_holds_the_datalist_and_metadata(datastore, label):
    with pytest.raises((AssertionError, LabelNotFoundException)):
        datastore.get_dataset_archive(None)
    datastore.save_label(first(datastore), label, "final", {})
    path = Path(datastore.get_dataset_archive(limit_cases=5))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        metadata = json.loads(archive.read("metadata.json"))
    path.unlink()
    assert sorted({name.split("/")[0] for name in names} - {"manifest.json"}) == ["image", "label", "metadata.json"]
    assert first(datastore) in metadata["objects"]


def test_the_status_counts(datastore, label):
    datastore.save_label(first(datastore), label, "final", {})
    datastore.save_label(first(datastore), label, "original", {})
    status = datastore.status()
    assert {key: status[key] for key in ("total", "completed")} == {"total": 2, "completed": 1}
    assert status["label_tags"] == {"final": 1, "original": 1}


def test_the_tree_is_what_slicer_and_the_reviewer_read(datastore, label):
    image = first(datastore)
    params = {"label_names": {"liver": 1, "spleen": 2}}
    datastore.save_label(image, label, "original", {"params": params})
    tree = json.loads(json.dumps(datastore.json()))
    assert {"name", "description", "images_dir", "labels_dir", "objects"} <= tree.keys()
    assert tree["objects"][image]["labels"]["original"]["info"]["params"]["label_names"].keys() == {"liver", "spleen"}
    assert tree["objects"][image]["image"]["ext"].startswith(".")
    assert tree["objects"][image]["labels"]["original"]["ext"] == ".nii.gz"


def test_an_added_image_is_listed_at_once(datastore, demo_dicom, tmp_path):
    image = copy_of(demo_dicom.cases[2].truth, tmp_path / "patient7.nii.gz")
    added = datastore.add_image(None, image, {"user": "ann"})
    assert added in datastore.list_images()
    assert (voxels(datastore.get_image_uri(added)) == voxels(image)).all()
    assert datastore.get_image_info(added)["user"] == "ann"


def test_name_and_description_can_be_set(datastore):
    datastore.set_name("Abdomen")
    datastore.set_description("CT of the abdomen")
    assert isinstance(datastore.name(), str)
    assert datastore.description() == "CT of the abdomen"


def test_refresh_changes_nothing_by_itself(datastore):
    images = datastore.list_images()
    datastore.refresh()
    assert sorted(datastore.list_images()) == sorted(images)


def test_no_method_of_the_interface_is_missing_or_a_stub():
    methods = [name for name, member in vars(Datastore).items() if getattr(member, "__isabstractmethod__", False)]
    assert len(methods) == 26
    assert not inspect.isabstract(XNATDatastore)
    for name in methods:
        assert "NotImplementedError" not in inspect.getsource(getattr(XNATDatastore, name))
