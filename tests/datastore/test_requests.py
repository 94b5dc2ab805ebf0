"""How many requests each operation sends. A hospital's network is slow, and an XNAT has many users."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

PROJECT = "P"


@pytest.fixture
def open_datastore(xnat_sandbox, open_xnat_datastore, demo_dicom):
    xnat_sandbox.archive.create_project(PROJECT)
    for case in demo_dicom.cases[:2]:
        xnat_sandbox.import_dicom(case.dicom, PROJECT)

    def open_datastore(**settings):
        chosen = {"series_description": "!*localizer*", "roi_write": "", "prefetch": 0, **settings}
        return open_xnat_datastore(project=PROJECT, max_age=1000, **chosen)

    return open_datastore


@pytest.fixture
def datastore(open_datastore):
    return open_datastore()


@pytest.fixture
def label(demo_dicom, tmp_path):
    return shutil.copy(demo_dicom.cases[0].truth, tmp_path / "label.nii.gz")


@pytest.fixture
def at_most(xnat_sandbox):
    """Fail if a block sends more requests than it may, and show them."""

    @contextmanager
    def at_most(count):
        xnat_sandbox.requests.clear()
        yield
        sent = [f"{served.method} {served.path} {served.query}" for served in xnat_sandbox.requests]
        assert len(sent) <= count, "\n".join(sent)

    return at_most


def first(datastore):
    return sorted(datastore.list_images())[0]


def test_a_start_logs_in_and_lists(open_datastore, at_most):
    with at_most(4):
        open_datastore()


def test_a_renewal_of_the_listing_is_two_requests(datastore, at_most):
    with at_most(2):
        datastore.refresh()


def test_an_image_is_one_listing_and_one_zip_and_later_nothing(datastore, at_most):
    image = first(datastore)
    with at_most(2):
        datastore.get_image_uri(image)
    with at_most(0):
        datastore.get_image_uri(image)
        datastore.get_image_info(image)


def test_a_first_label_makes_its_resource_and_each_one_is_read_back(datastore, at_most, label):
    image = first(datastore)
    datastore.get_image_uri(image)
    with at_most(5):
        datastore.save_label(image, label, "final", {"a": 1})
    with at_most(4):
        datastore.save_label(image, label, "final", {"a": 2})
    with at_most(1):
        datastore.get_label_info(image, "final")
    with at_most(0):
        datastore.get_labels_by_image_id(image)
        datastore.get_label_info(image, "final")
        datastore.get_label_uri(image, "final")


def test_a_label_of_another_machine_is_a_listing_and_a_file(datastore, open_datastore, at_most, label, tmp_path):
    image = first(datastore)
    datastore.save_label(image, label, "final", {})
    other = open_datastore(cache_path=tmp_path / "other")
    other.get_image_uri(image)
    with at_most(2):
        other.get_label_uri(image, "final")
    with at_most(0):
        other.get_label_uri(image, "final")


def test_infos_are_written_and_read_back(datastore, at_most, label):
    image = first(datastore)
    datastore.get_image_uri(image)
    datastore.save_label(image, label, "final", {})
    with at_most(5):
        datastore.update_label_info(image, "final", {"b": 2})
    with at_most(6):
        datastore.update_image_info(image, {"c": 3})
        datastore.close()


def test_a_training_set_that_is_on_this_machine_is_proven_by_its_listings(datastore, at_most, label):
    image = first(datastore)
    datastore.save_label(image, label, "final", {})
    datastore.datalist()
    with at_most(1):
        assert len(datastore.datalist()) == 1


def test_the_copy_for_the_viewer_is_stored_and_found(open_datastore, at_most, label):
    datastore = open_datastore(roi_write="final")
    image = first(datastore)
    datastore.get_image_uri(image)
    with at_most(10):
        datastore.save_label(image, label, "final", {})
        datastore.close()


def test_a_new_image_file_makes_what_it_needs(datastore, at_most, demo_dicom, tmp_path):
    path = shutil.copy(demo_dicom.cases[0].truth, tmp_path / "new.nii.gz")
    with at_most(13):
        datastore.add_image(None, str(path), {})


def test_a_new_series_is_sent_once_and_proven_to_be_there(datastore, at_most, demo_dicom):
    with at_most(10):
        datastore.add_image(None, str(demo_dicom.cases[2].dicom), {})


def test_a_name_is_written_and_read_back(datastore, at_most):
    with at_most(6):
        datastore.set_name("livers")
    with at_most(0):
        assert datastore.name() == "livers"


def test_counts_and_lists_answer_from_memory(datastore, at_most):
    image = first(datastore)
    with at_most(0):
        datastore.status()
        datastore.json()
        datastore.list_images()
        datastore.get_labeled_images()
        datastore.get_unlabeled_images()
        datastore.get_labels_by_image_id(image)
