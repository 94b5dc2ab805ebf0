"""A DICOM SEG whose frames lie elsewhere than the images that they refer to is refused with the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from series_writer import SeriesWriter
from test_seg import ORIENTATIONS, Case, edited, reversed_frames

from monailabel_xnat.convert import Grid, LabelMap, dicom_to_nifti, read_seg, write_seg
from monailabel_xnat.convert.dicom.volume import decode_sources, encode_sources, sources_of
from monailabel_xnat.errors import LabelFileError, LabelGeometryError


def knowing(grid, volume):
    """Return the grid of a volume that knows its images."""
    sources = sources_of(volume.sop_instance_uids, volume.frame_numbers, volume.shape[2])
    assert decode_sources(encode_sources(sources)) == sources
    return replace(grid, sources=lambda: sources)


class KnowingCase(Case):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.grid = knowing(self.grid, self.volume)


@pytest.fixture(params=["axial", "oblique"])
def case(request, tmp_path):
    return KnowingCase(tmp_path, orientation=ORIENTATIONS[request.param])


def drawn(case):
    """One organ, in slices 0 to 3 of 7."""
    array = np.zeros(case.grid.shape, np.uint8)
    array[2:6, 3:7, :4] = 1
    return array


def positions(dataset):
    return [
        np.array([float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient])
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]


def set_position(frame, position):
    frame.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.10g}" for value in position]


def moved(case, place):
    """Move frame n to slice ``place(n)``."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.grid.affine

    def change(dataset):
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            set_position(frame, lps[:3] @ (0, 0, place(number), 1))

    return change


@pytest.mark.parametrize(
    ("place", "count", "farthest", "first"),
    [
        (lambda n: 6 - n, 3, 15.0, "frame 1 marks slice 6, but refers to the image of slice 0, 15.0 mm away"),
        (lambda n: n + 1, 4, 2.5, "frame 1 marks slice 1, but refers to the image of slice 0, 2.5 mm away"),
        (
            lambda n: 5 if n == 2 else n,
            1,
            7.5,
            "frame 3 marks slice 5, but refers to the image of slice 2, 7.5 mm away",
        ),
        (lambda n: 2 * n, 3, 7.5, "frame 2 marks slice 2, but refers to the image of slice 1, 2.5 mm away"),
    ],
    ids=["mirrored", "shifted", "one wrong", "doubled spacing"],
)
def test_positions_that_contradict_the_images_are_refused_with_the_numbers(case, place, count, farthest, first):
    path = edited(case, moved(case, place), drawn(case))
    with pytest.raises(LabelGeometryError) as caught:
        read_seg(path, case.grid)
    assert f"{count} of 4 frames" in str(caught.value)
    assert f"by up to {farthest:.1f} mm" in str(caught.value)
    assert first in str(caught.value)
    assert "neither" in caught.value.hint


def test_frames_beside_the_images_that_they_refer_to_are_refused_with_the_numbers(case):
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.grid.affine

    def shift(dataset):
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            set_position(frame, lps[:3] @ (1, -2, number, 1))

    with pytest.raises(LabelGeometryError, match=r"4 of 4 frames.*frame 1 lies 1 columns and -2 rows beside its image"):
        read_seg(edited(case, shift, drawn(case)), case.grid)


def test_an_orientation_that_contradicts_the_images_is_refused(case):
    def turn(dataset):
        # The frames are turned from the plane of the slices into a plane across them.
        shared = dataset.SharedFunctionalGroupsSequence[0]
        cosines = np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
        normal = np.cross(cosines[:3], cosines[3:])
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{v:.10g}" for v in (*cosines[:3], *normal)]
        shared.PixelMeasuresSequence[0].PixelSpacing = [2.5, 0.9]
        dataset.Rows = 7
        dataset.PixelData = np.packbits(np.ones(4 * 7 * dataset.Columns, np.uint8), bitorder="little").tobytes()

    with pytest.raises(LabelGeometryError, match=r"4 of 4 frames.*by up to 15\.0 mm"):
        read_seg(edited(case, turn, drawn(case)), case.grid)


def test_a_frame_across_the_slices_may_refer_to_all_of_them(case):
    def turn(dataset):
        shared = dataset.SharedFunctionalGroupsSequence[0]
        cosines = np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
        normal = np.cross(cosines[:3], cosines[3:])
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{v:.10g}" for v in (*cosines[:3], *normal)]
        shared.PixelMeasuresSequence[0].PixelSpacing = [2.5, 0.9]
        (frame,) = dataset.PerFrameFunctionalGroupsSequence
        refer_to(frame, case.volume.sop_instance_uids)
        dataset.Rows = 7
        dataset.PixelData = np.packbits(np.ones(7 * dataset.Columns, np.uint8), bitorder="little").tobytes()

    array = np.zeros(case.grid.shape, np.uint8)
    array[0, 0, 0] = 1
    label = read_seg(edited(case, turn, array), case.grid)
    expected = np.zeros(case.grid.shape, np.uint8)
    expected[:, 0, :] = 1
    np.testing.assert_array_equal(label.array, expected)


def test_a_spacing_that_contradicts_the_images_is_refused(case):
    def widen(dataset):
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [1.4, 1.8]

    with pytest.raises(LabelGeometryError, match="does not lie on the grid"):
        read_seg(edited(case, widen, drawn(case)), case.grid)


def refer_to(frame, uids):
    items = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPInstanceUID = uid
        items.append(item)
    frame.DerivationImageSequence[0].SourceImageSequence = Items(items)


def test_frames_that_refer_to_several_images_need_one_that_fits(case):
    array = drawn(case)

    def add_all(dataset):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            refer_to(frame, ["1.2.3", *case.volume.sop_instance_uids])

    np.testing.assert_array_equal(read_seg(edited(case, add_all, array), case.grid).array, array)

    def add_wrong(dataset):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            refer_to(frame, case.volume.sop_instance_uids[5:])

    with pytest.raises(LabelGeometryError, match=r"4 of 4 frames.*by up to 12\.5 mm"):
        read_seg(edited(case, add_wrong, array), case.grid)


def without_references(dataset):
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence


def of_another_series(dataset):
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        refer_to(frame, ["1.2.3"])


def without_positions(dataset):
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def without_geometry(dataset):
    without_positions(dataset)
    del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence


@pytest.mark.parametrize("change", [without_references, of_another_series, without_positions, without_geometry])
def test_frames_with_positions_or_references_alone_are_read(case, change):
    array = case.random((0, 1, 2))
    label = read_seg(edited(case, change, array), case.grid)
    np.testing.assert_array_equal(label.array, array)
    assert label.notes == ()


def test_frames_without_positions_that_could_lie_anywhere_are_refused(case):
    def change(dataset):
        without_positions(dataset)
        refer_to(dataset.PerFrameFunctionalGroupsSequence[1], case.volume.sop_instance_uids[:2])

    with pytest.raises(LabelFileError, match="1 of 4 frames of the DICOM SEG do not say where"):
        read_seg(edited(case, change, drawn(case)), case.grid)


@pytest.mark.parametrize("values", [{"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, {"PixelSpacing": [9, 9]}])
def test_frames_without_positions_that_are_unlike_their_images_are_refused(tmp_path, values):
    case = KnowingCase(tmp_path)

    def change(dataset):
        without_positions(dataset)
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for keyword, value in values.items():
            macro = shared.PixelMeasuresSequence if keyword == "PixelSpacing" else shared.PlaneOrientationSequence
            setattr(macro[0], keyword, value)

    with pytest.raises(LabelGeometryError, match="frame 1 of the DICOM SEG has no position, and is not like the image"):
        read_seg(edited(case, change, drawn(case)), case.grid)


def test_a_segmentation_that_runs_the_other_way_is_read_as_it_says_and_noted(case):
    array = case.random((0, 1, 2))
    label = read_seg(edited(case, reversed_frames, array), case.grid)
    np.testing.assert_array_equal(label.array, array)
    assert label.notes == ("rows and columns of 14 frames run otherwise than those of their images: read as they say",)


@pytest.mark.parametrize("places", [range(6), [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]])
def test_frames_of_one_image_file_are_told_apart_by_their_numbers(tmp_path, places):
    writer = SeriesWriter(tmp_path / "dicom", modality="MR", orientation=ORIENTATIONS["oblique"])
    path = writer.write_enhanced(np.zeros((6, 8, 9), int), places=places)
    volume = dicom_to_nifti(path, tmp_path / "image.nii")
    grid = knowing(Grid.of_nifti(volume.path), volume)
    array = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    target = tmp_path / "seg.dcm"
    write_seg(LabelMap(array, grid.affine), [path], target, description="x", algorithm_type="MANUAL")
    np.testing.assert_array_equal(read_seg(target, grid).array, array)
    dataset = pydicom.dcmread(target)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        image.ReferencedFrameNumber = 7 - image.ReferencedFrameNumber
    dataset.save_as(target)
    with pytest.raises(LabelGeometryError, match="of 12 frames"):
        read_seg(target, grid)


def test_voxels_of_a_segment_that_is_not_described_are_refused_and_counted(case):
    def forget(dataset):
        dataset.SegmentSequence = dataset.SegmentSequence[:1]

    array = case.random((0, 1, 2))
    count = np.count_nonzero(array == 2)
    with pytest.raises(LabelFileError, match=rf"segments that it does not describe: 2 \({count} voxels\)"):
        read_seg(edited(case, forget, array), case.grid)
