"""DICOM SEG objects that somebody sends as a label."""

from __future__ import annotations

import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from viewer import only

from monailabel_xnat.convert import Grid, LabelMap, Segment, write_seg
from monailabel_xnat.errors import LabelFileError, LabelGeometryError
from monailabel_xnat.labels.incoming import read_incoming

LIVER = Segment(1, "liver", (221, 130, 101))
LESION = Segment(7, "Läsion 2", (40, 200, 90))


@pytest.fixture
def array(viewer):
    """Two segments that leave some slices empty. The values are not the numbers of the segments."""
    array = np.zeros(viewer.grid.shape, np.uint8)
    array[3:9, 2:8, 4:8] = LIVER.value
    array[10:12, 2:4, 6:10] = LESION.value
    return array


@pytest.fixture
def seg(viewer, array, tmp_path):
    path = tmp_path / "drawn.dcm"
    label = LabelMap(array, viewer.grid.affine, (LIVER, LESION))
    write_seg(label, viewer.images, path, description="drawn", algorithm_type="MANUAL")
    return path


@pytest.mark.parametrize("name", ["SEG.dcm", "SEG.DCM", "1.2.840.10008", "upload", "label.nii.gz"])
def test_the_content_tells_a_seg_whatever_its_name(viewer, array, seg, tmp_path, name):
    path = shutil.copy(seg, tmp_path / name)
    payload = read_incoming(path, lambda: viewer.grid)
    np.testing.assert_array_equal(payload.label.array, array)
    np.testing.assert_array_equal(payload.label.affine, viewer.grid.affine)
    assert [(one.value, one.name) for one in payload.label.segments] == [(1, "liver"), (7, "Läsion 2")]
    assert (payload.file_type, payload.suffix) == (".dcm", ".nii.gz")


def test_a_saved_seg_is_a_label_with_the_names_and_colours_of_its_segments(open_datastore, array, seg):
    datastore = open_datastore(roi_tag="")
    image = only(datastore)
    datastore.save_label(image, str(seg), "final", {"model": "none"})
    stored = np.asarray(nibabel.load(datastore.get_label_uri(image, "final")).dataobj)
    np.testing.assert_array_equal(stored, array)
    # The view of another computer, which reads only from XNAT.
    (version,) = open_datastore(roi_tag="", cache_path=seg.parent / "other").label_history(image, "final")
    liver, lesion = version["segments"]
    assert (liver["value"], liver["name"], liver["voxels"]) == (1, "liver", 6 * 6 * 4)
    assert (lesion["value"], lesion["name"], lesion["voxels"]) == (7, "Läsion 2", 2 * 2 * 4)
    np.testing.assert_allclose([liver["colour"], lesion["colour"]], [LIVER.colour, LESION.colour], atol=1)


def test_dicom_that_is_no_segmentation_is_refused_by_its_kind(viewer, open_datastore):
    modality = pydicom.dcmread(viewer.images[0], stop_before_pixels=True).Modality
    datastore = open_datastore()
    with pytest.raises(LabelFileError, match=rf"{viewer.images[0].name} is no DICOM SEG, but {modality} Image Storage"):
        datastore.save_label(only(datastore), str(viewer.images[0]), "final", {})
    assert datastore.get_labels_by_image_id(only(datastore)) == {}


def test_a_torn_seg_is_refused(viewer, seg):
    seg.write_bytes(seg.read_bytes()[:-200])
    with pytest.raises(LabelFileError, match="the DICOM SEG is truncated"):
        read_incoming(seg, lambda: viewer.grid)


def test_a_file_called_dcm_that_is_not_dicom_is_refused(viewer, tmp_path):
    (tmp_path / "wrong.dcm").write_bytes(b"no DICOM" * 100)
    with pytest.raises(LabelFileError, match=r"wrong\.dcm is no DICOM file"):
        read_incoming(tmp_path / "wrong.dcm", lambda: viewer.grid)


def test_a_seg_of_another_image_is_refused(viewer, seg):
    affine = viewer.grid.affine.copy()
    affine[2, 3] += 1000
    with pytest.raises(LabelGeometryError):
        read_incoming(seg, lambda: Grid(viewer.grid.shape, affine))
