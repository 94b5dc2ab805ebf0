"""An older label never replaces a later drawing that cannot be read."""

from __future__ import annotations

import json
import logging
import time

import pytest
from label_archive import voxels
from meddler import Answer, Meddler
from viewer import PROJECT, only, own_label

from monailabel_xnat.catalog import drawn_collections
from monailabel_xnat.errors import UnreadDrawingError, XNATDatastoreError


@pytest.fixture
def meddler(xnat_sandbox):
    meddler = Meddler(xnat_sandbox.url)
    yield meddler
    meddler.close()


@pytest.fixture
def collections(viewer):
    """Return the ids of the ROI collections by their labels."""

    def collections():
        query = {"xsiType": "icr:roiCollectionData", "project": PROJECT}
        return {row["label"]: row["ID"] for row in viewer.session.rows("/data/experiments", query)}

    return collections


@pytest.fixture
def two(viewer, collections):
    """Save two drawings, one after the other. Return the arrays, and the path of the newer one's item."""
    older = viewer.save("SEG_1", liver=(3, 9))
    time.sleep(0.01)
    newer = viewer.save("SEG_2", liver=(5, 7))
    return older, newer, f"/data/experiments/{collections()['SEG_2']}$"


def with_status(status):
    return lambda answer: answer._replace(status=status, body=b"")


def page(answer: Answer) -> Answer:
    return answer._replace(body=b"<!DOCTYPE html><html><body>Log in</body></html>", content_type="text/html")


def page_as_json(answer: Answer) -> Answer:
    return page(answer)._replace(content_type="application/json")


def with_body(text):
    return lambda answer: answer._replace(body=text.encode())


def short(answer: Answer) -> Answer:
    return answer._replace(body=answer.body[:-20])


def another(answer: Answer) -> Answer:
    item = json.loads(answer.body)
    item["items"][0]["data_fields"]["ID"] = "RoiCollection_another"
    return answer._replace(body=json.dumps(item).encode())


def no_series(answer: Answer) -> Answer:
    item = json.loads(answer.body)
    item["items"][0]["children"] = []
    return answer._replace(body=json.dumps(item).encode())


def series_of_wrong_type(answer: Answer) -> Answer:
    item = json.loads(answer.body)
    for child in item["items"][0]["children"]:
        child["items"] = [{"data_fields": {"seriesUID": 5}}]
    return answer._replace(body=json.dumps(item).encode())


ITEMS = {
    "503": with_status(503),
    "500": with_status(500),
    "403": with_status(403),
    "404": with_status(404),
    "a page": page,
    "a page as JSON": page_as_json,
    "nothing": with_body(""),
    "an object": with_body("{}"),
    "no items": with_body('{"items": []}'),
    "a list": with_body("[1]"),
    "short": short,
    "another collection": another,
    "no series": no_series,
    "a series of wrong type": series_of_wrong_type,
}


def assert_left_out(datastore, caplog):
    image = only(datastore)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert datastore.datalist() == []
    status = datastore.status()
    assert "'SEG_2'" in status["left_out"][image]
    assert [name.rpartition("/")[2] for name in status["roi_unread"]] == ["SEG_2"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("1 of 1 labelled images are left out" in line for line in warnings)
    assert not any(image in line or "SEG_2" in line for line in warnings)
    assert image in caplog.text
    with pytest.raises(UnreadDrawingError, match="SEG_2"):
        datastore.get_label_uri(image, "final")
    with pytest.raises(UnreadDrawingError, match="SEG_2"):
        datastore.update_label_info(image, "final", {"score": 1})


@pytest.mark.parametrize("how", ITEMS)
def test_an_older_drawing_never_stands_in_for_the_newest(viewer, two, meddler, open_datastore, tmp_path, caplog, how):
    older, newer, item = two
    meddler.change(item, ITEMS[how])
    with caplog.at_level(logging.INFO):
        datastore = open_datastore(server=meddler.url)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("1 ROI collections cannot be read" in line for line in warnings)
    assert_left_out(datastore, caplog)
    image = only(datastore)
    assert datastore.get_labeled_images() == [image]
    assert (voxels(datastore.get_label_uri(f"{image}#SEG_1", "final")) == older).all()
    again = open_datastore(server=meddler.url)
    assert again.datalist() == []
    meddler.stop()
    if how == "no series":  # it was complete, and does not change until it is saved again
        viewer.save("SEG_2", liver=(5, 7), overwrite=True)
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(image, "final")) == newer).all()
    assert len(datastore.datalist()) == 1
    status = datastore.status()
    assert "left_out" not in status
    assert "roi_unread" not in status


def test_a_drawing_that_could_not_be_read_is_read_again_automatically(two, meddler, open_datastore):
    _, newer, item = two
    meddler.change(item, with_status(500))
    datastore = open_datastore(server=meddler.url, max_age=0.05)
    assert datastore.datalist() == []
    meddler.stop()
    deadline = time.monotonic() + 30
    while "roi_unread" in datastore.status():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (voxels(datastore.get_label_uri(only(datastore), "final")) == newer).all()


@pytest.mark.parametrize("how", ["503", "500", "403", "a page", "short"])
def test_a_drawing_whose_file_cannot_be_read_leaves_the_case_out(two, meddler, open_datastore, collections, how):
    _, newer, _ = two
    meddler.change(rf"{collections()['SEG_2']}/.*\.dcm$", ITEMS[how])
    datastore = open_datastore(server=meddler.url)
    assert datastore.datalist() == []
    assert list(datastore.status()["left_out"]) == [only(datastore)]
    with pytest.raises(XNATDatastoreError):
        datastore.get_label_uri(only(datastore), "final")
    meddler.stop()
    assert (voxels(datastore.datalist()[0]["label"]) == newer).all()


@pytest.mark.parametrize("how", ["503", "403", "a page", "an object", "no series"])
def test_a_label_of_ours_never_stands_in_for_a_newer_drawing(
    viewer, collections, meddler, open_datastore, tmp_path, caplog, how
):
    open_datastore().save_label(str(viewer.scan.image_id), own_label(viewer, tmp_path), "final", {})
    time.sleep(1.1)  # times of files are in whole seconds
    newest = viewer.save("SEG_2", liver=(5, 7))
    meddler.change(f"/data/experiments/{collections()['SEG_2']}$", ITEMS[how])
    datastore = open_datastore(server=meddler.url)
    assert_left_out(datastore, caplog)
    meddler.stop()
    if how == "no series":
        newest = viewer.save("SEG_2", liver=(5, 7), overwrite=True)
    datastore.refresh()
    assert (voxels(datastore.datalist()[0]["label"]) == newest).all()


def test_a_drawing_that_is_known_to_be_older_does_not_count_against_a_label_of_ours(
    viewer, collections, meddler, open_datastore, tmp_path
):
    viewer.save("SEG_2")
    time.sleep(1.1)
    open_datastore().save_label(str(viewer.scan.image_id), own_label(viewer, tmp_path), "final", {"mine": True})
    meddler.change(f"/data/experiments/{collections()['SEG_2']}$", with_status(403))
    datastore = open_datastore(server=meddler.url, cache_path=tmp_path / "another machine")
    assert len(datastore.datalist()) == 1
    assert datastore.get_label_info(only(datastore), "final")["mine"]
    # This is different if its time is not known either.
    meddler.change(collections()["SEG_2"], with_status(403), method="HEAD")
    again = open_datastore(server=meddler.url, cache_path=tmp_path / "a third machine")
    assert again.datalist() == []
    assert "left_out" in again.status()


def test_what_the_settings_exclude_does_not_count(two, meddler, open_datastore):
    older, _, item = two
    meddler.change(item, with_status(500))
    datastore = open_datastore(server=meddler.url, roi_label="!SEG_2")
    assert (voxels(datastore.datalist()[0]["label"]) == older).all()
    assert "roi_unread" not in datastore.status()


def test_measurements_are_no_labels(two, meddler, open_datastore):
    _, _, item = two
    meddler.change(item, with_status(500))
    meddler.change(r"^/data/experiments$", lambda answer: answer._replace(body=of_kind(answer.body, "MEAS")))
    datastore = open_datastore(server=meddler.url)
    assert "roi_unread" not in datastore.status()
    assert len(datastore.datalist()) == 1


def of_kind(body, kind):
    """Return a list of ROI collections in which the second one is of another kind."""
    listing = json.loads(body)
    for row in listing["ResultSet"]["Result"]:
        if row.get("label") == "SEG_2":
            row["icr:roicollectiondata/collectiontype"] = kind
    return json.dumps(listing).encode()


def as_kind(kind):
    def change(answer: Answer) -> Answer:
        item = json.loads(answer.body)
        item["items"][0]["data_fields"]["collectionType"] = kind
        return answer._replace(body=json.dumps(item).encode())

    return change


def test_a_newer_drawing_of_a_kind_that_is_not_read_is_counted_and_leaves_the_case_out(
    viewer, two, meddler, open_datastore, caplog
):
    _, _, item = two
    meddler.change(item, as_kind("MESH"))
    meddler.change(r"^/data/experiments$", lambda answer: answer._replace(body=of_kind(answer.body, "MESH")))
    with caplog.at_level(logging.WARNING):
        datastore = open_datastore(server=meddler.url)
        datastore.refresh()
    assert datastore.status()["roi_kinds_unread"] == {"MESH": 1}
    assert len([record for record in caplog.records if "1 MESH" in record.getMessage()]) == 1
    assert datastore.datalist() == []
    assert "MESH" in datastore.status()["left_out"][only(datastore)]
    time.sleep(0.01)
    newest = viewer.save("SEG_3", liver=(2, 4))
    datastore.refresh()
    assert (voxels(datastore.datalist()[0]["label"]) == newest).all()


@pytest.mark.parametrize("how", ["503", "a page", "an object", "a list", "short"])
def test_a_list_of_drawings_that_cannot_be_read_makes_no_older_label_the_newest(
    viewer, meddler, open_datastore, tmp_path, how
):
    open_datastore().save_label(str(viewer.scan.image_id), own_label(viewer, tmp_path), "final", {})
    newest = viewer.save("SEG_2", liver=(5, 7))
    meddler.change(r"^/data/experiments$", ITEMS[how])
    datastore = open_datastore(server=meddler.url)
    assert datastore.datalist() == []
    status = datastore.status()
    assert "cannot be listed" in status["left_out"][only(datastore)]
    assert list(status["roi_unread"]) == [PROJECT]
    meddler.stop()
    datastore.refresh()
    assert (voxels(datastore.datalist()[0]["label"]) == newest).all()


@pytest.mark.usefixtures("two")
def test_a_site_that_has_shown_drawings_before_is_not_taken_for_one_without(viewer, meddler, open_datastore, tmp_path):
    open_datastore(server=meddler.url).save_label(str(viewer.scan.image_id), own_label(viewer, tmp_path), "final", {})
    meddler.change(r"^/data/experiments$", with_status(500))
    datastore = open_datastore(server=meddler.url)
    assert datastore.datalist() == []
    assert "cannot be listed" in datastore.status()["left_out"][only(datastore)]
    meddler.stop()
    datastore.refresh()
    assert len(datastore.datalist()) == 1


def test_a_training_set_waits_for_drawings_that_are_just_being_read(two, xnat_sandbox, open_datastore, monkeypatch):
    monkeypatch.setattr(drawn_collections, "_PATIENCE", 0.05)
    _, newer, _ = two
    xnat_sandbox.faults.add("/data/experiments/RoiCollection", delay=1.0, times=2)
    (pair,) = open_datastore().datalist()
    assert (voxels(pair["label"]) == newer).all()


def test_an_image_that_nobody_labelled_stays_to_be_labelled(viewer, collections, meddler, open_datastore):
    viewer.save("SEG_2")
    meddler.change(f"/data/experiments/{collections()['SEG_2']}$", with_status(500))
    datastore = open_datastore(server=meddler.url)
    assert datastore.get_unlabeled_images() == datastore.list_images()
    assert datastore.get_label_uri(only(datastore), "final") == ""
    assert list(datastore.status()["roi_unread"]) != []


def test_the_newest_of_drawings_saved_in_each_other_s_place_is_not_guessed(two, collections, meddler, open_datastore):
    def replaced_later(answer: Answer) -> Answer:
        listing = json.loads(answer.body)
        for row in listing["ResultSet"]["Result"]:
            if row.get("label") == "SEG_1":
                row["last_modified"] = "2099-01-01 00:00:00.0"
        return answer._replace(body=json.dumps(listing).encode())

    meddler.change(r"^/data/experiments$", replaced_later)
    meddler.change(collections()["SEG_1"], with_status(403), method="HEAD")
    datastore = open_datastore(server=meddler.url)
    assert datastore.datalist() == []
    with pytest.raises(UnreadDrawingError, match="SEG_1"):
        datastore.get_label_uri(only(datastore), "final")
    meddler.stop()
    assert len(datastore.datalist()) == 1
    assert datastore.get_label_uri(only(datastore), "final") == datastore.datalist()[0]["label"]


def test_a_drawing_whose_time_xnat_could_not_tell_counts_again_after_a_refresh(
    viewer, collections, meddler, open_datastore, tmp_path
):
    open_datastore().save_label(str(viewer.scan.image_id), own_label(viewer, tmp_path), "final", {})
    time.sleep(1.1)  # times of files are in whole seconds
    newer = viewer.save("SEG_1", liver=(5, 7))
    meddler.change(collections()["SEG_1"], with_status(403), method="HEAD")
    meddler.change(rf"{collections()['SEG_1']}/.*/files$", with_status(403))
    datastore = open_datastore(server=meddler.url)
    with pytest.raises(UnreadDrawingError, match="SEG_1"):
        datastore.get_label_uri(only(datastore), "final")
    meddler.stop()
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(only(datastore), "final")) == newer).all()
