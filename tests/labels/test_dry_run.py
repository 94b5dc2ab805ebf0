"""A dry run and a read-only datastore send nothing that changes XNAT.

A dry run says what would have been sent.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from fastapi import HTTPException
from label_archive import SHAPE, voxels

from monailabel_xnat import XNATDatastore
from monailabel_xnat.errors import DryRunError, LabelGeometryError, LabelNotUploadedError, ReadOnlyError

_LOGIN = ("/data/services/auth", "/data/JSESSION")


@pytest.fixture
def open_datastore(sandbox, project, tmp_path):
    opened = []

    def open_datastore(folder="mine", **settings):
        given = {"project": project, "environ": {}, "cache_path": tmp_path / folder, "label_scan": "final", **settings}
        url = given.pop("server", sandbox.url)
        opened.append(XNATDatastore(url, sandbox.username, sandbox.password, **given))
        return opened[-1]

    yield open_datastore
    for datastore in opened:
        datastore.close()


@pytest.fixture
def image(open_datastore, draw):
    """An image with a label."""
    datastore = open_datastore("before")
    image = datastore.list_images()[0]
    datastore.save_label(image, str(draw(1)), "final", {"n": 1})
    datastore.close()
    return image


@pytest.fixture
def changes(sandbox):
    """Return the requests sent since then that change XNAT."""
    start = len(sandbox.requests)

    def changes():
        return [
            (sent.method, sent.path)
            for sent in list(sandbox.requests)[start:]
            if sent.method not in ("GET", "HEAD") and not sent.path.endswith(_LOGIN)
        ]

    return changes


def writes(datastore, image, draw):
    """Return all calls that would change XNAT, also those on objects of xnatpy."""
    version = datastore.label_history(image, "final")[0]["version"]
    return [
        lambda: datastore.save_label(image, str(draw(2)), "final", {}),
        lambda: datastore.save_label("some name", str(draw(2)), "final", {}),
        lambda: datastore.update_label_info(image, "final", {"n": 2}),
        lambda: datastore.restore_label(image, "final", version),
        lambda: datastore.remove_label(image, "final"),
        lambda: datastore.add_image(None, draw(3, "new.nii.gz"), {}),
        lambda: datastore.remove_image(image),
        lambda: datastore.set_name("mine"),
        lambda: datastore.set_description("mine"),
        lambda: datastore.scan(image).delete(),
        lambda: datastore.xnat.put(f"/data/projects/{image.partition('/')[0]}/subjects/new"),
    ]


@pytest.mark.parametrize("setting", ["read_only", "dry_run"])
def test_nothing_is_sent_that_changes_xnat_and_nothing_is_kept(setting, open_datastore, image, draw, changes, tmp_path):
    datastore = open_datastore(allow_delete=True, **{setting: True})
    for write in writes(datastore, image, draw):
        with pytest.raises((ReadOnlyError, KeyError)) as caught:
            write()
        assert not isinstance(caught.value, KeyError) or "some name" in str(caught.value)
    datastore.update_image_info(image, {"dice": 0.5})
    assert datastore.get_image_info(image)["dice"] == 0.5
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), voxels(draw(1)))
    assert "outbox" not in datastore.status()
    datastore.close()
    assert changes() == []
    again = open_datastore()
    assert "dice" not in again.get_image_info(image)
    assert not {"outbox", "infos_waiting"} & again.status().keys()
    assert (len(again.label_history(image, "final")), again.get_label_info(image, "final")["n"]) == (1, 1)


def test_a_dry_run_says_what_would_be_sent_to_the_client_in_the_log_and_in_the_status(
    open_datastore, image, draw, caplog
):
    datastore = open_datastore(dry_run=True)
    with caplog.at_level(logging.INFO), pytest.raises(DryRunError, match=r"would save labels: \d+ bytes in") as caught:
        datastore.save_label(image, str(draw(2)), "final", {})
    assert isinstance(caught.value, HTTPException)
    assert (caught.value.status_code, "MONAILABEL_final" in caught.value.detail) == (403, True)
    datastore.update_image_info(image, {"dice": 0.5})
    with pytest.raises(DryRunError, match="would send a PUT to /data/projects/"):
        datastore.set_name("mine")
    assert datastore.status()["dry_run"] == {"save labels": 1, "write the info of an image": 1, "send a PUT": 1}
    assert "dry run: it would save labels" in caplog.text
    assert image not in caplog.text


def test_a_dry_run_checks_a_label_as_it_is_checked_before_it_is_sent(open_datastore, image, draw):
    datastore = open_datastore(dry_run=True)
    elsewhere = draw(2, shape=(SHAPE[0] + 1, SHAPE[1], SHAPE[2] + 3), affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(LabelGeometryError):
        datastore.save_label(image, str(elsewhere), "final", {})


def test_what_waits_is_neither_sent_nor_changed_by_a_dry_run(open_datastore, gate, image, draw, changes):
    away = open_datastore(server=gate.url, timeout=5)
    away.list_images()
    gate.shut()
    with pytest.raises(LabelNotUploadedError):
        away.save_label(image, str(draw(4)), "final", {"n": 4})
    away.close()
    gate.open()
    datastore = open_datastore(server=gate.url, dry_run=True)
    assert datastore.status()["outbox"] == 1
    with pytest.raises(DryRunError):
        datastore.update_label_info(image, "final", {"n": 9})
    datastore.close()
    assert changes() == []
    assert open_datastore(server=gate.url, read_only=True).get_label_info(image, "final")["n"] == 4
