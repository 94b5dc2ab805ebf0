"""Label files of every kind are read if their meaning is certain, and are else refused with their kind."""

from __future__ import annotations

import bz2

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from test_labelmap import AFFINE, ARRAY, affine_of, save

from monailabel_xnat.convert import Grid, LabelMap, read_label, to_grid
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

SHAPE = ARRAY.shape
GRID = Grid(SHAPE, AFFINE)


def moved(affine, offset):
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ offset
    return affine


# Labels on the image's own lattice, with another extent


@settings(max_examples=60, deadline=None)
@given(
    low=st.tuples(*[st.integers(-3, 4)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    order=st.permutations([0, 1, 2]),
    flips=st.lists(st.sampled_from([0, 1, 2]), unique=True),
    seed=st.integers(0, 1000),
)
def test_a_label_with_another_extent_on_the_same_lattice_is_cropped_and_padded(low, size, order, flips, seed):
    # The part that the label covers of a large array of voxels, in which the image begins at 3, 3, 3.
    world = np.zeros(np.add(SHAPE, 20), np.uint8)
    inside = tuple(slice(3, 3 + n) for n in SHAPE)
    world[inside] = np.random.default_rng(seed).integers(0, 3, SHAPE)
    part = tuple(slice(start + 3, start + 3 + n) for start, n in zip(low, size, strict=True))
    cut = world[part]
    affine = moved(AFFINE, low)
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (cut.shape[axis] - 1)
        affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    label = to_grid(LabelMap(np.flip(cut, flips).transpose(order), affine), GRID, any_extent=True)
    expected = np.zeros_like(world)
    expected[part] = cut
    np.testing.assert_array_equal(label.array, expected[inside])
    np.testing.assert_array_equal(label.affine, AFFINE)
    same = low == (0, 0, 0) and size == SHAPE
    assert any("without loss" in note for note in label.notes) == (not same)


def test_a_label_with_labelled_voxels_outside_the_image_is_refused_with_their_number():
    array = np.zeros((9, 6, 5), np.uint8)
    array[:, 2, 2] = 1
    with pytest.raises(LabelGeometryError, match=r"2 labelled voxels lie outside the image.*shape \(9, 6, 5\)"):
        to_grid(LabelMap(array, AFFINE), GRID, any_extent=True)
    array[7:] = 0
    assert to_grid(LabelMap(array, AFFINE), GRID, any_extent=True).array.sum() == 7
    with pytest.raises(LabelGeometryError, match="shape"):
        to_grid(LabelMap(array, AFFINE), GRID)


@pytest.mark.parametrize(
    "affine",
    [
        moved(AFFINE, (0.5, 0, 0)),
        moved(AFFINE, (0, 0, 1.2)),
        affine_of(spacing=(1.0, 2.0, 3.1)),
        affine_of(degrees=(10, 20, 31)),
        moved(AFFINE, (1e12, 0, 0)),
    ],
)
def test_a_label_beside_the_lattice_is_refused(affine):
    with pytest.raises(LabelGeometryError, match="They differ"):
        to_grid(LabelMap(np.ones((4, 4, 4), np.uint8), affine), GRID, any_extent=True)


# Masks of floats


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("factor", [0.996, 1.00000006, 0.9999])
def test_masks_of_floats_that_are_whole_but_for_a_hundredth_are_rounded_and_noted(tmp_path, name, factor):
    mask = ARRAY > 2
    label = read_label(save((mask * factor).astype(np.float64), tmp_path / name))
    np.testing.assert_array_equal(label.array, mask)
    (note,) = label.notes
    assert note.startswith(f"{mask.sum()} voxels rounded to whole numbers, by up to ")


def test_a_float_mask_that_nibabel_stored_in_a_byte_is_read(tmp_path):
    image = nibabel.Nifti1Image((ARRAY > 2).astype(np.float32), AFFINE)
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_label(tmp_path / "a.nii.gz").array, ARRAY > 2)


@pytest.mark.parametrize(("value", "what"), [(0.98, "probability map"), (0.5, "probability map"), (3.4, "resampled")])
def test_other_fractions_are_refused_by_what_they_are(tmp_path, value, what):
    array = ARRAY.astype(np.float64)
    if value < 1:
        array = np.minimum(array, 1)
    array[1, 1, :2] = value
    with pytest.raises(LabelFileError, match=rf"no whole numbers, e.g. {value} \(2 voxels\).*{what}"):
        read_label(save(array, tmp_path / "a.nii.gz"))


# One channel for each number


def one_hot(array, count=5):
    return np.stack([array == number for number in range(count)], axis=3)


def write_channels(path, channels):
    """Write channels as MONAI (4-D NIfTI), nibabel (5-D) or ITK (components) does."""
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(channels, AFFINE), path)
        return path
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(channels.transpose(2, 1, 0, 3)), isVector=True)
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", ["a.nii.gz", "five.nii.gz", "a.nrrd", "a.mha"])
def test_one_channel_for_each_number_is_a_label_map(tmp_path, name, dtype):
    channels = one_hot(ARRAY).astype(dtype)
    if name.startswith("five"):
        channels = channels[:, :, :, np.newaxis]
    label = read_label(write_channels(tmp_path / name, channels))
    np.testing.assert_array_equal(label.array, ARRAY)
    assert label.array.dtype == np.uint8
    (note,) = label.notes
    assert note.startswith("5 channels, of which each voxel has exactly one: the first is the background")


def test_probabilities_of_each_number_give_the_most_probable_one(tmp_path):
    scores = np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32)
    scores /= scores.sum(axis=3, keepdims=True)
    label = read_label(write_channels(tmp_path / "a.nii.gz", scores))
    np.testing.assert_array_equal(label.array, scores.argmax(axis=3))
    assert "probabilities" in label.notes[0]
    scores[0, 0, 0] = 0.5, 0.5, 0
    with pytest.raises(LabelFileError, match="1 voxels have two likeliest"):
        read_label(write_channels(tmp_path / "a.nii.gz", scores))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (one_hot(ARRAY)[..., 1:].astype(np.uint8), r"leaves \d+ voxels without a channel and gives 0 voxels several"),
        (np.stack([ARRAY < 9, ARRAY > 2], 3).astype(np.uint8), r"leaves 0 voxels without .* gives \d+ voxels several"),
        (np.stack([ARRAY, ARRAY], 3), "values up to 4: 2 volumes"),
        (np.stack([ARRAY * 0.3, ARRAY * 0.3], 3), "2 channels .* no masks: .*no whole numbers"),
        (one_hot(ARRAY).astype(np.uint8)[..., np.newaxis].repeat(2, axis=4), "5 dimensions: 7 x 6 x 5 x 5 x 2"),
    ],
)
def test_other_channels_are_refused_by_what_they_are(tmp_path, channels, message):
    with pytest.raises(LabelFileError, match=message):
        read_label(write_channels(tmp_path / "a.nii.gz", channels))


# Other containers


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
def test_nifti_2_is_read(tmp_path, name, dtype):
    nibabel.save(nibabel.Nifti2Image(ARRAY.astype(dtype), AFFINE), tmp_path / name)
    label = read_label(tmp_path / name)
    np.testing.assert_array_equal(label.array, ARRAY)
    np.testing.assert_allclose(label.affine, AFFINE, atol=1e-6)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) - 40])
    with pytest.raises(LabelFileError, match="truncated"):
        read_label(tmp_path / name)


def bzip2_nrrd(path, array, end=b"\n", cut=0, header=()):
    lines = [
        b"NRRD0005", b"type: uint8", b"dimension: 3", b"space: left-posterior-superior", *header,
        b"sizes: " + b" ".join(str(size).encode() for size in array.shape), b"encoding: bzip2",
        b"space directions: (1,0,0) (0,2,0) (0,0,3)", b"space origin: (-1,2,3)",
    ]  # fmt: skip
    content = bz2.compress(array.tobytes(order="F"))
    path.write_bytes(end.join(lines) + end * 2 + content[: len(content) - cut])
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_nrrd_compressed_by_bzip2_is_read(tmp_path, end):
    fields = [b"Segment0_Name:=liver", b"Segment0_LabelValue:=1"]
    label = read_label(bzip2_nrrd(tmp_path / "a.seg.nrrd", np.minimum(ARRAY, 1), end, header=fields))
    np.testing.assert_array_equal(label.array, np.minimum(ARRAY, 1))
    np.testing.assert_allclose(label.affine[:3, 3], (1, -2, 3))
    assert [segment.name for segment in label.segments] == ["liver"]


def test_nrrd_compressed_by_bzip2_must_be_whole(tmp_path):
    with pytest.raises(LabelFileError, match="truncated"):
        read_label(bzip2_nrrd(tmp_path / "a.nrrd", ARRAY, cut=20))
    path = bzip2_nrrd(tmp_path / "a.nrrd", ARRAY)
    path.write_bytes(path.read_bytes().replace(b"sizes: 7 6 5", b"sizes: 1 2 5"))
    with pytest.raises(LabelFileError, match="more voxels than its header says"):
        read_label(path)
    path.write_bytes(path.read_bytes().replace(b"BZh9", b"BZh9junk"))
    with pytest.raises(LabelFileError, match="damaged"):
        read_label(path)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["a.mha", "a.nrrd"])
def test_compressed_files_of_itk_are_read(tmp_path, kind, compressed):
    path = save(ARRAY, tmp_path / kind)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(path), compressed)
    np.testing.assert_array_equal(read_label(path).array, ARRAY)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.zeros(SHAPE, np.complex64), "complex numbers"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
    ],
)
def test_colours_and_complex_numbers_are_refused_with_the_reason(tmp_path, values, what):
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(LabelFileError, match=f"it holds {what}"):
        read_label(tmp_path / "a.nii.gz")
    # Images of that kind have a grid all the same.
    assert Grid.of_nifti(tmp_path / "a.nii.gz").matches(GRID)
