"""The command that measures how far labels agree, between tags, annotators and versions."""

from __future__ import annotations

import json
from contextlib import contextmanager

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.sandbox import Sandbox

AFFINE = np.diag([-2.0, -1.0, 5.0, 1.0])  # a voxel has 10 mm3
SHAPE = (10, 10, 6)


@pytest.fixture(scope="module")
def archive(put_scans):
    with filled(put_scans) as sandbox:
        yield sandbox


@contextmanager
def filled(put_scans):
    image = nibabel.Nifti1Image(np.arange(600, dtype=np.int16).reshape(SHAPE), AFFINE).to_bytes()
    with Sandbox() as sandbox:
        put_scans(sandbox, {"1": image})
        members = f"{sandbox.url}/data/projects/P/users/Members/member"
        requests.put(members, auth=(sandbox.username, sandbox.password), timeout=30).raise_for_status()
        yield sandbox


def save(archive, folder, user, tag, array, values, names=None):
    given = {"project": "P", "cache_path": folder / user, "environ": {}}
    with XNATDatastore(archive.url, user, archive.users[user], **given) as datastore:
        nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), AFFINE), folder / "label.nii.gz")
        (image,) = datastore.list_images()
        info = {"label_info": [{"name": name, "idx": value} for name, value in values.items()]}
        info = {"label_info": names} if names else info
        datastore.save_label(image, str(folder / "label.nii.gz"), tag, info)
        return image


@pytest.fixture(scope="module")
def image(archive, tmp_path_factory):
    """A draft with a liver of value 1, and a final label with a liver of value 2, half of it in common."""
    folder = tmp_path_factory.mktemp("compared")
    draft, final = np.zeros(SHAPE), np.zeros(SHAPE)
    draft[0:4, :, 2], final[2:6, :, 2] = 1, 2
    final[9, 9, 5] = 1
    save(archive, folder, archive.username, "original", draft, {"liver": 1})
    save(archive, folder, archive.username, "final", draft, {"liver": 1})
    return save(archive, folder, "member", "final", final, {"liver": 2, "cyst": 1})


@pytest.fixture
def words(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", archive.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.password)
    return ["--studies", archive.url, "--cache-path", str(tmp_path / "cache")]


def compare(capsys, image, *words):
    assert main(["labels", "compare", image, *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_structures_are_matched_by_name_and_measured_in_millimetres(image, words, capsys):
    (pair,) = compare(capsys, image, "original", "final", *words)
    assert pair["labels"] == ["original", "final"]
    found = {item["name"]: item for item in pair["structures"]}
    assert found["liver"]["dice"] == pytest.approx(0.5)
    assert found["liver"]["volumes"] == pytest.approx([0.4, 0.4])  # 40 voxels of 10 mm3, in ml
    assert found["liver"]["greatest_distance"] == pytest.approx(4.0)  # two rows of 2 mm
    assert 0 < found["liver"]["mean_distance"] <= 4.0
    assert found["cyst"]["dice"] == 0.0
    assert found["cyst"]["volumes"] == pytest.approx([0.0, 0.01])
    assert found["cyst"]["greatest_distance"] is None


def test_a_structure_of_two_values_is_compared_in_its_last_part_only(put_scans, tmp_path, monkeypatch, capsys):
    parts, whole = np.zeros(SHAPE), np.zeros(SHAPE)
    parts[0:2, :, 3], parts[2:4, :, 3], whole[0:4, :, 3] = 1, 2, 1
    named = [{"name": "lesion", "idx": 1}, {"name": "lesion", "idx": 2}]
    with filled(put_scans) as archive:
        monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", archive.username)
        monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.password)
        save(archive, tmp_path, archive.username, "parts", parts, {}, named)
        image = save(archive, tmp_path, archive.username, "whole", whole, {"lesion": 1})
        words = ["--studies", archive.url, "--cache-path", str(tmp_path / "cache")]
        (pair,) = compare(capsys, image, "parts", "whole", *words)
    assert [(item["name"], item["dice"]) for item in pair["structures"]] == [("lesion", 1.0)]


def test_the_labels_of_two_annotators_are_compared(archive, image, words, capsys):
    (pair,) = compare(capsys, image, f"final:{archive.username}", "final:member", *words)
    assert {item["name"]: item["dice"] for item in pair["structures"]}["liver"] == pytest.approx(0.5)


def test_without_names_all_tags_are_compared(image, words, capsys):
    (pair,) = compare(capsys, image, *words)
    assert sorted(pair["labels"]) == ["final", "original"]


def test_an_earlier_version_agrees_with_the_draft_that_it_was(image, words, capsys):
    assert main(["labels", "history", image, "final", "--json", *words]) == 0
    oldest = json.loads(capsys.readouterr().out)[-1]["version"]
    (pair,) = compare(capsys, image, "original", f"final@{oldest}", *words)
    assert [(item["name"], item["dice"]) for item in pair["structures"]] == [("liver", 1.0)]


def test_the_error_for_an_annotator_without_labels_names_those_with_labels(archive, image, words, capsys):
    assert main(["labels", "compare", image, "original", "final:nobody", *words]) == 1
    said = capsys.readouterr().err
    assert "nobody" in said
    assert "member" in said


def test_a_picture_shows_where_they_differ(image, words, tmp_path, capsys):
    import SimpleITK

    picture = tmp_path / "difference.png"
    compare(capsys, image, "original", "final", "--picture", str(picture), *words)
    drawn = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(picture))).astype(int)
    assert drawn.shape == (10, 10, 3)
    blue, green = drawn[:, 4:6].reshape(-1, 3), drawn[:, 2:4].reshape(-1, 3)
    assert (blue[:, 2] > blue[:, 0]).all()  # only in the second
    assert (green[:, 1] > green[:, 0]).all()  # in both


def test_a_picture_is_a_png_whatever_its_name_and_a_missing_folder_is_one_line(image, words, tmp_path, capsys):
    picture = tmp_path / "difference.jpg"
    compare(capsys, image, "original", "final", "--picture", str(picture), *words)
    assert picture.read_bytes().startswith(b"\x89PNG")
    asked = ["labels", "compare", image, "original", "final", "--picture", str(tmp_path / "missing" / "x.png")]
    assert main([*asked, *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"monailabel-xnat: error: cannot write {tmp_path}/missing/x.png")
    assert len(said.splitlines()) == 1
