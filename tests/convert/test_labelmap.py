"""Label maps of every format are put on the same grid, without resampling and without guesses."""

from __future__ import annotations

import hashlib
import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given, settings
from hypothesis import strategies as st
from itk_reference import assert_qform, simpleitk_affine

from monailabel_xnat.convert import Grid, LabelMap, Segment, read_label, to_grid, write_label
from monailabel_xnat.convert.labelmap import voxel_counts
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

ARRAY = np.random.default_rng(3).integers(0, 5, (7, 6, 5)).astype(np.uint8)
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(degrees=(10, 20, 30), spacing=(1.0, 2.0, 3.0), origin=(10.0, -20.0, 30.0)) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = origin
    return affine


AFFINE = affine_of()
LABEL = LabelMap(ARRAY, AFFINE)


def save(array, path, affine=AFFINE):
    """Write with nibabel, or with SimpleITK for formats that nibabel does not write."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path
    lps = LPS_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


FORMATS = ["label.nii", "label.nii.gz", "label.nrrd", "label.seg.nrrd", "label.mha", "label.mhd", "LABEL.NII.GZ"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path, name, dtype):
    if name.isupper():
        path = save(ARRAY.astype(dtype), tmp_path / "x.nii.gz").rename(tmp_path / name)
    else:
        path = save(ARRAY.astype(dtype), tmp_path / name)
    label = read_label(path)
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array, ARRAY)
    np.testing.assert_allclose(label.affine, AFFINE, atol=1e-5)
    assert label.segments == ()


def test_values_beyond_a_byte_are_uint16(tmp_path):
    label = read_label(save((ARRAY.astype(np.uint16) * 16000), tmp_path / "a.nii.gz"))
    assert label.array.dtype == np.uint16
    assert label.array.max() == 64000


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ARRAY.astype(np.int16) - 1, "negative values, down to -1"),
        (ARRAY.astype(np.float32) + 0.5, "no whole numbers, e.g."),
        (ARRAY.astype(np.int32) * 30000, "above 65535, up to 120000"),
        (np.where(ARRAY == 0, np.nan, ARRAY).astype(np.float32), "not finite"),
        (np.stack([ARRAY, ARRAY], axis=3), "4 dimensions: 7 x 6 x 5 x 2"),
    ],
)
def test_a_file_that_is_not_a_label_map_is_refused(tmp_path, array, message):
    with pytest.raises(LabelFileError, match=message) as caught:
        read_label(save(array, tmp_path / "bad.nii.gz"))
    assert "bad.nii.gz" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\x1f\x8bjunk" * 30, b"\0" * 4000])
def test_a_file_that_is_no_image_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LabelFileError, match=name):
        read_label(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = save(np.random.default_rng(0).integers(0, 200, (30, 30, 30)).astype(np.uint8), tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LabelFileError, match="truncated"):
        read_label(path)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(LabelFileError, match=r"no such label file: a\.nii"):
        read_label(tmp_path / "a.nii")
    (tmp_path / "label.bin").write_bytes(b"1")
    with pytest.raises(LabelFileError, match=r"not a label file: label\.bin"):
        read_label(tmp_path / "label.bin")


def test_a_trailing_dimension_of_one_and_a_flat_label_are_three_dimensional(tmp_path):
    label = read_label(save(ARRAY[..., np.newaxis], tmp_path / "a.nii"))
    np.testing.assert_array_equal(label.array, ARRAY)
    flat = read_label(save(ARRAY[..., 0], tmp_path / "b.nii"))
    np.testing.assert_array_equal(flat.array, ARRAY[..., :1])


def test_a_scaled_label_is_scaled(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([2.0, 1.0], dtype="<f4").tobytes()
    path.write_bytes(data)
    np.testing.assert_array_equal(read_label(path).array, ARRAY * 2 + 1)


@pytest.mark.parametrize("big", [True, False])
@pytest.mark.parametrize(("sform", "qform"), [(2, 0), (0, 1), (0, 0), (1, 1)])
def test_the_affine_of_any_nifti_header_is_nibabels(tmp_path, sform, qform, big):
    header = nibabel.Nifti1Header(endianness=">" if big else "<")
    image = nibabel.Nifti1Image(ARRAY.astype(np.int16), AFFINE @ np.diag([-1, 1, 1, 1]), header)
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine, qform)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    expected = nibabel.load(path)
    np.testing.assert_allclose(Grid.of_nifti(path).affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(read_label(path).array, ARRAY)


SLICER_FIELDS = {
    "Segment0_ID": "liver_1",
    "Segment0_Name": "liver",
    "Segment0_Color": "0.5 0 1",
    "Segment0_LabelValue": "1",
    "Segment0_Layer": "0",
    "Segment1_ID": "spleen_1",
    "Segment1_Color": "nonsense",
    "Segment1_LabelValue": "4",
    "Segment1_Layer": "0",
}


def write_seg_nrrd(path, layers, fields):
    """Write a .seg.nrrd as 3D Slicer does: layers as first axis, raw encoding."""
    stack = np.stack(layers) if len(layers) > 1 else layers[0]
    lead, kinds = (["none"], ["list"]) if len(layers) > 1 else ([], [])
    lines = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {stack.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, stack.shape))}",
        f"space directions: {' '.join([*lead, '(1,0,0)', '(0,2,0)', '(0,0,3)'])}",
        f"kinds: {' '.join([*kinds, 'domain', 'domain', 'domain'])}",
        "encoding: raw",
        "space origin: (-1,2,3)",
        *(f"{key}:={value}" for key, value in fields.items()),
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + stack.tobytes(order="F"))
    return path


@pytest.mark.parametrize(("text", "colour"), [("inf 0 -inf", (255, 0, 0)), ("1e400 0.5 2", (255, 128, 255))])
def test_a_colour_without_bounds_is_no_error(tmp_path, text, colour):
    fields = {**SLICER_FIELDS, "Segment0_Color": text}
    assert read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", [ARRAY], fields)).segments[0].colour == colour


def test_segments_of_a_slicer_file_have_names_and_colours(tmp_path):
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", [ARRAY], SLICER_FIELDS))
    np.testing.assert_array_equal(label.array, ARRAY)
    assert label.segments == (Segment(1, "liver", (128, 0, 255)), Segment(4, "spleen_1", None))
    np.testing.assert_allclose(label.affine[:3, 3], (1, -2, 3))


def test_overlapping_segments_are_merged_and_counted(tmp_path):
    first, second = (ARRAY == 1) * np.uint8(1) + (ARRAY == 2) * np.uint8(4), (ARRAY <= 2) * np.uint8(7)
    fields = {**SLICER_FIELDS, "Segment2_Name": "body", "Segment2_LabelValue": "7", "Segment2_Layer": "1"}
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", [first, second], fields))
    np.testing.assert_array_equal(label.array, second)
    assert [segment.value for segment in label.segments] == [1, 4, 7]
    count = np.count_nonzero((ARRAY == 1) | (ARRAY == 2))
    assert label.notes == (f"{count} voxels belong to several segments: each has the later one in the header",)


def test_layers_that_share_values_are_numbered_anew(tmp_path):
    first, second = (ARRAY == 1) * np.uint8(1), (ARRAY == 2) * np.uint8(1)
    fields = {
        "Segment0_Name": "a", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
        "Segment1_Name": "b", "Segment1_LabelValue": "1", "Segment1_Layer": "1",
    }  # fmt: skip
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", [first, second], fields))
    np.testing.assert_array_equal(label.array, first + 2 * second)
    assert label.segments == (Segment(1, "a"), Segment(2, "b"))
    assert "numbered anew" in label.notes[0]


def test_a_label_on_the_grid_is_kept_with_the_affine_of_the_grid():
    nudged = AFFINE + np.random.default_rng(0).normal(0, 1e-4, (4, 4)) * [[1], [1], [1], [0]]
    grid = Grid((7, 6, 5), AFFINE)
    label = to_grid(LabelMap(ARRAY, nudged), grid)
    np.testing.assert_array_equal(label.array, ARRAY)
    np.testing.assert_array_equal(label.affine, AFFINE)
    assert label.notes == ()


TURNS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product([False, True], repeat=3)
]


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_permuted_and_flipped_axes_are_turned_back_without_loss(order, flips):
    flipped = [axis for axis in range(3) if flips[axis]]
    affine = AFFINE.copy()
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (ARRAY.shape[axis] - 1)
        affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    turned = LabelMap(np.flip(ARRAY, flipped).transpose(order), affine, notes=("before",))
    label = to_grid(turned, Grid((7, 6, 5), AFFINE))
    np.testing.assert_array_equal(label.array, ARRAY)
    np.testing.assert_array_equal(label.affine, AFFINE)
    changed = order != (0, 1, 2) or any(flips)
    assert len(label.notes) == 1 + changed


@pytest.mark.parametrize(
    ("shape", "affine", "difference"),
    [
        ((7, 6, 5), affine_of(origin=(15.0, -20.0, 30.0)), "origin by 5.000 mm"),
        ((7, 6, 5), affine_of(spacing=(1.0, 2.0, 3.5)), "spacing by"),
        ((7, 6, 5), affine_of(degrees=(10, 20, 33)), "axis directions by up to 2.96 degrees"),
        ((7, 6, 4), AFFINE, r"shape \(7, 6, 5\) against \(7, 6, 4\)"),
    ],
)
def test_another_grid_is_refused_with_both_and_their_differences(shape, affine, difference):
    with pytest.raises(LabelGeometryError, match=difference) as caught:
        to_grid(LABEL, Grid(shape, affine))
    assert str(LABEL.grid) in str(caught.value)
    assert str(Grid(shape, affine)) in str(caught.value)


def test_a_grid_reads_well():
    assert str(Grid((7, 6, 5), np.diag([-0.5, -0.5, 2, 1]))) == (
        "7 x 6 x 5 voxels of 0.5 x 0.5 x 2 mm, origin (0.000, 0.000, 0.000) mm RAS, axes to LPS"
    )


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_the_grid_of_an_image_is_read_from_its_header(tmp_path, name):
    grid = Grid.of_image(save(ARRAY.astype(np.int16), tmp_path / name))
    assert grid.matches(Grid((7, 6, 5), AFFINE))


def test_the_grid_of_a_time_series_is_that_of_a_volume(tmp_path):
    path = save(np.zeros((7, 6, 5, 3), np.int16), tmp_path / "a.nii.gz")
    assert Grid.of_nifti(path).shape == (7, 6, 5)


@settings(max_examples=40, deadline=None)
@given(
    degrees=st.tuples(*[st.integers(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 6).map(lambda value: round(value, 3))] * 3),
    mirrored=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
@example(degrees=(-64, -91, -115), spacing=(1.0, 1.0, 1.0), mirrored=False, dtype=np.uint8)
def test_a_written_label_is_read_back_by_everybody(tmp_path_factory, degrees, spacing, mirrored, dtype):
    affine = affine_of(degrees, spacing) @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0, 1.0])
    array = ARRAY.astype(dtype) * (200 if dtype is np.uint16 else 1)
    path = tmp_path_factory.mktemp("label") / "a.nii.gz"
    write_label(LabelMap(array, affine), path)
    image = nibabel.load(path)
    for found in (image.get_sform(), simpleitk_affine(path), read_label(path).affine):
        np.testing.assert_allclose(found, affine, atol=1e-4)
    assert_qform(image, affine)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)
    np.testing.assert_array_equal(read_label(path).array, array)


def test_equal_labels_give_equal_bytes(tmp_path):
    digests = set()
    for name, array in (("a", ARRAY), ("b", np.asfortranarray(ARRAY)), ("c", np.flip(np.flip(ARRAY, 0).copy(), 0))):
        write_label(LabelMap(array, AFFINE), tmp_path / f"{name}.nii.gz")
        digests.add(hashlib.sha256((tmp_path / f"{name}.nii.gz").read_bytes()).hexdigest())
    assert len(digests) == 1
    write_label(LabelMap(ARRAY + np.uint8(1), AFFINE), tmp_path / "d.nii.gz")
    assert hashlib.sha256((tmp_path / "d.nii.gz").read_bytes()).hexdigest() not in digests


def named(number, name, **fields):
    return {f"Segment{number}_{key}": value for key, value in {"Name": name, **fields}.items()}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_segments_of_older_slicers_are_one_component_each(tmp_path, count):
    # Up to 4.10 Slicer wrote neither Layer nor LabelValue.
    names = ["liver", "spleen", "tumour"][:count]
    layers = [(number == ARRAY).astype(np.uint8) for number in range(1, count + 1)]
    fields = {key: value for number, name in enumerate(names) for key, value in named(number, name).items()}
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", layers, fields))
    np.testing.assert_array_equal(label.array, np.where(count >= ARRAY, ARRAY, 0))
    assert label.segments == tuple(Segment(number, name) for number, name in enumerate(names, 1))
    assert len(label.notes) == (count > 1)


def test_overlapping_segments_of_an_older_slicer_are_merged_and_counted(tmp_path):
    layers = [(ARRAY <= 2).astype(np.uint8), (ARRAY == 2).astype(np.uint8)]
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", layers, {**named(0, "body"), **named(1, "lesion")}))
    np.testing.assert_array_equal(label.array, layers[0] + layers[1])
    assert f"{layers[1].sum()} voxels belong to several segments" in label.notes[1]


def test_components_that_state_their_values_but_no_layer_keep_them(tmp_path):
    layers = [(ARRAY == 1) * np.uint8(3), (ARRAY == 2) * np.uint8(8)]
    fields = {**named(0, "liver", LabelValue="3"), **named(1, "spleen", LabelValue="8")}
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", layers, fields))
    np.testing.assert_array_equal(label.array, layers[0] + layers[1])
    assert label.segments == (Segment(3, "liver"), Segment(8, "spleen"))
    assert label.notes == ()


def test_a_file_with_one_component_and_no_values_counts_its_segments(tmp_path):
    fields = {**named(0, "a"), **named(1, "b"), **named(2, "c"), **named(3, "d")}
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", [ARRAY], fields))
    np.testing.assert_array_equal(label.array, ARRAY)
    assert [segment.value for segment in label.segments] == [1, 2, 3, 4]
    assert label.notes == ()


def test_a_value_that_no_segment_claims_is_kept_and_noted_with_its_voxels(tmp_path):
    label = read_label(write_seg_nrrd(tmp_path / "a.seg.nrrd", [ARRAY], named(0, "liver", LabelValue="1")))
    np.testing.assert_array_equal(label.array, ARRAY)
    counts = [np.count_nonzero(value == ARRAY) for value in (2, 3, 4)]
    expected = ", ".join(f"{value} ({count} voxels)" for value, count in zip((2, 3, 4), counts, strict=True))
    assert label.notes == (f"values that no segment of the file claims are kept: {expected}",)


@pytest.mark.parametrize(
    ("layers", "fields", "message"),
    [
        # There is one component more than segments, because only the first segment is still described.
        ([ARRAY == 1, ARRAY == 2], named(0, "liver"), "component 1, value 1"),
        ([ARRAY == 1, ARRAY == 2], named(0, "liver", LabelValue="1", Layer="0"), "component 1, value 1"),
        ([(ARRAY == 1) * 5, ARRAY == 2], {**named(0, "liver"), **named(1, "spleen")}, "component 0, value 5"),
        (
            [ARRAY == 1, ARRAY == 2],
            {**named(0, "a"), **named(1, "b"), **named(2, "c")},
            "'c' should lie in component 2",
        ),
        ([ARRAY], named(0, "liver", Layer="1"), "'liver' should lie in component 1"),
        ([ARRAY], named(0, "liver", LabelValue="-1"), "'liver' has the value -1"),
        ([ARRAY, ARRAY], {**named(0, "a", LabelValue="0"), **named(1, "b")}, "'a' has the value 0"),
    ],
)
def test_components_that_no_segment_claims_are_refused_with_their_voxels(tmp_path, layers, fields, message):
    path = write_seg_nrrd(tmp_path / "a.seg.nrrd", [layer.astype(np.uint8) for layer in layers], fields)
    with pytest.raises(LabelFileError, match=message) as caught:
        read_label(path)
    if "component" in message and "should" not in message:
        assert "voxels)" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.24, 0.26, 1.0])
@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_are_counted_whatever_share_of_them_is_labelled(dtype, share, order):
    random = np.random.default_rng(1)
    values = np.where(random.random((30, 20, 5)) < share, random.integers(1, 200, (30, 20, 5)), 0)
    array = np.asarray(values, dtype, order=order)
    assert np.array_equal(voxel_counts(array), np.bincount(array.ravel()))
