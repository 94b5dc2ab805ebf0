"""Labels as scans, for viewers that read only scans, and copies that an earlier process did not finish."""

from __future__ import annotations

import io
import time

import numpy as np
import pydicom
import pytest
from label_archive import voxels
from viewer import PROJECT, only, own_label
from viewer_files import Person

from monailabel_xnat.convert import read_seg


@pytest.fixture
def person(xnat_sandbox, viewer):
    return Person(xnat_sandbox, PROJECT)


def scans(person):
    """Return the SEG scans of the session, as a viewer lists them: ID, type of data, name."""
    columns = "ID,type,xsiType,series_description,UID,modality"
    url = f"{person.url}/data/experiments/{person.session()}/scans?columns={columns}&format=json"
    rows = person.http.get(url).json()["ResultSet"]["Result"]
    return [row for row in rows if row["xsiType"] == "xnat:segScanData" or row["type"] == "SEG"]


def file_of(person, scan):
    """Return the file of a scan that XNAT Workstation fetches: the first DICOM file that XNAT lists."""
    url = f"{person.url}/data/experiments/{person.session()}/scans/{scan}/files?format=json"
    (row,) = person.http.get(url).json()["ResultSet"]["Result"]
    assert (row["collection"], row["file_format"], row["file_content"]) == ("DICOM", "DICOM", "SEG")
    return person.http.get(person.url + row["URI"]).content


def read(viewer, content):
    path = viewer.folder / "found.dcm"
    path.write_bytes(content)
    return read_seg(path, viewer.grid)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_label_is_a_scan_that_xnat_workstation_lists_and_loads(viewer, person, open_datastore, tmp_path):
    datastore = open_datastore(label_scan="final")
    image = only(datastore)
    label = own_label(viewer, tmp_path, 3)
    datastore.save_label(image, label, "final", {"label_info": [{"name": "liver", "idx": 3}]})
    datastore.save_label(image, label, "original", {"model": "m"})
    datastore.close()
    (scan,) = scans(person)
    assert scan["ID"] == f"30{int(viewer.scan.image_id.scan):02d}"
    assert (scan["type"], scan["modality"], scan["series_description"]) == ("SEG", "SEG", "final admin")
    content = file_of(person, scan["ID"])
    found = pydicom.dcmread(io.BytesIO(content))
    assert found.SeriesInstanceUID == scan["UID"]
    (series,) = found.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == viewer.scan.series_uid
    found = read(viewer, content)
    np.testing.assert_array_equal(found.array, voxels(label))
    assert [segment.name for segment in found.segments] == ["liver"]


def test_a_later_label_replaces_the_scan_without_the_right_to_delete(viewer, xnat_sandbox, open_datastore, tmp_path):
    person = Person(xnat_sandbox, PROJECT)
    login = next(name for name in xnat_sandbox.users if name != xnat_sandbox.username)
    url = f"{person.url}/data/projects/{PROJECT}/users/Members/{login}"
    person.http.put(url).raise_for_status()
    datastore = open_datastore(label_scan="final", username=login, password=xnat_sandbox.users[login])
    for value in (1, 2):
        label = own_label(viewer, tmp_path, value)
        datastore.save_label(only(datastore), label, "final", {})
        wait_for(lambda: not list(tmp_path.rglob("roi/waiting/*.json")))
    (scan,) = scans(person)
    assert (read(viewer, file_of(person, scan["ID"])).array == voxels(label)).all()


def test_our_scan_does_not_count_as_drawn_unless_somebody_overwrites_it(viewer, person, open_datastore, tmp_path):
    datastore = open_datastore(label_scan="original")
    image = only(datastore)
    datastore.save_label(image, own_label(viewer, tmp_path), "original", {"model": "m"})
    datastore.close()
    (scan,) = scans(person)
    datastore = open_datastore(label_scan="original", max_age=1e6)
    assert datastore.list_images() == [image]
    assert set(datastore.get_labels_by_image_id(image)) == {"original"}
    assert "roi_unread" not in datastore.status()
    array, content = viewer.seg(liver=(4, 8))
    path = f"/data/experiments/{person.session()}/scans/{scan['ID']}"
    person.overwrite_scan(path, "SEG", content)
    assert len(datastore.datalist()) == 1
    assert (voxels(datastore.get_label_uri(image, "final")) == array).all()
    datastore.save_label(image, own_label(viewer, tmp_path, 2), "original", {"model": "m"})
    datastore.close()
    assert len(scans(person)) == 2
    assert (read(viewer, file_of(person, scan["ID"])).array == array).all()


def test_a_removed_label_leaves_no_scan(viewer, person, open_datastore, tmp_path):
    datastore = open_datastore(label_scan="final")
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    wait_for(lambda: scans(person) and not list(tmp_path.rglob("roi/waiting/*.json")))
    datastore.remove_label(only(datastore), "final")
    assert scans(person) == []
    assert len(datastore.list_images()) == 1


@pytest.mark.parametrize("settings", [{"roi_write": "final"}, {"label_scan": "final"}], ids=["collection", "scan"])
def test_a_copy_that_was_not_made_is_made_at_the_next_start(
    viewer, person, xnat_sandbox, open_datastore, tmp_path, settings
):
    path, method = ("/xapi/roi/", "PUT") if "roi_write" in settings else ("/resources/DICOM/files", "PUT")
    xnat_sandbox.faults.add(path, method=method, status=500, times=None)
    datastore = open_datastore(**settings)
    image = only(datastore)
    label = own_label(viewer, tmp_path)
    datastore.save_label(image, label, "final", {})
    datastore.close()
    xnat_sandbox.faults.clear()
    again = open_datastore(**settings)
    wait_for(lambda: not list(tmp_path.rglob("roi/waiting/*.json")))
    if "roi_write" in settings:
        rows = viewer.session.rows("/data/experiments", {"xsiType": "icr:roiCollectionData", "project": PROJECT})
        (row,) = rows
        assert row["label"].startswith("final_")
    else:
        (scan,) = scans(person)
        assert (read(viewer, file_of(person, scan["ID"])).array == voxels(label)).all()
    again.close()
    before = len(xnat_sandbox.requests)
    open_datastore(**settings).close()
    assert not [
        served
        for served in list(xnat_sandbox.requests)[before:]
        if served.method == "PUT" and "auth" not in served.path
    ]


def test_a_copy_of_a_label_that_was_replaced_since_is_not_made(viewer, person, xnat_sandbox, open_datastore, tmp_path):
    xnat_sandbox.faults.add("/resources/DICOM/files", method="PUT", status=500, times=None)
    datastore = open_datastore(label_scan="final")
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    datastore.close()
    xnat_sandbox.faults.clear()
    open_datastore(cache_path=tmp_path / "another machine").save_label(
        str(viewer.scan.image_id), own_label(viewer, tmp_path, 2), "final", {}
    )
    open_datastore(label_scan="final")
    wait_for(lambda: not list(tmp_path.rglob("roi/waiting/*.json")))
    assert not any(file_exists(person, scan["ID"]) for scan in scans(person))
    datastore = open_datastore()
    assert all("holds no file" in reason for reason in datastore.status().get("roi_unread", {}).values())
    assert len(datastore.datalist()) == 1


def file_exists(person, scan):
    url = f"{person.url}/data/experiments/{person.session()}/scans/{scan}/files?format=json"
    return bool(person.http.get(url).json()["ResultSet"]["Result"])
