"""The public series in ../shared/dicom. The tests are skipped if they are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from itk_reference import assert_as_itk_reader, assert_file_affine, itk_reader, voxels

from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.errors import ImageConversionError, NoImageError

SERIES = Path(__file__).parents[2].parent / "shared" / "dicom"

pytestmark = pytest.mark.skipif(not SERIES.is_dir(), reason="the public series are not here")

PLAIN = [
    "ct_3slices_for_seg",
    "ct_philips_axial5mm",
    "mr_hitachi_small",
    "mr_philips_enhanced_anat",
    "mr_sag4_explicit",
    "mr_sag4_implicit",
    "mr_sag4_j2k",
    "mr_sag4_jpeg",
    "mr_sag4_jpegls",
    "mr_sag_j2k_fragmented",
    "mr_siemens_sagittal",
    "mr_two_slices",
    "rgb_4slices_j2k",
]

REFUSED = {
    "ct_ge_tilt_varspacing": ("1.081 mm", "6.999 mm", "18.5 degrees"),
    "ct_missing_slice": ("1 of 5 slices missing", "10.000 mm between", "IM-0001-0009-0001.dcm"),
    "ct_same_position_notvolume": ("2 different images", "001.dcm, 002.dcm"),
    "mr_localizer_TSC_16px": ("3 series", "FAST PILOT"),
    "mr_mixed_orientation": ("2 orientations", "2 x sagittal", "oblique axial"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_series_is_as_itk_reader_reads_it(tmp_path, name, suffix):
    volume = dicom_to_nifti(SERIES / name, tmp_path / f"image{suffix}")
    assert_as_itk_reader(volume, SERIES / name)
    assert volume.notes == ()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_volume_is_refused(tmp_path, name):
    with pytest.raises(ImageConversionError) as caught:
        dicom_to_nifti(SERIES / name, tmp_path / "image.nii")
    for part in REFUSED[name]:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["nonimage", "seg_dcmqi"])
def test_what_holds_no_image_is_refused(tmp_path, name):
    with pytest.raises(NoImageError, match="found"):
        dicom_to_nifti(SERIES / name, tmp_path / "image.nii")


def test_the_pilot_of_a_localizer_has_several_orientations(tmp_path):
    folder = SERIES / "mr_localizer_TSC_16px"
    uids = {pydicom.dcmread(path).SeriesInstanceUID for path in folder.iterdir()}
    shapes = []
    for uid in sorted(uids):
        try:
            shapes.append(dicom_to_nifti(folder, tmp_path / "image.nii", series_uid=uid).shape)
        except ImageConversionError as error:
            shapes.append("orientations" in str(error))
    assert sorted(shapes, key=str) == [(16, 16, 1), True, True]


@pytest.mark.parametrize(("name", "slices", "volumes"), [("mr_ge_dti_4d_small", 4, 2), ("mr_ge_fmri_4d", 15, 10)])
def test_a_time_series_in_single_files(tmp_path, name, slices, volumes):
    volume = dicom_to_nifti(SERIES / name, tmp_path / "image.nii")
    written = voxels(volume.path)
    assert written.shape[2:] == (slices, volumes)
    assert_file_affine(volume)
    datasets = [pydicom.dcmread(path) for path in (SERIES / name).iterdir()]
    datasets.sort(key=lambda dataset: int(dataset.InstanceNumber))
    for number, dataset in enumerate(datasets):
        position = np.append(np.multiply(dataset.ImagePositionPatient, (-1, -1, 1)), 1)
        k = round((np.linalg.inv(volume.affine) @ position)[2])
        np.testing.assert_array_equal(written[..., k, number // slices], dataset.pixel_array.T)


def test_diffusion_in_one_enhanced_file(tmp_path):
    folder = SERIES / "mr_philips_enhanced_dti_4d"
    volume = dicom_to_nifti(folder, tmp_path / "image.nii")
    stacked, affine = itk_reader(folder)
    assert volume.shape == (128, 128, 8, 4)
    np.testing.assert_array_equal(voxels(volume.path), stacked.reshape(128, 128, 8, 4))
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-4)


def test_compressed_series_hold_the_same_voxels(tmp_path):
    names = ("mr_sag4_j2k", "mr_sag4_jpeg", "mr_sag4_jpegls")
    first, *others = (voxels(dicom_to_nifti(SERIES / name, tmp_path / f"{name}.nii").path) for name in names)
    for other in others:
        np.testing.assert_array_equal(first, other)
