"""Copies of labels for the viewer, stored as ROI collections: they disturb nobody and never count as drawn."""

from __future__ import annotations

import errno
import io
import logging
import tempfile
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import nibabel
import numpy as np
import pydicom
import pytest
from label_archive import voxels
from viewer import PROJECT, only, own_label

from monailabel_xnat.convert import read_seg
from monailabel_xnat.errors import ServerError


@pytest.fixture
def datastore(open_datastore):
    return open_datastore(roi_write="final,original")


def collections(viewer):
    query = {"xsiType": "icr:roiCollectionData", "project": PROJECT, "columns": "ID,label,insert_date"}
    return sorted(row["label"] for row in viewer.session.rows("/data/experiments", query))


def wait_for(viewer, count):
    deadline = time.monotonic() + 20
    while len(collections(viewer)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return collections(viewer)


def content(viewer, label):
    return viewer.session.request("GET", f"/xapi/roi/projects/P/collections/{label}", query={"type": "SEG"}).content


def test_a_label_is_shown_in_the_viewer(viewer, datastore, tmp_path):
    label = own_label(viewer, tmp_path, 3)
    datastore.save_label(only(datastore), label, "final", {"label_info": [{"name": "liver", "idx": 3}]})
    (name,) = wait_for(viewer, 1)
    assert name.startswith("final_2_admin_")
    found = pydicom.dcmread(io.BytesIO(content(viewer, name)))
    (segment,) = found.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("liver", "MANUAL")
    (tmp_path / "found.dcm").write_bytes(content(viewer, name))
    assert (read_seg(tmp_path / "found.dcm", viewer.grid).array == voxels(label)).all()


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ({"model": "deepedit"}, "AUTOMATIC"),
        ({"model": "deepedit", "params": {"foreground": [[1, 2, 3]]}}, "SEMIAUTOMATIC"),
        ({"model": "deepedit", "params": {"foreground": []}}, "AUTOMATIC"),
    ],
)
def test_a_draft_says_which_model_drew_it(viewer, datastore, tmp_path, info, kind):
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "original", info)
    (name,) = wait_for(viewer, 1)
    assert name.startswith("original_2_deepedit_")
    (segment,) = pydicom.dcmread(io.BytesIO(content(viewer, name))).SegmentSequence
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == (kind, "deepedit")


def test_what_we_wrote_is_never_read_back_as_drawn(viewer, datastore, open_datastore, tmp_path):
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "original", {"model": "m"})
    (name,) = wait_for(viewer, 1)
    image = only(datastore)
    for store in (datastore, open_datastore(cache_path=tmp_path / "another machine")):
        store.refresh()
        assert set(store.get_labels_by_image_id(image)) == {"original"}
        assert store.get_labeled_images() == []
        assert (voxels(store.get_label_uri(f"{image}#{name}", "final")) > 0).any()


def test_uploaded_again_unchanged_it_is_still_ours_but_edited_it_is_a_drawing(viewer, datastore, tmp_path):
    image = only(datastore)
    datastore.save_label(image, own_label(viewer, tmp_path), "original", {"model": "m"})
    (name,) = wait_for(viewer, 1)
    viewer.store("copied", content(viewer, name))
    datastore.refresh()
    assert set(datastore.get_labels_by_image_id(image)) == {"original"}
    edited = viewer.save("edited", liver=(2, 6))
    datastore.refresh()
    assert set(datastore.get_labels_by_image_id(image)) == {"original", "final"}
    assert (voxels(datastore.get_label_uri(image, "final")) == edited).all()


def test_a_later_label_takes_the_place_of_ours_and_of_nobody_elses(viewer, datastore, tmp_path):
    image = only(datastore)
    for value in (1, 2):
        datastore.save_label(image, own_label(viewer, tmp_path, value), "final", {})
        wait_for(viewer, 1)
    deadline = time.monotonic() + 20
    found = b""
    while b"label value 2" not in found:
        assert time.monotonic() < deadline
        with suppress(ServerError):  # it has no file for a moment, while it is replaced
            found = content(viewer, collections(viewer)[0])
    (name,) = collections(viewer)
    drawn = viewer.save(name, liver=(4, 8), overwrite=True)
    datastore.save_label(image, own_label(viewer, tmp_path, 3), "final", {})
    assert len(wait_for(viewer, 2)) == 2
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(f"{image}#{name}", "final")) == drawn).all()


def test_a_copy_takes_the_place_of_an_author_whose_name_begins_alike(viewer, open_datastore, tmp_path):
    datastore = open_datastore(roi_write="original")
    for model, count in (("net_b", 1), ("net", 2), ("net", 2)):
        datastore.save_label(only(datastore), own_label(viewer, tmp_path), "original", {"model": model})
        wait_for(viewer, count)
    datastore.close()
    assert [name.rpartition("_")[0] for name in collections(viewer)] == ["original_2_net", "original_2_net_b"]


def test_a_copy_never_replaces_a_collection_of_the_same_name(viewer, open_datastore, tmp_path):
    datastore = open_datastore(roi_write="final")
    now = datetime.now(timezone.utc)
    taken = [f"final_2_admin_{now + timedelta(seconds=later):%Y%m%dT%H%M%S}" for later in range(8)]
    for name in taken:
        viewer.save(name)
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    (name,) = set(wait_for(viewer, len(taken) + 1)) - set(taken)
    assert name[:-2] in taken
    assert name.endswith("_2")


@pytest.mark.parametrize("settings", [{"roi_write": ""}, {"roi_write": "original"}])
def test_the_setting_chooses_the_tags(viewer, open_datastore, tmp_path, settings):
    datastore = open_datastore(**settings)
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    datastore.close()
    assert collections(viewer) == []


def test_an_unexpected_error_stops_one_copy_and_logs_no_id(viewer, datastore, tmp_path, monkeypatch, caplog):
    make = tempfile.mkdtemp
    full = [OSError(errno.ENOSPC, "No space left on device", f"/cache/{only(datastore)}")]

    def on_a_disk_full_once(suffix=None, prefix=None, dir=None):  # noqa: A002 - as tempfile calls it
        if prefix == ".seg-" and full:
            raise full.pop()
        return make(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", on_a_disk_full_once)
    caplog.set_level(logging.INFO, "monailabel_xnat")
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "original", {"model": "m"})
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    assert wait_for(viewer, 1)[0].startswith("final_")
    assert set(datastore.get_labels_by_image_id(only(datastore))) == {"original", "final"}
    (warning,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert "the viewer does not show it: CacheError" in warning.getMessage()
    assert warning.exc_info is None


def test_closing_waits_for_what_is_under_way(viewer, datastore, tmp_path):
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    datastore.close()
    assert len(collections(viewer)) == 1


def test_a_failed_copy_does_not_change_the_label(viewer, xnat_sandbox, datastore, tmp_path, caplog):
    image = only(datastore)
    xnat_sandbox.faults.add("/xapi/roi/", method="PUT", status=500, times=None)
    datastore.save_label(image, own_label(viewer, tmp_path), "final", {})
    datastore.close()
    assert "viewer does not show it" in caplog.text
    assert datastore.status()["completed"] == 1
    assert collections(viewer) == []


def test_a_copy_that_xnat_refuses_says_in_the_status_what_xnat_said(viewer, xnat_sandbox, datastore, tmp_path, caplog):
    xnat_sandbox.faults.add("/xapi/roi/", method="PUT", status=413, times=None)
    with caplog.at_level(logging.INFO):
        for value in (1, 2):
            datastore.save_label(only(datastore), own_label(viewer, tmp_path, value), "final", {})
            datastore._store._viewer._background.join(20)
    status = datastore.status()
    assert status["viewer_copies_failed"] == 2
    assert "answered 413 to PUT" in status["viewer_copies_problem"]
    assert "Request Entity Too Large" in status["viewer_copies_problem"]
    assert f"why the viewer does not show a label: {status['viewer_copies_problem']}" in caplog.text
    assert "outbox" not in status


def test_the_label_does_not_wait_for_the_viewer(viewer, xnat_sandbox, datastore, tmp_path):
    xnat_sandbox.faults.add("/xapi/roi/", delay=1.5)
    started = time.monotonic()
    datastore.save_label(only(datastore), own_label(viewer, tmp_path), "final", {})
    assert time.monotonic() - started < 1.5
    assert len(wait_for(viewer, 1)) == 1


def test_without_the_plugin_one_line_says_so(viewer, xnat_sandbox, datastore, tmp_path, caplog):
    xnat_sandbox.faults.add("/xapi/roi/", status=404, times=None)
    with caplog.at_level(logging.INFO):
        for value in (1, 2):
            datastore.save_label(only(datastore), own_label(viewer, tmp_path, value), "final", {})
        datastore.close()
    told = [record for record in caplog.records if "not shown in the viewer" in record.getMessage()]
    assert [record.levelname for record in told] == ["INFO"]


def test_an_empty_label_has_nothing_to_show(viewer, datastore, tmp_path):
    path = tmp_path / "empty.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(viewer.grid.shape, np.uint8), viewer.grid.affine), path)
    datastore.save_label(only(datastore), str(path), "final", {})
    datastore.close()
    assert collections(viewer) == []


def test_a_removed_label_leaves_the_viewer(viewer, datastore, tmp_path):
    image = only(datastore)
    datastore.save_label(image, own_label(viewer, tmp_path), "final", {})
    wait_for(viewer, 1)
    datastore.refresh()
    viewer.save("SEG_1")
    datastore.remove_label(image, "final")
    assert collections(viewer) == ["SEG_1"]


def test_a_dicom_seg_can_be_saved_as_a_label(viewer, open_datastore, tmp_path):
    array = viewer.save("SEG_1", liver=(3, 9), spleen=(12, 15))
    datastore = open_datastore(roi_tag="")
    image = only(datastore)
    datastore.save_label(image, str(tmp_path / "SEG_1.dcm"), "final", {})
    assert (voxels(datastore.get_label_uri(image, "final")) == array).all()
    other = open_datastore(roi_tag="", labels="spleen=1,liver=2")
    (pair,) = other.datalist()
    assert (voxels(pair["label"]) == np.choose(array, [0, 2, 1])).all()
