"""Files that real viewers saved are read voxel by voxel as they were painted."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monailabel_xnat.convert import Grid, dicom_to_nifti, read_rtstruct, read_seg
from monailabel_xnat.convert.dicom.volume import sources_of

SHARED = Path(__file__).parents[2].parent / "shared"
CASES = SHARED / "cases" / "viewers"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no real data here")


@pytest.fixture(scope="module")
def plastic(tmp_path_factory):
    """The image of the files with the name PLASTIC_CT1, and the mask that was painted on it."""
    volume = dicom_to_nifti(SHARED / "dicom" / "ct_philips_axial5mm", tmp_path_factory.mktemp("image") / "image.nii")
    sources = sources_of(volume.sop_instance_uids, volume.frame_numbers, volume.shape[2])
    grid = replace(Grid.of_nifti(volume.path), sources=lambda: sources)
    truth = json.loads((CASES / "PLASTIC_CT1_truth.json").read_text())
    painted = np.frombuffer(gzip.decompress((CASES / "PLASTIC_CT1_truth.raw.gz").read_bytes()), np.uint8)
    painted = painted.reshape(truth["n"], truth["rows"], truth["columns"])
    expected = np.zeros(grid.shape, np.uint8)
    for picture, uid in zip(painted, truth["sops"], strict=True):
        expected[:, :, sources[uid, 1]] = picture.T
    return grid, expected


@pytest.mark.parametrize(
    ("name", "read"), [("PLASTIC_CT1_ws_seg.dcm", read_seg), ("PLASTIC_CT1_ws_rt.dcm", read_rtstruct)]
)
def test_drawings_of_xnat_workstation_are_what_was_painted(plastic, name, read):
    grid, expected = plastic
    label = read(CASES / name, grid)
    assert not any("their images" in note for note in label.notes)
    np.testing.assert_array_equal(label.array, expected)
    assert [(segment.value, segment.name) for segment in label.segments] == [(1, "liver"), (2, "spleen")]
