"""The name under which an image was added is another id of it: stored in XNAT, in every method and call."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))

from series_writer import SeriesWriter

from monailabel_xnat import XNATDatastore
from monailabel_xnat.errors import AmbiguousNameError, ImageConflictError
from monailabel_xnat.sandbox import Sandbox

NAMES = [
    "patient1",
    "2: T1 ax",
    'CTChest & <Abdomen> "x"',
    "Größe %41 100%",
    "T1 #2",
    "1.2.3",
    "a@20260101T000000000000Z-0123456789ab",
]


@pytest.fixture(scope="module")
def site():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def open_datastore(site, tmp_path):
    site.reset()
    rest = requests.Session()
    rest.auth = (site.username, site.password)
    for project in ("A", "B"):
        rest.put(f"{site.url}/data/projects/{project}").raise_for_status()
    opened = []

    def open_datastore(machine="here", **settings):
        given = {"project": "A", "environ": {}, "cache_path": tmp_path / machine, **settings}
        opened.append(XNATDatastore(site.url, site.username, site.password, **given))
        opened[-1].rest = rest
        return opened[-1]

    yield open_datastore
    for datastore in opened:
        datastore.close()


def volume(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 99, (3, 4, 5)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    return path


def mask(path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(path))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_method_takes_the_name(open_datastore, tmp_path, name):
    datastore = open_datastore()
    image = datastore.add_image(name, str(volume(tmp_path / "tmp42.nii.gz")), {"from": "Slicer"})
    label = str(mask(tmp_path / "label.nii.gz"))
    assert datastore.save_label(name, label, "final", {"by": "ann"}) == image
    for server in (datastore, open_datastore(), open_datastore("elsewhere")):
        assert server.list_images() == [image]
        assert Path(server.get_image_uri(name)).read_bytes() == (tmp_path / "tmp42.nii.gz").read_bytes()
        with server.get_image(name) as stream:
            assert stream.read(2) == b"\x1f\x8b"
        assert server.get_image_info(name)["scan"] == "1"
        assert server.get_labels_by_image_id(name) == {"final": image}
        assert server.get_label_by_image_id(name, "final") == image
        assert server.get_label_uri(name, "final") == server.get_label_uri(image, "final") != ""
        assert server.get_label(name, "final").read(2) == b"\x1f\x8b"
        assert server.get_label_info(name, "final")["by"] == "ann"
        (version,) = (entry["version"] for entry in server.label_history(name, "final"))
        assert server.get_label_uri(f"{name}@{version}", "final")
        assert server.prefetch([name]).failed == {}
    datastore.update_image_info(name, {"seen": 1})
    datastore.update_label_info(name, "final", {"checked": 1})
    assert datastore.get_image_info(image)["seen"] == 1
    assert datastore.get_label_info(image, "final")["checked"] == 1
    datastore.restore_label(name, "final", version)
    assert len(datastore.label_history(image, "final")) == 2
    datastore.remove_label(name, "final")
    assert datastore.get_labels_by_image_id(name) == {}
    open_datastore(allow_delete=True).remove_image(name)
    datastore.refresh()
    assert datastore.get_image_uri(name) == ""


def test_a_name_that_another_server_has_just_given_is_known(open_datastore, tmp_path):
    here, there = open_datastore("here"), open_datastore("there", max_age=1000.0)
    assert there.get_image_uri("patient1") == ""
    image = here.add_image("patient1", str(volume(tmp_path / "a.nii.gz")), {})
    label = str(mask(tmp_path / "label.nii.gz"))
    time.sleep(1.0)
    assert there.save_label("patient1", label, "final", {}) == image


def test_the_series_description_of_others_is_no_name(open_datastore, tmp_path):
    datastore = open_datastore()
    image = datastore.add_image("A/s/e/1", str(volume(tmp_path / "a.nii.gz")), {})
    scan = f"{datastore._settings.server}/data/experiments/{image.split('/')[2]}/scans/2"
    fields = {"xsiType": "xnat:mrScanData", "xnat:mrScanData/series_description": "patient1"}
    datastore.rest.put(scan, params=fields).raise_for_status()
    data = (tmp_path / "a.nii.gz").read_bytes()
    headers = {"Content-Type": "application/octet-stream"}
    datastore.rest.put(f"{scan}/resources/NIFTI/files/b.nii.gz", data=data, headers=headers).raise_for_status()
    datastore.refresh()
    assert len(datastore.list_images()) == 2
    assert datastore.get_image_info("patient1") == {}
    assert datastore.get_image_info("a.nii.gz") == {}
    new = datastore.add_image("patient1", str(volume(tmp_path / "c.nii.gz", 1)), {})
    assert datastore.get_image_info("patient1")["experiment"] == new.split("/")[2]


def test_dicom_that_was_added_under_a_name_is_found_by_it_and_keeps_its_description(open_datastore, tmp_path):
    datastore = open_datastore()
    stack = np.random.default_rng(0).integers(0, 999, (3, 8, 6)).astype(np.uint16)
    SeriesWriter(tmp_path / "series").write(stack)
    image = datastore.add_image("case 1; x=2", str(tmp_path / "series"), {})
    for server in (datastore, open_datastore("elsewhere")):
        info = server.get_image_info("case 1; x=2")
        assert (info["SeriesDescription"], info["scan"]) == ("made", "1")
    assert datastore.add_image("case 1; x=2", str(tmp_path / "series"), {}) == image
    SeriesWriter(tmp_path / "other").write(stack)
    for other in (tmp_path / "other", volume(tmp_path / "a.nii.gz")):
        with pytest.raises(ImageConflictError, match="rename it"):
            datastore.add_image("case 1; x=2", str(other), {})
    assert len(datastore.list_images()) == 1


def test_slices_that_are_added_one_by_one_do_not_take_their_names_away(open_datastore, tmp_path):
    datastore = open_datastore()
    for patient in "ab":
        stack = np.random.default_rng(0).integers(0, 999, (3, 8, 6)).astype(np.uint16)
        for path in SeriesWriter(tmp_path / patient).write(stack, names="IM{:04d}.dcm".format):
            datastore.add_image(path.stem, str(path), {})
    assert len(datastore.list_images()) == 2
    assert datastore.get_image_info("IM0001") == {}


@pytest.fixture
def two_of_one_name(open_datastore, tmp_path):
    for seed, project in enumerate("AB"):
        open_datastore(project, project=project).add_image(
            "patient1", str(volume(tmp_path / f"{project}.nii.gz", seed)), {}
        )
    return open_datastore(project="A,B")


def test_a_name_that_two_images_bear_is_a_conflict_that_names_both_in_every_method(two_of_one_name, tmp_path):
    datastore, label = two_of_one_name, str(mask(tmp_path / "label.nii.gz"))
    calls = {
        "get_image": lambda: datastore.get_image("patient1"),
        "get_image_uri": lambda: datastore.get_image_uri("patient1"),
        "get_image_info": lambda: datastore.get_image_info("patient1"),
        "update_image_info": lambda: datastore.update_image_info("patient1", {"a": 1}),
        "get_labels_by_image_id": lambda: datastore.get_labels_by_image_id("patient1"),
        "get_label_by_image_id": lambda: datastore.get_label_by_image_id("patient1", "final"),
        "get_label": lambda: datastore.get_label("patient1", "final"),
        "get_label_uri": lambda: datastore.get_label_uri("patient1", "final"),
        "get_label_info": lambda: datastore.get_label_info("patient1", "final"),
        "update_label_info": lambda: datastore.update_label_info("patient1", "final", {"a": 1}),
        "save_label": lambda: datastore.save_label("patient1", label, "final", {}),
        "remove_label": lambda: datastore.remove_label("patient1", "final"),
        "remove_image": lambda: datastore.remove_image("patient1"),
        "label_history": lambda: datastore.label_history("patient1", "final"),
        "restore_label": lambda: datastore.restore_label("patient1", "final", "20260101T000000000000Z-0123456789ab"),
        "prefetch": lambda: datastore.prefetch(["patient1"]),
    }
    for name, call in calls.items():
        with pytest.raises(AmbiguousNameError) as caught:
            call()
        assert caught.value.status_code == 409, name
        assert all(image in caught.value.detail for image in datastore.list_images()), name
    assert len(datastore.list_images()) == 2


def test_a_name_that_is_changed_in_xnat_follows_the_series_description(open_datastore, tmp_path):
    datastore = open_datastore()
    images = [
        datastore.add_image(name, str(volume(tmp_path / f"{name}.nii.gz", seed)), {}) for seed, name in enumerate("ab")
    ]
    scan = f"{datastore._settings.server}/data/experiments/{images[1].split('/')[2]}/scans/1"
    fields = {"xsiType": "xnat:mrScanData", "xnat:mrScanData/series_description": "a"}
    datastore.rest.put(scan, params=fields).raise_for_status()
    datastore.refresh()
    with pytest.raises(AmbiguousNameError, match=r"2 images bear the name 'a'"):
        datastore.get_image_uri("a")
    assert datastore.get_image_info("b") == {}
    with pytest.raises(AmbiguousNameError):
        datastore.add_image("a", str(tmp_path / "a.nii.gz"), {})
