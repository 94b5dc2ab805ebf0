"""The calls of MONAI Label on every /info/ and every next sample are answered from memory, and correctly."""

from __future__ import annotations

import json
import threading
import time

import pytest
import requests
from monailabel.tasks.activelearning.random import Random

from monailabel_xnat.catalog.listing import fold
from monailabel_xnat.ids import ImageId

SESSIONS, SCANS = 30, 4


@pytest.fixture
def archive(xnat_sandbox):
    xnat_sandbox.archive.create_project("P")
    return xnat_sandbox.archive


@pytest.fixture
def datastore(archive, open_xnat_datastore):
    archive.seed_sessions("P", sessions=SESSIONS, scans=SCANS)
    return open_xnat_datastore(project="P", prefetch=0)


def put_resource(archive, scan, label, count):
    """Write to the archive, as another client would."""
    with archive.store.write() as db:
        row = db.execute(
            "SELECT pk FROM scans WHERE experiment = ? AND id = ?", (scan.experiment, scan.scan)
        ).fetchone()
        db.execute(
            "INSERT INTO resources (kind, parent, label, folder, file_count, file_size) VALUES (?, ?, ?, ?, ?, ?)",
            ("scan", str(row[0]), label, "nowhere", count, count and 100 * count),
        )


def test_nothing_that_is_asked_all_the_time_makes_a_request(xnat_sandbox, datastore):
    images = datastore.list_images()
    xnat_sandbox.requests.clear()
    assert len(datastore.list_images()) == SESSIONS * SCANS
    assert datastore.get_labeled_images() == []
    assert datastore.get_unlabeled_images("final", ["liver"]) == images
    assert datastore.get_labels_by_image_id(images[3]) == {}
    assert datastore.get_label_by_image_id(images[3], "final") == ""
    assert datastore.get_image_info(images[3])["scan"] == images[3].split("/")[3]
    assert datastore.get_image_info("P/x/y/z") == datastore.get_image_info("session_0") == {}
    status = datastore.status()
    assert (status["total"], status["completed"], status["label_tags"]) == (SESSIONS * SCANS, 0, {})
    assert json.loads(json.dumps(datastore.json()))["objects"].keys() == set(images)
    assert Random()({"strategy": "random"}, datastore)["id"] in images
    assert len(xnat_sandbox.requests) == 0


def test_no_schema_is_read_and_one_login_serves_all(xnat_sandbox, datastore):
    for _ in range(3):
        datastore.refresh()
    paths = [served.path for served in xnat_sandbox.requests]
    assert paths.count("/data/services/auth") == 1
    assert not [path for path in paths if "schemas" in path or "search" in path or "version" in path]


def test_labels_of_others_are_counted_after_a_renewal(archive, datastore):
    first, second = (ImageId.parse(image) for image in datastore.list_images()[:2])
    put_resource(archive, first, "MONAILABEL_final", 2)
    put_resource(archive, first, "MONAILABEL_original", 2)
    put_resource(archive, second, "AI", 1)
    put_resource(archive, second, "MONAILABEL_final", 0)
    datastore.refresh()
    assert datastore.status()["label_tags"] == {"final": 1, "original": 2}
    assert datastore.get_labeled_images() == [str(first)]
    assert datastore.get_labeled_images("original") == [str(first), str(second)]
    assert str(first) not in datastore.get_unlabeled_images()
    with archive.store.write() as db:
        db.execute("DELETE FROM resources WHERE label LIKE 'MONAILABEL_%'")
    datastore.refresh()
    assert datastore.status()["label_tags"] == {"original": 1}


def test_a_resource_that_turns_out_to_hold_no_label_is_no_longer_counted(xnat_sandbox, datastore):
    image = datastore.list_images()[0]
    scan = ImageId.parse(image)
    resource = f"/data/experiments/{scan.experiment}/scans/{scan.scan}/resources/MONAILABEL_final"
    with requests.Session() as member:
        member.auth = xnat_sandbox.username, xnat_sandbox.password
        member.put(xnat_sandbox.url + resource)
        for name in ("readme.txt", "notes.txt"):
            member.put(f"{xnat_sandbox.url}{resource}/files/{name}", params={"inbody": "true"}, data=b"no label")
    datastore.refresh()
    assert datastore.status()["completed"] == 1
    assert datastore.get_label_uri(image, "final") == ""
    assert datastore.status()["completed"] == 0
    assert datastore.get_labeled_images() == []


def test_images_that_come_and_go_are_counted(archive, datastore):
    archive.seed_sessions("P", sessions=2, scans=1, resources=("DICOM", "MONAILABEL_final"))
    datastore.refresh()
    assert (datastore.status()["total"], datastore.status()["completed"]) == (SESSIONS * SCANS + 2, 2)
    with archive.store.write() as db:
        db.execute("DELETE FROM scans WHERE pk IN (SELECT parent FROM resources WHERE label = 'MONAILABEL_final')")
    datastore.refresh()
    assert (datastore.status()["total"], datastore.status()["completed"]) == (SESSIONS * SCANS, 0)


def test_a_write_is_seen_at_once_by_other_threads_during_a_slow_renewal(xnat_sandbox, datastore):
    image = datastore.list_images()[0]
    xnat_sandbox.faults.add("/experiments", delay=0.3)
    renewal = threading.Thread(target=datastore.refresh)
    renewal.start()
    while not datastore.status()["connection"].get("heavy"):
        time.sleep(0.005)
    datastore.update_image_info(image, {"dice": 0.5})
    seen = []
    reader = threading.Thread(target=lambda: seen.append(datastore.get_image_info(image)["dice"]))
    reader.start()
    reader.join()
    assert renewal.is_alive()
    renewal.join()
    assert seen == [0.5]
    assert datastore.get_image_info(image)["dice"] == 0.5


def test_lists_belong_to_the_caller(datastore):
    datastore.list_images().clear()
    datastore.get_unlabeled_images().clear()
    datastore.get_image_info(datastore.list_images()[0])["scan"] = "mine"
    assert len(datastore.list_images()) == len(datastore.get_unlabeled_images()) == SESSIONS * SCANS
    assert datastore.get_image_info(datastore.list_images()[0])["scan"] != "mine"


def test_while_xnat_is_away_the_old_lists_are_served_and_status_says_why(xnat_sandbox, archive, open_xnat_datastore):
    archive.seed_sessions("P", sessions=2, scans=1)
    datastore = open_xnat_datastore(project="P", max_age=0.01)
    xnat_sandbox.faults.add("", status=500, times=None)
    deadline = time.monotonic() + 20
    while "xnat" not in datastore.status() and time.monotonic() < deadline:
        time.sleep(0.02)
    status = datastore.status()
    assert "500" in status["xnat"]
    assert status["total"] == len(datastore.list_images()) == 2
    xnat_sandbox.faults.clear()
    while "xnat" in datastore.status() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "xnat" not in datastore.status()


def test_projects_of_which_one_may_see_no_more_than_that_they_exist_are_left_out(xnat_sandbox, open_xnat_datastore):
    archive = xnat_sandbox.archive
    archive.create_project("OPEN", accessibility="public")
    archive.create_project("PROTECTED", accessibility="protected")
    for project in ("OPEN", "PROTECTED"):
        archive.seed_sessions(project, sessions=1, scans=1)
    datastore = open_xnat_datastore(username="none", password=xnat_sandbox.users["none"])
    assert [image.split("/")[0] for image in datastore.list_images()] == ["OPEN"]


def row(scan="1", label="DICOM", **more):
    return {
        "ID": "E1",
        "label": "s1",
        "project": "P",
        "xsiType": "xnat:mrSessionData",
        "xnat:imagesessiondata/subject_id": "S1",
        "xnat:imagescandata/id": scan,
        "xnat:imagescandata/file/label": label,
        **more,
    }


def test_rows_in_any_order_with_missing_columns_and_nulls_are_folded():
    rows = [
        row("1", "SNAPSHOTS"),
        row("2", "DICOM", **{"xnat:imagescandata/quality": None}),
        row("1", "DICOM", **{"xnat:imagescandata/file/file_count": "7", "xnat:imagescandata/file/file_size": ""}),
        row("", ""),
        row("3", ""),
        row("1", "DICOM", **{"xnat:imagescandata/file/file_count": "7", "xnat:imagescandata/file/file_size": ""}),
    ]
    scans = fold(rows, "P")
    assert list(scans) == ["P/S1/E1/1", "P/S1/E1/2", "P/S1/E1/3"]
    assert [tuple(found) for found in scans["P/S1/E1/1"].resources] == [("SNAPSHOTS", None, None), ("DICOM", 7, None)]
    assert scans["P/S1/E1/2"].quality == ""
    assert scans["P/S1/E1/3"].resources == ()
    assert scans["P/S1/E1/1"].modality == "MR"


def test_the_case_of_keys_does_not_matter():
    given = row("1", "DICOM", UID="1.2.3", subject_label="sub", **{"xnat:imagescandata/series_description": "ax"})
    shouted = {key.upper(): value for key, value in given.items()}
    assert fold([shouted], "P") == fold([given], "P")
    assert fold([shouted], "P")["P/S1/E1/1"].study_uid == "1.2.3"


@pytest.mark.parametrize("count", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", "1.5", "many"])
def test_a_count_that_is_no_number_ends_the_listing(count):
    (scan,) = fold([row("1", "DICOM", **{"xnat:imagescandata/file/file_count": count})], "P").values()
    assert [tuple(found) for found in scan.resources] == [("DICOM", None, None)]


def test_a_scan_that_cannot_be_asked_for_does_not_hide_the_others():
    assert list(fold([row(".."), row("2")], "P")) == ["P/S1/E1/2"]


def test_ids_with_odd_characters_are_written_as_ids_are():
    (image,) = fold([row("4/a b#1")], "P")
    assert image == str(ImageId("P", "S1", "E1", "4/a b#1"))
