"""A head CT from a tilted gantry, through the datastore."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from series_writer import SeriesWriter, random_stack

from monailabel_xnat.errors import ImageError

STACK = random_stack((5, 12, 10))


@pytest.fixture
def open_datastore(xnat_sandbox, open_xnat_datastore, tmp_path):
    def tilt(dataset, number):
        dataset.ImagePositionPatient = [0, round(number * 5 * np.tan(np.radians(15)), 6), number * 5]
        dataset.PatientID, dataset.PatientName = "s1", "s1"

    SeriesWriter(tmp_path / "dicom").write(STACK, change=tilt)
    xnat_sandbox.import_dicom(tmp_path / "dicom", "HEADS")
    return lambda **settings: open_xnat_datastore(project="HEADS", **settings)


def test_a_tilted_series_is_refused_unless_the_setting_says_stack(open_datastore):
    datastore = open_datastore()
    (image,) = datastore.list_images()
    with pytest.raises(ImageError, match=r"gantry tilt.*15\.0 degrees") as caught:
        datastore.get_image_uri(image)
    assert "gantry_tilt" in caught.value.hint


def test_a_stacked_series_is_warned_of_wherever_one_looks(open_datastore, caplog, tmp_path):
    datastore = open_datastore(gantry_tilt="stack")
    (image,) = datastore.list_images()
    path = datastore.get_image_uri(image)
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), STACK.transpose(2, 1, 0))
    assert "gantry tilt of 15.0 degrees" in datastore.status()["image_notes"][image]
    assert "gantry tilt of 15.0 degrees" in datastore.get_image_info(image)["image_note"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("gantry tilt" in warning for warning in warnings)
    mask = (STACK.transpose(2, 1, 0) > 500).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, nibabel.load(path).affine), tmp_path / "mask.nii.gz")
    datastore.save_label(image, str(tmp_path / "mask.nii.gz"), "final", {})
    (pair,) = datastore.datalist()
    np.testing.assert_array_equal(np.asarray(nibabel.load(pair["label"]).dataobj), mask)
    # With another setting it is another image, even if one is in the cache.
    with pytest.raises(ImageError, match="gantry tilt"):
        open_datastore().get_image_uri(image)
