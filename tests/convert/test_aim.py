"""AIM 4: contours of the XNAT-OHIF viewer, in pixels of images, filled by the rule for all contours."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aim_writer import Markup, write_aim
from hypothesis import given, settings
from hypothesis import strategies as st

from monailabel_xnat.convert import Grid, Segment, read_aim
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "viewers"
SHAPE = (30, 24, 6)
AFFINE = np.array([[-0.7, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
SOURCES = {(f"1.2.{k}", 1): k for k in range(SHAPE[2])}
GRID = Grid(SHAPE, AFFINE, sources=lambda: SOURCES)


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def read(tmp_path, rois, grid=GRID):
    return read_aim(write_aim(tmp_path / "a.aim.xml", rois), grid)


def test_contours_are_filled_on_the_images_that_they_were_drawn_on(tmp_path):
    rois = {
        "Leber <1> ü": [Markup("1.2.4", box(2.5, 3.5, 9.5, 7.5)), Markup("1.2.1", box(2, 3, 9, 7))],
        "spleen": [Markup("1.2.1", box(20.5, 3.5, 22.5, 5.5)), Markup("1.2.2", box(20.5, 3.5, 22.5, 5.5))],
    }
    label = read(tmp_path, rois)
    expected = np.zeros(SHAPE, np.uint8)
    expected[3:10, 4:8, 4] = 1
    expected[2:10, 3:8, 1] = 1
    expected[21:23, 4:6, 1:3] = 2
    np.testing.assert_array_equal(label.array, expected)
    np.testing.assert_array_equal(label.affine, AFFINE)
    assert label.segments == (Segment(1, "Leber <1> ü", (10, 20, 30)), Segment(2, "spleen", (10, 20, 30)))
    assert label.notes == ("Leber <1> ü: 2 slices between its contours have none and stay empty",)


def test_holes_islands_and_cut_out_contours(tmp_path):
    rings = [Markup("1.2.0", box(2, 2, 20, 20)), Markup("1.2.0", box(6, 6, 16, 16)), Markup("1.2.0", box(9, 9, 12, 12))]
    cut = [Markup("1.2.1", box(2, 2, 20, 20)), Markup("1.2.1", box(16, 6, 28, 16), included=False)]
    label = read(tmp_path, {"ring": [*rings, *cut]})
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:21, 2:21, :2] = 1
    expected[7:16, 7:16, 0] = 0
    expected[9:13, 9:13, 0] = 1
    expected[17:28, 7:16, 1] = 0
    np.testing.assert_array_equal(label.array, expected)


def test_polylines_that_are_not_closed_lines_and_points(tmp_path):
    markups = [
        Markup("1.2.0", box(2.5, 3.5, 9.5, 7.5), closed=False),
        Markup("1.2.1", [(3, 3), (8, 3)], closed=False),
        Markup("1.2.2", [(4.2, 4.9)], closed=False),
        Markup("1.2.3", [(4.2, 4.2), (4.8, 4.2), (4.5, 4.8)]),
    ]
    label = read(tmp_path, {"thin": markups})
    assert label.array[:, :, 0].sum() == 28
    assert np.argwhere(label.array[:, :, 1]).tolist() == [[x, 3] for x in range(3, 9)]
    assert np.argwhere(label.array[:, :, 2]).tolist() == [[4, 5]]
    assert not label.array[:, :, 3].any()
    assert label.notes == (
        "thin: 2 contours mark the voxels that they run through (without area)",
        "thin: 1 contours lie between the centres of voxels and mark none on their own",
    )


def test_frames_of_one_file_are_told_apart(tmp_path):
    sources = {("1.2.9", number): 6 - number for number in range(1, 7)}
    grid = replace(GRID, sources=lambda: sources)
    label = read(tmp_path, {"a": [Markup("1.2.9", box(1, 1, 4, 4), frame=6), Markup("1.2.9", [(7, 7)], frame=1)]}, grid)
    assert label.array[:, :, 0].sum() == 16
    assert label.array[7, 7, 5] == 1
    # A file with one frame has no other frame, whatever number the document names.
    assert read(tmp_path, {"a": [Markup("1.2.3", box(1, 1, 4, 4), frame=7)]}).array[:, :, 3].sum() == 16


def test_contours_on_images_of_one_slice_do_not_cancel_out(tmp_path):
    # Two volumes of a series in time.
    sources = {**SOURCES, **{(f"1.3.{k}", 1): k for k in range(SHAPE[2])}}
    grid = replace(GRID, sources=lambda: sources)
    label = read(tmp_path, {"a": [Markup("1.2.2", box(1, 1, 4, 4)), Markup("1.3.2", box(1, 1, 4, 4))]}, grid)
    assert label.array.sum() == 16


def test_markup_that_is_not_a_contour_or_lies_elsewhere_is_counted(tmp_path):
    good = Markup("1.2.1", box(1, 1, 4, 4))
    others = [Markup("1.2.1", [(1, 1)], kind="TwoDimensionCircle"), Markup("1.2.1", [], kind="TextAnnotation")]
    more = [good, Markup("9.9.9", box(1, 1, 4, 4)), Markup("1.2.1", [])]
    label = read(tmp_path, {"a": [good, *others], "b": more, "circle": others[:1]})
    assert [segment.name for segment in label.segments] == ["a", "b"]
    assert label.notes == (
        "a: 1 markups left aside (TwoDimensionCircle)",
        "a: 1 markups left aside (TextAnnotation)",
        "b: 1 markups left aside (polyline without points)",
        "circle: 1 markups left aside (TwoDimensionCircle)",
        "b: 1 contours lie on other images",
        "16 voxels belong to several ROIs: each has the later one",
    )
    assert read(tmp_path, {"a": [good, good]}).notes == ("a: 1 markups left aside (stored twice)",)


def test_contours_of_another_series_and_documents_without_any_are_refused(tmp_path):
    with pytest.raises(LabelGeometryError, match="none of the 2 contours"):
        read(tmp_path, {"a": [Markup("9.9", box(1, 1, 4, 4))] * 1 + [Markup("9.8", box(1, 1, 4, 4))]})
    with pytest.raises(LabelGeometryError, match="none of the 1 contours"):
        read(tmp_path, {"a": [Markup("1.2.1", box(1, 1, 4, 4))]}, Grid(SHAPE, AFFINE))
    with pytest.raises(LabelFileError, match=r"holds no contour: a: 1 markups left aside \(TwoDimensionPoint\)"):
        read(tmp_path, {"a": [Markup("1.2.1", [(1, 1)], kind="TwoDimensionPoint")]})
    with pytest.raises(LabelFileError, match="holds no contour"):
        read(tmp_path, {})


ENTITY = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x SYSTEM "http://example.org/x.dtd">'


@pytest.mark.parametrize("head", [ENTITY, OUTSIDE])
def test_entities_and_outside_references_are_refused(tmp_path, head):
    path = write_aim(tmp_path / "a.xml", {"a": [Markup("1.2.1", box(1, 1, 4, 4))]}, head=head)
    with pytest.raises(LabelFileError, match=r"a\.xml is damaged, or no AIM document"):
        read_aim(path, GRID)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "damaged"),
        (lambda text: text[:-40], "damaged"),
        (lambda text: text.replace('<x value="1.5"/>', '<x value="left"/>'), "damaged"),
        (lambda text: text.replace('<x value="1.5"/>', '<x value="nan"/>'), "not finite"),
        (lambda text: text.replace("ImageAnnotationCollection", "ImageAnnotation"), "no AIM 4 document"),
    ],
)
def test_damaged_documents_are_refused(tmp_path, change, message):
    path = write_aim(tmp_path / "a.xml", {"a": [Markup("1.2.1", box(1, 1, 4, 4))]})
    path.write_text(change(path.read_text()))
    with pytest.raises(LabelFileError, match=message):
        read_aim(path, GRID)
    with pytest.raises(LabelFileError, match="no such file"):
        read_aim(tmp_path / "absent", GRID)


masks = st.lists(st.booleans(), min_size=8 * 7, max_size=8 * 7)


@settings(max_examples=25, deadline=None)
@given(mask=masks, k=st.integers(0, 5))
def test_any_mask_comes_back_from_contours_along_its_pixels(tmp_path_factory, mask, k):
    mask = np.reshape(mask, (8, 7))
    markups = [Markup(f"1.2.{k}", box(x - 0.5, y - 0.5, x + 0.5, y + 0.5)) for x, y in np.argwhere(mask)]
    if markups:
        label = read(tmp_path_factory.mktemp("aim"), {"a": markups})
        np.testing.assert_array_equal(label.array[:8, :7, k], mask)
        assert label.array.sum() == mask.sum()


@pytest.mark.skipif(not CASES.is_dir(), reason="no real data here")
def test_contours_of_the_viewer_are_what_was_painted():
    truth = json.loads((CASES / "DEMO05_CT1_truth.json").read_text())
    painted = np.frombuffer(gzip.decompress((CASES / "DEMO05_CT1_truth.raw.gz").read_bytes()), np.uint8)
    painted = painted.reshape(truth["n"], truth["rows"], truth["columns"]).T
    sources = {(uid, 1): k for k, uid in enumerate(truth["sops"])}
    label = read_aim(CASES / "DEMO05_CT1.aim.xml", Grid(painted.shape, AFFINE, sources=lambda: sources))
    np.testing.assert_array_equal(label.array, painted)
    assert [(segment.value, segment.name) for segment in label.segments] == [(1, "liver"), (2, "spleen")]
