"""A file that was read once is not read again, as long as XNAT shows no change.

Neither a renewal nor another process reads it again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat.catalog.read_cache import Fact, ReadCache
from monailabel_xnat.config import Settings

IMAGES = 6
SHAPE = (5, 4, 3)


@pytest.fixture
def admin(xnat_sandbox):
    with requests.Session() as admin:
        admin.auth = (xnat_sandbox.username, xnat_sandbox.password)
        admin.headers["Content-Type"] = "application/octet-stream"
        yield admin


@pytest.fixture
def archive(xnat_sandbox, admin):
    """A project of small images, each in a session of its own."""
    project = f"{xnat_sandbox.url}/data/projects/P"
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)).to_bytes()
    admin.put(project).raise_for_status()
    for number in range(IMAGES):
        session = f"{project}/subjects/s{number}/experiments/e{number}"
        admin.put(f"{project}/subjects/s{number}").raise_for_status()
        admin.put(f"{session}?xsiType=xnat:ctSessionData").raise_for_status()
        admin.put(f"{session}/scans/1?xsiType=xnat:ctScanData&xnat:ctScanData/type=CT").raise_for_status()
        admin.put(f"{session}/scans/1/resources/NIFTI/files/image.nii", data=image).raise_for_status()
    return xnat_sandbox


@pytest.fixture
def open_datastore(archive, open_xnat_datastore):
    return lambda **settings: open_xnat_datastore(project="P", **settings)


@pytest.fixture
def labelled(open_datastore, tmp_path):
    """A datastore all of whose images have a label and an info."""
    datastore = open_datastore()
    for number, image in enumerate(datastore.list_images()):
        datastore.save_label(image, write_label(tmp_path, number), "final", {"number": number})
        datastore.update_image_info(image, {"dice": number / 10})
    datastore.close()
    return datastore


def write_label(folder, seed):
    array = np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)
    path = folder / f"label{seed}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return str(path)


def use_all(datastore):
    """Request everything that a training and a viewer request."""
    images = datastore.list_images()
    pairs = datastore.datalist()
    infos = [datastore.get_image_info(image)["dice"] for image in images]
    labels = [datastore.get_label_info(image, "final")["number"] for image in images]
    return len(pairs), infos, labels, len(json.dumps(datastore.json()))


def about_single_scans(sandbox):
    """Return the requests about single scans, except the lists of images' files that a training compares."""
    asked = [served.path for served in sandbox.requests if "/scans/" in served.path or "/assessors/" in served.path]
    return [path for path in asked if not path.endswith("/resources/NIFTI/files")]


def test_another_process_on_this_machine_reads_nothing_again(archive, labelled, open_datastore):
    first = use_all(open_datastore())
    assert first[0] == IMAGES
    archive.requests.clear()
    assert use_all(open_datastore()) == first
    assert about_single_scans(archive) == []


def test_another_machine_reads_each_once_and_a_renewal_nothing(archive, labelled, open_datastore, tmp_path):
    elsewhere = open_datastore(cache_path=tmp_path / "another machine")
    use_all(elsewhere)
    assert len([path for path in about_single_scans(archive) if path.endswith("image.json")]) >= IMAGES
    archive.requests.clear()
    for _ in range(3):
        elsewhere.refresh()
        use_all(elsewhere)
    assert about_single_scans(archive) == []


def test_only_what_changed_elsewhere_is_read(archive, labelled, open_datastore, tmp_path):
    use_all(open_datastore())
    elsewhere = open_datastore(cache_path=tmp_path / "another machine")
    changed, other = elsewhere.list_images()[:2]
    elsewhere.save_label(changed, write_label(tmp_path, 99), "final", {"number": 99})
    elsewhere.update_label_info(other, "final", {"number": 98})
    elsewhere.close()
    archive.requests.clear()
    again = open_datastore()
    numbers = [again.get_label_info(image, "final")["number"] for image in again.list_images()]
    assert numbers == [99, 98, *range(2, IMAGES)]
    assert len(again.datalist()) == IMAGES
    sessions = {path.split("/experiments/")[1].split("/")[0] for path in about_single_scans(archive)}
    assert sessions == {changed.split("/")[2], other.split("/")[2]}


def test_a_label_replaced_by_one_of_the_same_size_is_found(archive, admin, labelled, open_datastore):
    datastore = open_datastore()
    image = datastore.list_images()[0]
    old = Path(datastore.get_label_uri(image, "final"))
    _, subject, experiment, scan = image.split("/")
    resource = f"{archive.url}/data/projects/P/subjects/{subject}/experiments/{experiment}/scans/{scan}"
    resource += "/resources/MONAILABEL_final"
    files = {row["Name"]: None for row in admin.get(f"{resource}/files?format=json").json()["ResultSet"]["Result"]}
    for name in files:
        files[name] = admin.get(f"{resource}/files/{name}").content
    admin.delete(f"{resource}?removeFiles=true").raise_for_status()
    for name, content in files.items():
        later = name.replace("2026", "2027", 1) if name.startswith("2026") else f"9{name[1:]}"
        admin.put(f"{resource}/files/{later}", data=content).raise_for_status()
    shutil.rmtree(old.parent)
    again = open_datastore()
    assert Path(again.get_label_uri(image, "final")).name != old.name
    assert again.get_label_info(image, "final")["number"] == 0
    assert len(again.datalist()) == IMAGES


def test_the_name_is_in_the_tree_without_asking(archive, open_datastore):
    open_datastore().set_name("Abdomen")
    again = open_datastore()
    archive.requests.clear()
    assert again.json()["name"] == "Abdomen"
    assert len(archive.requests) == 0


def spoil(file):
    file.write_bytes(b"not a database" * 500)


def make_read_only(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("harm", [spoil, make_read_only, Path.unlink])
def test_without_a_usable_read_cache_all_works_as_before(labelled, open_datastore, harm):
    expected = use_all(open_datastore())
    (file,) = labelled._settings.server_folder.glob("memory*.sqlite")
    harm(file)
    assert use_all(open_datastore()) == expected


def test_a_read_cache_that_another_process_holds_is_not_waited_for(labelled, open_datastore):
    expected = use_all(open_datastore())
    (file,) = labelled._settings.server_folder.glob("memory*.sqlite")
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert use_all(open_datastore()) == expected
    holder.close()


def test_only_the_user_can_read_it(labelled):
    (file,) = labelled._settings.server_folder.glob("memory*.sqlite")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def open_read_cache(folder):
    return ReadCache(Settings.load({"server": "http://127.0.0.1", "cache_path": folder}, environ={}))


def write_many(folder, worker):
    read_cache = open_read_cache(folder)
    for number in range(100):
        read_cache.put("kind", f"{worker} {number}", "state", [worker, number])
    read_cache.close()


def test_processes_write_at_once(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(write_many, [tmp_path] * 2, range(2)))
    read_cache = open_read_cache(tmp_path)
    assert len(read_cache.all("kind")) == 200
    read_cache.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_connection_of_its_own(tmp_path):
    read_cache = open_read_cache(tmp_path)
    read_cache.put("kind", "key", "state", 1)
    child = multiprocessing.get_context("fork").Process(target=read_cache.put, args=("kind", "child", "state", 2))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert read_cache.all("kind") == {"key": Fact("state", 1), "child": Fact("state", 2)}
    read_cache.close()


def test_a_fact_counts_only_for_the_state_it_was_read_in(tmp_path):
    read_cache = open_read_cache(tmp_path)
    read_cache.put("kind", "key", "2 files", {"a": "ä"})
    assert read_cache.get("kind", "key", "2 files") == {"a": "ä"}
    assert read_cache.get("kind", "key", "3 files") is None
    assert read_cache.get("other", "key", "2 files") is None
    read_cache.forget("kind", ["key"])
    assert read_cache.all("kind") == {}
    read_cache.close()


def test_facts_that_nobody_used_for_long_are_removed(tmp_path):
    read_cache = open_read_cache(tmp_path)
    read_cache.put_all("kind", {"old": Fact("", 1), "new": Fact("", 2)})
    read_cache.close()
    (file,) = tmp_path.glob("*/memory*.sqlite")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE facts SET noted = 0 WHERE key = 'old'")
    database.close()
    read_cache = open_read_cache(tmp_path)
    assert read_cache.all("kind") == {"new": Fact("", 2)}
    read_cache.close()
