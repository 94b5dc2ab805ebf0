"""XNAT is away when a datastore opens: a server starts all the same, shows what it knows, and says what is wrong."""

from __future__ import annotations

import re
import stat
from dataclasses import fields

import nibabel
import numpy as np
import pytest
import requests
from fastapi import HTTPException
from label_archive import voxels
from test_delivery import wait_until

from monailabel_xnat import XNATDatastore
from monailabel_xnat.catalog import first_listing
from monailabel_xnat.catalog.image_index import ImageIndex
from monailabel_xnat.catalog.kept_listing import DECIDING, KeptListing
from monailabel_xnat.catalog.scan import Resource, Scan
from monailabel_xnat.cli.main import main
from monailabel_xnat.client.drawn import DrawnScan, UnreadDrawing
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.roi import RoiCollection
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LabelFileError, LabelNotUploadedError, LoginError, ServerError
from monailabel_xnat.ids import ImageId

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


@pytest.fixture
def open_away(sandbox, project, gate, tmp_path, monkeypatch):
    """Open a datastore through the gate."""
    patient = Backoff.__init__
    monkeypatch.setattr(Backoff, "__init__", lambda self, *_, **__: patient(self, attempts=2, first_pause=0.01))
    monkeypatch.setattr(first_listing, "_FIRST_PAUSE", 0.1)
    opened = []

    def open_away(**settings):
        given = {"project": project, "environ": {}, "cache_path": tmp_path / "away", "timeout": 5, **settings}
        login = given.pop("username", sandbox.username), given.pop("password", sandbox.password)
        opened.append(XNATDatastore(gate.url, *login, **given))
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
    assert isinstance(caught.value, HTTPException)  # so the viewer shows the sentence
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


def make_project(sandbox, name):
    login = (sandbox.username, sandbox.password)
    requests.put(f"{sandbox.url}/data/projects/{name}", auth=login).raise_for_status()


def add_named(datastore, tmp_path, name, seed=0):
    path = tmp_path / f"{name}.nii.gz"
    array = np.random.default_rng(seed).integers(0, 99, (7, 6, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return datastore.add_image(name, path, {})


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((7, 6, 5), np.uint8), AFFINE), path)
    return str(path)


@pytest.fixture
def save_under_a_name_while_away(open_away, gate, mask, tmp_path):
    """Open a server while XNAT is away, and save a label under a name in it."""

    def save(name, **settings):
        gate.shut()
        datastore = open_away(wait=True, cache_path=tmp_path / "server", **settings)
        with pytest.raises(LabelNotUploadedError, match="sent again by itself"):
            datastore.save_label(name, mask, "final", {"by": "ann"})
        (waiting,) = datastore.status()["outbox_waits"]
        assert (waiting["state"], waiting["image"]) == ("named", name)
        return datastore

    return save


@pytest.mark.slow  # the first try comes after five seconds
def test_a_label_saved_under_a_name_before_xnat_answers_is_sent_by_itself(
    open_away, gate, mask, tmp_path, save_under_a_name_while_away
):
    image = add_named(open_away(), tmp_path, "volume_1")
    datastore = save_under_a_name_while_away("volume_1")
    gate.open()
    wait_until(lambda: listed(datastore) and not datastore.status().get("outbox"), seconds=30)
    assert datastore.get_label_info(image, "final")["by"] == "ann"
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(image, "final")), voxels(mask))
    assert open_away(cache_path=tmp_path / "reader").get_labels_by_image_id(image) == {"final": image}


def test_a_label_saved_under_a_name_that_no_image_has_becomes_unassigned_and_says_so(
    gate, save_under_a_name_while_away
):
    datastore = save_under_a_name_while_away("volume_7")
    gate.open()
    wait_until(lambda: listed(datastore))
    datastore._store.replay()
    assert datastore.status()["unassigned"] == 1
    (waiting,) = datastore.status()["outbox_waits"]
    assert waiting["state"] == "unassigned"
    assert "outbox assign" in waiting["waits_for"]
    assert "no image 'volume_7'" in waiting["waits_for"]
    assert datastore._store.replay() == {}


def test_a_label_saved_under_a_name_that_two_images_have_becomes_unassigned(
    open_away, gate, sandbox, project, tmp_path, save_under_a_name_while_away
):
    make_project(sandbox, f"{project}_2")
    images = [
        add_named(open_away(project=name, cache_path=tmp_path / name), tmp_path, "volume_1", seed)
        for seed, name in enumerate((project, f"{project}_2"))
    ]
    datastore = save_under_a_name_while_away("volume_1", project=[project, f"{project}_2"])
    gate.open()
    wait_until(lambda: listed(datastore))
    datastore._store.replay()
    assert datastore.status()["unassigned"] == 1
    (waiting,) = datastore.status()["outbox_waits"]
    assert all(image in waiting["waits_for"] for image in images)
    assert not any(datastore.get_labels_by_image_id(image) for image in images)


def test_a_name_is_not_looked_up_by_a_server_of_another_project_where_it_is_another_image(
    open_away, gate, sandbox, project, tmp_path, save_under_a_name_while_away, monkeypatch, capsys
):
    make_project(sandbox, f"{project}_2")
    other = {"project": f"{project}_2", "cache_path": tmp_path / "server"}
    image = add_named(open_away(), tmp_path, "volume_1")
    another = add_named(open_away(**other), tmp_path, "volume_1", seed=1)
    save_under_a_name_while_away("volume_1").close()
    gate.open()
    stranger = open_away(**other)
    assert stranger._store.replay(as_me=True) == {}
    assert stranger.get_labels_by_image_id(another) == {}
    (waiting,) = stranger.status()["outbox_waits"]
    assert f"a server with the settings project={project}" in waiting["waits_for"]
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", sandbox.password)
    words = ["--studies", gate.url, "--username", sandbox.username, "--cache-path", str(tmp_path / "server")]
    assert main(["outbox", "replay", *words]) == 1
    assert main(["outbox", "replay", *words, "--project", project]) == 0
    assert "all are in XNAT" in capsys.readouterr().out
    assert open_away(cache_path=tmp_path / "reader").get_labels_by_image_id(image) == {"final": image}


def test_a_datastore_that_is_not_to_wait_fails_at_once(open_away, gate):
    gate.shut()
    with pytest.raises(ServerError, match=r"127\.0\.0\.1"):
        open_away()


def test_a_wrong_password_is_no_reason_to_wait(open_away):
    with pytest.raises(LoginError):
        open_away(wait=True, password="wrong")


@pytest.fixture
def start_server(open_away, tmp_path):
    """Start a server. All servers have one cache folder, like several runs of one server."""
    return lambda **settings: open_away(**{"wait": True, "cache_path": tmp_path / "server", **settings})


@pytest.fixture
def kept(start_server, gate, draw, tmp_path):
    """The cache that a server left, with the label of an image. XNAT is away now."""
    server = start_server()
    image = server.list_images()[0]
    server.save_label(image, str(draw(5)), "final", {"n": 5})
    server.refresh()
    server.get_image_uri(image)
    server.get_label_uri(image, "final")
    server.close()
    gate.shut()
    (file,) = (tmp_path / "server").glob("*/listing-*.json")
    return image, file


def test_a_server_that_starts_while_xnat_is_away_shows_what_it_had_before(kept, start_server, gate, draw):
    image, file = kept
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    server = start_server()
    assert len(server.list_images()) == server.status()["total"] == 2
    assert server.get_labeled_images() == [image]
    assert voxels(server.get_image_uri(image)).shape == (7, 6, 5)
    np.testing.assert_array_equal(voxels(server.get_label_uri(image, "final")), voxels(draw(5)))
    for told in (server.status()["xnat"], server.description()):
        assert re.search(r"not answered since .* UTC; what is shown was listed at 20\d\d-.* UTC: .*127\.0\.0\.1", told)
    with pytest.raises(LabelNotUploadedError):
        server.save_label(image, str(draw(6)), "final", {"n": 6})
    gate.open()
    wait_until(lambda: "xnat" not in server.status() and not server.status().get("outbox"), seconds=30)
    assert server.get_label_info(image, "final")["n"] == 6
    assert "not answered" not in server.description()


def test_what_an_earlier_run_listed_is_shown_to_no_other_user_and_with_no_other_filter(kept, start_server):
    image, _ = kept
    for other in ({"username": "ann", "password": "x"}, {"project": "OTHER"}, {"modality": "MR"}, {"project": ""}):
        server = start_server(**other)
        assert server.status()["total"] == 0
        with pytest.raises(ServerError):
            server.list_images()
        with pytest.raises(ServerError):
            server.get_image_uri(image)


def test_what_an_earlier_run_listed_is_withdrawn_from_a_user_whom_xnat_refuses(kept, start_server, gate):
    image, file = kept
    server = start_server(password="changed")
    assert server.list_images()
    gate.open()
    wait_until(lambda: not file.exists() and server.status()["total"] == 0)
    for use in (server.list_images, lambda: server.get_image_uri(image), lambda: server.get_label_uri(image, "final")):
        with pytest.raises(LoginError):
            use()
    assert server.status()["label_tags"] == {}


def test_what_an_earlier_run_listed_is_gone_once_the_project_is_lost(kept, start_server, gate, sandbox, project):
    requests.delete(f"{sandbox.url}/data/projects/{project}", auth=(sandbox.username, sandbox.password))
    server = start_server()
    assert server.list_images()
    gate.open()
    wait_until(lambda: server.status()["total"] == 0)
    server.close()
    gate.shut()
    again = start_server()
    assert again.status()["total"] == 0


def test_nothing_is_trained_on_by_what_an_earlier_run_listed(kept, start_server):
    server = start_server()
    for use in (server.datalist, server.training_set, server.refresh):
        with pytest.raises(ServerError):
            use()


def test_a_name_is_not_looked_up_in_what_an_earlier_run_listed(start_server, gate, mask, tmp_path):
    server = start_server()
    image = add_named(server, tmp_path, "volume_1")
    server.close()
    gate.shut()
    server = start_server()
    assert image in server.list_images()
    with pytest.raises(ServerError):
        server.get_image_uri("volume_2")
    with pytest.raises(LabelNotUploadedError, match="sent again by itself"):
        server.save_label("volume_1", mask, "final", {})
    assert server.status()["outbox_waits"][0]["state"] == "named"


@pytest.mark.parametrize("damage", [lambda text: text.replace("CT", "MR"), lambda text: text[:-9], lambda _: ""])
def test_a_damaged_listing_of_an_earlier_run_is_not_shown(kept, start_server, damage):
    _, file = kept
    file.write_text(damage(file.read_text()))
    server = start_server()
    with pytest.raises(ServerError):
        server.list_images()


def test_a_kept_listing_comes_back_as_it_was(tmp_path):
    collection, drawn = (
        RoiCollection("X_1", "liver", "E", "SEG"),
        DrawnScan("3001", "E", "SEG", stored="2026-01-01T00:00:00"),
    )
    unread = tuple(UnreadDrawing("odd \ud800", "no reason", drawing) for drawing in (None, collection, drawn))
    resources = Resource("DICOM", 2, 99), Resource("odd", None, None)
    texts = "P", "s", "e", "xnat:ctSessionData", "", "CT", "é", "usable", "CT", "1.2", "1", None
    plain = Scan(ImageId("P", "S", "E", "1/2"), *texts, resources)
    scans = [plain, plain._replace(image_id=ImageId("P", "S", "E", "2"), drawings=(collection, drawn), unread=unread)]
    login = {"server": "http://127.0.0.1:9", "username": "u", "password": "p"}
    listing = KeptListing(Settings.load({**login, "cache_path": tmp_path}, environ={}))
    listing.keep(ImageIndex({str(scan.image_id): scan for scan in scans}))
    listing.close()
    assert listing.read().images.scans() == scans
    listing.remove()
    assert listing.read() is None


def test_a_setting_that_decides_what_is_listed_cannot_be_forgotten():
    others = {
        *(
            "password",
            "asset_path",
            "cache_path",
            "data_path",
            "cache_budget",
            "image_format",
            "gantry_tilt",
            "compress",
        ),
        *("prefetch", "labels", "label_resource", "roi_write", "label_scan", "read_only", "dry_run", "allow_delete"),
        *("keep_versions", "connections", "rate_limit", "timeout", "deadline", "wait", "max_age", "claim_time"),
        *("verify_age", "verify_tls", "ca_bundle", "client_certificate"),
    }
    assert {item.name for item in fields(Settings)} == {*DECIDING, *others}
