"""Labels that other programs left in resources of their own, named by the setting ``label_resource``."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from label_archive import AFFINE, SHAPE, voxels

from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LabelError, LabelGeometryError, SettingsError, UnknownLabelError


@pytest.fixture
def leave(open_labels):
    """Store a file in a resource of the image, as any other program may."""

    def leave(name, path, resource="SEG"):
        other = open_labels("other program")
        headers = {"Content-Type": "application/octet-stream"}
        target = f"{other.scan.path}/resources/{resource}/files/{name}"
        other.session.request("PUT", target, body=path.read_bytes(), headers=headers)

    return leave


def test_labels_of_other_programs_have_a_tag(open_labels, leave, draw):
    source = draw(1)
    leave("liver_final.nii.gz", source)
    leave("notes.nii.gz", draw(2, "notes.nii.gz"))
    opened = open_labels(label_resource="final:SEG:*_final.nii.gz")
    assert opened.labels.tags(opened.scan) == ["final"]
    assert (voxels(opened.labels.path(opened.scan, "final")) == voxels(source)).all()
    assert opened.labels.info(opened.scan, "final") == {}


def test_what_the_pattern_leaves_out_is_no_label_once_it_was_looked_at(open_labels, leave, draw):
    leave("draft.nii.gz", draw(1))
    opened = open_labels(label_resource="final:SEG:*_final.nii.gz")
    with pytest.raises(UnknownLabelError):
        opened.labels.path(opened.scan, "final")
    assert opened.labels.tags(opened.scan) == []


def test_one_resource_may_hold_several_tags(open_labels, leave, draw):
    leave("a_final.nii.gz", draw(1))
    leave("a_draft.nii.gz", draw(2, "draft.nii.gz"))
    opened = open_labels(label_resource="final:SEG:*_final*,original:SEG:*_draft*")
    assert opened.labels.tags(opened.scan) == ["final", "original"]
    assert (voxels(opened.labels.path(opened.scan, "original")) == voxels(draw(2))).all()


def test_a_label_of_ours_wins_over_labels_of_other_programs(open_labels, leave, draw):
    leave("a.nii.gz", draw(1))
    opened = open_labels(label_resource="final:SEG")
    ours = draw(2, "ours.nii.gz")
    opened.store.save(opened.scan, "final", ours, {})
    assert (voxels(opened.labels.path(opened.scan, "final")) == voxels(ours)).all()


def test_their_axes_are_turned_to_those_of_the_image(open_labels, leave, tmp_path):
    array = np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.float32)
    image = nibabel.Nifti1Image(array, AFFINE)
    nibabel.save(image.as_reoriented([[1, 1], [0, -1], [2, 1]]), tmp_path / "turned.nii")
    leave("turned.nii", tmp_path / "turned.nii")
    opened = open_labels(label_resource="final:SEG:*")
    found = nibabel.load(opened.labels.path(opened.scan, "final"))
    assert np.allclose(found.affine, AFFINE)
    assert (np.asarray(found.dataobj) == array).all()


def test_one_that_does_not_fit_is_refused_with_the_numbers(open_labels, leave, draw):
    leave("other.nii.gz", draw(1, shape=(9, 9, 9)))
    opened = open_labels(label_resource="final:SEG:*")
    with pytest.raises(LabelGeometryError, match="9 x 9 x 9"):
        opened.labels.path(opened.scan, "final")


def test_labels_of_other_programs_cannot_be_removed(open_labels, leave, draw):
    leave("a.nii.gz", draw(1))
    opened = open_labels(label_resource="final:SEG:*")
    with pytest.raises(LabelError, match="SEG"):
        opened.store.remove(opened.scan, "final")


@pytest.mark.parametrize("value", ["final", "final::x", ":SEG:x", "a:b:c:d"])
def test_the_setting_has_a_form(value):
    with pytest.raises(SettingsError, match="tag:resource:pattern"):
        Settings.load({"server": "http://127.0.0.1", "label_resource": value}, environ={})


def named(*names):
    return {"label_info": [{"name": name, "idx": value} for value, name in enumerate(names, 1)]}


def test_names_of_stored_labels_get_the_values_of_the_settings_in_a_training_set(open_labels, draw):
    opened = open_labels(labels="spleen=2,liver=1")
    source = draw(1)
    opened.store.save(opened.scan, "final", source, named("liver", "spleen"))
    assert opened.labels.training_path(opened.scan, "final") == opened.labels.path(opened.scan, "final")
    opened.store.save(opened.scan, "final", source, named("spleen", "tumour"))
    assert (voxels(opened.labels.path(opened.scan, "final")) == voxels(source)).all()
    found = voxels(opened.labels.training_path(opened.scan, "final"))
    assert (found == np.choose(voxels(source), [0, 2, 0])).all()


def test_values_without_names_are_the_settings_own(open_labels, draw):
    opened = open_labels(labels="liver=1,spleen=2")
    opened.store.save(opened.scan, "final", draw(1), {})
    assert opened.labels.training_path(opened.scan, "final") == opened.labels.path(opened.scan, "final")


def test_a_stored_label_of_unknown_names_is_no_training_label(open_labels, draw):
    opened = open_labels(labels="liver=1")
    opened.store.save(opened.scan, "final", draw(1), named("kidney", "tumour"))
    with pytest.raises(LabelError, match=r"liver.*kidney, tumour"):
        opened.labels.training_path(opened.scan, "final")
