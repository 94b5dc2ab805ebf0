"""Compressed files that are decoded in groups have the values that each has by itself."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from itk_reference import voxels
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from series_writer import SeriesWriter, random_stack

from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.errors import ImageConversionError

SLICES = 37  # two whole groups and a part of one
ODD = 21


def one_by_one(paths):
    """What SimpleITK reads from each file by itself: (slices, rows, columns)."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    slices = []
    for path in paths:
        reader.SetFileName(str(path))
        slices.append(SimpleITK.GetArrayFromImage(reader.Execute())[0].astype(np.float64))
    return np.stack(slices)


def convert(folder):
    return voxels(dicom_to_nifti(folder, folder.parent / "image.nii").path).astype(np.float64).T


def in_the_odd_one(change):
    return lambda dataset, number: change(dataset) if number == ODD else None


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
@pytest.mark.parametrize(
    ("modality", "slope", "intercept"), [("CT", 1.0, -1024.0), ("MR", None, None), ("PT", 0.37, 0.0)]
)
def test_groups_are_read_as_single_files(tmp_path, syntax, modality, slope, intercept):
    writer = SeriesWriter(tmp_path / "s", modality, syntax=syntax, slope=slope, intercept=intercept, bits_stored=12)
    paths = writer.write(random_stack((SLICES, 9, 7), high=4095))
    np.testing.assert_array_equal(convert(tmp_path / "s"), one_by_one(paths))


@given(order=st.permutations(range(SLICES)), high=st.sampled_from((1, 255, 4095, 65535)), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_the_order_in_which_files_come_does_not_matter(tmp_path_factory, order, high, seed):
    folder = tmp_path_factory.mktemp("series") / "s"
    stack = random_stack((SLICES, 6, 8), high=high, seed=seed)
    SeriesWriter(folder, syntax="JPEG-LS", intercept=-1000.0).write(stack, lambda number: f"{order[number]:03d}")
    np.testing.assert_array_equal(convert(folder), stack - 1000.0)


def rescaled(dataset):
    dataset.RescaleSlope = "0.25"


def mapped_to_real_world_values(dataset):
    item = Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = 0.37, 3.5
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, 4095
    dataset.RealWorldValueMappingSequence = Items([item])


def scaled_by_philips(dataset):
    block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0D, "FL", 2.5)
    block.add_new(0x0E, "FL", 0.37)


def of_fewer_bits(dataset):
    dataset.BitsStored, dataset.HighBit = 10, 9


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("change", [rescaled, mapped_to_real_world_values, scaled_by_philips, of_fewer_bits])
def test_one_file_that_is_scaled_otherwise_keeps_its_values(tmp_path, modality, change):
    writer = SeriesWriter(tmp_path / "s", modality, syntax="JPEG-LS", bits_stored=12)
    paths = writer.write(random_stack((SLICES, 9, 7), high=1000), change=in_the_odd_one(change))
    np.testing.assert_array_equal(convert(tmp_path / "s"), one_by_one(paths))


def of_other_samples(pixels, kind="JPEG-LS", **options):
    """Put a stream of samples of another size into a file whose header stays as it is."""

    def change(dataset):
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels).save(stream, format=kind, **options)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].is_undefined_length = True

    return change


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
def test_a_stream_of_other_bits_than_its_header_states_is_read_as_by_itself(tmp_path, syntax):
    pixels = random_stack((9, 7), high=255, seed=5).astype(np.uint8)
    kind, options = ("JPEG-LS", {}) if syntax == "JPEG-LS" else ("JPEG2000", {"no_jp2": True})
    writer = SeriesWriter(tmp_path / "s", "MR", syntax=syntax)
    change = in_the_odd_one(of_other_samples(pixels, kind, **options))
    paths = writer.write(random_stack((SLICES, 9, 7), low=30000, high=60000), change=change)
    try:
        expected = one_by_one(paths)
    except RuntimeError:
        with pytest.raises(ImageConversionError, match=f"{ODD:04d}.dcm"):
            convert(tmp_path / "s")
        return
    np.testing.assert_array_equal(convert(tmp_path / "s"), expected)


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
def test_of_a_group_with_a_damaged_file_that_file_is_named(tmp_path, syntax):
    def damaged(dataset):
        stream = bytearray(dataset.PixelData)
        middle = len(stream) // 2
        stream[middle - 60 : middle + 40] = b"\xff" * 100
        dataset.PixelData = bytes(stream)

    SeriesWriter(tmp_path / "s", "MR", syntax=syntax).write(
        random_stack((SLICES, 16, 16)), change=in_the_odd_one(damaged)
    )
    with pytest.raises(ImageConversionError, match=f"{ODD:04d}.dcm"):
        convert(tmp_path / "s")


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
def test_overlays_in_the_upper_bits_of_a_group_are_no_part_of_the_values(tmp_path, syntax):
    stack = random_stack((SLICES, 9, 7), high=4095)
    stack[ODD] += 1 << 13
    SeriesWriter(tmp_path / "s", syntax=syntax, bits_stored=12, intercept=-1000.0).write(stack)
    np.testing.assert_array_equal(convert(tmp_path / "s"), (stack & 4095) - 1000.0)


def test_reading_a_group_writes_no_warning(tmp_path, capfd):
    order = np.random.default_rng(0).permutation(SLICES)
    SeriesWriter(tmp_path / "s", syntax="JPEG-LS").write(random_stack((SLICES, 6, 8)), lambda n: f"{order[n]:03d}")
    convert(tmp_path / "s")
    assert capfd.readouterr().err == ""
