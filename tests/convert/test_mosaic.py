"""Mosaics of Siemens and grids of United Imaging become volumes with every voxel at its position in the patient."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from itk_reference import assert_file_affine, voxels
from series_writer import AXIAL, SeriesWriter, random_stack, rotated

from monailabel_xnat.convert import Grid, LabelMap, dicom_to_nifti, write_seg
from monailabel_xnat.errors import ImageConversionError, LabelError

REAL = Path(__file__).parents[2].parent / "shared" / "dicom" / "mr_siemens_mosaic_4d"
ROWS, COLUMNS, STEP = 6, 8, 3.6
SPACING = (0.7, 0.9)


def csa(**values):
    """Return Siemens' image header, version 2, with texts as values."""
    data = b"SV10\4\3\2\1" + struct.pack("<2I", len(values), 77)
    for name, texts in values.items():
        data += struct.pack("<64si4s3i", name.encode(), len(texts), b"FD\0\0", 4, len(texts), 77)
        for text in texts:
            content = text.encode() + b"\0"
            data += struct.pack("<4i", len(content), len(content), 77, len(content))
            data += content + b"\0" * (-len(content) % 4)
    return data


def write(folder, volumes, orientation=AXIAL, sign=1, syntax="explicit", **changes):
    """Write a mosaic for each volume (slices, rows, columns). The first slice is at the origin of the writer."""
    writer = SeriesWriter(folder, modality="MR", orientation=orientation, step=STEP, spacing=SPACING, syntax=syntax)
    count = volumes.shape[1]
    tiles = int(np.ceil(np.sqrt(count)))
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    outwards = (row * SPACING[1] * COLUMNS + column * SPACING[0] * ROWS) * (tiles - 1) / 2
    normal = sign * writer.normal

    def change(dataset, number):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in writer.origin - outwards]
        dataset.SpacingBetweenSlices = str(STEP)
        dataset.InstanceNumber = number + 1
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        texts = {"SliceNormalVector": [f"{value:.8f}" for value in normal], "NumberOfImagesInMosaic": [str(count)]}
        block.add_new(0x10, "OB", csa(**texts))
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
            if value is None:
                delattr(dataset, keyword)

    pictures = np.zeros((len(volumes), tiles * ROWS, tiles * COLUMNS), int)
    for number in range(count):
        top, left = number // tiles * ROWS, number % tiles * COLUMNS
        pictures[:, top : top + ROWS, left : left + COLUMNS] = volumes[:, number]
    return writer, writer.write(pictures, change=change)


@pytest.mark.parametrize("sign", [1, -1], ids=["along", "against"])
@pytest.mark.parametrize("orientation", [AXIAL, rotated(-75, 40, 160)], ids=["axial", "steep"])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_voxel_of_a_mosaic_is_at_its_place(tmp_path, count, orientation, sign):
    volume = random_stack((1, count, ROWS, COLUMNS))
    writer, _ = write(tmp_path / "dicom", volume, orientation, sign)
    made = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    assert made.shape == (COLUMNS, ROWS, count)
    assert_file_affine(made)
    # Slices ascend along the normal, whatever the order of the tiles.
    np.testing.assert_allclose(made.affine[:3, 2], np.multiply(writer.normal, (-1, -1, 1)) * STEP, atol=1e-4)
    found = voxels(made.path)
    for number in range(count):
        place = np.array(writer.origin) + number * STEP * sign * writer.normal
        index = np.linalg.inv(made.affine) @ np.append(place * (-1, -1, 1), 1)
        np.testing.assert_allclose(index[:2], 0, atol=1e-4)
        np.testing.assert_array_equal(found[:, :, round(index[2])], volume[0, number].T)


@pytest.mark.parametrize("syntax", ["implicit", "RLE", "JPEG-LS"])
def test_several_mosaics_are_a_series_in_time(tmp_path, syntax):
    volumes = random_stack((3, 7, ROWS, COLUMNS))
    _, files = write(tmp_path / "dicom", volumes, syntax=syntax)
    made = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(made.path), volumes.transpose(3, 2, 1, 0))
    assert made.notes == ("3 volumes at 7 positions, told apart by Instance Number",)
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    assert made.sop_instance_uids == tuple(uid for uid in uids for _ in range(7))
    assert set(made.frame_numbers) == {0}


def test_a_seg_on_a_mosaic_is_refused(tmp_path):
    _, files = write(tmp_path / "dicom", random_stack((1, 4, ROWS, COLUMNS)))
    grid = Grid.of_nifti(dicom_to_nifti(files, tmp_path / "image.nii").path)
    label = LabelMap(np.ones(grid.shape, np.uint8), grid.affine)
    with pytest.raises(LabelError, match="tiles of a mosaic"):
        write_seg(label, files, tmp_path / "seg.dcm", description="x", algorithm_type="MANUAL")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SpacingBetweenSlices": None}, "without Spacing Between Slices"),
        ({"PixelSpacing": None}, "no Pixel Spacing"),
    ],
)
def test_a_mosaic_that_does_not_say_enough_is_refused(tmp_path, changes, named):
    write(tmp_path / "dicom", random_stack((1, 4, ROWS, COLUMNS)), **changes)
    with pytest.raises(ImageConversionError, match=named):
        dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")


def test_a_mosaic_whose_slice_normal_is_not_that_of_its_orientation_is_refused(tmp_path):
    """Only the sign of their product was looked at, so the slices could lie anywhere."""
    _, files = write(tmp_path / "dicom", random_stack((1, 4, ROWS, COLUMNS)))
    dataset = pydicom.dcmread(files[0])
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER")
    block[0x10].value = csa(SliceNormalVector=["0.0", "0.5", "0.866"], NumberOfImagesInMosaic=["4"])
    dataset.save_as(files[0])
    with pytest.raises(ImageConversionError, match="slice normal of a mosaic does not fit"):
        dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")


def write_grid(folder, volumes, orientation=AXIAL, sign=1, syntax="explicit", stated=None):
    """Write a grid of United Imaging for each volume (slices, rows, columns). Its first slice is at the origin."""
    writer = SeriesWriter(folder, modality="MR", orientation=orientation, step=STEP, spacing=SPACING, syntax=syntax)
    count = volumes.shape[1]
    across = int(np.ceil(np.sqrt(count)))
    down = int(np.ceil(count / across))

    def change(dataset, number):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "VFRAME"]
        dataset.ImagePositionPatient = ["1", "2", "3"]
        dataset.InstanceNumber = number + 1
        tiles = []
        for index in range(count):
            tile = pydicom.Dataset()
            place = np.array(writer.origin) + sign * index * STEP * writer.normal
            tile.ImagePositionPatient = [f"{value:.8f}" for value in place]
            tile.AcquisitionTime = f"1200{number:02d}.{index:02d}"
            tiles.append(tile)
        block = dataset.private_block(0x0065, "Image Private Header", create=True)
        block.add_new(0x50, "DS", str(stated or count))
        block.add_new(0x51, "SQ", tiles)

    pictures = np.zeros((len(volumes), down * ROWS, across * COLUMNS), int)
    for number in range(count):
        top, left = number // across * ROWS, number % across * COLUMNS
        pictures[:, top : top + ROWS, left : left + COLUMNS] = volumes[:, number]
    return writer, writer.write(pictures, change=change)


@pytest.mark.parametrize("sign", [1, -1], ids=["along", "against"])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "RLE"])
@pytest.mark.parametrize("count", [2, 6, 7])
def test_every_voxel_of_a_grid_is_at_the_place_that_the_grid_states(tmp_path, count, syntax, sign):
    """A grid has only as many rows of tiles as it needs (dcm2niix, UIH/README.md): 2 x 3 for 6 slices."""
    volume = random_stack((1, count, ROWS, COLUMNS))
    writer, _ = write_grid(tmp_path / "dicom", volume, rotated(-75, 40, 160), sign, syntax)
    made = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    assert_file_affine(made)
    found = voxels(made.path)
    assert found.shape == (COLUMNS, ROWS, count)
    for number in range(count):
        place = np.array(writer.origin) + sign * number * STEP * writer.normal
        index = np.linalg.inv(made.affine) @ np.append(place * (-1, -1, 1), 1)
        np.testing.assert_allclose(index[:3], np.rint(index[:3]), atol=1e-4)
        np.testing.assert_allclose(index[:2], 0, atol=1e-4)
        np.testing.assert_array_equal(found[:, :, round(index[2])], volume[0, number].T)


def test_several_grids_are_a_series_in_time(tmp_path):
    volumes = random_stack((3, 6, ROWS, COLUMNS))
    write_grid(tmp_path / "dicom", volumes)
    made = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(made.path), volumes.transpose(3, 2, 1, 0))


def test_a_grid_that_states_another_number_of_positions_is_refused(tmp_path):
    write_grid(tmp_path / "dicom", random_stack((1, 6, ROWS, COLUMNS)), stated=5)
    with pytest.raises(ImageConversionError, match="a grid of 5 slices does not state the position of each"):
        dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")


@pytest.mark.skipif(not REAL.is_dir(), reason="the public series are not here")
def test_a_real_mosaic_lies_where_dcm2niix_puts_it(tmp_path):
    """The affine is that of dcm2niix 1.0.20260724, which flips the rows. Here they are flipped back."""
    made = dicom_to_nifti(REAL, tmp_path / "image.nii")
    theirs = np.array([[-3, 0, 0, 108], [0, 3, 0, -105], [0, 0, 12, 16], [0, 0, 0, 1.0]])
    turned = theirs @ np.array([[1, 0, 0, 0], [0, -1, 0, 71], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(made.affine, turned, atol=1e-4)
    assert nibabel.load(made.path).shape == (72, 72, 5, 2)
    picture = pydicom.dcmread(sorted(REAL.iterdir())[1]).pixel_array
    for number in range(5):
        top, left = number // 3 * 72, number % 3 * 72
        np.testing.assert_array_equal(voxels(made.path)[..., number, 1], picture[top : top + 72, left : left + 72].T)
