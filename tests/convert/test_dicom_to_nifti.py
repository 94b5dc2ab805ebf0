"""Regular series of every kind become the volume that MONAI's ITKReader reads."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from itk_reference import assert_as_itk_reader, assert_file_affine, itk_reader, voxels
from series_writer import AXIAL, CORONAL, SAGITTAL, SYNTAXES, SeriesWriter, random_stack, rotated

from monailabel_xnat.convert import dicom_to_nifti

ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "head down": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "oblique": rotated(25, 0, 0),
    "double oblique": rotated(10, -20, 35),
    "steep": rotated(-75, 40, 160),
}
STACK = random_stack((5, 6, 7))


@pytest.mark.parametrize("step", [2.5, -0.8], ids=["ascending", "descending"])
@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_index_order_and_affine_are_those_of_itk_reader(tmp_path, orientation, step):
    folder = tmp_path / "dicom"
    SeriesWriter(folder, modality="MR", orientation=orientation, step=step).write(STACK)
    volume = dicom_to_nifti(folder, tmp_path / "image.nii.gz")
    assert_as_itk_reader(volume, folder)


def test_the_names_and_the_order_of_files_do_not_matter(tmp_path):
    folder = tmp_path / "dicom"
    names = ["z z.dcm", "ü 1.2.3", "sub folder/a", "sub folder/ß/IM", "0"]
    random.Random(1).shuffle(names)
    paths = SeriesWriter(folder).write(STACK, names=names.__getitem__)
    expected = STACK.transpose(2, 1, 0)
    np.testing.assert_array_equal(voxels(dicom_to_nifti(folder, tmp_path / "a.nii").path), expected)
    random.Random(2).shuffle(paths)
    np.testing.assert_array_equal(voxels(dicom_to_nifti(paths, tmp_path / "b.nii").path), expected)


def test_a_volume_tells_where_its_slices_come_from(tmp_path):
    writer = SeriesWriter(tmp_path / "dicom", step=-2.0)
    writer.write(STACK)
    volume = dicom_to_nifti(str(tmp_path / "dicom"), str(tmp_path / "image.nii"))
    assert (volume.series_uid, volume.study_uid, volume.modality) == (writer.series_uid, writer.study_uid, "CT")
    assert len(set(volume.sop_instance_uids)) == 5
    assert volume.notes == ()
    # The slices are written downwards, so the last file is the first slice.
    last = dicom_to_nifti([tmp_path / "dicom" / "0004.dcm"], tmp_path / "last.nii")
    assert volume.sop_instance_uids[0] == last.sop_instance_uids[0]


KINDS = {
    "8 bit": {"bits": 8, "low": 0, "high": 255},
    "12 bit unsigned": {"bits_stored": 12, "low": 0, "high": 4095},
    "12 bit signed": {"bits_stored": 12, "signed": True, "low": -2048, "high": 2047},
    "16 bit unsigned": {"low": 0, "high": 65535},
    "16 bit signed": {"signed": True, "low": -32768, "high": 32767},
    "CT rescale": {"bits_stored": 12, "intercept": -1024.0, "low": 0, "high": 4095},
    "beyond int16": {"intercept": -1024.0, "low": 0, "high": 65535},
    "fractional slope": {"modality": "MR", "slope": 2.3712, "intercept": -4.5, "low": 0, "high": 4095},
    "half": {"modality": "MR", "slope": 0.5, "low": 0, "high": 4095},
    "negative slope": {"slope": -2.0, "intercept": 7.0, "low": 0, "high": 4095},
    "no rescale": {"modality": "MR", "slope": None, "low": 0, "high": 4095},
    "inverted": {"photometric": "MONOCHROME1", "low": 0, "high": 65535},
    "inverted 12 bit": {"photometric": "MONOCHROME1", "bits_stored": 12, "intercept": -100.0, "low": 0, "high": 4095},
    "32 bit": {"bits": 32, "low": 0, "high": 1_000_000},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_values_are_those_of_itk_reader(tmp_path, kind):
    kind = dict(kind)
    stack = random_stack((3, 8, 9), kind.pop("low"), kind.pop("high"))
    SeriesWriter(tmp_path / "dicom", **kind).write(stack)
    assert_as_itk_reader(dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii"), tmp_path / "dicom")


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 255, "uint8"),
        (-1, 255, "int16"),
        (0, 256, "int16"),
        (0, 32767, "int16"),
        (0, 32768, "uint16"),
        (-1, 32768, "int32"),
        (0, 65535, "uint16"),
        (0, 65536, "int32"),
    ],
)
def test_the_data_type_is_the_smallest_that_holds_the_values(tmp_path, low, high, dtype):
    stack = np.full((2, 4, 4), low)
    stack[1, 2, 3] = high
    offset = min(low, 0)
    SeriesWriter(tmp_path / "dicom", bits=16 if high < 65536 + offset else 32, intercept=float(offset)).write(
        stack - offset
    )
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(voxels(volume.path), stack.transpose(2, 1, 0))


def test_pet_slices_with_a_slope_each_keep_their_exact_values(tmp_path):
    slopes = [0.1234567, 1.0, 3.7654321, 0.5]

    def rescale(dataset, number):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(slopes[number]), "0"

    stack = random_stack((4, 6, 7), 0, 30000)
    SeriesWriter(tmp_path / "dicom", modality="PT").write(stack, change=rescale)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    assert volume.dtype == np.float64
    expected = stack * np.reshape(slopes, (4, 1, 1))
    np.testing.assert_array_equal(voxels(volume.path), expected.transpose(2, 1, 0))


def test_pet_values_that_float32_holds_are_float32(tmp_path):
    def rescale(dataset, number):
        dataset.RescaleSlope = str([0.5, 0.25, 2.0][number])

    SeriesWriter(tmp_path / "dicom", modality="PT").write(random_stack((3, 6, 7)), change=rescale)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    assert volume.dtype == np.float32
    assert_as_itk_reader(volume, tmp_path / "dicom")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path, syntax, bits):
    if (syntax, bits) == ("big endian", 8):
        pytest.skip("bytes have no order")
    stack = random_stack((3, 33, 41), 0, 2**bits - 1)
    SeriesWriter(tmp_path / "dicom", bits=bits, syntax=syntax).write(stack)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), stack.transpose(2, 1, 0))
    assert_as_itk_reader(volume, tmp_path / "dicom")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_single_slice_is_a_volume_of_one(tmp_path, modality):
    SeriesWriter(tmp_path / "dicom", modality=modality, orientation=rotated(10, 20, 30)).write(STACK[:1])
    assert_as_itk_reader(dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii"), tmp_path / "dicom")


def test_one_file_can_be_given_instead_of_a_folder(tmp_path):
    (path,) = SeriesWriter(tmp_path / "dicom").write(STACK[:1])
    assert dicom_to_nifti(path, tmp_path / "image.nii").shape == (7, 6, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_colours_are_the_last_axis(tmp_path, count):
    stack = random_stack((count, 6, 7, 3), 0, 255)
    SeriesWriter(tmp_path / "dicom", modality="OT", bits=8).write(stack)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii.gz")
    assert volume.shape == (7, 6, count, 3)
    assert_as_itk_reader(volume, tmp_path / "dicom")


@pytest.mark.parametrize("colours", [(), (3,)], ids=["grey", "colour"])
def test_ultrasound_frames_are_stacked(tmp_path, colours):
    writer = SeriesWriter(tmp_path / "dicom", modality="US", bits=8)
    dataset = writer.header(0)
    writer.set_pixels(dataset, random_stack((4, 6, 7, *colours), 0, 255))
    writer.save(dataset, "clip")
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    assert_as_itk_reader(volume, tmp_path / "dicom")
    assert "stacked by frame" in volume.notes[0]


def test_secondary_captures_without_position_are_stacked_by_instance_number(tmp_path):
    def strip(dataset, number):
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.InstanceNumber = 10 - number

    stack = random_stack((4, 6, 7), 0, 255)
    SeriesWriter(tmp_path / "dicom", modality="OT", bits=8).write(stack, change=strip)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), stack[::-1].transpose(2, 1, 0))
    assert_as_itk_reader(volume, tmp_path / "dicom")


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [3, 2, 1, 0]], ids=["ascending", "descending"])
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, rotated(10, -20, 35)], ids=["axial", "sagittal", "oblique"])
def test_enhanced_multi_frame_is_as_itk_reader_reads_it(tmp_path, orientation, places):
    writer = SeriesWriter(tmp_path / "dicom", orientation=orientation, slope=1.25, intercept=3.0)
    writer.write_enhanced(STACK[:4], places=places)
    assert_as_itk_reader(dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii"), tmp_path / "dicom")


def test_enhanced_frames_stored_in_any_order_are_put_in_place(tmp_path):
    places = [3, 0, 2, 1]
    SeriesWriter(tmp_path / "dicom").write_enhanced(STACK[:4], places=places)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), STACK[[1, 3, 2, 0]].transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine[:3, 2], (0, 0, 2.5))
    assert volume.frame_numbers == (2, 4, 3, 1)
    assert_file_affine(volume)


@pytest.mark.parametrize("syntax", ["explicit", "RLE"])
def test_enhanced_frames_with_a_slope_each_keep_their_values(tmp_path, syntax):
    scaling = [(1.5, 0.0), (2.0, -10.0), (0.5, 4.0)]
    stack = random_stack((3, 32, 40))
    SeriesWriter(tmp_path / "dicom", syntax=syntax).write_enhanced(stack, scaling=scaling)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    expected = np.stack([frame * slope + offset for frame, (slope, offset) in zip(stack, scaling, strict=True)])
    np.testing.assert_array_equal(voxels(volume.path), expected.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", ["explicit", "RLE", "JPEG-LS"])
def test_a_rescale_outside_the_groups_of_an_enhanced_file_counts(tmp_path, syntax):
    """It was applied to compressed pixels only."""

    def change(group, number):
        del group.PixelValueTransformationSequence

    stack = random_stack((3, 32, 40))
    path = SeriesWriter(tmp_path / "dicom", "MR", syntax=syntax).write_enhanced(stack, change=change)
    dataset = pydicom.dcmread(path)
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-7"
    dataset.save_as(path)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), (stack * 2 - 7).transpose(2, 1, 0))


@pytest.mark.filterwarnings("ignore:Expected (ex|im)plicit VR:UserWarning")
@pytest.mark.parametrize("modality", ["CT", "OT"])
@pytest.mark.parametrize(("stated", "written"), [("explicit", "implicit"), ("implicit", "explicit")])
def test_a_file_in_another_syntax_than_it_states_is_no_truncated_one(tmp_path, modality, stated, written):
    files = []
    for name in (stated, written):
        writer = SeriesWriter(tmp_path / name, modality, syntax=name, series_uid="1.2.3", study_uid="1.2.4")
        files.append(writer.write(STACK))
    (tmp_path / "dicom").mkdir()
    for meta, content in zip(*files, strict=True):
        head, rest = (path.read_bytes() for path in (meta, content))
        first = b"\x08\x00\x08\x00"
        (tmp_path / "dicom" / meta.name).write_bytes(head[: head.index(first)] + rest[rest.index(first) :])
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))


def test_slices_of_differing_thickness_or_date_stay_together(tmp_path):
    def vary(dataset, number):
        dataset.SliceThickness = str(1 + number % 2)
        dataset.SeriesDate = f"2020010{1 + number % 2}"

    SeriesWriter(tmp_path / "dicom").write(STACK, change=vary)
    assert itk_reader(tmp_path / "dicom")[0].shape != (7, 6, 5)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))


def test_positions_rounded_to_a_tenth_are_regular(tmp_path):
    def rounded(dataset, number):
        dataset.ImagePositionPatient = [0, 0, f"{number * 1.25:.1f}"]

    SeriesWriter(tmp_path / "dicom").write(random_stack((9, 4, 4)), change=rounded)
    assert dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii").affine[2, 2] == pytest.approx(1.25)


def test_a_spacing_of_zero_in_the_header_does_no_harm(tmp_path):
    def zero(dataset, number):
        dataset.SpacingBetweenSlices = "0"

    SeriesWriter(tmp_path / "dicom", modality="MR", slope=2.0, intercept=-3.0).write(STACK, change=zero)
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), (STACK * 2 - 3).transpose(2, 1, 0))
    assert volume.affine[2, 2] == pytest.approx(2.5)


def test_a_file_of_old_without_preamble_is_read(tmp_path):
    for path in SeriesWriter(tmp_path / "dicom", syntax="implicit").write(STACK):
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\x08\x00\x08\x00") :])
    volume = dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii")
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_equal_series_give_equal_bytes_and_leave_nothing_beside(tmp_path, suffix):
    SeriesWriter(tmp_path / "dicom").write(STACK)
    (tmp_path / "out").mkdir()
    first = dicom_to_nifti(tmp_path / "dicom", tmp_path / "out" / f"a{suffix}").path
    second = dicom_to_nifti(tmp_path / "dicom", tmp_path / "out" / f"b{suffix}").path
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.joinpath("out").iterdir()) == [first, second]


def test_a_name_that_is_no_nifti_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
        dicom_to_nifti(tmp_path, tmp_path / "image.nrrd")


directions = st.tuples(*[st.integers(-180, 180)] * 3).map(lambda angles: rotated(*angles))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=directions,
    modality=st.sampled_from(["CT", "MR", "PT"]),
    step=st.floats(0.5, 8).map(lambda value: round(value, 3)),
    bits=st.sampled_from([(8, 8), (16, 16), (16, 12), (16, 10)]),
    signed=st.booleans(),
    slope=st.one_of(st.integers(-3, 40).filter(bool).map(float), st.floats(0.001, 9).map(lambda v: round(v, 6))),
    intercept=st.one_of(st.integers(-2000, 2000).map(float), st.floats(-9, 9).map(lambda v: round(v, 3))),
    seed=st.integers(0, 1000),
)
def test_direct_reading_is_identical_to_simpleitk(
    tmp_path_factory, orientation, modality, step, bits, signed, slope, intercept, seed
):
    folder = tmp_path_factory.mktemp("series")
    low = -(1 << (bits[1] - 1)) if signed else 0
    stack = random_stack((3, 5, 6), low, low + (1 << bits[1]) - 1, seed)
    SeriesWriter(
        folder / "dicom",
        modality=modality,
        orientation=orientation,
        step=step,
        bits=bits[0],
        bits_stored=bits[1],
        signed=signed,
        slope=slope,
        intercept=intercept,
    ).write(stack)
    volume = dicom_to_nifti(folder / "dicom", folder / "image.nii")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "dicom")))
    image = reader.Execute()
    np.testing.assert_array_equal(voxels(volume.path), SimpleITK.GetArrayFromImage(image).T)
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    expected = np.diag([-1.0, -1.0, 1.0]) @ direction
    np.testing.assert_allclose(volume.affine[:3, :3], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], np.multiply(image.GetOrigin(), (-1, -1, 1)), rtol=0, atol=1e-6)
    assert_file_affine(volume)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_memory_stays_within_twice_the_volume(tmp_path, suffix):
    import subprocess
    import sys

    SeriesWriter(tmp_path / "dicom", intercept=-1024.0).write(random_stack((1000, 256, 256), 0, 4095))
    code = (
        "import resource, sys\n"
        "from monailabel_xnat.convert import dicom_to_nifti\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "dicom_to_nifti(sys.argv[1], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "dicom"), str(tmp_path / f"image{suffix}")]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert grown * 1024 <= 2 * 1000 * 256 * 256 * 2


def test_the_affine_of_a_far_away_volume_is_precise(tmp_path):
    writer = SeriesWriter(tmp_path / "dicom", orientation=rotated(12, 34, 56), origin=(-1234.567, 987.654, -1500.123))
    writer.write(STACK)
    assert_as_itk_reader(dicom_to_nifti(tmp_path / "dicom", tmp_path / "image.nii"), tmp_path / "dicom")


def test_a_path_object_and_its_parent_need_no_special_names(tmp_path):
    folder = tmp_path / "ein Ordner (1)"
    SeriesWriter(folder).write(STACK)
    out = tmp_path / "mit Leerzeichen ü.nii.gz"
    assert dicom_to_nifti(Path(folder), out).path == out
