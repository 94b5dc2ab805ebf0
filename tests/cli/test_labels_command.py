from __future__ import annotations

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.sandbox import Sandbox

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (4, 4, 3)
INFO = {"model": "deepedit", "label_info": [{"name": "liver", "idx": 1}]}
ENVIRONMENT = ("MONAI_LABEL_XNAT_USERNAME", "MONAI_LABEL_XNAT_PASSWORD")


@pytest.fixture(scope="module")
def archive(put_scans):
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE).to_bytes()
    with Sandbox() as sandbox:
        put_scans(sandbox, {"1": image, "2": image})
        yield sandbox


@pytest.fixture
def words(archive, tmp_path, monkeypatch):
    for name, value in zip(ENVIRONMENT, (archive.username, archive.password), strict=True):
        monkeypatch.setenv(name, value)
    return ["--studies", archive.url, "--cache-path", str(tmp_path / "cache")]


@pytest.fixture
def datastore(archive, tmp_path):
    given = {"project": "P", "cache_path": tmp_path / "datastore", "environ": {}}
    datastore = XNATDatastore(archive.url, archive.username, archive.password, **given)
    yield datastore
    datastore.close()


@pytest.fixture
def saved(datastore, tmp_path):
    """An image whose label was saved with a liver of 5 voxels, then with one of 7."""
    image = datastore.list_images()[0]
    datastore.remove_label(image, "final")
    for count in (5, 7):
        array = np.zeros(SHAPE, np.uint8)
        array.flat[:count] = 1
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "label.nii.gz")
        datastore.save_label(image, str(tmp_path / "label.nii.gz"), "final", INFO)
    return image


def history(words, image, capsys):
    assert main(["labels", "history", image, "final", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def voxels(datastore, image):
    return int(np.count_nonzero(np.asarray(nibabel.load(datastore.get_label_uri(image, "final")).dataobj)))


def test_the_history_lists_versions_newest_first(saved, words, archive, capsys):
    assert main(["labels", "history", saved, "final", *words]) == 0
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert f" by {archive.username} with deepedit" in first
    assert second == "  1  liver  7 voxels"
    assert first > third
    assert fourth == "  1  liver  5 voxels"


def test_the_history_is_for_programs_too(saved, words, archive, datastore, capsys):
    newest, oldest = history(words, saved, capsys)
    assert (newest["saved_by"], newest["model"], newest["in_xnat"]) == (archive.username, "deepedit", True)
    assert newest["saved_at"] > oldest["saved_at"]
    assert oldest["segments"][0]["voxels"] == 5
    assert oldest["restored_from"] is None
    assert datastore.label_history(saved, "final") == [newest, oldest]


def test_an_earlier_version_is_restored_as_a_new_one(saved, words, datastore, capsys):
    oldest = history(words, saved, capsys)[-1]["version"]
    assert main(["labels", "restore", saved, "final", oldest, *words]) == 0
    told = capsys.readouterr().out
    name = history(words, saved, capsys)[0]["version"]
    assert told == f"{saved}  final  {name}  has the content of {oldest}\n"
    datastore.refresh()
    restored, _, original = datastore.label_history(saved, "final")
    assert (restored["version"], restored["restored_from"]) == (name, original["version"])
    assert restored["segments"] == original["segments"]
    assert voxels(datastore, saved) == 5
    assert datastore.get_label_info(saved, "final")["model"] == "deepedit"


def test_what_was_restored_is_said_to_programs_too(saved, words, capsys):
    oldest = history(words, saved, capsys)[-1]["version"]
    assert main(["labels", "restore", saved, "final", oldest, "--json", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    newest = history(words, saved, capsys)[0]["version"]
    assert said == {"image": saved, "tag": "final", "version": newest, "restored_from": oldest}


def test_the_datastore_restores_likewise(saved, datastore):
    newest, oldest = datastore.label_history(saved, "final")
    name = datastore.restore_label(saved, "final", oldest["version"])
    assert name > newest["version"]
    assert voxels(datastore, saved) == 5


def test_what_waits_in_the_outbox_is_part_of_the_history(saved, words, archive, capsys):
    oldest = history(words, saved, capsys)[-1]["version"]
    archive.faults.add("MONAILABEL_", method="PUT", status=403, times=None)
    try:
        assert main(["labels", "restore", saved, "final", oldest, *words]) == 1
        assert "It is safe in " in capsys.readouterr().err
        assert main(["labels", "history", saved, "final", *words]) == 0
        out = capsys.readouterr().out
    finally:
        archive.faults.clear()
    assert f"  restored from {oldest}\n  waits in the outbox\n" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["history", "P/s/e", "final"], 2, "malformed image id 'P/s/e'"),
        (["history", "P/s/e/99", "final"], 1, "P/s/e/99"),
        (["history", "{image}", "finale"], 1, "it has labels with the tags final"),
        (["restore", "{image}", "final", "20260101T000000000000Z-0123456789ab"], 1, "no version 20260101T0"),
    ],
)
def test_a_missing_object_is_an_error_of_one_line(saved, words, capsys, arguments, status, message):
    assert main(["labels", *(word.replace("{image}", saved) for word in arguments), *words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_xnat_that_is_away_is_an_error_of_one_line(words, capsys):
    words[1] = "http://127.0.0.1:9"
    assert main(["labels", "history", "P/s/e/1", "final", *words]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_does_not_import_monai_label():
    code = "import sys, monailabel_xnat.cli.labels; assert not {'monailabel', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
