"""XNAT is away when a datastore opens: a server comes up all the same, and says why it shows nothing yet."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi import HTTPException
from label_archive import voxels
from test_delivery import wait_until

from monailabel_xnat import XNATDatastore
from monailabel_xnat.catalog import first_listing
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.errors import LabelFileError, LabelNotUploadedError, LoginError, ServerError


@pytest.fixture
def open_away(sandbox, project, gate, tmp_path, monkeypatch):
    """Open a datastore through the gate."""
    patient = Backoff.__init__
    monkeypatch.setattr(Backoff, "__init__", lambda self, *_, **__: patient(self, attempts=2, first_pause=0.01))
    monkeypatch.setattr(first_listing, "_FIRST_PAUSE", 0.1)
    opened = []

    def open_away(**settings):
        given = {"project": project, "environ": {}, "cache_path": tmp_path / "away", "timeout": 5, **settings}
        opened.append(XNATDatastore(gate.url, sandbox.username, given.pop("password", sandbox.password), **given))
        return opened[-1]

    yield open_away
    gate.open()
    for datastore in opened:
        datastore.close()


def listed(datastore):
    try:
        return datastore.list_images()
    except ServerError:
        return []


def test_a_server_comes_up_while_xnat_is_away_and_connects_by_itself(open_away, gate, project, draw):
    gate.shut()
    datastore = open_away(wait=True)
    status = datastore.status()
    assert status["total"] == 0
    assert gate.url in status["xnat"]
    with pytest.raises(ServerError, match=r"127\.0\.0\.1") as caught:
        datastore.list_images()
    assert isinstance(caught.value, HTTPException)  # so that the viewer shows the sentence
    gate.open()
    wait_until(lambda: len(listed(datastore)) == 2)
    assert "xnat" not in datastore.status()


def test_a_label_that_is_saved_before_xnat_answers_is_kept_and_sent(open_away, gate, project, draw, tmp_path):
    image = open_away().list_images()[0]
    gate.shut()
    datastore = open_away(wait=True, cache_path=tmp_path / "server")
    with pytest.raises(LabelNotUploadedError, match="safe in"):
        datastore.save_label(image, str(draw(5)), "final", {"n": 5})
    (tmp_path / "text.txt").write_text("no label")
    with pytest.raises(LabelFileError):
        datastore.save_label(image, str(tmp_path / "text.txt"), "final", {})
    assert datastore.status()["outbox"] == 1
    gate.open()
    wait_until(lambda: listed(datastore) and not datastore.status().get("outbox"), seconds=30)
    assert datastore.get_label_info(image, "final")["n"] == 5
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), voxels(draw(5)))


def test_a_datastore_that_is_not_to_wait_fails_at_once(open_away, gate):
    gate.shut()
    with pytest.raises(ServerError, match=r"127\.0\.0\.1"):
        open_away()


def test_a_wrong_password_is_no_reason_to_wait(open_away):
    with pytest.raises(LoginError):
        open_away(wait=True, password="wrong")
