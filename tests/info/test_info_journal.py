"""Infos of images that wait for XNAT: kept on disk, written at the next start, and shown in status()."""

from __future__ import annotations

import os
import time

import pytest

from monailabel_xnat.images import info


@pytest.fixture
def open_datastore(xnat_sandbox, demo_dicom, open_xnat_datastore):
    for case in demo_dicom.cases[:3]:
        xnat_sandbox.import_dicom(case.dicom, "DEMO")
    return lambda **settings: open_xnat_datastore(project="DEMO", series_description="!*localizer*", **settings)


def journal_of(datastore):
    return list(datastore._settings.data_folder.glob("infos/*/*.json"))


def test_infos_that_xnat_does_not_take_are_written_at_the_next_start(xnat_sandbox, open_datastore, monkeypatch):
    monkeypatch.setattr(info, "_CLOSE_SECONDS", 0.5)
    datastore = open_datastore()
    images = datastore.list_images()
    xnat_sandbox.faults.add("MONAILABEL_info", status=503, times=None)
    for number, image in enumerate(images):
        datastore.update_image_info(image, {"dice": number / 10})
    assert len(journal_of(datastore)) == len(images)
    started = time.monotonic()
    datastore._infos.close()
    assert time.monotonic() - started < 5
    assert len(journal_of(datastore)) == len(images)
    assert datastore.status()["infos_waiting"] == len(images)
    xnat_sandbox.faults.clear()
    again = open_datastore()
    assert [again.get_image_info(image)["dice"] for image in images] == [number / 10 for number in range(len(images))]
    again._infos.flush()
    assert "infos_waiting" not in again.status()
    assert journal_of(again) == []
    elsewhere = open_datastore(cache_path=again._settings.server_folder.parent / "another machine")
    assert [elsewhere.get_image_info(image)["dice"] for image in images] == [0.0, 0.1, 0.2]


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes folders by itself")
def test_an_info_that_was_accepted_survives_a_power_cut(xnat_sandbox, open_datastore, monkeypatch):
    datastore = open_datastore()
    image = datastore.list_images()[0]
    xnat_sandbox.faults.add("MONAILABEL_info", status=503, times=None)
    flushed, flush = {}, os.fsync

    def fsync(handle):
        flush(handle)
        found = os.fstat(handle)
        flushed[found.st_ino] = found.st_size

    monkeypatch.setattr(os, "fsync", fsync)
    datastore.update_image_info(image, {"dice": 0.5})
    (file,) = journal_of(datastore)
    assert flushed[file.stat().st_ino] == file.stat().st_size
    assert {folder.stat().st_ino for folder in (file.parent, *file.parent.parents[:2])} <= flushed.keys()
    xnat_sandbox.faults.clear()
    flushed.clear()
    datastore._infos.flush()
    assert not file.exists()
    assert file.parent.stat().st_ino in flushed


def test_infos_that_a_running_process_has_to_write_are_left_to_it(xnat_sandbox, open_datastore):
    datastore = open_datastore()
    image = datastore.list_images()[0]
    xnat_sandbox.faults.add("MONAILABEL_info", status=503, times=None)
    datastore.update_image_info(image, {"dice": 0.5})
    assert "infos_waiting" not in open_datastore().status()
    assert len(journal_of(datastore)) == 1
    xnat_sandbox.faults.clear()


def test_one_refusal_does_not_silence_later_infos_for_ever(xnat_sandbox, open_datastore, monkeypatch):
    monkeypatch.setattr(info, "_REFUSED_SECONDS", 0.1)
    datastore = open_datastore()
    image = datastore.list_images()[0]
    xnat_sandbox.faults.add("MONAILABEL_info", status=403, times=None)
    datastore.update_image_info(image, {"dice": 0.5})
    datastore._infos.flush()
    status = datastore.status()
    assert status["infos_waiting"] == 1
    assert "403" in status["infos_problem"] or "may not" in status["infos_problem"]
    xnat_sandbox.faults.clear()
    time.sleep(0.2)
    datastore._infos.flush()
    assert not {"infos_waiting", "infos_problem"} & datastore.status().keys()


def test_two_servers_that_hand_an_image_out_by_two_strategies_keep_both(open_datastore):
    one, other = open_datastore(), open_datastore()
    image = one.list_images()[0]
    one.update_image_info(image, {"strategy": {"random": {"ts": 2, "client_id": "ann"}}})
    one._infos.flush()
    # MONAI Label writes all strategies that it has read for an image. This server has old ones.
    other.update_image_info(image, {"strategy": {"random": {"ts": 1}, "first": {"ts": 3, "client_id": "bob"}}})
    other._infos.flush()
    strategies = {"random": {"ts": 2, "client_id": "ann"}, "first": {"ts": 3, "client_id": "bob"}}
    assert other.get_image_info(image)["strategy"] == strategies
    one.refresh()
    assert one.get_image_info(image)["strategy"] == strategies


@pytest.mark.parametrize("content", [b'{"theirs": 1, "dice": 0.1}', b'{"theirs": 1, "di'], ids=["whole", "torn"])
def test_a_file_that_does_not_fit_the_list_keeps_changes_waiting_for_ever(
    xnat_sandbox, open_datastore, monkeypatch, content
):
    """XNAT was killed after it had stored the file, and before it had listed it."""
    datastore = open_datastore()
    image = datastore.list_images()[0]
    datastore.update_image_info(image, {"dice": 0.25})
    datastore._infos.flush()
    (file,) = xnat_sandbox.folder.rglob("image.json")
    file.write_bytes(content)
    datastore.update_image_info(image, {"dice": 0.5})
    datastore._infos.flush()
    assert datastore.status()["infos_waiting"] == 1  # another process may be writing it just now
    assert file.read_bytes() == content
    monkeypatch.setattr(info, "_SETTLED_SECONDS", -2.0)
    datastore._infos.flush()
    assert "infos_waiting" not in datastore.status()
    found = open_datastore(cache_path=datastore._settings.server_folder.parent / "other machine").get_image_info(image)
    assert found["dice"] == 0.5
    assert ("theirs" in found) == (content[-1:] == b"}")
