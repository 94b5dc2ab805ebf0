"""The tables of docs/viewers.md.

Files of each viewer are read as the tables say, and our own files are stored where they say.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from label_archive import voxels
from viewer import only, own_label
from viewer_files import CASES, Person, painted

PROJECT = "T"
TEXT = (Path(__file__).parents[2] / "docs" / "viewers.md").read_text(encoding="utf-8")
FILES = {
    ("XNAT-OHIF 3.6.2", "ROI collection SEG"): "DEMO05_CT1_ohif_seg.dcm",
    ("XNAT-OHIF 3.6.2", "ROI collection AIM"): "DEMO05_CT1.aim.xml",
    ("XNAT Workstation 0.6.1", "scan, resource DICOM"): "DEMO05_CT1_ws_seg.dcm",
    ("XNAT Workstation 0.6.1", "scan, resource secondary"): "PLASTIC_CT1_ws_rt.dcm",
}


def rows(heading):
    section = re.search(rf"## {heading}\n\n(.*?)\n\n", TEXT, re.DOTALL)
    assert section is not None
    lines = section.group(1).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_viewer_has_a_row_and_a_section():
    names = [row[0] for row in rows("From a viewer into the training set")]
    viewers = {re.sub(r" [0-9.]+$", "", name) for name in names}
    assert viewers == {"XNAT-OHIF", "XNAT Workstation", "3D Slicer (MONAI Label)", "MONAI Label's OHIF"}
    for heading in ("XNAT-OHIF viewer", "XNAT Workstation", "3D Slicer", "MONAI Label's OHIF"):
        assert f"## {heading}\n" in TEXT


@pytest.mark.skipif(not CASES.is_dir(), reason="no real data here")
@pytest.mark.parametrize("key", FILES, ids=FILES.values())
def test_what_a_viewer_saves_is_read_as_the_table_says(xnat_sandbox, demo_dicom, open_xnat_datastore, key):
    file = FILES[key]
    case = file[: file.index("_CT1")] + "_CT1"
    dicom = demo_dicom.cases[4].dicom if case == "DEMO05_CT1" else CASES.parents[1] / "dicom" / "ct_philips_axial5mm"
    xnat_sandbox.import_dicom(dicom, PROJECT)
    person = Person(xnat_sandbox, PROJECT)
    content = (CASES / file).read_bytes()
    if key[1].startswith("ROI"):
        person.store_collection("drawn", key[1].split()[-1], content)
    else:
        person.store_scan("3001", "SEG" if key[1].endswith("DICOM") else "RTSTRUCT", content, "drawn")
    (pair,) = open_xnat_datastore(project=PROJECT, roi_write="").datalist()
    is_exact = np.array_equal(voxels(pair["label"]), painted(case, pair["image"], dicom))
    (said,) = [row[3] for row in rows("From a viewer into the training set") if (row[0], row[2]) == key]
    assert ("exact" if is_exact else "not exact") == said


def test_what_is_saved_through_monai_label_lies_where_the_tables_say(viewer, xnat_sandbox, open_datastore, tmp_path):
    said = {row[0]: row[2] for row in rows("From a viewer into the training set")}
    settings = {row[1].strip("`"): row[2:4] for row in rows("From here to a viewer") if row[1]}
    datastore = open_datastore(roi_write="final", label_scan="final")
    label = own_label(viewer, tmp_path)
    datastore.save_label(only(datastore), label, "final", {})
    np.testing.assert_array_equal(voxels(datastore.datalist()[0]["label"]), voxels(label))
    datastore.close()
    person = Person(xnat_sandbox, "P")
    base = f"{person.url}/data/experiments/{person.session()}"

    def listed(path):
        return person.http.get(f"{base}/{path}").json()["ResultSet"]["Result"]

    places = {row["label"] for row in listed(f"scans/{viewer.scan.image_id.scan}/resources?format=json")}
    assert said["3D Slicer (MONAI Label)"] == said["MONAI Label's OHIF"] == "scan resource MONAILABEL_final"
    assert "MONAILABEL_final" in places
    assert settings == {"roi_write": ["yes", "no"], "label_scan": ["no", "yes"]}
    assert len(listed("assessors?format=json")) == 1
    assert [row["type"] for row in listed("scans?format=json") if row["ID"].startswith("30")] == ["SEG"]
