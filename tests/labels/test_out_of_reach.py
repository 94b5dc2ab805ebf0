"""Labels of images that are not available, unknown or ambiguous: no drawing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.errors import (
    AmbiguousNameError,
    InvalidIdError,
    LabelFileError,
    LabelGeometryError,
    LabelNotUploadedError,
    ReadOnlyError,
    UnknownImageError,
)
from monailabel_xnat.sandbox import Sandbox

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
SHAPE = (7, 6, 5)
ANSWERS = [{"status": status} for status in (500, 403, 409, 413, 422, 503)] + [{"login_page": True}]


@pytest.fixture(scope="module")
def site():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def open_datastore(site, tmp_path, monkeypatch):
    site.reset()
    monkeypatch.setattr(Backoff, "__init__", _impatient)
    rest = requests.Session()
    rest.auth = (site.username, site.password)
    for project in "AB":
        rest.put(f"{site.url}/data/projects/{project}").raise_for_status()
    opened = []

    def open_datastore(**settings):
        given = {"project": "A", "environ": {}, "cache_path": tmp_path / "cache", **settings}
        opened.append(XNATDatastore(site.url, site.username, site.password, **given))
        return opened[-1]

    yield open_datastore
    site.faults.clear()
    for datastore in opened:
        datastore.close()


_patient = Backoff.__init__


def _impatient(self, *_args, **_options):
    _patient(self, attempts=2, first_pause=0.01)


def image(path, seed=0):
    array = np.random.default_rng(seed).integers(0, 99, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return str(path)


@pytest.fixture
def mask(tmp_path):
    """A label in one of the formats that clients send, and its voxels."""

    def mask(extension=".nii.gz", shape=SHAPE):
        array = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
        path = tmp_path / f"mask{extension}"
        if extension == ".bin":
            path.write_bytes(array.tobytes(order="F"))
        elif extension == ".json":
            path.write_text(json.dumps({"boxes": [1, 2]}))
        else:
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
        return str(path), array

    return mask


@pytest.fixture
def stored(open_datastore, tmp_path):
    """The id of an image that is in XNAT, but not in any cache."""
    return open_datastore(cache_path=tmp_path / "another").add_image("A/s/e/1", image(tmp_path / "image.nii.gz"), {})


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def listed(site, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
    words = ["--studies", site.url, "--username", site.username, "--cache-path", str(tmp_path / "cache")]
    main(["outbox", "--json", *words])
    return json.loads(capsys.readouterr().out), words


@pytest.mark.parametrize("extension", [".nii.gz", ".bin", ".json"])
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_label_is_kept_whatever_xnat_answers_for_its_image(open_datastore, site, stored, mask, answer, extension):
    datastore = open_datastore()
    source, array = mask(extension)
    site.faults.add(r"/scans/1/resources|/scans/1/files", times=None, **answer)
    with pytest.raises(LabelNotUploadedError) as caught:
        datastore.save_label(stored, source, "final", {"by": "ann"})
    assert caught.value.status_code == 503
    assert datastore.status()["outbox"] == 1
    assert (datastore.get_label_uri(stored, "final") != "") == (extension != ".bin")
    site.faults.clear()
    assert datastore._store.replay() == {}
    assert "outbox" not in datastore.status()
    reader = open_datastore()
    assert reader.get_label_info(stored, "final")["by"] == "ann"
    if extension != ".json":
        np.testing.assert_array_equal(voxels(reader.get_label_uri(stored, "final")), array)
        (version,) = reader.label_history(stored, "final")
        assert sum(segment["voxels"] for segment in version["segments"]) == np.count_nonzero(array)
    assert len(reader.label_history(stored, "final")) == 1


def test_a_raw_label_that_does_not_fit_is_refused_at_last_and_kept(open_datastore, site, stored, mask):
    datastore = open_datastore()
    source, _ = mask(".bin", shape=(2, 2, 2))
    site.faults.add(r"/scans/1/resources|/scans/1/files", status=500, times=None)
    with pytest.raises(LabelNotUploadedError):
        datastore.save_label(stored, source, "final", {})
    site.faults.clear()
    (reason,) = datastore._store.replay().values()
    assert "8 bytes" in reason
    assert datastore.status()["outbox"] == 1
    assert datastore.get_labels_by_image_id(stored) == {}


def test_what_is_no_label_is_refused_even_where_the_image_cannot_be_had(open_datastore, site, stored, tmp_path):
    datastore = open_datastore()
    (tmp_path / "x.nii.gz").write_text("words")
    site.faults.add("/scans/1/", status=500, times=None)
    with pytest.raises(LabelFileError):
        datastore.save_label(stored, str(tmp_path / "x.nii.gz"), "final", {})
    assert "outbox" not in datastore.status()


@pytest.mark.parametrize("extension", [".nii.gz", ".bin", ".json"])
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_label_of_an_image_that_xnat_does_not_know_any_more_is_kept_as_unassigned(
    open_datastore, site, stored, mask, tmp_path, capsys, monkeypatch, extension, is_cached
):
    datastore = open_datastore()
    if is_cached:
        datastore.get_image_uri(stored)
    address = f"{site.url}/data/experiments/{stored.split('/')[2]}/scans/1"
    requests.delete(address, auth=(site.username, site.password), params={"removeFiles": "true"}).raise_for_status()
    source, array = mask(extension)
    with pytest.raises(UnknownImageError) as caught:
        datastore.save_label(stored, source, "final", {"by": "ann"})
    assert caught.value.status_code == 404
    assert datastore.get_labels_by_image_id(stored) == {}
    assert (datastore.status()["outbox"], datastore.status()["unassigned"]) == (1, 1)
    assert datastore._store.replay() == {}
    ((entry,), words) = listed(site, tmp_path, capsys, monkeypatch)
    assert (entry["state"], entry["image"], entry["tag"]) == ("unassigned", stored, "final")
    assert entry["folder"] in str(caught.value)
    new = datastore.add_image("A/s/e/2", image(tmp_path / "again.nii.gz"), {})
    assert main(["outbox", "assign", entry["folder"], new, *words]) == 0
    capsys.readouterr()
    assert listed(site, tmp_path, capsys, monkeypatch)[0] == []
    reader = open_datastore()
    assert reader.get_label_info(new, "final")["by"] == "ann"
    if extension != ".json":
        np.testing.assert_array_equal(voxels(reader.get_label_uri(new, "final")), array)
    assert "outbox" not in reader.status()


@pytest.mark.parametrize(
    ("given", "error", "status"),
    [("volume 1", UnknownImageError, 404), ("A/s/e/77", UnknownImageError, 404), ("A/s", InvalidIdError, 400)],
)
def test_a_label_under_an_id_that_nobody_knows_is_kept(
    open_datastore, site, stored, mask, tmp_path, capsys, monkeypatch, given, error, status
):
    datastore = open_datastore()
    source, array = mask()
    with pytest.raises(error) as caught:
        datastore.save_label(given, source, "original", {"by": "ann"})
    assert caught.value.status_code == status
    ((entry,), words) = listed(site, tmp_path, capsys, monkeypatch)
    assert (entry["state"], entry["image"], entry["tag"]) == ("unassigned", given, "original")
    assert datastore.status()["unassigned"] == 1
    assert open_datastore().status()["label_tags"] == {}
    capsys.readouterr()
    assert main(["outbox", "assign", entry["folder"], stored, "--json", *words]) == 0
    datastore.refresh()
    (version,) = datastore.label_history(stored, "original")
    said = json.loads(capsys.readouterr().out)
    assert said == {"image": stored, "tag": "original", "version": version["version"]}
    np.testing.assert_array_equal(voxels(datastore.get_label_uri(stored, "original")), array)
    assert main(["outbox", "assign", entry["folder"], stored, *words]) == 2


def test_a_label_that_is_assigned_to_the_wrong_image_is_not_lost(
    open_datastore, site, stored, mask, tmp_path, capsys, monkeypatch
):
    datastore = open_datastore()
    with pytest.raises(UnknownImageError):
        datastore.save_label("volume 1", mask(shape=(9, 9, 9))[0], "final", {})
    ((entry,), words) = listed(site, tmp_path, capsys, monkeypatch)
    assert main(["outbox", "assign", entry["folder"], stored, *words]) != 0
    capsys.readouterr()
    ((entry,), words) = listed(site, tmp_path, capsys, monkeypatch)
    assert entry["state"] == "refused"


def test_a_label_under_a_name_that_two_images_bear_is_kept_as_unassigned(open_datastore, mask, tmp_path, capsys, site):
    for seed, project in enumerate("AB"):
        open_datastore(project=project).add_image("volume 1", image(tmp_path / f"{project}.nii.gz", seed), {})
    datastore = open_datastore(project="A,B")
    with pytest.raises(AmbiguousNameError) as caught:
        datastore.save_label("volume 1", mask()[0], "final", {})
    assert caught.value.status_code == 409
    assert all(found in str(caught.value) for found in datastore.list_images())
    assert "It is safe" in str(caught.value) or "it is safe in" in str(caught.value)
    assert datastore.status()["unassigned"] == 1
    assert datastore.status()["label_tags"] == {}


def test_what_is_no_label_or_must_not_be_written_is_not_kept(open_datastore, mask, tmp_path):
    (tmp_path / "x.nii.gz").write_text("words")
    with pytest.raises(UnknownImageError):
        open_datastore().save_label("volume 1", str(tmp_path / "x.nii.gz"), "final", {})
    reader = open_datastore(read_only=True)
    with pytest.raises((UnknownImageError, ReadOnlyError)):
        reader.save_label("volume 1", mask()[0], "final", {})
    assert "outbox" not in reader.status()


def test_a_label_that_does_not_fit_is_refused_at_once_where_the_image_is_there(open_datastore, stored, mask):
    datastore = open_datastore()
    with pytest.raises(LabelGeometryError):
        datastore.save_label(stored, mask(shape=(9, 9, 9))[0], "final", {})
    assert "outbox" not in datastore.status()
    assert Path(datastore.get_image_uri(stored)).exists()
