"""The volume that MONAI's ITKReader reads from a DICOM folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from monailabel_xnat.convert import ConvertedVolume

AFFINE_TOLERANCE = 1e-4
FLOAT32_TOLERANCE = 1e-4
"""Affines in files are float32."""
_HALF_TURN = 0.01
_HALF_TURN_TOLERANCE = 2e-3


def itk_reader(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and affine (RAS) of `ITKReader().read` on a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = pytest.importorskip("monai.data.image_reader").ITKReader()
        array, meta = reader.get_data(reader.read(str(folder)))
    return np.asarray(array), np.asarray(meta["affine"])


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def assert_as_itk_reader(volume: ConvertedVolume, folder: Path) -> None:
    """Check that, for every reader of NIfTI, the file has voxels, index order and affine of ITKReader."""
    array, affine = itk_reader(folder)
    written = voxels(volume.path)
    assert written.shape == array.shape == volume.shape
    assert written.dtype == volume.dtype
    np.testing.assert_array_equal(written, array)
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=AFFINE_TOLERANCE)
    assert_file_affine(volume)


def assert_file_affine(volume: ConvertedVolume) -> None:
    """Check that nibabel (sform and qform) and SimpleITK read the same affine from the header of the file."""
    image = nibabel.load(volume.path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    for form in (image.affine, image.get_sform(), simpleitk_affine(volume.path)):
        np.testing.assert_allclose(form, volume.affine, rtol=0, atol=FLOAT32_TOLERANCE)
    assert_qform(image, volume.affine)


def assert_qform(image: nibabel.Nifti1Image, affine: np.ndarray) -> None:
    """Compare a file's qform with the affine, as exactly as the format can store it.

    The format leaves out the first part of the quaternion: the root of what the others lack to 1. In most cases this is
    as precise as float32. Near a half turn, where that part vanishes, only its square is as precise.
    """
    rest = sum(float(image.header[f"quatern_{part}"]) ** 2 for part in "bcd")
    is_half_turn = max(0.0, 1 - rest) < _HALF_TURN**2
    tolerance = _HALF_TURN_TOLERANCE * float(np.abs(affine[:3, :3]).max()) if is_half_turn else FLOAT32_TOLERANCE
    np.testing.assert_allclose(image.get_qform(), affine, rtol=0, atol=tolerance)


def simpleitk_affine(path: Path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(path))
    size = image.GetDimension()
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (size, size))[:3, :3]
    affine[:3, :3] = direction * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
