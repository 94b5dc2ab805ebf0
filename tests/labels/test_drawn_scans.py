"""Scans that hold a DICOM SEG are labels.

They are found, assigned to their image, preferred if newer, and never served as an image.
"""

from __future__ import annotations

import io
import logging
import time

import numpy as np
import pydicom
import pytest
from label_archive import voxels
from meddler import Meddler
from pydicom.uid import generate_uid
from viewer import PROJECT, only, own_label
from viewer_files import Person

from monailabel_xnat.errors import UnreadDrawingError, XNATDatastoreError
from monailabel_xnat.ids import ImageId, LabelId


@pytest.fixture
def person(xnat_sandbox, viewer):
    return Person(xnat_sandbox, PROJECT)


@pytest.fixture
def meddler(xnat_sandbox):
    meddler = Meddler(xnat_sandbox.url)
    yield meddler
    meddler.close()


def changed(content: bytes, change) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    change(dataset)
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def label_of(datastore):
    return voxels(datastore.get_label_uri(only(datastore), "final"))


def files_asked(sandbox, scan):
    return [served for served in sandbox.requests if f"/scans/{scan}/" in served.path]


def test_the_newest_of_labels_collections_and_scans_wins(viewer, person, open_datastore, tmp_path):
    arrays = []
    datastore = open_datastore(max_age=1e6)

    def newest():
        datastore.refresh()
        return label_of(datastore)

    for scan, box in (("3001", (3, 9)), ("3101", (4, 8))):
        array, content = viewer.seg(liver=box)
        person.store_scan(scan, "SEG", content, "drawn")
        arrays.append(array)
        assert (newest() == array).all()
    array = viewer.save("SEG_1", liver=(5, 7))
    assert (newest() == array).all()
    image = only(datastore)
    own = own_label(viewer, tmp_path)
    datastore.save_label(image, own, "final", {})
    assert (newest() == voxels(own)).all()
    array, content = viewer.seg(liver=(6, 12))
    time.sleep(1.1)
    person.store_scan("3201", "SEG", content, "drawn")
    assert (newest() == array).all()
    assert (voxels(datastore.get_label_uri(f"{image}#scan:3001", "final")) == arrays[0]).all()


def test_a_drawn_scan_that_is_overwritten_is_read_again_before_it_is_used(viewer, person, xnat_sandbox, open_datastore):
    array, content = viewer.seg(liver=(3, 9))
    path = person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore(max_age=1e6)
    image = only(datastore)
    assert (label_of(datastore) == array).all()
    other, replacement = viewer.seg(liver=(5, 11))
    assert len(content) == len(replacement)
    for get in (
        lambda: datastore.get_label_uri(image, "final"),
        lambda: datastore.datalist()[0]["label"],
        lambda: datastore.get_label_uri(f"{image}#scan:3002", ""),
    ):
        person.overwrite_scan(path, "SEG", replacement)
        assert (voxels(get()) == other).all()
        person.overwrite_scan(path, "SEG", content)
        assert (voxels(get()) == array).all()
    before = len(xnat_sandbox.requests)
    datastore.status()
    datastore.get_labeled_images()
    assert len(xnat_sandbox.requests) == before


def test_a_drawn_scan_is_read_once_by_all_processes(viewer, person, xnat_sandbox, open_datastore):
    _, content = viewer.seg()
    person.store_scan("3002", "SEG", content, "drawn")
    open_datastore()
    before = len(files_asked(xnat_sandbox, 3002))
    again = open_datastore()
    assert again.get_labeled_images() == again.list_images()
    assert len(files_asked(xnat_sandbox, 3002)) == before


@pytest.mark.parametrize("kind", ["xnat:segScanData", "xnat:otherDicomScanData", "xnat:ctScanData"])
@pytest.mark.parametrize("said", ["", "type", "modality"])
@pytest.mark.parametrize("roi_tag", ["final", ""])
def test_a_drawn_scan_is_never_an_image(viewer, person, open_datastore, kind, said, roi_tag):
    array, content = viewer.seg()
    path = f"/data/experiments/{person.session()}/scans/9"
    person.put(path, xsiType=kind, **({f"{kind}/{said}": "SEG"} if said else {f"{kind}/note": "x"}))
    person.put(f"{path}/resources/DICOM/files/1.2.3", content)
    datastore = open_datastore(roi_tag=roi_tag)
    assert only(datastore) == str(viewer.scan.image_id)
    if roi_tag:
        assert (label_of(datastore) == array).all()
    else:
        assert datastore.get_labels_by_image_id(only(datastore)) == {}


@pytest.mark.parametrize("resource", ["secondary", "SEG", "anything"])
def test_the_file_may_lie_in_any_resource(viewer, person, open_datastore, resource):
    array, content = viewer.seg()
    path = f"/data/experiments/{person.session()}/scans/9"
    person.put(path, xsiType="xnat:segScanData", **{"xnat:segScanData/type": "SEG"})
    person.put(f"{path}/resources/SNAPSHOTS/files/a.gif", b"GIF89a")
    person.put(f"{path}/resources/{resource}/files/a/label.dcm", content)
    assert (label_of(open_datastore()) == array).all()


def test_the_patterns_of_roi_label_cover_descriptions_and_numbers_of_scans(viewer, person, open_datastore):
    first, content = viewer.seg("Liver by hand", liver=(3, 9))
    person.store_scan("3001", "SEG", content, "Liver by hand")
    second, content = viewer.seg("trial", liver=(4, 8))
    person.store_scan("3101", "SEG", content, "trial")
    for patterns, expected in (
        ("", second),
        ("*by hand", first),
        ("!trial", first),
        ("!scan:3101", first),
        ("scan:3*", second),
    ):
        assert (label_of(open_datastore(roi_label=patterns)) == expected).all()
    assert open_datastore(roi_label="none").datalist() == []


def test_a_drawn_scan_of_unusable_quality_is_not_a_label(viewer, person, open_datastore):
    _, content = viewer.seg()
    path = person.store_scan("3001", "SEG", content, "drawn")
    person.put(path, xsiType="xnat:segScanData", **{"xnat:segScanData/quality": "unusable"})
    datastore = open_datastore()
    assert datastore.list_images() == datastore.get_unlabeled_images() == [str(viewer.scan.image_id)]


def test_a_collection_that_is_called_like_a_scan_stays_reachable():
    image = ImageId("P", "S", "E", "2")
    for label in (
        LabelId(image, collection="scan:3002"),
        LabelId(image, drawn_scan="3002"),
        LabelId(image, None, "a:b"),
    ):
        assert LabelId.parse(str(label)) == label
    assert str(LabelId(image, drawn_scan="30/2#1")) == "P/S/E/2#scan:30%2F2%231"
    assert LabelId.parse("P/S/E/2#scan:30%2F2%231").drawn_scan == "30/2#1"
    assert str(LabelId(image, collection="scan:3002")) == "P/S/E/2#scan%3A3002"


def test_a_drawn_scan_of_another_session_belongs_to_the_image_that_it_refers_to(viewer, person, open_datastore):
    array, content = viewer.seg()
    subject = viewer.scan.image_id.subject
    path = f"/data/projects/{PROJECT}/subjects/{subject}/experiments/later"
    person.put(path, xsiType="xnat:ctSessionData")
    session = next(row["ID"] for row in person.sessions() if row["label"] == "later")
    person.store_scan("1", "SEG", content, "drawn", session)
    assert (label_of(open_datastore()) == array).all()


def test_images_are_found_by_their_instances_where_the_series_is_not_named(viewer, person, open_datastore):
    def unname(dataset):
        del dataset.ReferencedSeriesSequence

    array, content = viewer.seg()
    person.store_scan("3002", "SEG", changed(content, unname), "drawn")
    assert (label_of(open_datastore()) == array).all()


def test_a_drawn_scan_that_refers_to_nothing_here_is_counted(viewer, person, open_datastore, caplog):
    def elsewhere(dataset):
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
        for instance in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
            instance.ReferencedSOPInstanceUID = generate_uid()

    _, content = viewer.seg()
    person.store_scan("3002", "SEG", changed(content, elsewhere), "drawn")
    with caplog.at_level(logging.WARNING):
        datastore = open_datastore()
        datastore.refresh()
    (reason,) = datastore.status()["roi_unread"].values()
    assert "not in its project" in reason
    assert datastore.get_unlabeled_images() == datastore.list_images()
    assert len([record for record in caplog.records if "1 scans that hold drawings" in record.getMessage()]) == 1


@pytest.mark.parametrize("content", [b"no DICOM at all", None], ids=["damaged", "another object"])
def test_a_newer_drawn_scan_that_cannot_be_read_leaves_the_case_out(
    viewer, person, open_datastore, tmp_path, caplog, content
):
    image = str(viewer.scan.image_id)
    datastore = open_datastore()
    datastore.save_label(image, own_label(viewer, tmp_path), "final", {})
    time.sleep(1.1)
    content = content or viewer.images[0].read_bytes()
    person.store_scan("3002", "SEG", content, "drawn")
    with caplog.at_level(logging.WARNING):
        datastore.refresh()
    assert datastore.datalist() == []
    assert "'3002'" in datastore.status()["left_out"][image]
    assert [name.rpartition("/")[2] for name in datastore.status()["roi_unread"]] == ["scan:3002"]
    with pytest.raises(UnreadDrawingError, match="3002"):
        datastore.get_label_uri(image, "final")
    assert "1 scans that hold drawings" in caplog.text
    datastore = open_datastore(roi_label="!scan:3002")
    assert len(datastore.datalist()) == 1
    time.sleep(1.1)
    datastore = open_datastore()
    datastore.save_label(image, own_label(viewer, tmp_path, 2), "final", {})
    assert len(datastore.datalist()) == 1


@pytest.mark.parametrize("status", [500, 403, 503])
def test_a_drawn_scan_without_its_file_leaves_the_case_out(viewer, person, meddler, open_datastore, status):
    viewer.save("SEG_1", liver=(3, 9))
    array, content = viewer.seg(liver=(5, 7))
    person.store_scan("3002", "SEG", content, "drawn")
    meddler.change("/scans/3002/", lambda answer: answer._replace(status=status, body=b""))
    datastore = open_datastore(server=meddler.url)
    assert datastore.datalist() == []
    assert "'3002'" in datastore.status()["left_out"][only(datastore)]
    meddler.stop()
    datastore.refresh()
    assert (voxels(datastore.datalist()[0]["label"]) == array).all()


def test_a_drawn_scan_that_cannot_be_compared_is_not_used(viewer, person, meddler, open_datastore):
    array, content = viewer.seg()
    person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore(server=meddler.url, max_age=1e6)
    assert (label_of(datastore) == array).all()
    meddler.change("/scans/3002/files", lambda answer: answer._replace(status=403, body=b""))
    with pytest.raises(XNATDatastoreError):
        label_of(datastore)
    assert datastore.datalist() == []
    assert list(datastore.status()["left_out"]) == [only(datastore)]
    meddler.stop()
    assert len(datastore.datalist()) == 1


def test_while_it_is_overwritten_nothing_older_stands_in_for_it(viewer, person, open_datastore, xnat_sandbox):
    viewer.save("SEG_1", liver=(3, 9))
    array, content = viewer.seg(liver=(5, 7))
    path = person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore()
    assert (label_of(datastore) == array).all()
    person.http.delete(f"{xnat_sandbox.url}{path}/resources/DICOM/files").raise_for_status()
    for store in (datastore, open_datastore()):
        assert store.datalist() == []
        assert "overwritten" in store.status()["left_out"][only(store)]
    person.store_file(path, "SEG", content)
    datastore.refresh()
    assert (label_of(datastore) == array).all()


def test_a_scan_overwritten_with_a_drawing_on_another_image_leaves_the_first_image(
    viewer, person, demo_dicom, xnat_sandbox, open_datastore
):
    _, content = viewer.seg()
    path = person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore(max_age=1e6)
    image = only(datastore)
    assert datastore.get_label_uri(image, "final")

    def elsewhere(dataset):
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
        for instance in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
            instance.ReferencedSOPInstanceUID = generate_uid()

    person.overwrite_scan(path, "SEG", changed(content, elsewhere))
    assert datastore.get_label_uri(image, "final") == ""
    assert datastore.get_labels_by_image_id(image) == {}


def test_info_can_be_added_to_a_drawn_scan(viewer, person, open_datastore):
    array, content = viewer.seg()
    person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore()
    image = only(datastore)
    datastore.update_label_info(image, "final", {"score": 1})
    info = datastore.get_label_info(image, "final")
    assert (info["score"], info["roi_collection"]["scan"]) == (1, "3002")
    assert (label_of(datastore) == array).all()
    assert np.count_nonzero(array)


def test_a_drawn_scan_that_is_deleted_is_not_a_label_any_more(viewer, person, open_datastore, xnat_sandbox):
    array = viewer.save("SEG_1", liver=(3, 9))
    _, content = viewer.seg(liver=(5, 7))
    path = person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore(max_age=1e6)
    assert not (label_of(datastore) == array).all()
    person.http.delete(f"{xnat_sandbox.url}{path}?removeFiles=true").raise_for_status()
    assert (label_of(datastore) == array).all()
    assert len(datastore.datalist()) == 1


def test_while_the_list_cannot_be_renewed_what_was_overwritten_is_not_used(viewer, person, meddler, open_datastore):
    _, content = viewer.seg(liver=(5, 7))
    path = person.store_scan("3002", "SEG", content, "drawn")
    datastore = open_datastore(server=meddler.url, max_age=1e6)
    label_of(datastore)
    array, content = viewer.seg(liver=(4, 9))
    person.overwrite_scan(path, "SEG", content)
    meddler.change(r"/experiments$", lambda answer: answer._replace(body=answer.body[:-20]))
    with pytest.raises(XNATDatastoreError):
        label_of(datastore)
    assert datastore.datalist() == []
    meddler.stop()
    datastore.refresh()
    assert (label_of(datastore) == array).all()


def test_a_scan_with_several_objects_is_not_read(viewer, person, xnat_sandbox, open_datastore):
    viewer.save("SEG_1", liver=(3, 9))
    _, content = viewer.seg(liver=(5, 7))
    path = person.store_scan("3002", "SEG", content, "drawn")
    person.put(f"{path}/resources/DICOM/files/another.dcm", content)
    datastore = open_datastore(max_age=1e6)
    assert datastore.datalist() == []
    assert "2 DICOM files" in datastore.status()["left_out"][only(datastore)]
    before = len(xnat_sandbox.requests)
    datastore.datalist()
    assert not any(served.path.endswith("/projects/P/experiments") for served in list(xnat_sandbox.requests)[before:])
