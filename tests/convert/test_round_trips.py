"""A mask is written in each format and read again voxel by voxel. A table in docs/viewers.md is compared with this."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from aim_writer import Markup, write_aim
from pydicom.uid import RLELossless
from series_writer import AXIAL, CORONAL, SAGITTAL, SeriesWriter, rotated

from monailabel_xnat.convert import (
    Grid,
    LabelMap,
    Segment,
    dicom_to_nifti,
    read_aim,
    read_label,
    read_rtstruct,
    read_seg,
    to_grid,
    write_label,
    write_seg,
)
from monailabel_xnat.convert.dicom.volume import sources_of

TEXT = (Path(__file__).parents[2] / "docs" / "viewers.md").read_text(encoding="utf-8")
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": rotated(12, -25, 33)}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Case:
    """A series, the volume that it makes, and a mask on it."""

    def __init__(self, folder, orientation):
        self.folder = folder
        writer = SeriesWriter(folder / "dicom", orientation=ORIENTATIONS[orientation], spacing=(0.7, 0.7))
        writer.folder.mkdir()
        self.files = writer.write(np.zeros((5, 13, 17), int), change=self.named)
        self.volume = dicom_to_nifti(self.files, folder / "image.nii")
        uids, frames, slices = self.volume.sop_instance_uids, self.volume.frame_numbers, self.volume.shape[2]
        self.grid = Grid(self.volume.shape, self.volume.affine, lambda: sources_of(uids, frames, slices))
        self.mask = np.random.default_rng(3).random(self.grid.shape) < 0.4
        self.label = LabelMap(self.mask.astype(np.uint8), self.grid.affine, (Segment(1, "liver"),))

    @staticmethod
    def named(dataset, _number):
        # rt-utils needs these elements.
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200304", "101112", "S1"
        dataset.PatientName, dataset.PatientID = "Nobody", "P-1"

    def seg(self):
        path = self.folder / "seg.dcm"
        write_seg(self.label, self.files, path, description="seg", algorithm_type="MANUAL")
        return path


def ours(case, suffix):
    path = case.folder / f"label{suffix}"
    write_label(case.label, path)
    return path


def from_label_file(case, path):
    return to_grid(read_label(path, case.grid), case.grid).array


def by_nibabel(case, kind, suffix):
    path = case.folder / f"label{suffix}"
    nibabel.save(kind(case.label.array, case.grid.affine), path)
    return path


def by_simpleitk(case, suffix):
    image = SimpleITK.GetImageFromArray(case.label.array.T)
    affine = LPS @ case.grid.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(case.folder / f"label{suffix}"), True)
    return case.folder / f"label{suffix}"


def run_length_encoded(case):
    dataset = pydicom.dcmread(case.seg())
    dataset.SegmentationType, dataset.MaximumFractionalValue = "FRACTIONAL", 1
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns).astype(np.uint8)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.compress(RLELossless, frames)
    dataset.save_as(case.folder / "rle.dcm")
    return case.folder / "rle.dcm"


def label_map_object(case):
    dataset = pydicom.dcmread(case.seg())
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns).astype(np.uint8)
    dataset.SegmentationType = "LABELMAP"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    content = frames.tobytes()
    dataset.PixelData = content + bytes(len(content) % 2)
    dataset.save_as(case.folder / "map.dcm")
    return case.folder / "map.dcm"


def structure_set(case):
    builder = pytest.importorskip("rt_utils", exc_type=ImportError).RTStructBuilder
    structures = builder.create_new(dicom_series_path=str(case.folder / "dicom"))
    structures.add_roi(case.mask.transpose(1, 0, 2), name="liver", approximate_contours=False)
    structures.save(str(case.folder / "rt.dcm"))
    return case.folder / "rt.dcm"


def aim_document(case):
    """Return contours along the edges of each run of voxels."""
    markups = []
    for i, j, k in np.argwhere(case.mask):
        corners = [(i - 0.5, j - 0.5), (i + 0.5, j - 0.5), (i + 0.5, j + 0.5), (i - 0.5, j + 0.5)]
        markups.append(Markup(case.volume.sop_instance_uids[k], corners))
    return write_aim(case.folder / "aim.xml", {"liver": markups})


def seen_by_nibabel(case, path):
    image = nibabel.load(path)
    assert np.allclose(image.affine, case.grid.affine, atol=1e-4)
    return np.asarray(image.dataobj)


def seen_by_simpleitk(case, path):
    image = SimpleITK.ReadImage(str(path))
    assert np.allclose(LPS[:3, :3] @ image.GetOrigin(), case.grid.affine[:3, 3], atol=1e-3)
    return SimpleITK.GetArrayFromImage(image).T


def seen_by_highdicom(case, path):
    highdicom = pytest.importorskip("highdicom", exc_type=ImportError)
    uids = list(case.volume.sop_instance_uids)
    stack = highdicom.seg.segread(path).get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    return stack[..., 0].transpose(2, 1, 0)


HERE = {"write_label": from_label_file, "SEG": lambda case, path: read_seg(path, case.grid).array}
HERE["RTSTRUCT"] = lambda case, path: read_rtstruct(path, case.grid).array
HERE["AIM"] = lambda case, path: read_aim(path, case.grid).array
# By name in the table, writer and reader: how the file is written, and how it is read.
WAYS = {
    ("NIfTI-1", "here", "here"): (lambda case: ours(case, ".nii.gz"), HERE["write_label"]),
    ("NIfTI-1", "here", "nibabel"): (lambda case: ours(case, ".nii.gz"), seen_by_nibabel),
    ("NIfTI-1", "here", "SimpleITK"): (lambda case: ours(case, ".nii"), seen_by_simpleitk),
    ("NIfTI-1", "nibabel", "here"): (
        lambda case: by_nibabel(case, nibabel.Nifti1Image, ".nii.gz"),
        HERE["write_label"],
    ),
    ("NIfTI-2", "nibabel", "here"): (lambda case: by_nibabel(case, nibabel.Nifti2Image, ".nii"), HERE["write_label"]),
    ("NRRD", "SimpleITK", "here"): (lambda case: by_simpleitk(case, ".nrrd"), HERE["write_label"]),
    ("MetaImage", "SimpleITK", "here"): (lambda case: by_simpleitk(case, ".mha"), HERE["write_label"]),
    ("DICOM SEG", "here", "here"): (Case.seg, HERE["SEG"]),
    ("DICOM SEG", "here", "highdicom"): (Case.seg, seen_by_highdicom),
    ("DICOM SEG, run lengths", "pydicom", "here"): (run_length_encoded, HERE["SEG"]),
    ("DICOM SEG, label map", "pydicom", "here"): (label_map_object, HERE["SEG"]),
    ("RTSTRUCT", "rt-utils", "here"): (structure_set, HERE["RTSTRUCT"]),
    ("AIM 4", "our tests", "here"): (aim_document, HERE["AIM"]),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_mask_comes_back_as_the_table_says(tmp_path, way, orientation):
    case = Case(tmp_path, orientation)
    write, read = WAYS[way]
    is_exact = np.array_equal(read(case, write(case)) > 0, case.mask)
    assert rows()[way] == ("exact" if is_exact else "not exact")


def test_each_way_has_a_row():
    assert rows().keys() == WAYS.keys()


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_a_mask_whose_axes_run_in_any_order_and_direction_comes_back(tmp_path, axes, flips):
    grid = Grid((4, 5, 6), np.array([[-2, 0, 0, 20], [0, -2.5, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1.0]]))
    mask = np.random.default_rng(4).random(grid.shape) < 0.5
    image = nibabel.Nifti1Image(mask.astype(np.uint8), grid.affine)
    turned = image.as_reoriented(np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)]))
    nibabel.save(turned, tmp_path / "label.nii.gz")
    assert np.array_equal(to_grid(read_label(tmp_path / "label.nii.gz", grid), grid).array > 0, mask)


def rows():
    section = re.search(r"## Files that come back\n\n.*?\n\n(.*?)\n\n", TEXT, re.DOTALL)
    assert section is not None
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.group(1).splitlines()[2:]]
    return {(name, writer, reader): said for name, writer, reader, said in cells}
