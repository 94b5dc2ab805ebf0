"""Objects of xnatpy from a datastore, and as arguments in every place where an image id is allowed."""

from __future__ import annotations

import pytest
import xnat
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.sandbox import Sandbox

PROJECT = "P"


@pytest.fixture
def site(xnat_sandbox, demo_dicom):
    xnat_sandbox.archive.create_project(PROJECT)
    for case in demo_dicom.cases[:2]:
        xnat_sandbox.import_dicom(case.dicom, PROJECT)
    return xnat_sandbox


@pytest.fixture
def datastore(site, open_xnat_datastore):
    return open_xnat_datastore(project=PROJECT, series_description="!*localizer*", roi_write="", prefetch=0)


@pytest.fixture
def label(datastore, demo_dicom, image):
    datastore.save_label(image, str(demo_dicom.cases[0].truth), "final", {"a": 1})
    return image


@pytest.fixture
def image(datastore):
    return sorted(datastore.list_images())[0]


def test_scans_come_out_and_go_back_in(site, datastore):
    for image in datastore.list_images():
        scan = datastore.scan(image)
        assert (scan.id, scan.modality) == (image.split("/")[3], "CT")
        site.requests.clear()
        assert datastore.image_id(scan) == image
        assert len(site.requests) == 0


def test_scans_found_with_xnatpy_alone_are_known(site, datastore):
    found = {
        datastore.image_id(scan)
        for session in datastore.xnat.projects[PROJECT].experiments.values()
        for scan in session.scans.values()
        if "localizer" not in (scan.series_description or "").lower()
    }
    assert found == set(datastore.list_images())


def test_a_scan_that_was_found_by_the_label_of_its_session_is_known(datastore, image):
    project, _, _, scan = image.split("/")
    label = datastore.scan(image).parent.label
    by_label = datastore.xnat.create_object(f"/data/projects/{project}/experiments/{label}").scans[scan]
    assert datastore.image_id(by_label) == image


def test_a_scan_may_stand_wherever_an_id_may(datastore, image, label, demo_dicom):
    scan = datastore.scan(image)
    assert datastore.get_image_uri(scan) == datastore.get_image_uri(image)
    with datastore.get_image(scan) as stream:
        assert stream.name == datastore.get_image_uri(image)
    assert datastore.get_image_info(scan) == datastore.get_image_info(image)
    datastore.update_image_info(scan, {"seen": True})
    assert datastore.get_image_info(image)["seen"] is True
    assert datastore.get_labels_by_image_id(scan) == {"final": image}
    assert datastore.get_label_by_image_id(scan, "final") == image
    assert datastore.get_label_uri(scan, "final") == datastore.get_label_uri(image, "final")
    assert datastore.get_label(scan, "final").read() == datastore.get_label(image, "final").read()
    datastore.update_label_info(scan, "final", {"b": 2})
    assert datastore.get_label_info(scan, "final")["b"] == 2
    assert datastore.save_label(scan, str(demo_dicom.cases[0].truth), "final", {}) == image
    versions = datastore.label_history(scan, "final")
    assert len(versions) == 2
    datastore.restore_label(scan, "final", versions[1]["version"])
    assert datastore.prefetch([scan]).failed == {}
    assert datastore.scan(scan) is scan
    datastore.remove_label(scan, "final")
    assert datastore.get_labels_by_image_id(image) == {}


def test_a_scan_can_be_removed(open_xnat_datastore, datastore, image):
    deleting = open_xnat_datastore(project=PROJECT, allow_delete=True)
    deleting.remove_image(datastore.scan(image))
    datastore.refresh()
    assert image not in datastore.list_images()
    with pytest.raises(ImageNotFoundException):
        datastore.scan(image)


def test_the_images_of_a_project_subject_session_or_scan_come_from_memory(site, datastore, image):
    scan = datastore.scan(image)
    session = datastore.xnat.create_object(f"/data/experiments/{image.split('/')[2]}")
    subject = datastore.xnat.create_object(f"/data/projects/{PROJECT}/subjects/{image.split('/')[1]}")
    project = datastore.xnat.projects[PROJECT]
    site.requests.clear()
    assert datastore.image_ids(project) == datastore.list_images()
    assert datastore.image_ids(subject) == datastore.image_ids(session) == datastore.image_ids(scan) == [image]
    assert len(site.requests) == 0
    with pytest.raises(InvalidIdError, match="holds no images"):
        datastore.image_ids(scan.resources["DICOM"])


def test_the_object_of_a_deleted_scan_is_refused(site, datastore, image):
    scan = datastore.scan(image)
    scan.delete()
    with pytest.raises(InvalidIdError, match="was deleted"):
        datastore.image_id(scan)
    assert datastore.get_image_info(scan) == {}


def test_the_resource_of_a_label_holds_its_versions(datastore, image, label):
    resource = datastore.label_resource(image, "final")
    assert resource.label == "MONAILABEL_final"
    (version,) = datastore.label_history(image, "final")
    assert {file.id for file in resource.files.values()} == {
        f"{version['version']}.nii.gz",
        f"{version['version']}.json",
    }
    with pytest.raises(LabelNotFoundException):
        datastore.label_resource(image, "original")


def test_a_scan_that_is_no_image_or_of_another_xnat_is_refused(open_xnat_datastore, datastore, demo_dicom):
    first, second = (case.subject for case in demo_dicom.cases[:2])
    filtered = open_xnat_datastore(project=PROJECT, subject=first, prefetch=0)
    left_out = next(image for image in datastore.list_images() if datastore.scan(image).parent.label.startswith(second))
    scan = filtered.xnat.create_object(datastore.scan(left_out).uri)
    with pytest.raises(ImageNotFoundException):
        filtered.image_id(scan)
    assert filtered.get_image_uri(scan) == ""
    assert filtered.image_ids(scan) == []
    with Sandbox() as other:
        other.archive.create_project(PROJECT)
        other.archive.seed_sessions(PROJECT, sessions=1, scans=1)
        with xnat.connect(other.url, other.username, other.password, loglevel="ERROR") as elsewhere:
            scan = elsewhere.projects[PROJECT].experiments[0].scans[0]
            with pytest.raises(InvalidIdError, match="the images are those of"):
                datastore.image_id(scan)
            assert datastore.get_image_uri(scan) == ""


def test_objects_held_before_an_expired_login_go_on_working(site, datastore, image):
    held = datastore.scan(image)
    resources = held.resources
    for _ in range(2):
        site.expire_sessions()
        resources.clearcache()
        assert "DICOM" in [resource.label for resource in resources.values()]
        site.expire_sessions()
        held.note = "looked at"
        assert held.note == "looked at"
    made = held.create_resource("NOTES")
    site.expire_sessions()
    made.upload_data(b"words", "words.txt")
    site.faults.add("/resources/", status=503)
    assert [file.id for file in made.files.values()] == ["words.txt"]


def test_the_data_model_is_loaded_for_objects_and_for_nothing_that_monai_label_calls(
    site, datastore, image, label, demo_dicom, tmp_path
):
    datastore.get_image_uri(image)
    datastore.datalist()
    datastore.add_image(None, str(demo_dicom.cases[2].dicom), {})
    datastore.set_description("livers")
    assert datastore.status()["total"] == 3
    asked = [served.path for served in site.requests]
    assert not [path for path in asked if "schemas" in path or "search/elements" in path]
    site.requests.clear()
    datastore.scan(image)
    loaded = len(site.requests)
    assert loaded > 5
    datastore.scan(sorted(datastore.list_images())[1])
    assert len(site.requests) == loaded + 1


def test_the_datastore_closes_at_the_end_of_a_with_block(site, open_xnat_datastore):
    with open_xnat_datastore(project=PROJECT) as datastore:
        assert datastore.list_images()
    assert [served.path for served in site.requests][-1] == "/data/JSESSION"
