"""The training set of a model that uses other values than the people who drew: names decide, not numbers."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from monailabel_xnat.app.mixin import values_of
from monailabel_xnat.training.dataset import labels_of_model

NAMES = {"liver": 1, "spleen": 2, "kidneys": 3}


@pytest.fixture
def open_datastore(xnat_sandbox, demo_dicom, open_xnat_datastore, tmp_path):
    """Open a datastore on three cases: all organs with names, only the kidneys with a name, values without names."""
    for case in demo_dicom.cases[:3]:
        xnat_sandbox.import_dicom(case.dicom, "DEMO")
    datastore = open_xnat_datastore(project="DEMO", series_description="!*localizer*")
    images = {datastore.get_image_info(image)["PatientID"]: image for image in datastore.list_images()}
    named = {"label_info": [{"name": name, "idx": value} for name, value in NAMES.items()]}
    for case, info, kept in zip(demo_dicom.cases[:3], (named, named, {}), ((1, 2, 3), (3,), (1, 2, 3)), strict=True):
        truth = nibabel.load(case.truth)
        voxels = np.asarray(truth.dataobj)
        label = nibabel.Nifti1Image(np.where(np.isin(voxels, kept), voxels, 0).astype(np.uint8), truth.affine)
        nibabel.save(label, tmp_path / f"{case.subject}.nii.gz")
        datastore.save_label(images[case.subject], str(tmp_path / f"{case.subject}.nii.gz"), "final", info)
    return lambda **settings: open_xnat_datastore(project="DEMO", series_description="!*localizer*", **settings)


def voxels_of(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_a_model_of_the_spleen_is_not_trained_on_the_liver(open_datastore, caplog):
    datastore = open_datastore()
    as_drawn = {pair["image"]: voxels_of(pair["label"]) for pair in datastore.datalist()}
    with labels_of_model({"spleen": 1}):
        pairs = datastore.datalist()
    all_organs, unnamed = (voxels_of(pair["label"]) for pair in pairs)
    first, second = (as_drawn[pair["image"]] for pair in pairs)
    assert np.array_equal(all_organs, first == 2)
    assert np.array_equal(unnamed, second)
    status = datastore.status()
    assert "has a name of the model that is trained (spleen)" in next(iter(status["left_out"].values()))
    assert status["label_names"] == {
        "kidneys": "became background in 1 of 2 cases: the model has spleen",
        "liver": "became background in 1 of 2 cases: the model has spleen",
        "values that nobody named": "stayed as they are in 1 of 2 cases",
    }
    assert "liver became background in 1 of 2 cases" in caplog.text


def test_outside_of_a_training_labels_stay_as_they_were_drawn(open_datastore):
    datastore = open_datastore()
    with labels_of_model({"spleen": 1}):
        pass
    assert [set(np.unique(voxels_of(pair["label"]))) for pair in datastore.datalist()] == [
        {0, 1, 2, 3},
        {0, 3},
        {0, 1, 2, 3},
    ]
    assert "label_names" not in datastore.status()


def test_the_setting_labels_goes_before_what_the_model_says(open_datastore):
    datastore = open_datastore(labels="kidneys=7")
    with labels_of_model({"spleen": 1}):
        pairs = datastore.datalist()
    assert [set(np.unique(voxels_of(pair["label"]))) for pair in pairs][:2] == [{0, 7}, {0, 7}]


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"spleen": 1}, {"spleen": 1}),
        ({"liver": 3, "background": 0}, {"liver": 3}),
        (["spleen", "liver"], {"spleen": 1, "liver": 2}),
        (["background", "spleen", "liver"], {"spleen": 1, "liver": 2}),
        ("tumour", {"tumour": 1}),
        ({"in the body": 0, "outside": 1}, {}),
        ([], {}),
        (None, {}),
    ],
)
def test_what_the_labels_of_a_task_mean(labels, values):
    assert values_of(labels) == values
