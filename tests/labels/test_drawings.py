"""ROI collections saved in the viewer are labels. They are found, decoded, preferred if newer, and never changed."""

from __future__ import annotations

import io
import logging
import re
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from label_archive import voxels
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from viewer import PROJECT, only, own_label

from monailabel_xnat.catalog import drawn_collections
from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.roi import RoiCollection, is_marked, marked_uid, stored_at
from monailabel_xnat.errors import LabelError


def roi_requests(sandbox):
    return [served for served in sandbox.requests if "RoiCollection" in served.path]


def test_a_drawing_is_a_final_label_in_every_way(viewer, open_datastore):
    array = viewer.save("SEG_1", liver=(3, 9), spleen=(12, 15))
    datastore = open_datastore()
    image = only(datastore)
    assert datastore.get_labeled_images() == [image]
    assert datastore.get_unlabeled_images() == []
    assert datastore.get_labels_by_image_id(image) == {"final": image}
    assert (voxels(datastore.get_label_uri(image, "final")) == array).all()
    info = datastore.get_label_info(image, "final")
    assert info["label_info"] == [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    assert (info["roi_collection"]["label"], info["roi_collection"]["user"]) == ("SEG_1", "admin")
    assert abs(info["ts"] - time.time()) < 60
    (pair,) = datastore.datalist()
    assert nibabel.load(pair["image"]).shape == nibabel.load(pair["label"]).shape
    assert np.allclose(nibabel.load(pair["image"]).affine, nibabel.load(pair["label"]).affine)
    assert datastore.json()["objects"][image]["labels"]["final"]["info"]["roi_collection"]["type"] == "SEG"
    status = datastore.status()
    assert (status["completed"], status["roi_collections"]) == (1, 1)


@pytest.mark.parametrize("shift", [0.7, 1.0], ids=["between voxels", "by whole voxels"])
def test_a_drawing_that_was_decoded_does_not_outlive_its_image(viewer, open_datastore, tmp_path, shift):
    """The position of the image is corrected; its UIDs and its shape stay."""
    viewer.save("SEG_1")
    datastore = open_datastore()
    image = only(datastore)
    assert len(datastore.datalist()) == 1
    files = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in viewer.images}
    resource = f"{viewer.scan.path}/resources/DICOM"
    for file in list_files(viewer.session, resource):
        stored = pydicom.dcmread(io.BytesIO(viewer.session.request("GET", file.uri).content))
        assert str(stored.SOPInstanceUID) in files
        x, y, z = stored.ImagePositionPatient
        stored.ImagePositionPatient = [x + shift * stored.PixelSpacing[1], y, z]
        stored.save_as(tmp_path / "moved.dcm")
        headers = {"Content-Type": "application/octet-stream"}
        content = (tmp_path / "moved.dcm").read_bytes()
        viewer.session.request("PUT", file.uri, query={"overwrite": "true"}, body=content, headers=headers)
    datastore.refresh()
    assert datastore.datalist() == []
    assert "the image changed after this label" in datastore.status()["left_out"][image]
    for label in (image, f"{image}#SEG_1"):
        with pytest.raises(LabelError, match="the image changed after this label"):
            datastore.get_label_uri(label, "final")


def test_a_drawing_is_read_once(viewer, xnat_sandbox, open_datastore):
    viewer.save("SEG_1")
    datastore = open_datastore()
    datastore.get_label_uri(only(datastore), "final")
    xnat_sandbox.requests.clear()
    datastore.get_label_uri(only(datastore), "final")
    datastore.get_labels_by_image_id(only(datastore))
    datastore.json()
    datastore.refresh()
    assert roi_requests(xnat_sandbox) == []
    datastore.close()
    again = open_datastore()
    again.get_label_uri(only(again), "final")
    assert roi_requests(xnat_sandbox) == []


def test_the_info_is_known_without_reading_the_drawing(viewer, xnat_sandbox, open_datastore):
    viewer.save("SEG_1", "my drawing")
    datastore = open_datastore()
    xnat_sandbox.requests.clear()
    assert datastore.get_label_info(only(datastore), "final")["roi_collection"]["name"] == "my drawing"
    assert roi_requests(xnat_sandbox) == []


def test_of_several_drawings_the_newest_counts_and_each_can_be_named(viewer, open_datastore):
    older = viewer.save("SEG_1", liver=(3, 9))
    time.sleep(0.01)
    newer = viewer.save("SEG_2", liver=(5, 7))
    datastore = open_datastore()
    image = only(datastore)
    assert (voxels(datastore.get_label_uri(image, "final")) == newer).all()
    assert (voxels(datastore.get_label_uri(f"{image}#SEG_1", "final")) == older).all()
    assert datastore.get_label_info(f"{image}#SEG_1", "final")["roi_collection"]["label"] == "SEG_1"
    assert datastore.get_label_uri(f"{image}#SEG_3", "final") == ""
    assert datastore.get_label_info(f"{image}#SEG_3", "final") == {}


def test_a_drawing_that_was_overwritten_is_read_again(viewer, open_datastore):
    viewer.save("SEG_1", liver=(3, 9))
    datastore = open_datastore()
    datastore.get_label_uri(only(datastore), "final")
    changed = viewer.save("SEG_1", liver=(5, 7), overwrite=True)
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(only(datastore), "final")) == changed).all()


def test_the_newer_of_a_drawing_and_a_label_of_ours_counts(viewer, open_datastore, tmp_path):
    drawn = viewer.save("SEG_1")
    time.sleep(0.01)
    datastore = open_datastore()
    image = only(datastore)
    datastore.save_label(image, own_label(viewer, tmp_path), "final", {"mine": True})
    assert datastore.get_label_info(image, "final")["mine"]
    assert not (voxels(datastore.get_label_uri(image, "final")) == drawn).all()
    time.sleep(0.01)
    newest = viewer.save("SEG_2", liver=(5, 7))
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(image, "final")) == newest).all()
    assert datastore.get_labels_by_image_id(image) == {"final": image}


def test_a_drawing_counts_only_for_its_tag(viewer, open_datastore, tmp_path):
    viewer.save("SEG_1")
    datastore = open_datastore()
    image = only(datastore)
    datastore.save_label(image, own_label(viewer, tmp_path), "original", {"model": "m"})
    assert datastore.get_label_info(image, "original")["model"] == "m"
    assert set(datastore.get_labels_by_image_id(image)) == {"final", "original"}


@pytest.mark.parametrize(
    ("settings", "tags"),
    [
        ({"roi_tag": ""}, set()),
        ({"roi_tag": "drawn"}, {"drawn"}),
        ({"roi_label": "SEG_*"}, {"final"}),
        ({"roi_label": "!seg_*"}, set()),
    ],
)
def test_the_settings_choose_what_counts(viewer, open_datastore, settings, tags):
    viewer.save("SEG_1")
    datastore = open_datastore(**settings)
    assert set(datastore.get_labels_by_image_id(only(datastore))) == tags


def test_the_log_says_once_which_drawings_count(viewer, open_datastore, caplog):
    viewer.save("SEG_1")
    with caplog.at_level(logging.INFO):
        datastore = open_datastore()
        datastore.refresh()
    told = [record for record in caplog.records if "saved in viewers" in record.getMessage()]
    assert len(told) == 1
    assert "1 drawings" in told[0].getMessage()


def test_changing_the_info_of_a_drawing_makes_it_a_label_of_ours(viewer, open_datastore):
    array = viewer.save("SEG_1")
    datastore = open_datastore()
    image = only(datastore)
    datastore.update_label_info(image, "final", {"score": 3})
    info = datastore.get_label_info(image, "final")
    assert (info["score"], info["roi_collection"]["label"]) == (3, "SEG_1")
    assert (voxels(datastore.get_label_uri(image, "final")) == array).all()
    rows = viewer.session.rows("/data/experiments", {"xsiType": "icr:roiCollectionData", "project": PROJECT})
    assert [row["label"] for row in rows] == ["SEG_1"]


def test_drawings_of_people_cannot_be_removed(viewer, open_datastore):
    viewer.save("SEG_1")
    datastore = open_datastore()
    with pytest.raises(ValueError, match="saved in the viewer"):
        datastore.remove_label(only(datastore), "final")


def square(viewer, low, high, k):
    """Return the corners of a square in a slice, LPS in mm, around the voxels from one index up to another."""
    corners = [(low, low), (high, low), (high, high), (low, high)]
    points = np.array([[i - 0.5, j - 0.5, k, 1] for i, j in corners]) @ viewer.grid.affine.T
    return [f"{value:.4f}" for point in points for value in point[:3] * (-1, -1, 1)]


def make_rtstruct(viewer, name, contours):
    image = pydicom.dcmread(viewer.images[0], stop_before_pixels=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.StudyInstanceUID = "RTSTRUCT", image.StudyInstanceUID
    reference, series, study, frame, roi, drawn = (Dataset() for _ in range(6))
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series.SeriesInstanceUID, series.ContourImageSequence = image.SeriesInstanceUID, [reference]
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = image.StudyInstanceUID, [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = image.FrameOfReferenceUID, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = 4, name, 4
    drawn.ContourSequence = []
    for points in contours:
        contour = Dataset()
        contour.ContourGeometricType, contour.ContourData = "CLOSED_PLANAR", points
        contour.NumberOfContourPoints = len(points) // 3
        drawn.ContourSequence.append(contour)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [roi], [drawn]
    target = io.BytesIO()
    dataset.save_as(target, write_like_original=False)
    return target.getvalue()


def test_contours_are_filled(viewer, open_datastore):
    contours = [square(viewer, 3, 9, k) for k in (5, 6)]
    viewer.store("RT_1", make_rtstruct(viewer, "spleen", contours), "RTSTRUCT")
    expected = np.zeros(viewer.grid.shape)
    expected[3:9, 3:9, 5:7] = 4
    datastore = open_datastore()
    assert (voxels(datastore.get_label_uri(only(datastore), "final")) == expected).all()
    assert datastore.get_label_info(only(datastore), "final")["label_info"] == [{"name": "spleen", "idx": 4}]


def test_a_drawing_in_a_session_shared_in_is_a_label_there(viewer, xnat_sandbox, open_datastore):
    viewer.save("SEG_1")
    xnat_sandbox.archive.create_project("R")
    image = viewer.scan.image_id
    for held, label in ((image.subject, "subject"), (image.experiment, "session")):
        xnat_sandbox.archive.share(held, "R", label)
    datastore = open_datastore(project="R")
    assert datastore.get_labeled_images() == datastore.list_images() == [str(replace(image, project="R"))]


def test_many_new_drawings_do_not_delay_the_start(viewer, xnat_sandbox, open_datastore, monkeypatch):
    monkeypatch.setattr(drawn_collections, "_PATIENCE", 0.05)
    viewer.save("SEG_1")
    xnat_sandbox.faults.add("/data/experiments/RoiCollection", delay=1.0)
    datastore = open_datastore()
    assert datastore.get_labeled_images() == []
    deadline = time.monotonic() + 20
    while not datastore.get_labeled_images():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_nifti_collection_made_by_the_generic_calls_is_read(viewer, open_datastore, tmp_path):
    content = Path(own_label(viewer, tmp_path, 2)).read_bytes()
    image = viewer.scan.image_id
    path = f"/data/projects/P/subjects/{image.subject}/experiments/{image.experiment}/assessors/N1"
    kind = "icr:roiCollectionData"
    fields = {"UID": "1.2.3", "collectionType": "NIFTI", "references/seriesUID": viewer.scan.series_uid}
    query = {"xsiType": kind, **{f"{kind}/{name}": value for name, value in fields.items()}}
    viewer.session.request("PUT", path, query=query)
    headers = {"Content-Type": "application/octet-stream"}
    viewer.session.request("PUT", f"{path}/out/resources/NIFTI/files/n.nii.gz", body=content, headers=headers)
    datastore = open_datastore()
    assert set(np.unique(voxels(datastore.get_label_uri(only(datastore), "final")))) == {0, 2}


def test_a_drawing_that_cannot_be_read_is_left_out_and_named(viewer, open_datastore):
    viewer.save("SEG_1")
    (file,) = [file for file in viewer.session.rows(seg_files(viewer)) if file["Name"].endswith(".dcm")]
    headers = {"Content-Type": "application/octet-stream"}
    path = f"{seg_files(viewer)}/{file['Name']}"
    viewer.session.request("PUT", path, query={"overwrite": "true"}, body=b"nothing like it", headers=headers)
    datastore = open_datastore()
    assert datastore.datalist() == []
    (reason,) = datastore.status()["left_out"].values()
    assert "DICOM" in reason


def seg_files(viewer):
    (row,) = viewer.session.rows("/data/experiments", {"xsiType": "icr:roiCollectionData", "project": PROJECT})
    return f"/data/experiments/{viewer.scan.image_id.experiment}/assessors/{row['ID']}/out/resources/SEG/files"


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_site_without_the_type_is_asked_again_only_by_a_refresh(viewer, xnat_sandbox, open_datastore, caplog, status):
    viewer.save("SEG_1")
    xnat_sandbox.faults.add("/data/experiments", status=status)
    with caplog.at_level(logging.INFO):
        datastore = open_datastore(max_age=0.001)
    assert datastore.get_labeled_images() == []
    assert len([record for record in caplog.records if "lists no ROI collections" in record.getMessage()]) == 1
    xnat_sandbox.requests.clear()
    deadline = time.monotonic() + 10
    while len(xnat_sandbox.requests) < 3 and time.monotonic() < deadline:
        datastore.list_images()
        time.sleep(0.01)
    assert not any("roi" in served.query.get("xsiType", "") for served in xnat_sandbox.requests)
    datastore.refresh()
    assert datastore.get_labeled_images() == datastore.list_images()


def test_names_stand_for_the_values_in_the_settings(viewer, open_datastore, caplog):
    array = viewer.save("SEG_1", Liver=(3, 9), left_kidney=(10, 12), artefact=(13, 15))
    datastore = open_datastore(labels="spleen=1,liver=2,left kidney=7")
    image = only(datastore)
    with caplog.at_level(logging.WARNING):
        found = voxels(datastore.get_label_uri(image, "final"))
    assert (found == np.choose(array, [0, 2, 7, 0])).all()
    assert "artefact" in caplog.text
    info = datastore.get_label_info(image, "final")
    assert info["label_info"] == [{"name": "liver", "idx": 2}, {"name": "left kidney", "idx": 7}]
    assert any("artefact" in note for note in info["roi_collection"]["notes"])


def test_a_drawing_without_any_known_name_is_not_a_label(viewer, open_datastore):
    viewer.save("SEG_1", Segment_1=(3, 9))
    datastore = open_datastore(labels="spleen=1")
    assert datastore.datalist() == []
    (reason,) = datastore.status()["left_out"].values()
    assert "spleen" in reason
    assert "Segment 1" in reason


def test_the_mark_of_what_we_write():
    uid = marked_uid("a label")
    assert uid == marked_uid("a label") != marked_uid("another")
    assert len(uid) <= 64
    assert is_marked(uid)
    assert not any(map(is_marked, (uid[:-1], "1.2.3", "2.25.", "", "2.25.1234567890")))


@pytest.mark.parametrize(
    ("inserted", "modified", "expected"),
    [
        ("2026-11-23 10:15:00.250", "Mon, 23 Nov 2026 09:15:00 GMT", "2026-11-23T09:15:00.250000+00:00"),
        ("2026-11-23 04:45:00.5", "Mon, 23 Nov 2026 09:15:01 GMT", "2026-11-23T09:15:00.500000+00:00"),
        ("2026-11-22 10:15:00.250", "Mon, 23 Nov 2026 09:33:00 GMT", "2026-11-23T09:33:00+00:00"),
        ("2026-11-23 10:15:00", "", "2026-11-23T10:15:00+00:00"),
        ("", "Mon, 23 Nov 2026 09:15:00 GMT", "2026-11-23T09:15:00+00:00"),
    ],
)
def test_the_time_of_a_drawing_does_not_depend_on_the_time_zone_of_the_server(inserted, modified, expected):
    collection = RoiCollection("RoiCollection_1", "SEG_1", "E", "SEG", inserted=inserted)
    assert stored_at(collection, modified).isoformat() == expected


def mirrored(viewer, label):
    """Save a SEG as old viewers did: its positions begin at the opposite end of the images that the frames refer to."""
    viewer.save(label, liver=(3, 9))
    path = viewer.folder / f"{label}.dcm"
    dataset = pydicom.dcmread(path)
    images = [pydicom.dcmread(image, stop_before_pixels=True) for image in viewer.images]
    places = sorted((image.ImagePositionPatient for image in images), key=lambda position: position[2])
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = places[len(places) - 4 - number]
    dataset.save_as(path)
    viewer.store(label, path.read_bytes(), overwrite=True)
    return path


@pytest.mark.parametrize("known", [True, False])
def test_a_drawing_whose_positions_contradict_its_images_is_read_at_neither_place(viewer, open_datastore, known):
    path = mirrored(viewer, "SEG_1")
    datastore = open_datastore()
    image = only(datastore)
    cached = Path(datastore.get_image_uri(image))
    if not known:
        # An earlier version kept the image without a record of what its slices were made of.
        for sources in (cached.parents[1] / ".sources").iterdir():
            sources.unlink()
    assert datastore.datalist() == []
    (reason,) = datastore.status()["left_out"].values()
    assert re.search(r"\d of 6 frames of .* contradict the images that they refer to, by up to \d+\.\d mm", reason)
    with pytest.raises(LabelError, match="frame 1 marks slice"):
        datastore.save_label(image, str(path), "final", {})
