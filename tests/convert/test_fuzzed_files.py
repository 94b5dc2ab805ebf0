"""Damaged files: each is read, or refused with an error of this library, and nothing else, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aim_writer import Markup, write_aim
from rtstruct_writer import Roi, StructureSetWriter
from series_writer import SeriesWriter, random_stack

from monailabel_xnat.convert import LabelMap, Segment, dicom_to_nifti, write_label, write_seg

DRIVER = Path(__file__).with_name("fuzz_driver.py")
COUNT = 150


@pytest.fixture
def whole(tmp_path):
    """A folder with one undamaged file of each kind, and the grid of the image."""
    images = tmp_path / "images"
    images.mkdir()
    SeriesWriter(images).write(random_stack((3, 8, 8)))
    files = sorted(images.iterdir())
    volume = dicom_to_nifti(files, tmp_path / "image.nii")
    (tmp_path / "grid.json").write_text(json.dumps({"shape": volume.shape, "affine": volume.affine.tolist()}))
    array = np.zeros(volume.shape, np.uint8)
    array[2:5, 2:6], array[5:7, 2:6] = 1, 2
    label = LabelMap(array, volume.affine, (Segment(1, "liver"), Segment(2, "spleen")))
    (tmp_path / "whole.img.dcm").write_bytes(files[0].read_bytes())
    write_seg(label, files, tmp_path / "whole.seg.dcm", description="seg", algorithm_type="MANUAL")
    write_label(label, tmp_path / "whole.nii")
    write_label(label, tmp_path / "whole.nii.gz")
    corners = np.array([[2, 2, 1], [5, 2, 1], [5, 5, 1], [2, 5, 1.0]])
    patient = (corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * (-1, -1, 1)
    StructureSetWriter().write(tmp_path / "whole.rt.dcm", [Roi(1, "liver", [patient])])
    write_aim(tmp_path / "whole.xml", {"liver": [Markup("1.2.3", corners[:, :2])]})
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".img.dcm", ".seg.dcm", ".rt.dcm", ".xml"])
def test_damaged_files_are_read_or_refused_and_nothing_else(whole, kind):
    command = [sys.executable, str(DRIVER), kind, "7", str(COUNT), str(whole)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout[:3000] + run.stderr[-2000:]
