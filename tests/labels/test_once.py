"""Each thing is done only once, and nothing is reported as done that was not done."""

from __future__ import annotations

import numpy as np
import pytest
from label_archive import stored, voxels
from test_delivery import away, save_in_vain  # noqa: F401 - a fixture
from test_viewer import collections, datastore, wait_for  # noqa: F401 - a fixture
from viewer import only, own_label

from monailabel_xnat.cli.main import main
from monailabel_xnat.errors import CacheError, ServerError
from monailabel_xnat.images.scan_writer import ScanWriter
from monailabel_xnat.labels import outbox


def test_a_process_that_is_killed_between_upload_and_removal_costs_no_second_version(
    away,  # noqa: F811
    gate,
    open_labels,
    draw,
    monkeypatch,
):
    save_in_vain(away, draw())
    gate.open()
    other = open_labels(server=gate.url)
    (entry,) = other.labels.outbox.entries()
    with monkeypatch.context() as killed:
        killed.setattr(outbox.Outbox, "remove", _killed)
        with pytest.raises(KeyboardInterrupt):
            other.store._delivery.send(entry, other.scan)
    assert len(stored(away)) == 2
    # The process that saved it now tries for the first time.
    away.store._delivery.send(entry, away.scan, first=True)
    assert len(stored(away)) == 2
    assert away.store.waiting() == 0
    np.testing.assert_array_equal(voxels(away.labels.path(away.scan, "final")), voxels(draw()))


def _killed(*_):
    raise KeyboardInterrupt


def test_a_copy_for_the_viewer_whose_answer_was_lost_is_not_stored_twice(
    viewer,
    datastore,  # noqa: F811
    tmp_path,
    xnat_sandbox,
):
    xnat_sandbox.faults.add("/xapi/roi/.*/collections/", method="PUT", drop_after=0, times=1)
    datastore.save_label(only(datastore), own_label(viewer, tmp_path, 3), "final", {})
    wait_for(viewer, 1)
    datastore.close()
    (name,) = collections(viewer)
    assert not name.endswith("_2")


def test_a_deletion_that_xnat_did_not_do_is_an_error(open_labels, sandbox, draw):
    opened = open_labels()
    opened.store.save(opened.scan, "final", draw(), {})
    sandbox.faults.add("/files/", method="DELETE", lose=True, times=None)
    with pytest.raises(ServerError, match="said that it deleted 1 versions"):
        opened.store.remove(opened.scan, "final")
    assert opened.labels.tags(opened.scan) == ["final"]
    sandbox.faults.clear()
    opened.store.remove(opened.scan, "final")
    assert stored(opened) == []


def test_a_scan_that_xnat_did_not_delete_is_an_error(open_labels, sandbox):
    opened = open_labels(allow_delete=True)
    writer = ScanWriter(opened.session, opened.catalog)
    sandbox.faults.add("/scans/1$", method="DELETE", lose=True, times=1)
    with pytest.raises(ServerError, match="still has it"):
        writer.remove(opened.scan)
    writer.remove(opened.scan)


def test_a_label_that_leaves_the_outbox_meanwhile_can_be_described_and_changed(
    away,  # noqa: F811
    gate,
    open_labels,
    draw,
    monkeypatch,
):
    save_in_vain(away, draw(), info={"n": 1})
    gate.open()
    monkeypatch.setattr(outbox, "_LOOK_AGAIN_SECONDS", 1000.0)
    assert away.labels.tags(away.scan) == ["final"]
    assert open_labels(server=gate.url).store.replay() == {}
    assert away.labels.info(away.scan, "final") == {"n": 1}
    gate.shut()
    save_in_vain(away, draw(2), info={"n": 2})
    gate.open()
    assert away.labels.tags(away.scan) == ["final"]
    assert open_labels(server=gate.url).store.replay() == {}
    away.store.update_info(away.scan, "final", {"m": 3})
    assert away.labels.info(away.scan, "final") == {"n": 2, "m": 3}
    assert len(stored(away)) == 4


def test_what_cannot_be_read_in_the_outbox_is_counted_and_listed(away, draw, capsys, monkeypatch, sandbox):  # noqa: F811
    save_in_vain(away, draw())
    (entry,) = away.labels.outbox.entries()
    (entry.folder / "entry.json").write_text("{")
    away.labels.outbox._seen.clear()
    away.labels.outbox.look_again()
    assert away.store.waiting() == 1
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", sandbox.password)
    words = ["--studies", away.settings.server, "--username", "admin"]
    assert main(["outbox", *words, "--cache-path", str(away.settings.cache_path)]) == 0
    out = capsys.readouterr().out
    assert str(entry.folder) in out
    assert "cannot be read" in out
    assert "1 labels wait" in out


@pytest.mark.parametrize("is_shorter", [True, False])
def test_bytes_that_changed_while_they_waited_are_not_sent(away, gate, draw, is_shorter):  # noqa: F811
    save_in_vain(away, draw())
    (entry,) = away.labels.outbox.entries()
    content = bytearray(entry.file.read_bytes())
    content[100] ^= 255
    entry.file.write_bytes(content[:-5] if is_shorter else content)
    with pytest.raises(CacheError, match="changed while it waited"):
        away.labels.path(away.scan, "final")
    gate.open()
    (reason,) = away.store.replay().values()
    assert "changed while it waited" in reason
    assert stored(away) == []
    assert away.store.waiting() == 1
    assert entry.file.exists()
