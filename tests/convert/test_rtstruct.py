"""RT structure sets become the analytic shape, within half a voxel, on any grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from rtstruct_writer import Roi, StructureSetWriter
from series_writer import AXIAL, CORONAL, SAGITTAL, SeriesWriter, rotated

from monailabel_xnat.convert import Grid, Segment, dicom_to_nifti, read_rtstruct, rtstruct_references
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
    """Return voxel coordinates as LPS, mm."""
    lps = LPS_RAS @ grid.affine
    return voxels @ lps[:3, :3].T + lps[:3, 3]


def circle(centre, radius_mm, k, points=720):
    """Return, in voxel coordinates, a circle in mm."""
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
        # This is stricter than required: a polygon of 720 corners is the circle to a thousandth of a voxel.
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
    # The contour goes along the border, through a channel on a row of centres, around the hole, and back the same way.
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


def test_repeated_contours_and_contours_in_no_plane_are_left_aside(tmp_path):
    grid = grid_of()
    square = box(2.5, 2.5, 10.5, 10.5, 1)
    kinds = ["CLOSED_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR"]
    label = read(tmp_path, grid, roi_of(grid, square, square[:2], square, kinds=kinds))
    assert label.array.sum() == 64
    assert label.notes == (
        "roi: 1 contours left aside (OPEN_NONPLANAR)",
        "roi: 1 contours left aside (stored twice)",
    )


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR"])
def test_a_structure_of_points_or_lines_alone_is_a_marker_and_left_aside(tmp_path, kind):
    grid = grid_of()
    marker = roi_of(grid, box(5, 5, 8, 8, 1)[:2], number=2, name="marker", kinds=[kind])
    label = read(tmp_path, grid, roi_of(grid, box(2.5, 2.5, 10.5, 10.5, 1)), marker)
    assert np.unique(label.array).tolist() == [0, 1]
    assert label.notes == (f"marker: 1 contours left aside ({kind})",)
    with pytest.raises(LabelFileError, match=rf"no closed contour.*{kind}"):
        read(tmp_path, grid, marker)


# Contours that tools trace through the centres of the outermost voxels of a mask


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_square_traced_through_voxel_centres_keeps_its_rim(tmp_path, orientation, reverse):
    grid = grid_of(ORIENTATIONS[orientation], reverse)
    label = read(tmp_path, grid, roi_of(grid, box(5, 7, 14, 16, 2)))
    expected = np.zeros(SHAPE, bool)
    expected[5:15, 7:17, 2] = True
    np.testing.assert_array_equal(label.array == 1, expected)
    assert label.notes == ()


def test_a_hole_traced_through_voxel_centres_does_not_grow(tmp_path):
    grid = grid_of()
    label = read(tmp_path, grid, roi_of(grid, box(2, 2, 21, 21, 1), box(8, 8, 14, 14, 1)))
    expected = np.zeros(SHAPE, bool)
    expected[2:22, 2:22, 1] = True
    expected[9:14, 9:14, 1] = False
    np.testing.assert_array_equal(label.array == 1, expected)


def test_a_vessel_two_voxels_wide_keeps_both_of_them(tmp_path):
    grid = grid_of()
    label = read(tmp_path, grid, roi_of(grid, box(5, 7, 6, 30, 2)))
    expected = np.zeros(SHAPE, bool)
    expected[5:7, 7:31, 2] = True
    np.testing.assert_array_equal(label.array == 1, expected)
    assert label.notes == ()


THIN = {
    "a straight line": ([(5, 7), (5, 30)], [(5, y) for y in range(7, 31)]),
    "a straight line with corners on the way back": (
        [(5, 7), (5, 20), (5, 30), (5, 11)],
        [(5, y) for y in range(7, 31)],
    ),
    "a diagonal": ([(3, 4), (12, 13)], [(3 + n, 4 + n) for n in range(10)]),
    "an angle": (
        [(3, 4), (9, 4), (9, 9), (9, 4)],
        [*((x, 4) for x in range(3, 10)), *((9, y) for y in range(4, 10))],
    ),
    "a fork": (
        [(3, 4), (9, 4), (6, 4), (6, 9), (6, 4)],
        [*((x, 4) for x in range(3, 10)), *((6, y) for y in range(4, 10))],
    ),
    "one voxel": ([(5, 7)], [(5, 7)]),
    "one voxel with three corners": ([(5, 7)] * 3, [(5, 7)]),
    "a point beside the centre": ([(5.3, 6.6)], [(5, 7)]),
    "a line beside the centres": ([(2.8, 6.6), (6.3, 6.6)], [(x, 7) for x in range(3, 7)]),
    "a slanted line": ([(0, 0), (2, 1)], [(0, 0), (1, 0), (1, 1), (2, 1)]),
    "a line between two rows": ([(2, 6.5), (4, 6.5)], [(x, 7) for x in range(2, 5)]),
}


@pytest.mark.parametrize("name", THIN)
def test_a_contour_without_area_marks_the_voxels_that_it_runs_through(tmp_path, name):
    corners, voxels = THIN[name]
    grid = grid_of(ORIENTATIONS["oblique"])
    contour = np.array([[x, y, 3] for x, y in corners], dtype=float)
    label = read(tmp_path, grid, roi_of(grid, contour))
    assert sorted(map(tuple, np.argwhere(label.array[:, :, 3]))) == sorted(set(voxels))
    assert label.array.sum() == len(set(voxels))
    assert label.notes == ("roi: 1 contours mark the voxels that they run through (closed, without area)",)


def test_points_and_lines_among_closed_contours_are_drawn(tmp_path):
    grid = grid_of()
    line, point = box(2, 3, 9, 3, 2)[:2], box(4, 5, 4, 5, 3)[:1]
    kinds = ["CLOSED_PLANAR", "OPEN_PLANAR", "POINT"]
    label = read(tmp_path, grid, roi_of(grid, box(2, 2, 9, 9, 1), line, point, kinds=kinds))
    assert label.array[:, :, 1].sum() == 64
    assert np.argwhere(label.array[:, :, 2]).tolist() == [[x, 3] for x in range(2, 10)]
    assert np.argwhere(label.array[:, :, 3]).tolist() == [[4, 5]]
    assert len(label.notes) == 2


def test_an_open_contour_is_not_filled(tmp_path):
    grid = grid_of()
    bow = np.array([[2, 2, 2], [10, 2, 2], [10, 10, 2]], dtype=float)
    kinds = ["CLOSED_PLANAR", "OPEN_PLANAR"]
    label = read(tmp_path, grid, roi_of(grid, box(2, 2, 9, 9, 1), bow, kinds=kinds))
    assert label.array[:, :, 2].sum() == 9 + 8


def test_a_contour_between_the_voxel_centres_is_noted(tmp_path):
    grid = grid_of()
    label = read(tmp_path, grid, roi_of(grid, box(2, 2, 9, 9, 1), box(20.2, 2, 20.4, 30, 1)))
    assert label.array.sum() == 64
    assert label.notes == ("roi: 1 contours lie between the centres of voxels and mark none on their own",)


@pytest.mark.parametrize(("orientation", "approximate"), [("axial", False), ("sagittal", True), ("oblique", True)])
def test_masks_of_any_thickness_come_back_from_rt_utils(tmp_path, orientation, approximate):
    builder = pytest.importorskip("rt_utils", exc_type=ImportError).RTStructBuilder
    # The other program mixes up the two pixel spacings, so they are equal here.
    writer = SeriesWriter(tmp_path / "dicom", orientation=ORIENTATIONS[orientation], spacing=(0.7, 0.7))

    def change(dataset, _number):
        # It needs these elements.
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200304", "101112", "S1"
        dataset.PatientName, dataset.PatientID = "Nobody", "P-1"

    files = writer.write(np.zeros((8, 20, 24), int), change=change)
    volume = dicom_to_nifti(files, tmp_path / "image.nii")
    grid = Grid.of_nifti(volume.path)
    random = np.random.default_rng(5)
    masks = random.random((3, *grid.shape)) < np.reshape((0.1, 0.5, 0.8), (3, 1, 1, 1))
    masks[0, 3:18, 9, :4] = masks[0, 3:18, 4:6, 4:] = True
    for mask in masks:
        structures = builder.create_new(dicom_series_path=str(tmp_path / "dicom"))
        structures.add_roi(mask.transpose(1, 0, 2), name="mask", approximate_contours=approximate)
        structures.save(str(tmp_path / "rt.dcm"))
        np.testing.assert_array_equal(read_rtstruct(tmp_path / "rt.dcm", grid).array > 0, mask)


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


def test_contours_far_from_the_images_that_they_refer_to_are_noted(tmp_path):
    sources = {(f"1.2.5.{k}", 1): k for k in range(SHAPE[2])}
    grid = replace(grid_of(), sources=lambda: sources)
    contours = [box(2, 2, 9, 9, k) for k in (1, 2, 3)]
    path = StructureSetWriter().write(tmp_path / "rt.dcm", [roi_of(grid, *contours)])

    def refer(*places):
        dataset = pydicom.dcmread(path)
        for contour, place in zip(dataset.ROIContourSequence[0].ContourSequence, places, strict=True):
            image = Dataset()
            image.ReferencedSOPInstanceUID = f"1.2.5.{place}"
            contour.ContourImageSequence = [image]
        dataset.save_as(path)
        return read_rtstruct(path, grid)

    assert refer(1, 2, 3).notes == refer(1, 1, 4).notes == refer(90, 91, 92).notes == ()
    label = refer(7, 6, 3)
    assert label.notes == ("roi: 2 contours lie up to 18.0 mm from their images: drawn where they lie",)
    assert np.flatnonzero(label.array.any(axis=(0, 1))).tolist() == [1, 2, 3]
