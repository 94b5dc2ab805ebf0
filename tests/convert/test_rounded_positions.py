"""Rounded positions make a regular stack, with any spacing. Irregular positions are still refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from series_writer import AXIAL, CORONAL, SAGITTAL, SeriesWriter, random_stack, rotated

from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.errors import ImageConversionError

ORIENTATIONS = (AXIAL, SAGITTAL, CORONAL, rotated(10, -20, 35), rotated(45, 0, 0), rotated(-75, 40, 160))


def convert(folder, places, orientation, decimals, step, spacing=(0.7, 0.9)):
    """Convert a series with slices at several distances and rounded positions."""
    writer = SeriesWriter(Path(folder) / "dicom", orientation=orientation, step=step, spacing=spacing)

    def change(dataset, number):
        position = np.array(writer.origin) + places[number] * writer.normal
        dataset.ImagePositionPatient = [f"{value:.{decimals}f}" for value in position]

    writer.write(random_stack((len(places), 4, 4)), change=change)
    return writer, dicom_to_nifti(writer.folder, Path(folder) / "image.nii")


@settings(max_examples=60, deadline=None)
@given(
    step=st.one_of(
        st.sampled_from([0.33, 0.45, 0.488, 0.625, 0.67, 0.98, 1.125, 1.25, 3.27]),
        st.floats(0.45, 8.0).map(lambda step: round(step, 5)),
    ),
    orientation=st.sampled_from(ORIENTATIONS),
    decimals=st.integers(1, 4),
    count=st.integers(2, 40),
    start=st.floats(0.0, 1.0),
)
def test_rounded_positions_are_regular_whatever_the_spacing(step, orientation, decimals, count, start):
    if decimals == 1 and 0.05 * np.abs(np.cross(orientation[:3], orientation[3:])).sum() > 0.2 * step:
        decimals = 2  # a tenth of a millimetre is too coarse for this spacing
    with tempfile.TemporaryDirectory() as folder:
        places = start + step * np.arange(count)
        writer, volume = convert(folder, places, orientation, decimals, step)
    assert volume.shape == (4, 4, count)
    # The affine is ITK's: from the first position to the last.
    found = volume.affine[:3, 2] * (-1, -1, 1)
    np.testing.assert_allclose(found, writer.normal * step, atol=2.0 * 10**-decimals / (count - 1) + 1e-3 * step)


@pytest.mark.parametrize("step", [0.33, 0.488, 1.0, 3.27])
@pytest.mark.parametrize("count", [4, 12, 30])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_slice_is_noticed_among_rounded_positions(tmp_path, step, count, missing):
    places = np.delete(step * np.arange(count + 1), missing)
    with pytest.raises(ImageConversionError):
        convert(tmp_path, places, AXIAL, 1, step)


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_slices_that_are_really_uneven_are_refused(tmp_path, decimals):
    with pytest.raises(ImageConversionError, match="varies from"):
        convert(tmp_path, [0, 2, 4.3, 6, 8.4, 10], AXIAL, decimals, 2.0)


def test_whole_millimetres_are_exact(tmp_path):
    with pytest.raises(ImageConversionError, match="varies from"):
        convert(tmp_path, [0, 4, 8, 12, 17, 21], (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), 0, 4.0)


@pytest.mark.parametrize("orientation", [rotated(45, 0, 0), rotated(30, 30, 30)])
def test_rounding_sideways_is_no_gantry_tilt(tmp_path, orientation):
    _, volume = convert(tmp_path, 1.5 * np.arange(20), orientation, 1, 1.5, spacing=(0.35, 0.35))
    assert volume.shape[2] == 20


@pytest.mark.parametrize("step", [0.33, 0.488, 0.67, 1.125])
@pytest.mark.parametrize("orientation", [AXIAL, rotated(2, 3, 1)], ids=["axial", "oblique"])
@pytest.mark.parametrize("single", [False, True], ids=["others exact", "kept with 32 bits"])
def test_a_table_position_may_be_rounded_where_the_other_coordinates_are_not(tmp_path, step, orientation, single):
    writer = SeriesWriter(tmp_path / "dicom", orientation=orientation, step=step)

    def change(dataset, number):
        x, y, z = np.add(writer.position(number), (0.123457, -0.765433, 0))
        position = np.float32([x, y, round(z, 1)]) if single else [round(x, 6), round(y, 6), round(z, 1)]
        dataset.ImagePositionPatient = [f"{float(value):.12g}" for value in position]

    writer.write(random_stack((25, 4, 4)), change=change)
    assert dicom_to_nifti(writer.folder, tmp_path / "image.nii").shape == (4, 4, 25)
