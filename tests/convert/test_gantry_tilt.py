"""Slices of a tilted gantry: refused, or stacked straight, with labels at the true positions of the slices."""

from __future__ import annotations

import nibabel
import numpy as np
import pydicom
import pytest
from itk_reference import voxels
from rtstruct_writer import Roi, StructureSetWriter
from series_writer import AXIAL, SeriesWriter, random_stack, rotated

from monailabel_xnat.convert import Grid, LabelMap, dicom_to_nifti, read_rtstruct, read_seg, write_seg
from monailabel_xnat.convert.dicom.volume import sources_of
from monailabel_xnat.errors import ImageConversionError, LabelGeometryError

STACK = random_stack((6, 9, 10))
STEP = 5.0
LPS = np.diag([-1.0, -1.0, 1.0])


class Tilted:
    """A series from a gantry tilted by some degrees about the rows."""

    def __init__(self, folder, degrees=15.0, orientation=AXIAL, decimals=6, **changes):
        self.writer = SeriesWriter(folder / "dicom", orientation=orientation, step=STEP, spacing=(0.7, 0.9), **changes)
        self.down = np.array(orientation[3:])
        self.shift = STEP * np.tan(np.radians(degrees))
        self.decimals = decimals
        self.files = self.writer.write(STACK, change=self._move)
        self.folder = folder

    def _move(self, dataset, number):
        dataset.ImagePositionPatient = [f"{value:.{self.decimals}f}" for value in self.place(number)]
        dataset.FrameOfReferenceUID = "1.2.3.4"

    def place(self, number):
        """Return the true position of the first voxel of a slice, LPS."""
        return np.array(self.writer.position(number)) + number * self.shift * self.down

    def convert(self):
        return dicom_to_nifti(self.files, self.folder / "image.nii", gantry_tilt="stack")

    def grid(self):
        volume = self.convert()
        sources = sources_of(volume.sop_instance_uids, volume.frame_numbers, volume.shape[2])
        return Grid(volume.shape[:3], volume.affine, lambda: sources, shear=volume.shear)


@pytest.mark.parametrize("degrees", [3.0, 15.0, -18.5])
@pytest.mark.parametrize("orientation", [AXIAL, rotated(10, -20, 35)], ids=["axial", "oblique"])
def test_tilted_slices_are_stacked_straight_with_a_warning(tmp_path, degrees, orientation):
    tilted = Tilted(tmp_path, degrees, orientation)
    volume = tilted.convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))
    expected = np.eye(4)
    expected[:3, 0], expected[:3, 1] = np.array(orientation[:3]) * 0.9, np.array(orientation[3:]) * 0.7
    expected[:3, 2], expected[:3, 3] = tilted.writer.normal * STEP, tilted.place(0)
    np.testing.assert_allclose(volume.affine, np.diag([-1.0, -1.0, 1.0, 1.0]) @ expected, atol=1e-4)
    np.testing.assert_allclose(volume.shear, LPS @ (tilted.shift * tilted.down), atol=1e-4)
    (warning,) = volume.warnings
    assert warning in volume.notes
    assert f"gantry tilt of {abs(degrees):.1f} degrees" in warning
    assert f"up to {abs(5 * tilted.shift):.1f} mm" in warning
    image = nibabel.load(volume.path)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_tilted_slices_are_refused_unless_asked_for(tmp_path):
    with pytest.raises(ImageConversionError, match=r"gantry tilt: the slices are sheared by 15\.0 degrees"):
        dicom_to_nifti(Tilted(tmp_path).files, tmp_path / "image.nii")


def test_straight_slices_are_the_same_either_way(tmp_path):
    files = SeriesWriter(tmp_path / "dicom").write(STACK)
    refusing = dicom_to_nifti(files, tmp_path / "a.nii")
    stacking = dicom_to_nifti(files, tmp_path / "b.nii", gantry_tilt="stack")
    assert refusing.path.read_bytes() == stacking.path.read_bytes()
    assert stacking.shear is None
    assert stacking.warnings == ()


@pytest.mark.parametrize(
    ("kind", "change"),
    [("uneven", lambda n: [0, n * 1.3, n * 5 + (n == 3)]), ("to and fro", lambda n: [0, 3 * (n % 2), n * 5])],
)
def test_slices_without_an_even_tilt_are_refused_all_the_same(tmp_path, kind, change):
    files = SeriesWriter(tmp_path).write(STACK, change=lambda d, n: setattr(d, "ImagePositionPatient", change(n)))
    with pytest.raises(ImageConversionError):
        dicom_to_nifti(files, tmp_path / "image.nii", gantry_tilt="stack")


@pytest.mark.parametrize("orientation", [AXIAL, rotated(10, -20, 35)], ids=["axial", "oblique"])
@pytest.mark.parametrize("decimals", [1, 6])
def test_a_seg_lies_on_the_true_slices_and_comes_back(tmp_path, orientation, decimals):
    tilted = Tilted(tmp_path, 15.0, orientation, decimals)
    grid = tilted.grid()
    array = np.random.default_rng(0).choice([0, 1, 2], grid.shape).astype(np.uint8)
    target = tmp_path / "seg.dcm"
    label = LabelMap(array, grid.affine)
    write_seg(label, tilted.files, target, description="x", algorithm_type="MANUAL", tilted=True)
    dataset = pydicom.dcmread(target)
    places = {str(d.SOPInstanceUID): d.ImagePositionPatient for d in map(pydicom.dcmread, tilted.files)}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(
            np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), np.array(places[source], float)
        )
    np.testing.assert_array_equal(read_seg(target, grid).array, array)


def test_a_seg_that_lies_as_if_there_were_no_tilt_is_refused(tmp_path):
    tilted = Tilted(tmp_path)
    grid = tilted.grid()
    label = LabelMap(np.ones(grid.shape, np.uint8), grid.affine)
    target = tmp_path / "seg.dcm"
    write_seg(label, tilted.files, target, description="x", algorithm_type="MANUAL", tilted=True)
    dataset = pydicom.dcmread(target)
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = tilted.writer.position(number)
    dataset.save_as(target)
    with pytest.raises(LabelGeometryError):
        read_seg(target, grid)


def test_contours_are_drawn_in_the_true_plane_of_each_slice(tmp_path):
    tilted = Tilted(tmp_path, 15.0)
    grid = tilted.grid()
    contours = []
    for number in range(6):
        corners = np.array([[1.5, 2.5], [6.5, 2.5], [6.5, 6.5], [1.5, 6.5]])
        contours.append(tilted.place(number) + np.c_[corners * (0.9, 0.7), np.zeros(4)])
    path = StructureSetWriter().write(tmp_path / "rt.dcm", [Roi(1, "box", contours)])
    expected = np.zeros(grid.shape, np.uint8)
    expected[2:7, 3:7] = 1
    np.testing.assert_array_equal(read_rtstruct(path, grid).array, expected)


@pytest.mark.parametrize("places", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 1, 5, 0, 2, 4)], ids=str)
@pytest.mark.parametrize("degrees", [15.0, -18.0])
@pytest.mark.parametrize("syntax", ["explicit", "JPEG-LS"])
def test_the_shift_follows_frames_that_are_stored_from_the_top_down(tmp_path, places, degrees, syntax):
    """A label on frames in descending order was shifted against the tilt."""
    writer = SeriesWriter(tmp_path, "MR", step=STEP, syntax=syntax)
    true = [np.add(writer.position(n), (0, n * STEP * np.tan(np.radians(degrees)), 0)) for n in places]

    def change(group, number):
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.6f}" for value in true[number]]

    path = writer.write_enhanced(STACK, change=change)
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = "1.2.3.4"
    dataset.save_as(path)
    volume = dicom_to_nifti([path], tmp_path / "image.nii", gantry_tilt="stack")
    for number, frame in enumerate(volume.frame_numbers):
        place = (volume.affine @ [0, 0, number, 1])[:3] + number * volume.shear
        np.testing.assert_allclose(place, LPS @ true[frame - 1], atol=1e-4)
        np.testing.assert_array_equal(voxels(volume.path)[:, :, number], STACK[frame - 1].T)
    sources = sources_of(volume.sop_instance_uids, volume.frame_numbers, volume.shape[2])
    grid = Grid(volume.shape[:3], volume.affine, lambda: sources, shear=volume.shear)
    label = LabelMap(np.random.default_rng(0).choice([0, 1, 2], grid.shape).astype(np.uint8), grid.affine)
    write_seg(label, [path], tmp_path / "seg.dcm", description="x", algorithm_type="MANUAL", tilted=True)
    np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", grid).array, label.array)
