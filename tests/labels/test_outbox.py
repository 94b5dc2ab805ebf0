from __future__ import annotations

import os
import stat
import time

import pytest

from monailabel_xnat.errors import CacheError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.entry import WaitingLabel
from monailabel_xnat.labels.outbox import Outbox

IMAGE = ImageId("P", "S", "E", "4/a")


@pytest.fixture
def gone():
    return []


@pytest.fixture
def outbox(tmp_path, gone):
    return Outbox(tmp_path / "outbox", gone.append)


def put(outbox, tag="final", second=1, image=IMAGE, breaks_with=None):
    with outbox.draft() as draft:
        (draft / "label.nii.gz").write_bytes(b"label")
        if breaks_with:
            raise breaks_with
        name = f"20260101T0000{second:02d}000000Z-0123456789ab"
        return outbox.commit(draft, WaitingLabel(draft, image, tag, name, ".nii.gz", "me"), {"info": {"a": 1}})


def test_a_label_in_the_outbox_is_found_by_another_process(tmp_path, outbox):
    entry = put(outbox)
    found = Outbox(tmp_path / "outbox", lambda entry: None).entries()
    assert found == [entry]
    assert found[0].file.read_bytes() == b"label"
    assert found[0].description() == {"info": {"a": 1}}
    assert (found[0].image_id, found[0].tag, found[0].user) == (IMAGE, "final", "me")


def test_labels_are_found_by_image_and_tag_newest_first(outbox):
    first, second, other = put(outbox, second=1), put(outbox, second=2), put(outbox, tag="x", second=3)
    put(outbox, image=ImageId("P", "S", "E", "5"))
    assert outbox.of(IMAGE) == [other, second, first]
    assert outbox.of(IMAGE, "final") == [second, first]
    assert outbox.of(ImageId("P", "S", "E", "6")) == []


def test_the_project_that_a_session_is_shared_into_makes_no_difference(outbox):
    entry = put(outbox)
    assert outbox.of(ImageId("Q", "S", "E", "4/a")) == [entry]


def test_a_draft_that_is_not_committed_leaves_nothing(tmp_path, outbox):
    with pytest.raises(ZeroDivisionError):
        put(outbox, breaks_with=ZeroDivisionError())
    assert outbox.entries() == []
    assert list((tmp_path / "outbox").iterdir()) == []


def test_removing_a_label_twice_is_no_error(tmp_path, outbox, gone):
    entry = put(outbox)
    assert outbox.entries()
    outbox.remove(entry)
    assert outbox.entries() == []
    assert outbox.of(IMAGE) == []
    outbox.remove(entry)
    assert list((tmp_path / "outbox").iterdir()) == []
    assert gone == []


def test_what_another_process_takes_out_is_reported(tmp_path, outbox, gone):
    entry = put(outbox)
    assert outbox.entries() == [entry]
    Outbox(tmp_path / "outbox", lambda entry: None).remove(entry)
    time.sleep(0.06)
    assert outbox.entries() == []
    assert gone == [entry]


def test_an_entry_keeps_its_folder_when_it_gets_another_version(outbox):
    entry = put(outbox)
    renamed = outbox.change(entry, version="20270101T000000000000Z-0123456789ab")
    assert outbox.entries() == [renamed]
    assert outbox.current(entry) == renamed


def test_failures_are_counted_and_kept(outbox):
    entry = put(outbox)
    outbox.note_failure(entry, OSError("one"))
    outbox.note_failure(entry, OSError("two"))
    failure = entry.failure()
    assert (failure["attempts"], failure["reason"]) == (2, "two")


def test_descriptions_can_change(outbox):
    entry = put(outbox)
    outbox.describe(entry, {"info": {"b": 2}})
    assert entry.description() == {"info": {"b": 2}}


def test_only_the_user_can_look_in(tmp_path, outbox):
    entry = put(outbox)
    for folder in (tmp_path / "outbox", entry.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_cannot_be_read_is_left_alone_and_does_not_hide_the_rest(tmp_path, outbox, caplog):
    entry = put(outbox)
    (tmp_path / "outbox" / "strange").mkdir()
    (tmp_path / "outbox" / "file").write_text("?")
    broken = put(outbox, second=2)
    (broken.folder / "entry.json").write_text("{")
    fresh = Outbox(tmp_path / "outbox", lambda entry: None)
    assert fresh.entries() == [entry]
    assert "cannot be read" in caplog.text
    assert (tmp_path / "outbox" / "strange").exists()


def test_old_drafts_of_a_crash_are_swept_away_and_fresh_ones_stay(tmp_path, outbox):
    for name, age in ((".draft-old", 7200), (".gone-old", 7200), (".draft-new", 0)):
        folder = tmp_path / "outbox" / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    put(outbox)
    assert {path.name for path in (tmp_path / "outbox").glob(".*")} == {".draft-new"}


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, outbox):
    with pytest.raises(CacheError, match="No space left"):
        put(outbox, breaks_with=OSError(28, "No space left on device"))
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file"), Outbox(tmp_path / "file" / "outbox", print).draft():
        pass
