"""RT structure sets: the analytic shape to within half a voxel, on any grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtstruct_writer import Roi, StructureSetWriter
from series_writer import AXIAL, CORONAL, SAGITTAL, rotated

from monailabel_xnat.convert import Grid, Segment, read_rtstruct, rtstruct_references
from monailabel_xnat.convert.polygons import fill_polygons
from monailabel_xnat.errors import LabelFileError, LabelGeometryError

SHAPE = (40, 36, 8)
SPACING = (0.8, 1.1, 3.0)
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": rotated(20, -35, 70)}


def grid_of(orientation=AXIAL, reverse=False) -> Grid:
    row, column = np.reshape(orientation, (2, 3))
    normal = np.cross(row, column) * (-1 if reverse else 1)
    lps = np.eye(4)
    lps[:3, :3] = np.array([row, column, normal]).T * SPACING
    lps[:3, 3] = 12.5, -30.25, 100.125
    return Grid(SHAPE, LPS_RAS @ lps)


def patient(grid: Grid, voxels: np.ndarray) -> np.ndarray:
    """Take voxel coordinates to LPS, mm."""
    lps = LPS_RAS @ grid.affine
    return voxels @ lps[:3, :3].T + lps[:3, 3]


def circle(centre, radius_mm, k, points=720):
    """In voxel coordinates; a circle in mm."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x = centre[0] + radius_mm / SPACING[0] * np.cos(angles)
    y = centre[1] + radius_mm / SPACING[1] * np.sin(angles)
    return np.column_stack([x, y, np.full(points, float(k))])


def box(x0, y0, x1, y1, k):
    return np.array([[x0, y0, k], [x1, y0, k], [x1, y1, k], [x0, y1, k]], dtype=float)


def distance_mm(centre):
    i, j = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return np.hypot((i - centre[0]) * SPACING[0], (j - centre[1]) * SPACING[1])


def read(tmp_path, grid, *rois):
    path = StructureSetWriter().write(tmp_path / "rt.dcm", list(rois))
    return read_rtstruct(path, grid)


def roi_of(grid, *contours, number=1, name="roi", **more):
    return Roi(number, name, [patient(grid, contour) for contour in contours], **more)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_ring_is_filled_to_within_half_a_voxel(tmp_path, orientation, reverse):
    grid = grid_of(ORIENTATIONS[orientation], reverse)
    centre = (19.3, 17.6)
    contours = [circle(centre, radius, k) for k in (2, 3, 4) for radius in (11.0, 5.0)]
    label = read(tmp_path, grid, roi_of(grid, *contours))
    assert label.notes == ()
    np.testing.assert_array_equal(label.affine, grid.affine)
    away = distance_mm(centre)
    half = max(SPACING[:2]) / 2
    for k in range(SHAPE[2]):
        inside = label.array[:, :, k] == 1
        if k not in (2, 3, 4):
            assert not inside.any()
            continue
        assert inside[(away < 11.0 - half) & (away > 5.0 + half)].all()
        assert not inside[(away > 11.0 + half) | (away < 5.0 - half)].any()
        # Better than asked: a polygon of 720 corners is the circle to a thousandth of a voxel.
        clear = (np.abs(away - 11.0) > 1e-3) & (np.abs(away - 5.0) > 1e-3)
        np.testing.assert_array_equal(inside[clear], ((away < 11.0) & (away > 5.0))[clear])


def test_a_rectangle_has_the_voxels_whose_centres_it_holds(tmp_path):
    grid = grid_of()
    label = read(tmp_path, grid, roi_of(grid, box(4.5, 6.5, 20.5, 10.5, 1), box(8.4, 7.6, 12.4, 9.4, 1)))
    expected = np.zeros(SHAPE, bool)
    expected[5:21, 7:11, 1] = True
    expected[9:13, 8:10, 1] = False
    np.testing.assert_array_equal(label.array == 1, expected)


def test_keyhole_contour_leaves_its_hole(tmp_path):
    grid = grid_of()
    outer, inner = box(5.5, 5.5, 25.5, 25.5, 3), box(10.5, 10.5, 20.5, 20.5, 3)
    # Out along the border, through a channel on a row of centres, round the hole, and back the same way.
    channel = np.array([[5.5, 15.0, 3.0], [10.5, 15.0, 3.0]])
    keyhole = np.array(
        [*outer, channel[0], channel[1], inner[3], inner[2], inner[1], inner[0], channel[1], channel[0]], dtype=float
    )
    label = read(tmp_path, grid, roi_of(grid, keyhole))
    expected = np.zeros(SHAPE, bool)
    expected[6:26, 6:26, 3] = True
    expected[11:21, 11:21, 3] = False
    np.testing.assert_array_equal(label.array == 1, expected)


def test_islands_in_holes_and_several_parts_in_a_slice(tmp_path):
    grid = grid_of()
    contours = [box(2.5, 2.5, 20.5, 20.5, 2), box(5.5, 5.5, 17.5, 17.5, 2), box(9.5, 9.5, 12.5, 12.5, 2)]
    label = read(tmp_path, grid, roi_of(grid, *contours, box(25.5, 25.5, 30.5, 30.5, 2)))
    expected = np.zeros(SHAPE[:2], bool)
    expected[3:21, 3:21] = True
    expected[6:18, 6:18] = False
    expected[10:13, 10:13] = True
    expected[26:31, 26:31] = True
    np.testing.assert_array_equal(label.array[:, :, 2] == 1, expected)


def test_rois_have_numbers_names_and_colours_and_the_later_one_wins(tmp_path):
    grid = grid_of()
    first = roi_of(grid, box(2.5, 2.5, 10.5, 10.5, 2), number=7, name="Läsion", colour=(1, 2, 3))
    second = roi_of(grid, box(8.5, 8.5, 14.5, 14.5, 2), number=3, name="Leber", colour=None)
    empty = roi_of(grid, number=9, name="nothing")
    label = read(tmp_path, grid, first, second, empty)
    assert label.segments == (Segment(3, "Leber"), Segment(7, "Läsion", (1, 2, 3)))
    assert label.array[9, 9, 2] == 7
    assert np.unique(label.array).tolist() == [0, 3, 7]
    assert label.notes == ("4 voxels belong to several ROIs: each has the one of the highest number",)


def test_roi_numbers_that_are_no_values_are_counted_anew(tmp_path):
    grid = grid_of()
    rois = [roi_of(grid, box(2.5, 2.5, 5.5, 5.5, k), number=number) for k, number in ((1, 0), (2, 99999))]
    label = read(tmp_path, grid, *rois)
    assert [segment.value for segment in label.segments] == [1, 2]
    assert label.array[4, 4, 1] == 1
    assert label.array[4, 4, 2] == 2
    assert "numbered anew" in label.notes[0]


def test_contours_beside_a_slice_count_for_the_nearest_one_and_gaps_stay(tmp_path):
    grid = grid_of()
    heights = [0.3, 0.7, 4.0, -0.4]
    label = read(tmp_path, grid, roi_of(grid, *(box(2.5, 2.5, 10.5, 10.5, k) for k in heights)))
    assert np.flatnonzero(label.array.any(axis=(0, 1))).tolist() == [0, 1, 4]
    # Two planes for one slice do not cancel out.
    assert label.array[:, :, 0].sum() == 64
    assert any("0.40 slices beside" in note for note in label.notes)
    assert any("2 slices between" in note for note in label.notes)


def test_points_open_and_repeated_contours_are_left_aside(tmp_path):
    grid = grid_of()
    square = box(2.5, 2.5, 10.5, 10.5, 1)
    roi = roi_of(
        grid, square, square[:1], square[:3], square[:2], square,
        kinds=["CLOSED_PLANAR", "POINT", "OPEN_PLANAR", "CLOSED_PLANAR", "CLOSED_PLANAR"],
    )  # fmt: skip
    label = read(tmp_path, grid, roi)
    assert label.array.sum() == 64
    assert len(label.notes) == 4
    assert any("POINT" in note for note in label.notes)
    with pytest.raises(LabelFileError, match=r"no closed contour.*POINT"):
        read(tmp_path, grid, roi_of(grid, square[:1], kinds=["POINT"]))


def test_contours_across_the_slices_are_refused(tmp_path):
    grid = grid_of()
    tilted = box(2.5, 2.5, 10.5, 10.5, 1)
    tilted[2:, 2] += 1
    with pytest.raises(LabelGeometryError, match=r"'kidney' do not lie in the slices.*1\.00 slices"):
        read(tmp_path, grid, roi_of(grid, tilted, name="kidney"))


def test_contours_of_another_place_are_refused_and_single_ones_noted(tmp_path):
    grid = grid_of()
    far = box(2.5, 2.5, 10.5, 10.5, 60)
    with pytest.raises(LabelGeometryError, match=r"outside the image.*40 x 36 x 8"):
        read(tmp_path, grid, roi_of(grid, far))
    label = read(tmp_path, grid, roi_of(grid, far, box(-20, -20, 10.5, 10.5, 1)))
    assert label.array.sum() == 121
    assert label.notes == ("roi: 1 contours lie outside the image",)


def test_contours_that_run_far_beyond_the_image_are_cut(tmp_path):
    grid = grid_of()
    label = read(tmp_path, grid, roi_of(grid, box(-1e20, 5.5, 1e20, 8.5, 1)))
    expected = np.zeros(SHAPE[:2], bool)
    expected[:, 6:9] = True
    np.testing.assert_array_equal(label.array[:, :, 1] == 1, expected)


def test_references(tmp_path):
    path = StructureSetWriter().write(tmp_path / "rt.dcm", [])
    found = rtstruct_references(path)
    assert (found.study_uid, found.series_uids, found.instance_uids) == ("1.2.3", ("1.2.4",), ("1.2.5", "1.2.6"))
    assert rtstruct_references(path.read_bytes()) == found


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(128) + b"DICM"])
def test_what_is_no_structure_set_is_refused(tmp_path, content):
    path = tmp_path / "rt.dcm"
    path.write_bytes(content)
    with pytest.raises(LabelFileError, match=r"rt\.dcm"):
        read_rtstruct(path, grid_of())
    with pytest.raises(LabelFileError, match="no such file"):
        read_rtstruct(Path("absent.dcm"), grid_of())


def test_truncated_structure_set_is_refused(tmp_path):
    grid = grid_of()
    path = StructureSetWriter().write(tmp_path / "rt.dcm", [roi_of(grid, circle((15, 15), 5, 2))])
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(LabelFileError, match=r"rt\.dcm"):
        read_rtstruct(path, grid)


corners = st.lists(st.tuples(*[st.floats(-3, 15, allow_nan=False)] * 2), min_size=3, max_size=12)


@settings(max_examples=60, deadline=None)
@given(polygons=st.lists(corners, min_size=1, max_size=3))
def test_filling_agrees_with_a_crossing_test_for_each_pixel(polygons):
    polygons = [np.round(np.array(polygon), 2) for polygon in polygons]
    window, mask = fill_polygons(polygons, (12, 10))
    filled = np.zeros((12, 10), bool)
    filled[window] = mask
    for x in range(12):
        for y in range(10):
            crossings = 0
            near = False
            for polygon in polygons:
                for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0)):
                    if (y1 <= y) != (y2 <= y):
                        at = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
                        near |= abs(at - x) < 1e-9
                        crossings += at < x
            assert near or filled[x, y] == (crossings % 2 == 1)
