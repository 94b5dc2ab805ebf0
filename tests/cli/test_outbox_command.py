from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.cli.main import main
from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LabelNotUploadedError
from monailabel_xnat.images import Images
from monailabel_xnat.labels import Labels, LabelStore
from monailabel_xnat.sandbox import Sandbox

IMAGE = nibabel.Nifti1Image(np.ones((4, 4, 3), np.uint8), np.diag([-1.0, -1.0, 2.0, 1.0]))


@pytest.fixture(scope="module")
def archive(put_scans):
    with Sandbox() as sandbox:
        put_scans(sandbox, {"1": IMAGE.to_bytes()})
        yield sandbox


@pytest.fixture
def words(archive, tmp_path, monkeypatch):
    """The options and the environment of a user with a cache folder that only this test uses."""
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", archive.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.password)
    return ["--studies", archive.url, "--cache-path", str(tmp_path / "cache")]


@pytest.fixture
def waiting(archive, words, tmp_path):
    """A label that could not be sent."""
    given = {"server": archive.url, "project": "P", "cache_path": tmp_path / "cache"}
    settings = Settings.load(given)
    session = Session(settings, Backoff(first_pause=0.01))
    catalog, images = Catalog(session), Images(session, settings)
    store = LabelStore(session, catalog, images, settings, Labels(session, catalog, images, settings))
    nibabel.save(IMAGE, tmp_path / "label.nii.gz")
    archive.faults.add("MONAILABEL_", status=503, times=None)
    with pytest.raises(LabelNotUploadedError):
        store.save(catalog.scan("P/s/e/1"), "final", tmp_path / "label.nii.gz", {})
    store.close()
    yield catalog.scan("P/s/e/1"), session
    archive.faults.clear()
    session.close()


def test_nothing_waits(words, capsys):
    assert main(["outbox", *words]) == 0
    assert main(["outbox", "replay", *words]) == 0
    assert "No label waits" in capsys.readouterr().out


def test_a_word_that_is_no_command_is_named(words, capsys):
    """It was taken for an argument of the command list."""
    assert main(["outbox", "send", *words]) == 2
    assert "No such command 'send'" in capsys.readouterr().err


def test_what_waits_is_listed_with_the_reason(waiting, words, capsys):
    assert main(["outbox", *words]) == 0
    out = capsys.readouterr().out
    assert "  final  " in out
    assert "tried 1 times" in out
    assert "503" in out
    assert "1 labels wait" in out


def test_the_list_is_for_programs_too(waiting, words, capsys):
    assert main(["outbox", "list", "--json", *words]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["image"], entry["tag"], entry["state"]) == (str(waiting[0].image_id), "final", "ready")
    assert entry["attempts"] == 1


def test_replay_sends_what_waits(waiting, words, archive, capsys):
    scan, session = waiting
    archive.faults.clear()
    assert main(["outbox", "replay", *words]) == 0
    assert "No label waits" in capsys.readouterr().out
    assert len(list_files(session, f"{scan.path}/resources/MONAILABEL_final")) == 2


def test_replay_says_by_its_status_that_something_still_waits(waiting, words, archive, capsys):
    archive.faults.clear()
    archive.faults.add("MONAILABEL_", method="PUT", status=403, times=None)
    assert main(["outbox", "replay", *words]) == 1
    assert "no permission to edit" in capsys.readouterr().out


def test_a_missing_address_is_said_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["outbox"]) == 2
    assert "no XNAT server given" in capsys.readouterr().err
