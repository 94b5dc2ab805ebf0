"""Sessions that are shared into a project without their subject: everything that is listed can be read and written."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import writing
from monailabel_xnat.config import Settings
from monailabel_xnat.convert import LabelMap, Segment, write_seg
from monailabel_xnat.convert.grid import Grid
from monailabel_xnat.errors import (
    AccessDeniedError,
    LabelNotUploadedError,
    ReadOnlyError,
    ServerTimeoutError,
    UnknownImageError,
)
from monailabel_xnat.ids import ImageId

READER = "none"


@pytest.fixture
def shared(xnat_sandbox, demo_dicom):
    """A session of project A that B has under another label, without its subject. Return its canonical id in A."""
    archive = xnat_sandbox.archive
    for project in "AB":
        archive.create_project(project)
    (address,) = xnat_sandbox.import_dicom(demo_dicom.cases[0].dicom, "A")
    session = address.split("/")[-1]
    subject = archive.experiment(session).subject_id
    archive.share(session, "B", "session_in_B")
    return ImageId("A", subject, session, sorted(scan.id for scan in archive.scans(session))[0])


@pytest.fixture
def login(xnat_sandbox):
    """Make a user with these roles, and return the login."""

    def give(**roles):
        for project, role in roles.items():
            xnat_sandbox.archive.set_member(project, READER, role)
        return {"username": READER, "password": xnat_sandbox.users[READER]}

    return give


def label_of(datastore, image, folder, value=1):
    grid = nibabel.load(datastore.get_image_uri(image))
    array = np.zeros(grid.shape, np.uint8)
    array[2:5, 2:5, 2:5] = value
    path = folder / f"label{value}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, grid.affine), path)
    return path


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("image_format", ["nifti", "dicom"])
def test_a_session_shared_without_its_subject_is_read(open_xnat_datastore, shared, login, image_format):
    datastore = open_xnat_datastore(**login(B="collaborator"), project="B", image_format=image_format)
    (image,) = datastore.list_images()
    assert image == str(ImageId("B", shared.subject, shared.experiment, shared.scan))
    assert datastore.get_image_uri(image)
    with datastore.get_image(image) as stream:
        assert stream.read()
    assert datastore.get_image_info(image)["SeriesInstanceUID"]


def test_all_that_is_written_of_a_shared_session_is_there(
    xnat_sandbox, open_xnat_datastore, shared, login, tmp_path, request
):
    datastore = open_xnat_datastore(**login(A="owner", B="member"), project="B", roi_write="final", allow_delete=True)
    (image,) = datastore.list_images()
    first, second = label_of(datastore, image, tmp_path, 1), label_of(datastore, image, tmp_path, 2)
    datastore.save_label(image, str(first), "final", {"by": "first"})
    datastore.save_label(image, str(second), "final", {"by": "second"})
    datastore.save_label(image, str(first), "original", {"model": "m"})
    datastore.update_label_info(image, "final", {"seen": True})
    datastore.update_image_info(image, {"dice": 0.5})
    wait_until(lambda: "MONAILABEL_info" in resources_of(xnat_sandbox, shared))
    wait_until(lambda: collections_of(xnat_sandbox))
    newest, oldest = datastore.label_history(image, "final")
    datastore.restore_label(image, "final", oldest["version"])
    datastore.close()
    for project in ("B", "A"):  # the same from both projects
        again = open_xnat_datastore(project=project, cache_path=tmp_path / f"cache of {project}")
        (name,) = again.list_images()
        assert again.get_labels_by_image_id(name) == {"final": name, "original": name}
        assert (voxels(again.get_label_uri(name, "final")) == voxels(first)).all()
        assert again.get_label_info(name, "final")["by"] == "first"
        assert again.get_label_info(f"{name}@{newest['version']}", "final")["seen"] is True
        assert again.get_image_info(name)["dice"] == 0.5
        assert len(again.datalist()) == 1
    remover = open_xnat_datastore(project="B", allow_delete=True)
    remover.remove_label(image, "original")
    assert remover.get_labels_by_image_id(image) == {"final": image}
    remover.remove_image(image)
    assert shared.scan not in scans_of(xnat_sandbox, shared)


def scans_of(sandbox, image):
    return {scan.id: scan for scan in sandbox.archive.scans(image.experiment)}


def resources_of(sandbox, image):
    query = "SELECT label FROM resources WHERE kind = 'scan' AND parent = ? AND file_count > 0"
    rows = sandbox.archive.store.all(query, (str(scans_of(sandbox, image)[image.scan].pk),))
    return [row["label"] for row in rows]


def collections_of(sandbox):
    return sandbox.archive.store.all("SELECT id FROM experiments WHERE xsi_type = 'icr:roiCollectionData'", ())


def test_a_member_of_the_project_shared_into_is_told_that_rights_in_the_owner_are_missing(
    open_xnat_datastore, shared, login, tmp_path
):
    datastore = open_xnat_datastore(**login(B="owner"), project="B", allow_delete=True)
    (image,) = datastore.list_images()
    with pytest.raises(LabelNotUploadedError, match=r"project 'A'.*shared from that project"):
        datastore.save_label(image, str(label_of(datastore, image, tmp_path)), "final", {})
    assert datastore.get_label_uri(image, "final")  # it waits here, and is served
    with pytest.raises(AccessDeniedError, match="project 'A'"):
        datastore.remove_image(image)


def test_what_was_drawn_on_a_shared_session_is_a_label(
    xnat_sandbox, open_xnat_datastore, shared, login, demo_dicom, tmp_path
):
    given = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
    session = Session(Settings.load({**given, "cache_path": tmp_path / "drawing"}, environ={}))
    datastore = open_xnat_datastore(project="B")
    (image,) = datastore.list_images()
    grid = Grid.of_image(Path(datastore.get_image_uri(image)))
    array = np.zeros(grid.shape, np.uint8)
    array[3:9, 3:9, 3:9] = 1
    files = sorted(path for path in demo_dicom.cases[0].dicom.rglob("*") if path.is_file())
    drawn = LabelMap(array, grid.affine, (Segment(1, "liver"),))
    write_seg(drawn, files, tmp_path / "seg.dcm", description="drawn", algorithm_type="MANUAL")
    for project in "AB":
        session.request(
            "PUT",
            f"/xapi/roi/projects/{project}/sessions/{shared.experiment}/collections/drawn_in_{project}",
            query={"type": "SEG"},
            body=(tmp_path / "seg.dcm").read_bytes(),
            headers={"Content-Type": "application/octet-stream"},
        )
    session.close()
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(image, "final")) == array).all()
    assert (voxels(datastore.get_label_uri(f"{image}#drawn_in_A", "final")) == array).all()


@pytest.mark.parametrize("by", ["ID", "label"])
def test_an_image_is_added_to_a_shared_session(xnat_sandbox, open_xnat_datastore, shared, login, tmp_path, by):
    subject = shared.subject if by == "ID" else xnat_sandbox.archive.subject(shared.subject).label
    datastore = open_xnat_datastore(**login(A="member", B="member"), project="B", image_resource="DICOM,NIFTI")
    path = tmp_path / "more.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), path)
    added = datastore.add_image(f"B/{subject}/session_in_B/77", str(path), {})
    assert added == str(ImageId("B", shared.subject, shared.experiment, "77"))
    assert nibabel.load(datastore.get_image_uri(added)).shape == (4, 5, 6)


@pytest.mark.parametrize("project", ["B", "A", "A,B", "B,A"])
def test_both_names_of_a_shared_session_are_understood(xnat_sandbox, open_xnat_datastore, shared, project):
    archive = xnat_sandbox.archive
    archive.share(shared.subject, "B", "subject_in_B")
    owner = archive.experiment(shared.experiment, "A").label
    subject = archive.subject(shared.subject, "A").label
    datastore = open_xnat_datastore(project=project)
    (image,) = datastore.list_images()
    names = [f"A/{subject}/{owner}/{shared.scan}"]
    if "B" in project:
        names += [
            f"B/subject_in_B/session_in_B/{shared.scan}",
            f"B/{shared.subject}/session_in_B/{shared.scan}",
            f"B/{subject}/session_in_B/{shared.scan}",
        ]
    if project == "B":
        names.append(f"B/{subject}/{owner}/{shared.scan}")
    for name in names:
        assert datastore.get_image_info(name) == datastore.get_image_info(image) != {}
    for name in (f"B/nobody/session_in_B/{shared.scan}", f"B/{subject}/session_in_C/1", f"B/{subject}/session_in_B/x"):
        assert datastore.get_image_info(name) == {}


@pytest.mark.parametrize("project", ["B", "A,B"])
def test_filters_know_both_names_of_a_shared_session(xnat_sandbox, open_xnat_datastore, shared, project):
    archive = xnat_sandbox.archive
    archive.share(shared.subject, "B", "subject_in_B")
    owner = archive.experiment(shared.experiment, "A").label
    subject = archive.subject(shared.subject, "A").label
    for settings in (
        {"session": "session_in_B"},
        {"session": owner},
        {"subject": "subject_in_B"},
        {"subject": subject},
        {"subject": "SUBJECT_in_*", "session": owner},
    ):
        assert len(open_xnat_datastore(project=project, **settings).list_images()) == 1
    for settings in ({"session": "!session_in_B"}, {"session": f"!{owner}"}, {"subject": "!subject_in_*"}):
        assert open_xnat_datastore(project=project, **settings).list_images() == []


def test_names_are_asked_for_only_where_they_are_needed(xnat_sandbox, open_xnat_datastore, shared):
    datastore = open_xnat_datastore(project="B")

    def asked():
        return [
            served
            for served in xnat_sandbox.requests
            if served.path.endswith("/B/experiments")
            and "subject_label" in served.query["columns"]
            and "xsiType" not in served.query
        ]

    assert asked() == []
    for _ in range(3):
        assert datastore.get_image_info("B/a/b/c") == datastore.get_image_info("Q/a/b/c") == {}
    assert len(asked()) == 1


def test_writers_from_both_projects_take_turns(tmp_path):
    settings = Settings.load({"server": "http://127.0.0.1", "cache_path": tmp_path, "timeout": 0.1}, environ={})
    failed = []

    def write():
        try:
            with writing(settings, "/data/experiments/E1/scans/1/resources/R"):
                pass
        except ServerTimeoutError as error:
            failed.append(error)

    with writing(settings, "/data/projects/A/subjects/S/experiments/E1/scans/1/resources/R"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(failed) == 1


def test_nothing_is_written_where_it_is_read_only(open_xnat_datastore, shared, tmp_path):
    datastore = open_xnat_datastore(project="B", read_only=True)
    (image,) = datastore.list_images()
    with pytest.raises(ReadOnlyError):
        datastore.save_label(image, str(label_of(datastore, image, tmp_path)), "final", {})
    with pytest.raises(UnknownImageError):
        datastore.remove_image("B/a/b/c")
