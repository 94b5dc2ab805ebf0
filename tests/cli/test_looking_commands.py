"""The commands that change nothing: check, settings, ls, cache, labels show."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.sandbox import Sandbox

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (4, 4, 3)


@pytest.fixture(scope="module")
def archive(put_scans):
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE).to_bytes()
    described = {
        "1": {"series_description": "abdomen", "modality": "CT"},
        "2": {"series_description": "[red]head", "modality": "CT"},
    }
    with Sandbox() as sandbox:
        put_scans(sandbox, dict.fromkeys(described, image), described)
        yield sandbox


@pytest.fixture(scope="module")
def labelled(archive, tmp_path_factory):
    """The first image, which has a final label."""
    folder = tmp_path_factory.mktemp("labelled")
    given = {"project": "P", "cache_path": folder / "cache", "environ": {}}
    with XNATDatastore(archive.url, archive.username, archive.password, **given) as datastore:
        array = np.zeros(SHAPE, np.uint8)
        array.flat[:5] = 1
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / "label.nii.gz")
        image = datastore.list_images()[0]
        datastore.save_label(
            image, str(folder / "label.nii.gz"), "final", {"label_info": [{"name": "liver", "idx": 1}]}
        )
    return image


@pytest.fixture
def words(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", archive.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.password)
    return ["--studies", archive.url, "--cache-path", str(tmp_path / "cache"), "--project", "P"]


def answer(capsys, *words):
    status = main([*words, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_ls_shows_what_an_image_is_and_who_labelled_it(archive, labelled, words, capsys):
    status, (first, second) = answer(capsys, "ls", *words)
    assert status == 0
    assert first["image_id"] == labelled
    assert (first["series_description"], first["modality"], first["subject"]) == ("abdomen", "CT", "s")
    assert first["labels"]["final"]["saved_by"] == archive.username
    assert first["labels"]["final"]["in_xnat"] is True
    assert second["labels"] == {}


def test_ls_finds_the_images_that_are_still_to_be_labelled(labelled, words, capsys):
    _, (left,) = answer(capsys, "ls", "--unlabeled", *words)
    assert left["image_id"] != labelled
    _, (done,) = answer(capsys, "ls", "--tag", "final", *words)
    assert done["image_id"] == labelled
    assert answer(capsys, "ls", "--tag", "original", *words) == (0, [])


def test_ls_takes_the_filters_of_the_settings(labelled, words, capsys):
    _, (found,) = answer(capsys, "ls", *words, "--conf", "xnat_series_description", "*head")
    assert found["series_description"] == "[red]head"


def test_ls_all_says_which_settings_leave_a_scan_out(labelled, words, capsys):
    filters = ["--conf", "xnat_series_description", "*head", "--conf", "xnat_image_resource", "NIFTI,!DICOM"]
    _, (image, other) = answer(capsys, "ls", "--all", *words, *filters)
    assert (image["series_description"], image["left_out"]) == ("[red]head", "")
    assert other["image_id"] == labelled
    assert other["left_out"] == "the setting series_description='*head' leaves out 'abdomen'"
    assert main(["ls", "--all", *words, *filters]) == 0
    assert "left out: the setting series_description='*head'" in capsys.readouterr().out.splitlines()[1]
    assert answer(capsys, "ls", "--all", *words)[1][0]["left_out"] == ""


@pytest.mark.parametrize("more", [["--unlabeled"], ["--tag", "final"]])
def test_ls_all_is_not_about_labels(words, capsys, more):
    assert main(["ls", "--all", *more, *words]) == 2
    assert "goes with neither" in capsys.readouterr().err


def test_ls_prints_whole_cells_to_a_pipe(labelled, words, capsys):
    assert main(["ls", *words]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("\t")[:3] == [labelled, "abdomen", "CT"]
    assert second.split("\t")[1] == "[red]head"


@pytest.mark.skipif(os.name != "posix", reason="a terminal of Unix")
def test_ls_draws_a_table_on_a_terminal(labelled, words):
    controller, terminal = pty.openpty()
    environ = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-m", "monailabel_xnat", "ls", *words], stdout=terminal, env=environ, timeout=120, check=True
    )
    os.close(terminal)
    said = os.read(controller, 100_000).decode()
    os.close(controller)
    assert done.returncode == 0
    assert "series" in said  # the head of the table
    assert "[red]head" in said  # text from XNAT is not read as markup


@pytest.mark.skipif(os.name != "posix", reason="a terminal of Unix")
def test_ids_are_whole_on_a_narrow_terminal(labelled, words):
    """They were cut, so that nobody could copy them."""
    controller, terminal = pty.openpty()
    environ = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}
    command = [sys.executable, "-m", "monailabel_xnat", "ls", *words]
    subprocess.run(command, stdout=terminal, env=environ, timeout=120, check=True)
    os.close(terminal)
    said = os.read(controller, 100_000).decode()
    os.close(controller)
    assert "\u2026" not in said
    first = "".join(line.split(" ")[0].strip() for line in said.splitlines()[1:])
    assert labelled in first


@pytest.mark.skipif(os.name != "posix", reason="a terminal of Unix")
def test_ids_are_in_one_line_where_the_terminal_is_wide_enough(labelled, words):
    """They were folded to make room for the other columns, so that nobody could copy them with one click."""
    controller, terminal = pty.openpty()
    environ = {**os.environ, "COLUMNS": "70", "TERM": "xterm"}
    command = [sys.executable, "-m", "monailabel_xnat", "ls", *words]
    subprocess.run(command, stdout=terminal, env=environ, timeout=120, check=True)
    os.close(terminal)
    said = os.read(controller, 100_000).decode()
    os.close(controller)
    assert labelled in said
    assert said.splitlines()[0].rstrip("\x1b[0m ").endswith("note")  # the last column was pushed out of the terminal


def test_labels_show_says_what_each_label_holds(labelled, words, capsys):
    _, found = answer(capsys, "labels", "show", labelled, *words)
    assert [segment["voxels"] for segment in found["final"]["segments"]] == [5]


def test_check_finds_nothing_wrong_with_a_sandbox(labelled, words, capsys):
    status, findings = answer(capsys, "check", "--write", *words)
    states = {finding["subject"]: finding["state"] for finding in findings}
    assert status == 0, findings
    assert {subject: states[subject] for subject in ("login", "XNAT version", "images", "writing to P", "outbox")} == {
        "login": "ok", "XNAT version": "ok", "images": "ok", "writing to P": "ok", "outbox": "ok",
    }  # fmt: skip
    assert all(finding["remedy"] for finding in findings if finding["state"] == "failed")


def test_check_leaves_nothing_behind_after_a_try_to_write(archive, labelled, words, capsys):
    answer(capsys, "check", "--write", *words)
    files = f"{archive.url}/data/projects/P/resources/MONAILABEL_check/files?format=json"
    found = requests.get(files, auth=(archive.username, archive.password), timeout=30)
    assert found.status_code == 404 or found.json()["ResultSet"]["Result"] == []


def test_check_says_what_helps_against_a_wrong_password(words, capsys, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", "wrong")
    status, findings = answer(capsys, "check", *words)
    assert status == 1
    assert findings[-1]["state"] == "failed"
    assert "password" in findings[-1]["message"] + findings[-1]["remedy"]
    assert "wrong" not in json.dumps(findings)


def test_check_says_when_saving_will_be_refused(archive, words, capsys, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", "none")
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.users["none"])
    auth = (archive.username, archive.password)
    requests.put(f"{archive.url}/data/projects/P/accessibility/public", auth=auth, timeout=30).raise_for_status()
    try:
        _, findings = answer(capsys, "check", *words)
    finally:
        requests.put(f"{archive.url}/data/projects/P/accessibility/private", auth=auth, timeout=30).raise_for_status()
    (rights,) = [finding for finding in findings if finding["subject"] == "rights in P"]
    assert rights["state"] == "warning"
    assert "member" in rights["remedy"]


def test_check_says_when_the_archive_is_not_mounted(labelled, words, capsys, tmp_path):
    status, findings = answer(capsys, "check", *words, "--conf", "xnat_asset_path", str(tmp_path / "nothing"))
    (mount,) = [finding for finding in findings if finding["subject"] == "archive mount"]
    assert (status, mount["state"]) == (1, "failed")


def test_settings_say_where_each_value_comes_from_and_hide_the_password(archive, words, capsys):
    assert main(["settings", "--json", *words, "--conf", "xnat_modality", "MR,CT"]) == 0
    said = capsys.readouterr().out
    found = {row["setting"]: row for row in json.loads(said)}
    assert archive.password not in said
    assert found["password"]["value"] == "***"
    assert found["password"]["from"] == "environment variable MONAI_LABEL_XNAT_PASSWORD"
    assert (found["modality"]["value"], found["modality"]["from"]) == (["MR", "CT"], "--conf xnat_modality")
    assert found["timeout"]["from"] == "default"
    assert all(row["meaning"] for row in found.values())


def test_settings_name_netrc(archive, tmp_path, capsys, monkeypatch):
    host = archive.url.partition("//")[2]
    (tmp_path / "netrc").write_text(f"machine {host} login {archive.username} password {archive.password}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("MONAI_LABEL_XNAT_USERNAME", "MONAI_LABEL_XNAT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    _, rows = answer(capsys, "settings", "--studies", archive.url)
    assert {row["from"] for row in rows if row["setting"] in ("username", "password")} == {"~/.netrc"}


def test_the_cache_is_counted_verified_and_pruned(archive, labelled, words, capsys, tmp_path):
    given = {"project": "P", "cache_path": tmp_path / "cache", "environ": {}}
    with XNATDatastore(archive.url, archive.username, archive.password, **given) as datastore:
        path = datastore.get_image_uri(labelled)
    _, facts = answer(capsys, "cache", "info", *words)
    assert (facts["images"], facts["bytes"]) == (1, os.path.getsize(path))
    assert facts["bytes_of_all_servers"] == facts["bytes"]
    assert answer(capsys, "cache", "verify", *words) == (0, {"damaged": [], "removed": False})
    with open(path, "r+b") as stream:
        stream.seek(400)
        stream.write(b"\xff")
    assert answer(capsys, "cache", "verify", *words) == (1, {"damaged": [labelled], "removed": False})
    assert answer(capsys, "cache", "verify", "--remove", *words)[0] == 0
    assert answer(capsys, "cache", "info", *words)[1]["images"] == 0
    assert answer(capsys, "cache", "prune", *words) == (0, {"freed_bytes": 0})


def test_a_server_that_does_not_answer_leaves_no_folder(tmp_path, capsys):
    assert main(["ls", "--studies", "http://127.0.0.1:9", "--project", "P", "--cache-path", str(tmp_path / "c")]) == 1
    assert "cannot reach http://127.0.0.1:9: the connection was refused" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_come_from_the_environment(labelled, words, capsys, monkeypatch):
    monkeypatch.setenv("MONAILABEL_XNAT_LS_TAG", "original")
    assert answer(capsys, "ls", *words) == (0, [])


def test_a_missing_address_is_one_line(capsys, monkeypatch):
    for source in ("MONAI_LABEL_XNAT_SERVER", "MONAI_LABEL_DATASTORE_URL", "XNATPY_HOST", "XNAT_HOST"):
        monkeypatch.delenv(source, raising=False)
    assert main(["ls"]) == 2
    assert "no XNAT server given" in capsys.readouterr().err


def test_a_setting_without_its_prefix_is_refused_and_not_passed_over(words, capsys):
    assert main(["ls", *words, "--conf", "project", "OTHER"]) == 2
    assert "their names begin with xnat_" in capsys.readouterr().err
    assert main(["ls", *words, "--conf", "datastore", "xnat", "--conf", "xnat_project", "P"]) == 0


def test_only_the_help_of_a_command_that_starts_an_app_offers_options_of_the_app(capsys):
    assert main(["batch-infer", "--help"]) == 0
    assert "option of the app" in " ".join(capsys.readouterr().out.split())
    assert main(["ls", "--help"]) == 0
    assert "of the app" not in " ".join(capsys.readouterr().out.split())
