"""DICOM SEG and dcmjs, the library of web viewers. This needs node, and dcmjs where node finds it (NODE_PATH)."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
from test_seg import ORIENTATIONS, Case

from monailabel_xnat.convert import Segment, read_seg

STORE_AGAIN = """
const fs = require('fs'), dcmjs = require('dcmjs');
const [source, target] = process.argv.slice(1);
const data = fs.readFileSync(source);
const file = dcmjs.data.DicomMessage.readFile(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
const seg = dcmjs.data.DicomMetaDictionary.naturalizeDataset(file.dict);
console.log(JSON.stringify([].concat(seg.SegmentSequence).map(segment => segment.SegmentLabel)));
fs.writeFileSync(target, Buffer.from(file.write()));
"""


def node(*arguments):
    return subprocess.run(["node", "-e", *arguments], capture_output=True, text=True, timeout=120)


pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or node("require('dcmjs')").returncode != 0, reason="no node, or no dcmjs there"
)


@pytest.mark.parametrize(
    ("names", "shown_right"), [(("Milz größe", "Leber"), True), (("脾臓", "liver"), False)], ids=["latin", "japanese"]
)
def test_a_seg_of_ours_comes_back_from_dcmjs(tmp_path, names, shown_right):
    case = Case(tmp_path, orientation=ORIENTATIONS["oblique"])
    array = case.random((0, 1, 2))
    case.write(array, [Segment(value, name) for value, name in enumerate(names, 1)])
    run = node(STORE_AGAIN, str(case.path), str(tmp_path / "again.dcm"))
    assert run.returncode == 0, run.stderr
    assert (json.loads(run.stdout.splitlines()[-1]) == list(names)) == shown_right
    label = read_seg(tmp_path / "again.dcm", case.grid)
    np.testing.assert_array_equal(label.array, array)
    assert tuple(segment.name for segment in label.segments) == names
