"""Projects that are deleted or withdrawn while they are served, and projects that cannot be listed for a while."""

from __future__ import annotations

import logging
import time

import nibabel
import numpy as np
import pytest
import requests
from archive_rows import make_scan

from monailabel_xnat.errors import NotInArchiveError, ServerError, UnknownImageError

USER = "none"


@pytest.fixture
def archive(xnat_sandbox):
    for project in "ABC":
        xnat_sandbox.archive.create_project(project)
        xnat_sandbox.archive.set_member(project, USER, "member")
        make_scan(xnat_sandbox.archive, "1", project=project, session=f"{project}_CT1", subject=f"{project}_s")
    return xnat_sandbox.archive


@pytest.fixture
def open_abc(xnat_sandbox, archive, open_xnat_datastore):
    given = {"username": USER, "password": xnat_sandbox.users[USER], "project": "A,B,C"}
    return lambda **more: open_xnat_datastore(**{**given, **more})


def projects_of(datastore):
    return sorted({image.split("/")[0] for image in datastore.list_images()})


def delete_project(sandbox, project):
    answer = requests.delete(
        f"{sandbox.url}/data/projects/{project}?removeFiles=true", auth=("admin", sandbox.password), timeout=10
    )
    answer.raise_for_status()


@pytest.mark.parametrize("project", ["A,B,C", None])
def test_a_project_that_the_user_loses_goes_and_the_others_are_renewed(archive, open_abc, caplog, project):
    datastore = open_abc(project=project)
    lost = next(image for image in datastore.list_images() if image.startswith("B/"))
    archive.set_member("B", USER, None)
    make_scan(archive, "2", project="C", session="C_CT1", subject="C_s")
    for _ in range(2):
        datastore.refresh()
        assert projects_of(datastore) == ["A", "C"]
        assert len(datastore.list_images()) == 3
        assert "no longer served" in datastore.status()["xnat"]
        assert "'B'" in datastore.status()["xnat"]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1  # once, not at every renewal
    assert datastore.get_image_uri(lost) == ""
    assert datastore.get_image_info(lost) == {}
    with pytest.raises(UnknownImageError, match="project B are no longer served"):
        datastore.save_label(lost, "label.nii.gz", "final", {})
    archive.set_member("B", USER, "member")
    datastore.refresh()
    assert projects_of(datastore) == ["A", "B", "C"]
    assert "xnat" not in datastore.status()


def test_a_project_that_is_deleted_goes_by_the_renewal_in_the_background(xnat_sandbox, archive, open_abc):
    datastore = open_abc(max_age=0.01)
    delete_project(xnat_sandbox, "A")
    deadline = time.monotonic() + 20
    while projects_of(datastore) != ["B", "C"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert projects_of(datastore) == ["B", "C"]
    assert "'A'" in datastore.status()["xnat"]


def test_images_and_labels_that_are_cached_here_are_not_served_after_the_project_was_lost(
    xnat_sandbox, archive, open_abc, demo_dicom, tmp_path
):
    for project, case in zip("BC", demo_dicom.cases[:2], strict=True):
        xnat_sandbox.import_dicom(case.dicom, project)
    datastore = open_abc(session="!?_CT1")
    for image in datastore.list_images():
        grid = nibabel.load(datastore.get_image_uri(image))
        label = tmp_path / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.ones(grid.shape, np.uint8), grid.affine), label)
        datastore.save_label(image, str(label), "final", {})
    lost = next(image for image in datastore.list_images() if image.startswith("B/"))
    assert datastore.get_label_uri(lost, "final")
    series = datastore.get_image_info(lost)["SeriesInstanceUID"]
    assert len(datastore.datalist()) == 2
    archive.set_member("B", USER, None)
    datastore.refresh()
    assert len(datastore.datalist()) == datastore.status()["completed"] == 1
    assert (
        datastore.get_label_uri(lost, "final") == datastore.get_image_uri(lost) == datastore.get_image_uri(series) == ""
    )
    assert list(datastore.json()["objects"]) == datastore.get_labeled_images()


@pytest.mark.parametrize("status", [403, 404])
def test_whatever_xnat_answers_for_a_lost_project(xnat_sandbox, open_abc, status):
    datastore = open_abc()
    xnat_sandbox.faults.add("/data/projects/B", status=status, times=None)
    datastore.refresh()
    assert projects_of(datastore) == ["A", "C"]


@pytest.mark.parametrize("status", [500, pytest.param(503, marks=pytest.mark.slow)])
def test_a_project_that_cannot_be_listed_for_a_while_keeps_its_images(xnat_sandbox, archive, open_abc, caplog, status):
    datastore = open_abc()
    xnat_sandbox.faults.add("/data/projects/B", status=status, times=None)
    xnat_sandbox.faults.add("/data/experiments", status=status, times=None)
    make_scan(archive, "2", project="C", session="C_CT1", subject="C_s")
    datastore.refresh()
    assert projects_of(datastore) == ["A", "B", "C"]
    assert len(datastore.list_images()) == 4
    assert "project B could not be listed" in datastore.status()["xnat"]
    xnat_sandbox.faults.clear()
    datastore.refresh()
    assert "xnat" not in datastore.status()


def test_it_is_an_error_only_if_no_project_is_left(archive, open_abc):
    datastore = open_abc()
    for project in "ABC":
        archive.set_member(project, USER, None)
    with pytest.raises(NotInArchiveError):
        datastore.refresh()
    assert datastore.list_images() == []
    assert "'C'" in datastore.status()["xnat"]
    archive.set_member("C", USER, "collaborator")
    datastore.refresh()
    assert projects_of(datastore) == ["C"]


def test_if_xnat_fails_for_all_projects_the_old_images_stay(xnat_sandbox, open_abc):
    datastore = open_abc()
    xnat_sandbox.faults.add("/data/", status=500, times=None)
    with pytest.raises(ServerError):
        datastore.refresh()
    assert projects_of(datastore) == ["A", "B", "C"]


def test_a_misspelt_project_is_an_error_at_the_start(open_abc):
    with pytest.raises(NotInArchiveError, match="'BB'"):
        open_abc(project="A,BB,C")


def test_a_start_after_a_project_was_lost_serves_the_others(archive, open_abc, tmp_path):
    open_abc().close()
    archive.set_member("B", USER, None)
    datastore = open_abc()  # like the process that MONAI Label starts for a training
    assert projects_of(datastore) == ["A", "C"]
    assert "'B'" in datastore.status()["xnat"]
    with pytest.raises(NotInArchiveError, match="'B'"):  # for another machine it looks like a misspelt name
        open_abc(cache_path=tmp_path / "other")


def test_the_datastore_has_a_name_also_if_the_project_that_holds_it_was_lost(archive, open_abc):
    open_abc().close()
    archive.set_member("A", USER, None)
    datastore = open_abc()
    assert datastore.name().startswith("XNAT http")
    assert "A, B, C" in datastore.description()


def test_a_session_of_a_lost_project_that_is_shared_stays_under_the_other(archive, open_abc):
    subject, session = make_scan(archive, "2", project="B", session="B_CT1", subject="B_s")
    archive.share(session, "C", "B_in_C")
    datastore = open_abc()
    assert f"B/{subject}/{session}/2" in datastore.list_images()
    archive.set_member("B", USER, None)
    datastore.refresh()
    assert f"C/{subject}/{session}/2" in datastore.list_images()


def test_on_an_open_site_an_expired_login_does_not_look_like_a_lost_project(tmp_path, caplog):
    from monailabel_xnat import XNATDatastore
    from monailabel_xnat.sandbox import Sandbox

    with Sandbox(require_login=False) as sandbox:
        for project in "AB":
            sandbox.archive.create_project(project)
            make_scan(sandbox.archive, "1", project=project, session=f"{project}_CT1", subject=f"{project}_s")
        login = {"username": sandbox.username, "password": sandbox.password, "project": "A,B"}
        with_cache = {"cache_path": tmp_path, "environ": {}}
        datastore = XNATDatastore(sandbox.url, **login, **with_cache)
        sandbox.expire_sessions()
        datastore.refresh()
        assert projects_of(datastore) == ["A", "B"]
        assert "no longer served" not in caplog.text
        datastore.close()
