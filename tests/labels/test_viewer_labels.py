"""Files that real viewers saved, stored as they store them, come out of a datastore as they were painted."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from label_archive import voxels
from viewer import only
from viewer_files import CASES, PLASTIC, Person, painted

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no real data here")

PROJECT = "V"
NAMES = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]


@pytest.fixture
def images(xnat_sandbox, demo_dicom):
    """Import the image of a case into XNAT, and return its DICOM files."""

    def images(case):
        folder = PLASTIC if case.startswith("PLASTIC") else demo_dicom.cases[4].dicom
        xnat_sandbox.import_dicom(folder, PROJECT)
        return folder

    return images


@pytest.fixture
def person(xnat_sandbox):
    return Person(xnat_sandbox, PROJECT)


@pytest.fixture
def open_datastore(open_xnat_datastore):
    return lambda **settings: open_xnat_datastore(**{"project": PROJECT, "roi_write": "", **settings})


COLLECTIONS = [("DEMO05_CT1_ohif_seg.dcm", "SEG"), ("DEMO05_CT1.aim.xml", "AIM")]


@pytest.mark.parametrize(("file", "kind"), COLLECTIONS)
def test_what_the_xnat_ohif_viewer_saves_is_trained_on(images, person, open_datastore, file, kind):
    dicom = images(file)
    person.store_collection(f"{kind}_20261127_101500_000_S2", kind, (CASES / file).read_bytes())
    datastore = open_datastore()
    image = only(datastore)
    expected = painted("DEMO05_CT1", datastore.get_image_uri(image), dicom)
    (pair,) = datastore.datalist()
    np.testing.assert_array_equal(voxels(pair["label"]), expected)
    np.testing.assert_allclose(nibabel.load(pair["label"]).affine, nibabel.load(pair["image"]).affine, atol=1e-4)
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), expected)
    info = datastore.get_label_info(image, "final")
    assert info["label_info"] == NAMES
    assert (info["roi_collection"]["type"], info["roi_collection"]["user"]) == (kind, "admin")
    assert "roi_kinds_unread" not in datastore.status()


SCANS = [
    ("DEMO05_CT1", "DEMO05_CT1_ws_seg.dcm", "SEG", "3002"),
    ("PLASTIC_CT1", "PLASTIC_CT1_ws_seg.dcm", "SEG", "3001"),
    ("PLASTIC_CT1", "PLASTIC_CT1_ws_rt.dcm", "RTSTRUCT", "4001"),
]


@pytest.mark.parametrize(("case", "file", "kind", "scan"), SCANS)
def test_what_xnat_workstation_saves_is_trained_on(images, person, open_datastore, case, file, kind, scan):
    dicom = images(case)
    person.store_scan(scan, kind, (CASES / file).read_bytes(), "Liver by hand")
    datastore = open_datastore()
    image = only(datastore)
    expected = painted(case, datastore.get_image_uri(image), dicom)
    assert datastore.get_labels_by_image_id(image) == {"final": image}
    (pair,) = datastore.datalist()
    np.testing.assert_array_equal(voxels(pair["label"]), expected)
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), expected)
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(f"{image}#scan:{scan}", "any")), expected)
    info = datastore.get_label_info(image, "final")
    assert info["label_info"] == NAMES
    facts = info["roi_collection"]
    name = "Liver by hand" if kind == "SEG" else "Contours by hand"
    assert (facts["type"], facts["user"], facts["scan"], facts["name"]) == (kind, "admin", scan, name)
    assert datastore.status()["completed"] == 1
    assert "roi_unread" not in datastore.status()
