"""A scan that is no volume stops nobody.

It causes one error, is remembered with the reason, and comes back when it changes.
"""

from __future__ import annotations

import pytest

from monailabel_xnat.errors import ImageConversionError, NoImageError


@pytest.fixture
def archive(xnat_sandbox, demo_dicom):
    """The first demo session, which has a localizer, and another one."""
    for case in demo_dicom.cases[:2]:
        xnat_sandbox.import_dicom(case.dicom.parent, "P")
    return xnat_sandbox


@pytest.fixture
def open_datastore(archive, open_xnat_datastore):
    return lambda **settings: open_xnat_datastore(project="P", prefetch=0, **settings)


def localizer(datastore):
    (image,) = [
        image
        for image in datastore.list_images()
        if "localizer" in datastore.get_image_info(image)["SeriesDescription"].lower()
    ]
    return image


def meet(datastore, image):
    with pytest.raises(ImageConversionError) as caught:
        datastore.get_image_uri(image)
    return str(caught.value)


def test_a_localizer_is_met_once_and_is_no_unlabelled_image_any_more(archive, open_datastore):
    datastore = open_datastore()
    image = localizer(datastore)
    assert image in datastore.get_unlabeled_images()
    assert "no_volume" not in datastore.status()
    said = meet(datastore, image)
    archive.requests.clear()
    assert meet(datastore, image) == said
    assert image not in datastore.get_unlabeled_images()
    assert image not in datastore.get_unlabeled_images("original")
    assert image in datastore.list_images()
    assert list(datastore.status()["no_volume"]) == [image]
    assert "3 orientations" in datastore.status()["no_volume"][image]
    assert len(archive.requests) == 0
    assert len(datastore.get_unlabeled_images()) == len(datastore.list_images()) - 1


def test_the_error_begins_with_the_id_names_three_files_and_says_what_helps(open_datastore):
    datastore = open_datastore()
    image = localizer(datastore)
    said = meet(datastore, image)
    assert said.startswith(image)
    assert said.count(image) == 1
    assert said.count(".dcm") <= 3
    assert 'series_description="!*localizer*"' in said
    assert len(said) < 700
    left = open_datastore(series_description="!*localizer*").list_images()
    assert sorted([*left, image]) == sorted(datastore.list_images())


def test_other_processes_and_later_starts_know_that_a_scan_is_no_volume(archive, open_datastore):
    first = open_datastore()
    image = localizer(first)
    meet(first, image)
    later = open_datastore()
    assert image not in later.get_unlabeled_images()
    assert image in later.status()["no_volume"]
    archive.requests.clear()
    meet(later, image)
    assert len(archive.requests) == 0


def test_a_localizer_is_an_image_again_when_its_listing_changes(archive, open_datastore, demo_dicom, tmp_path):
    datastore = open_datastore()
    image = localizer(datastore)
    meet(datastore, image)
    _, _, experiment, scan = image.split("/")
    with archive.archive.store.write() as db:
        db.execute(
            "UPDATE resources SET file_count = file_count - 1 WHERE kind = 'scan' AND label = 'DICOM' AND parent ="
            " (SELECT CAST(pk AS TEXT) FROM scans WHERE experiment = ? AND id = ?)",
            (experiment, scan),
        )
    datastore.refresh()
    assert image in datastore.get_unlabeled_images()
    assert "no_volume" not in datastore.status()


def test_after_a_refresh_it_is_tried_again_when_asked_for_by_name(archive, open_datastore):
    datastore = open_datastore()
    image = localizer(datastore)
    meet(datastore, image)
    datastore.refresh()
    assert image not in datastore.get_unlabeled_images()
    archive.requests.clear()
    meet(datastore, image)
    assert len(archive.requests) > 0
    archive.requests.clear()
    meet(datastore, image)
    assert len(archive.requests) == 0


def test_as_folders_of_dicom_all_scans_are_images(open_datastore):
    by_file = open_datastore()
    image = localizer(by_file)
    meet(by_file, image)
    folders = open_datastore(image_format="dicom")
    assert folders.get_image_uri(image)
    assert image in folders.get_unlabeled_images()


def test_a_resource_that_holds_no_files_is_remembered_too(archive, open_datastore):
    experiment = open_datastore().list_images()[0].split("/")[2]
    made = archive.archive.create_scan(experiment, "9", "xnat:ctScanData", modality="CT", quality="usable")
    with archive.archive.store.write() as db:
        db.execute(
            "INSERT INTO resources (kind, parent, label, folder, file_count, file_size) VALUES (?, ?, ?, ?, ?, ?)",
            ("scan", str(made.pk), "DICOM", "nowhere", 3, 300),
        )
    datastore = open_datastore()
    (image,) = [image for image in datastore.list_images() if image.endswith("/9")]
    with pytest.raises(NoImageError, match="holds no files"):
        datastore.get_image_uri(image)
    assert image in datastore.status()["no_volume"]
    assert image not in datastore.get_unlabeled_images()


def test_a_failure_of_xnat_is_not_remembered_as_no_volume(archive, open_datastore):
    datastore = open_datastore()
    image = next(image for image in datastore.list_images() if image != localizer(datastore))
    archive.faults.add("/DICOM/files", status=500, times=None)
    with pytest.raises(ConnectionError):
        datastore.get_image_uri(image)
    archive.faults.clear()
    assert image in datastore.get_unlabeled_images()
    assert datastore.get_image_uri(image)


def test_images_fetched_ahead_are_volumes(archive, open_xnat_datastore):
    datastore = open_xnat_datastore(project="P", prefetch=5)
    image = localizer(datastore)
    meet(datastore, image)
    others = [other for other in datastore.list_images() if other != image]
    archive.requests.clear()
    datastore.update_image_info(others[0], {"strategy": {"random": {"ts": 1}}})
    datastore.close()
    _, _, experiment, scan = image.split("/")
    assert not [
        served for served in archive.requests if f"{experiment}/scans/{scan}/" in served.path and "DICOM" in served.path
    ]
