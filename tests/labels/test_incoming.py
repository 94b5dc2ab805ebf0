from __future__ import annotations

import gzip
import json

import nibabel
import numpy as np
import pytest
import SimpleITK

from monailabel_xnat.convert import Grid
from monailabel_xnat.errors import LabelFileError, LabelGeometryError
from monailabel_xnat.labels.incoming import read_incoming

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.9, 0.1, 0, 10], [0.1, -0.9, 0.2, -20], [0, 0.2, 2.5, 30], [0, 0, 0, 1.0]])
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] @ np.diag([0.9, 0.9, 2.5])
GRID = Grid(SHAPE, AFFINE)


@pytest.fixture
def array():
    return np.random.default_rng(3).integers(0, 4, SHAPE).astype(np.uint8)


@pytest.fixture
def nifti(tmp_path, array):
    path = tmp_path / "made.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return path


def grid():
    return GRID


@pytest.mark.parametrize(
    "name", ["l.nii", "l.nii.gz", "l.nrrd", "l.mha", "1.2.840.nrrd", "P_S_E_1.2.840.nii.gz", "L.NRRD"]
)
def test_the_formats_of_clients_give_the_same_label(tmp_path, nifti, array, name):
    path = tmp_path / name
    written = tmp_path / (
        "written" + name[name.lower().rindex(".n") if ".n" in name.lower() else name.rindex(".") :].lower()
    )
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(written))
    written.rename(path)
    payload = read_incoming(path, grid)
    np.testing.assert_array_equal(payload.label.array, array)
    np.testing.assert_allclose(payload.label.affine, AFFINE)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("name", ["upload", "tmp1a2b.tmp", "wrong.json", "wrong.mha", "wrong.nii.gz"])
def test_the_content_tells_the_format_whatever_the_name(tmp_path, nifti, array, extension, name):
    written, path = tmp_path / f"written{extension}", tmp_path / name
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(written))
    written.rename(path)
    np.testing.assert_array_equal(read_incoming(path, grid).label.array, array)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_bare_voxels_of_the_viewer_are_in_fortran_order(tmp_path, array, dtype):
    path = tmp_path / "label.bin"
    values = array.astype(dtype) * (300 if dtype == "<u2" else 1)
    path.write_bytes(values.tobytes(order="F"))
    payload = read_incoming(path, grid)
    np.testing.assert_array_equal(payload.label.array, values)
    np.testing.assert_array_equal(payload.label.affine, AFFINE)


def test_bare_voxels_of_another_image_are_refused_with_the_numbers(tmp_path):
    (tmp_path / "label.bin").write_bytes(b"\0" * 100)
    with pytest.raises(LabelFileError, match=r"100 bytes.* 6 x 5 x 4 = 120 voxels"):
        read_incoming(tmp_path / "label.bin", grid)


def test_a_result_that_is_no_segmentation_is_kept_as_it_is(tmp_path):
    text = ' {"boxes": [[1, 2, 3]],\n "score": 0.50}'
    (tmp_path / "boxes.json").write_text(text)
    payload = read_incoming(tmp_path / "boxes.json", lambda: pytest.fail("no image is needed"))
    payload.write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == text
    assert payload.suffix == ".result.json"


def test_a_flipped_label_is_turned_without_loss_and_noted(tmp_path, array):
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, 0] * (SHAPE[0] - 1)
    affine[:3, 0] *= -1
    nibabel.save(nibabel.Nifti1Image(array[::-1], affine), tmp_path / "flipped.nii.gz")
    payload = read_incoming(tmp_path / "flipped.nii.gz", grid)
    np.testing.assert_array_equal(payload.label.array, array)
    assert "reoriented" in payload.label.notes[0]


def test_a_label_elsewhere_is_refused_with_both_geometries(tmp_path, array):
    affine = AFFINE.copy()
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "elsewhere.nii.gz")
    with pytest.raises(LabelGeometryError) as caught:
        read_incoming(tmp_path / "elsewhere.nii.gz", grid)
    assert str(caught.value).count("6 x 5 x 4 voxels") == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.nii.gz", b""),
        ("junk.nii.gz", b"junk"),
        ("junk", b"\x00" * 500),
        ("broken.json", b"{"),
        ("torn.nii.gz", gzip.compress(b"x" * 1000, mtime=0)[:30]),
        ("seg.dcm", b"\0" * 128 + b"DICM" + b"\0" * 100),
        ("label.bin", b""),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelFileError, match=name.split(".")[0]):
        read_incoming(tmp_path / name, grid)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "gone.nii.gz", tmp_path):
        with pytest.raises(LabelFileError, match="no such label file"):
            read_incoming(path, grid)


def test_json_that_is_a_number_is_still_json(tmp_path):
    (tmp_path / "score.json").write_text(json.dumps(0.5))
    assert read_incoming(tmp_path / "score.json", grid).result == b"0.5"


def test_a_header_that_takes_its_voxels_from_elsewhere_is_refused(tmp_path, nifti):
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(tmp_path / "l.mhd"))
    read_incoming(tmp_path / "l.mhd", grid)
    (tmp_path / "secret").write_bytes(b"x" * 120)
    (tmp_path / "upload").mkdir()
    header = (tmp_path / "l.mhd").read_text().replace("l.raw", "../secret")
    (tmp_path / "upload" / "l.mhd").write_text(header)
    with pytest.raises(LabelFileError, match=r"takes its voxels from '\.\./secret'"):
        read_incoming(tmp_path / "upload" / "l.mhd", grid)


def test_a_label_that_was_cropped_to_what_it_holds_is_padded_to_its_image_and_noted(tmp_path, array):
    array[:2], array[:, 4:], array[:, :, 0] = 0, 0, 0
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ (2, 0, 1, 1))[:3]
    nibabel.save(nibabel.Nifti1Image(array[2:, :4, 1:], affine), tmp_path / "cropped.nii.gz")
    payload = read_incoming(tmp_path / "cropped.nii.gz", grid)
    np.testing.assert_array_equal(payload.label.array, array)
    assert "from 4 x 4 x 3 to the 6 x 5 x 4 voxels" in payload.label.notes[0]
    bigger = np.ones((6, 5, 5), np.uint8)
    nibabel.save(nibabel.Nifti1Image(bigger, AFFINE), tmp_path / "bigger.nii.gz")
    with pytest.raises(LabelGeometryError, match="30 labelled voxels lie outside the image"):
        read_incoming(tmp_path / "bigger.nii.gz", grid)
