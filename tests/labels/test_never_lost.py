"""Labels that wait for XNAT: where they are, what they wait for, and how they get to XNAT."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
import requests
from label_archive import AFFINE, SHAPE, stored, voxels
from test_delivery import away, save_in_vain  # noqa: F401 - a fixture

from monailabel_xnat.cli.main import main
from monailabel_xnat.config import Settings
from monailabel_xnat.datastore.texts import DatastoreTexts
from monailabel_xnat.errors import LabelNotUploadedError, ReadOnlyError, UnknownLabelError
from monailabel_xnat.labels import outbox

SERIES = "1.2.826.0.1.3680043.10.511.3.77"


@pytest.fixture
def admin(sandbox):
    with requests.Session() as admin:
        admin.auth = (sandbox.username, sandbox.password)
        yield admin


def age(folder, seconds=120):
    then = time.time() - seconds
    os.utime(folder, (then, then))


def test_a_cache_folder_that_is_cleared_takes_no_label_that_waits(open_labels, gate, draw, tmp_path):
    opened = open_labels(server=gate.url, timeout=5, data_path=tmp_path / "data")
    opened.labels._images.path(opened.scan)
    gate.shut()
    error = save_in_vain(opened, draw(1))
    assert str(tmp_path / "data") in str(error)
    assert "no cache" in str(error)
    opened.store.close()
    shutil.rmtree(tmp_path / "mine")
    gate.open()
    again = open_labels(server=gate.url, data_path=tmp_path / "data")
    assert again.store.replay() == {}
    np.testing.assert_array_equal(voxels(again.labels.path(again.scan, "final")), voxels(draw(1)))
    assert len(stored(again)) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "user-data"), ({"cache_path": "cache"}, "cache"), ({"cache_path": "cache", "data_path": "data"}, "data")],
)
def test_without_a_folder_that_was_set_labels_wait_in_the_users_data_folder(given, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))
    arguments = {"server": "http://localhost:1", **{name: tmp_path / folder for name, folder in given.items()}}
    settings = Settings.load(arguments, environ={})
    assert settings.data_folder.is_relative_to(tmp_path / expected)
    assert settings.data_folder not in settings.earlier_data_folders


def test_what_an_earlier_version_left_in_the_cache_is_served_and_moved(away, gate, open_labels, draw, tmp_path):  # noqa: F811
    save_in_vain(away, draw(1), info={"n": 1})
    away.store.close()
    gate.open()
    newer = open_labels(server=gate.url, timeout=5, data_path=tmp_path / "data")
    newer.catalog.scans()
    gate.shut()
    (before,) = newer.labels.outbox.entries()
    assert before.folder.is_relative_to(tmp_path / "mine")
    assert newer.labels.tags(newer.scan) == ["final"]
    newer.store.replay()  # an earlier version may be running, and be about to send it
    assert newer.labels.outbox.entries() == [before]
    age(before.folder)
    newer.store.replay()
    (after,) = newer.labels.outbox.entries()
    assert after.folder.is_relative_to(tmp_path / "data")
    assert not before.folder.exists()
    assert after.description() == {**after.description(), "info": {"n": 1}}
    np.testing.assert_array_equal(voxels(newer.labels.path(newer.scan, "final")), voxels(draw(1)))
    gate.open()
    assert newer.store.replay() == {}
    assert len(stored(newer)) == 2


def test_a_process_that_is_killed_while_it_moves_a_label_loses_none(
    away,  # noqa: F811
    gate,
    open_labels,
    draw,
    tmp_path,
    monkeypatch,
):
    save_in_vain(away, draw(1))
    away.store.close()
    gate.open()
    newer = open_labels(server=gate.url, data_path=tmp_path / "data", read_only=True)
    (entry,) = newer.labels.outbox.entries()
    with monkeypatch.context() as killed:
        killed.setattr(outbox.shutil, "rmtree", lambda *_, **__: None)
        killed.setattr(outbox.Outbox, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            newer.labels.outbox.bring_home(entry)
    again = open_labels(server=gate.url, data_path=tmp_path / "data")
    assert again.store.replay() == {}
    assert again.store.waiting() == 0
    assert len(stored(again)) == 2


def make_session(sandbox, project, admin, label):
    path = f"{sandbox.url}/data/projects/{project}/subjects/s1/experiments/{label}"
    admin.put(f"{path}?xsiType=xnat:ctSessionData&date=2026-01-01").raise_for_status()
    scan = f"xsiType=xnat:ctScanData&xnat:ctScanData/type=CT&xnat:ctScanData/UID={SERIES}"
    admin.put(f"{path}/scans/1?{scan}").raise_for_status()
    import nibabel

    image = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), AFFINE).to_bytes()
    headers = {"Content-Type": "application/octet-stream"}
    admin.put(f"{path}/scans/1/resources/NIFTI/files/image.nii", data=image, headers=headers).raise_for_status()
    return path


def test_a_session_that_was_deleted_and_imported_anew_gets_the_label_that_waited(
    open_labels, sandbox, project, admin, draw
):
    path = make_session(sandbox, project, admin, "first")
    opened = open_labels()
    old = opened.catalog.scan(f"{project}/s1/first/1")
    sandbox.faults.add("MONAILABEL_", method="PUT", status=503, times=None)
    with pytest.raises(LabelNotUploadedError):
        opened.store.save(old, "final", draw(4), {"n": 4})
    opened.store.close()
    sandbox.faults.clear()
    admin.delete(f"{path}?removeFiles=true").raise_for_status()
    heir = open_labels()
    (reason,) = heir.store.replay().values()
    assert "has no image" in reason
    assert "outbox assign" in heir.store.report()[0]["waits_for"]
    make_session(sandbox, project, admin, "again")
    heir.catalog.renew()
    assert heir.store.replay() == {}
    new = heir.catalog.scan(f"{project}/s1/again/1")
    assert new.image_id != old.image_id
    np.testing.assert_array_equal(voxels(heir.labels.path(new, "final")), voxels(draw(4)))
    description = heir.labels.description(new, "final")
    assert (description["image_id"], description["info"]) == (str(new.image_id), {"n": 4})
    assert str(old.image_id) in description["notes"][-1]


def test_a_label_of_an_image_that_is_only_left_out_by_a_filter_goes_to_no_other_image_of_its_series(
    open_labels, sandbox, project, admin, draw
):
    make_session(sandbox, project, admin, "first")
    make_session(sandbox, project, admin, "copy")
    opened = open_labels()
    old = opened.catalog.scan(f"{project}/s1/first/1")
    sandbox.faults.add("MONAILABEL_", method="PUT", status=503, times=None)
    with pytest.raises(LabelNotUploadedError):
        opened.store.save(old, "final", draw(4), {})
    opened.store.close()
    sandbox.faults.clear()
    other = open_labels(session="copy")
    assert len(other.store.replay()) == 1
    assert other.store.waiting() == 1


def test_labels_of_an_account_that_was_renamed_can_be_sent_by_another_one(
    open_labels, sandbox, draw, monkeypatch, capsys, tmp_path
):
    opened = open_labels(username="member")
    sandbox.faults.add("MONAILABEL_", method="PUT", status=403, times=None)
    with pytest.raises(LabelNotUploadedError):
        opened.store.save(opened.scan, "final", draw(), {})
    opened.store.close()
    sandbox.faults.clear()
    heir = open_labels(username="owner")
    assert heir.store.replay() == {}
    (waiting,) = heir.store.report()
    assert waiting["waits_for"].startswith("user member")
    assert "--as-me" in waiting["waits_for"]
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", sandbox.users["owner"])
    words = ["--studies", sandbox.url, "--username", "owner", "--cache-path", str(tmp_path / "mine")]
    assert main(["outbox", *words]) == 0
    assert "waits for user member" in capsys.readouterr().out
    assert main(["outbox", "replay", *words]) == 1
    assert main(["outbox", "replay", "--as-me", *words]) == 0
    heir.catalog.renew()
    assert heir.labels.description(heir.scan, "final")["saved_by"] == "member"
    assert len(stored(heir)) == 2


def test_the_info_of_a_label_can_change_while_a_delivery_takes_it_away(away, gate, open_labels, draw, monkeypatch):  # noqa: F811
    save_in_vain(away, draw(), info={"n": 1})
    gate.open()
    monkeypatch.setattr(outbox, "_LOOK_AGAIN_SECONDS", 1000.0)
    assert away.labels.tags(away.scan) == ["final"]
    assert open_labels(server=gate.url).store.replay() == {}
    away.catalog.renew()
    away.store.update_info(away.scan, "final", {"m": 2})
    assert away.labels.info(away.scan, "final") == {"n": 1, "m": 2}


def test_a_damaged_label_is_counted_and_listed_with_what_it_waits_for(away, draw):  # noqa: F811
    save_in_vain(away, draw(1))
    save_in_vain(away, draw(2), tag="original")
    folder = away.labels.outbox.entries()[0].folder
    away.store.close()
    (folder / "entry.json").write_text(json.dumps({"image_id": 5}))
    fresh = outbox.outbox_of(away.settings).report(away.session.known_user)
    assert (fresh[0]["state"], fresh[0]["folder"]) == ("damaged", str(folder))
    assert "a person" in fresh[0]["waits_for"]
    assert fresh[1]["waits_for"].startswith("XNAT: ")


def test_a_wrong_version_names_those_that_exist(open_labels, draw):
    opened = open_labels()
    first = opened.store.save(opened.scan, "final", draw(1), {})
    second = opened.store.save(opened.scan, "final", draw(2), {})
    with pytest.raises(UnknownLabelError) as caught:
        opened.store.restore(opened.scan, "final", "20200101T000000000000Z-0123456789ab")
    assert first.name in caught.value.hint
    assert second.name in caught.value.hint
    with pytest.raises(UnknownLabelError, match="tags final"):
        opened.labels.path(opened.scan, "finale")


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    away,  # noqa: F811
    gate,
    draw,
    capsys,
    monkeypatch,
    sandbox,
    tmp_path,
):
    save_in_vain(away, draw())
    away.store.close()
    gate.open()
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", sandbox.password)
    words = ["--studies", gate.url, "--username", sandbox.username, "--cache-path", str(tmp_path / "mine")]
    assert main(["outbox", "replay", "--dry-run", *words]) == 0
    out = capsys.readouterr().out
    assert "bytes to the resource MONAILABEL_final" in out
    assert "1 labels would be sent" in out
    assert stored(away) == []
    assert len(outbox.outbox_of(away.settings).entries()) == 1


def test_a_read_only_datastore_sends_nothing_that_changes_xnat(open_labels, sandbox):
    opened = open_labels(read_only=True)
    texts = DatastoreTexts(opened.session, opened.catalog)
    with pytest.raises(ReadOnlyError, match=r"read-only and does not send a PUT to .*MONAILABEL"):
        texts.set("name", "mine")
    assert texts.get("name", "none") == "none"
