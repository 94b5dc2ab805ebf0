"""ROI collections, as the OHIF viewer's plugin accepts, checks and returns them (xnat-rest.md 14)."""

from __future__ import annotations

import copy
import io
import json
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

pytestmark = pytest.mark.claim("ROI collections and viewer", "OhifRoiApi", "DefaultCollectionStorage")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription


@pytest.fixture
def session(xnat_sandbox, demo_dicom, admin):
    """The ID of a CT session with one imported series as scan 2."""
    (address,) = xnat_sandbox.import_dicom(demo_dicom.cases[1].dicom, "P")
    return address.rpartition("/")[2]


@pytest.fixture(scope="session")
def slices(demo_dicom):
    return [pydicom.dcmread(path) for path in sorted(demo_dicom.cases[1].dicom.rglob("*")) if path.is_file()][:3]


def make_seg(slices) -> Dataset:
    mask = np.zeros((len(slices), slices[0].Rows, slices[0].Columns), np.uint8)
    mask[:, 10:20, 10:20] = 1
    segment = SegmentDescription(
        1, "liver", codes.SCT.Organ, codes.SCT.Liver, SegmentAlgorithmTypeValues.MANUAL
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Segmentation(
            slices, mask, SegmentationTypeValues.BINARY, [segment], generate_uid(), 100, generate_uid(), 1,
            manufacturer="m", manufacturer_model_name="m", software_versions="1", device_serial_number="1",
            series_description="drawn by hand",
        )  # fmt: skip


@pytest.fixture(scope="session")
def seg(slices):
    return make_seg(slices)


def as_bytes(dataset: Dataset) -> bytes:
    target = io.BytesIO()
    dataset.save_as(target, write_like_original=False)
    return target.getvalue()


def changed(dataset: Dataset, change) -> bytes:
    again = pydicom.dcmread(io.BytesIO(as_bytes(dataset)))
    change(again)
    return as_bytes(again)


def make_rtstruct(slices) -> bytes:
    first = slices[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.StudyInstanceUID = "RTSTRUCT", first.StudyInstanceUID
    dataset.StructureSetDate, dataset.StructureSetTime = "20240131", "123456"
    series, study, frame, image = Dataset(), Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    series.SeriesInstanceUID, series.ContourImageSequence = first.SeriesInstanceUID, Sequence([image])
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = first.StudyInstanceUID, Sequence([series])
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, Sequence([study])
    dataset.ReferencedFrameOfReferenceSequence = Sequence([frame])
    roi, contours, contour = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName = 7, "spleen"
    contour.ContourGeometricType, contour.ContourImageSequence = "CLOSED_PLANAR", Sequence([copy.deepcopy(image)])
    contours.ReferencedROINumber, contours.ContourSequence = 7, Sequence([contour])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence([roi]), Sequence([contours])
    return as_bytes(dataset)


def make_aim(slices, study: str = "") -> bytes:
    first = slices[0]
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ImageAnnotationCollection xmlns="gme://caCORE.caCORE/4.4/edu.northwestern.radiology.AIM">
  <uniqueIdentifier root="1.2.3.4"/>
  <imageAnnotations><ImageAnnotation>
    <uniqueIdentifier root="1.2.3.5"/><name value="lesion"/>
    <imageReferenceEntityCollection><ImageReferenceEntity>
      <imageStudy><instanceUid root="{study or first.StudyInstanceUID}"/>
        <imageSeries><instanceUid root="{first.SeriesInstanceUID}"/>
          <imageCollection><Image><sopInstanceUid root="{first.SOPInstanceUID}"/></Image></imageCollection>
        </imageSeries>
      </imageStudy>
    </ImageReferenceEntity></imageReferenceEntityCollection>
  </ImageAnnotation></imageAnnotations>
</ImageAnnotationCollection>""".encode()


def make_measurements(slices) -> bytes:
    first = slices[0]
    reference = {
        "StudyInstanceUID": str(first.StudyInstanceUID),
        "SeriesInstanceUID": str(first.SeriesInstanceUID),
        "imageCollection": [{"SOPInstanceUID": str(first.SOPInstanceUID)}],
    }
    rows = [{"uuid": "m1", "name": "length", "toolType": "Length"}]
    document = {"uuid": "u1", "name": "sizes", "imageReference": reference, "imageMeasurements": rows}
    return json.dumps(document).encode()


def store(api, session, content, label="C", kind="SEG", project="P", media="application/octet-stream", **query):
    address = f"/xapi/roi/projects/{project}/sessions/{session}/collections/{label}"
    return api.put(address, content, kind=media, type=kind, **query)


def test_a_segmentation_becomes_an_assessor(admin, session, seg, slices):
    answer = store(admin, session, as_bytes(seg))
    assert (answer.status_code, answer.text[:14]) == (200, "RoiCollection_")
    assert answer.headers["content-type"].startswith("text/plain")
    (row,) = admin.rows(f"/data/experiments/{session}/assessors")
    assert (row["ID"], row["label"], row["xsiType"]) == (answer.text, "C", "icr:roiCollectionData")
    (item,) = admin.get(f"/data/experiments/{answer.text}", format="json").json()["items"]
    fields = item["data_fields"]
    assert (fields["collectionType"], fields["name"], fields["UID"]) == ("SEG", "drawn by hand", seg.SOPInstanceUID)
    references = next(child for child in item["children"] if child["field"] == "references/seriesUID")
    assert [entry["data_fields"] for entry in references["items"]] == [{"seriesUID": slices[0].SeriesInstanceUID}]
    (resource,) = admin.rows(f"/data/experiments/{session}/assessors/{answer.text}/out/resources")
    assert (resource["label"], resource["content"], resource["format"]) == ("SEG", "EXTERNAL", "DICOM")
    (file,) = admin.rows(f"/data/experiments/{session}/assessors/{answer.text}/out/resources/SEG/files")
    assert file["Name"] == "C.dcm"


@pytest.mark.parametrize("make", [make_rtstruct, make_aim, make_measurements], ids=["RTSTRUCT", "AIM", "MEAS"])
def test_other_kinds_are_stored_and_given_back(admin, session, slices, make):
    kind, suffix = {make_rtstruct: ("RTSTRUCT", "dcm"), make_aim: ("AIM", "xml")}.get(make, ("MEAS", "json"))
    content = make(slices)
    answer = store(admin, session, content, kind=kind)
    assert answer.status_code == 200, answer.text
    assert admin.get(f"/xapi/roi/projects/P/collections/{answer.text}", type=kind).content == content
    assert admin.get("/xapi/roi/projects/P/collections/C", type=kind).content == content
    (file,) = admin.rows(f"/data/experiments/{session}/assessors/{answer.text}/out/resources/{kind}/files")
    assert file["Name"] == f"C.{suffix}"


def test_rois_of_a_collection(admin, session, seg, slices):
    stored = store(admin, session, as_bytes(seg)).text
    (segment,) = admin.get(f"/xapi/roi/projects/P/rois/{stored}").json()
    assert (segment["name"], segment["roiCollectionId"], segment["id"]) == ("liver", stored, 1)
    other = store(admin, session, make_rtstruct(slices), label="R", kind="RTSTRUCT").text
    (contour,) = admin.get(f"/xapi/roi/projects/P/rois/{other}").json()
    assert (contour["name"], contour["geometricType"]) == ("spleen", "CLOSED_PLANAR")
    assert admin.get(f"/xapi/roi/projects/P/exists/{stored}").json() is True
    assert admin.get("/xapi/roi/projects/P/exists/none").json() is False


def test_overwrite_keeps_the_assessor(admin, session, seg, slices):
    first = store(admin, session, as_bytes(seg)).text
    again = store(admin, session, as_bytes(make_seg(slices)))
    assert (again.status_code, again.text) == (422, "ROI collection exists, overwrite not specified")
    other = make_seg(slices)
    assert store(admin, session, as_bytes(other), overwrite="true").text == first
    item = admin.get(f"/data/experiments/{first}", format="json").json()["items"][0]
    assert item["data_fields"]["UID"] == other.SOPInstanceUID
    (resource,) = admin.rows(f"/data/experiments/{session}/assessors/{first}/out/resources")
    assert resource["file_count"] == "1"


def test_point_15_the_session_is_named_by_id(admin, session, seg):
    label = admin.get(f"/data/experiments/{session}", format="json").json()["items"][0]["data_fields"]["label"]
    assert store(admin, label, as_bytes(seg)).status_code == 422
    admin.made("/data/projects/Q")
    assert store(admin, session, as_bytes(seg), project="Q").status_code == 422
    admin.made("/data/projects/P/experiments/T", xsiType="xnat:ctSessionData", subject_ID="x")
    assert store(admin, session, as_bytes(seg), label="T").status_code == 409


def test_point_15_another_content_type_is_415(admin, session, seg):
    assert store(admin, session, as_bytes(seg), media="application/dicom").status_code == 415


def test_point_15_nifti_never_passes_and_unknown_types_neither(admin, session):
    answer = store(admin, session, b"nifti", kind="NIFTI")
    assert (answer.status_code, answer.text.startswith("Missing dependencies: study UID")) == (422, True)
    assert store(admin, session, b"x", kind="JPEG").status_code == 422


def set_study(dataset):
    dataset.StudyInstanceUID = "1.2.3"


def set_series(dataset):
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def set_instance(dataset):
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def set_source(dataset):
    group = dataset.PerFrameFunctionalGroupsSequence[0]
    group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def drop_series(dataset):
    del dataset.ReferencedSeriesSequence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_study, "study UID 1.2.3"),
        (set_series, "series UID 1.2.3"),
        (set_instance, "SOP instance UID 1.2.3"),
        (set_source, "SOP instance UID 1.2.3"),
        (drop_series, "series UID"),
    ],
)
def test_point_15_references_must_be_in_the_session(admin, session, seg, change, message):
    answer = store(admin, session, changed(seg, change))
    assert (answer.status_code, answer.text) == (422, f"Missing dependencies: {message}")
    assert admin.rows(f"/data/experiments/{session}/assessors") == []


def test_files_put_by_hand_are_no_dicom_catalog(admin, user, made, seg, slices):
    """Only the catalogs of imported series have SOP instance UIDs."""
    first = slices[0]
    admin.made(made.long, **{"xnat:ctSessionData/UID": str(first.StudyInstanceUID), "xsiType": "xnat:ctSessionData"})
    admin.made(made.scan, **{"xnat:ctScanData/UID": str(first.SeriesInstanceUID), "xsiType": "xnat:ctScanData"})
    admin.made(f"{made.scan}/resources/DICOM/files/1.dcm", as_bytes(first))
    answer = store(admin, made.session_id, as_bytes(seg))
    assert (answer.status_code, "SOP instance UID" in answer.text) == (422, True)


def test_point_15_the_modality_must_fit(admin, made, seg):
    admin.made("/data/projects/P/subjects/sub1/experiments/x1", xsiType="xnat:crSessionData")
    (row,) = [row for row in admin.rows("/data/projects/P/experiments") if row["label"] == "x1"]
    answer = store(admin, row["ID"], as_bytes(seg))
    assert (answer.status_code, "crSessionData" in answer.text) == (422, True)


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT", "AIM", "MEAS"])
def test_content_that_is_not_a_collection_is_422(admin, session, kind, slices):
    assert store(admin, session, b"neither DICOM nor XML nor JSON", kind=kind).status_code == 422


def test_an_rtstruct_is_no_segmentation(admin, session, slices):
    assert store(admin, session, make_rtstruct(slices)).status_code == 422
    assert store(admin, session, make_aim(slices, study="1.2.3"), kind="AIM").status_code == 422


def test_entities_in_xml_are_refused(admin, session, slices):
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + make_aim(slices).partition(b"?>\n")[2]
    assert store(admin, session, bomb, kind="AIM").status_code == 422


def test_who_may_do_what(admin, user, session, seg):
    member, reader, nobody = user("member"), user("collaborator"), user("none")
    assert store(reader, session, as_bytes(seg)).status_code == 403
    assert store(nobody, session, as_bytes(seg)).status_code == 403
    stored = store(member, session, as_bytes(seg))
    assert stored.status_code == 200
    address = f"/xapi/roi/projects/P/collections/{stored.text}"
    assert reader.get(address, type="SEG").status_code == 200
    assert nobody.get(address, type="SEG").status_code == 403
    assert reader.get(address, type="AIM").status_code == 422
    assert member.get(address, type="AIM").status_code == 422
    assert member.get("/xapi/roi/projects/P/collections/none", type="SEG").status_code == 422
    assert member.delete(address).status_code == 403
    assert (admin.delete(address).status_code, admin.delete(address).status_code) == (200, 422)


@pytest.mark.parametrize(
    ("name", "element"),
    [("RoiCollection", "icr:roiCollectionData"), ("MRSession", "xnat:mrSessionData"),
     ("PETMRSession", "xnat:petmrSessionData")],
)  # fmt: skip
def test_permission_probe(user, made, name, element):
    path = f"/xapi/roi/projects/P/permissions/{name}"
    expected = {"element": f"{element}/project", "create": True, "read": True, "edit": True, "delete": False}
    assert user("member").get(path).json() == expected
    assert user("collaborator").get(path).json() == {**expected, "create": False, "edit": False}
    assert user("owner").get(path).json() == {**expected, "delete": True}
    assert user("none").get(path).status_code == 403


def test_permission_probe_of_another_name(admin, made):
    path = "/xapi/roi/projects/P/permissions/XASession"
    answer = admin.get(path)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (422, "text/plain")
    told = admin.get(path, headers={"Accept": "application/json"})
    assert set(told.json()) == {"ResponseMessage"}


def test_without_the_plugin_there_is_nothing():
    import requests

    from monailabel_xnat.sandbox import Sandbox

    with Sandbox(roi_plugin=False) as sandbox:
        address = f"{sandbox.url}/xapi/roi/projects/P/permissions/RoiCollection"
        assert requests.get(address, auth=("admin", sandbox.password)).status_code == 404


def make_contour(slices, points) -> bytes:
    """Return AIM with one polyline, as the viewer writes it: in pixels, with its first point repeated at the end."""
    corners = "".join(
        f'<TwoDimensionSpatialCoordinate><coordinateIndex value="{index}"/><x value="{x}"/><y value="{y}"/>'
        "</TwoDimensionSpatialCoordinate>"
        for index, (x, y) in enumerate([*points, points[0]])
    )
    markup = f"""<markupEntityCollection><MarkupEntity xsi:type="TwoDimensionPolyline"
        xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
      <imageReferenceUid root="{slices[0].SOPInstanceUID}"/><referencedFrameNumber value="1"/>
      <twoDimensionSpatialCoordinateCollection>{corners}</twoDimensionSpatialCoordinateCollection>
    </MarkupEntity></markupEntityCollection>"""
    return make_aim(slices).replace(
        b"<imageReferenceEntityCollection>", markup.encode() + b"<imageReferenceEntityCollection>"
    )


def test_an_aim_collection_also_offers_its_rtstruct(admin, user, session, slices):
    """OhifRoiApi.storeAlternateTypes, AimConversionHelper; xnat-rest.md 23."""
    first = slices[0]
    stored = store(admin, session, make_contour(slices, [(2, 3), (6, 3), (6, 9)]), kind="AIM").text
    address = f"/xapi/roi/projects/P/collections/{stored}"
    labels = [row["label"] for row in admin.rows(f"/data/experiments/{session}/assessors/{stored}/out/resources")]
    assert labels == ["AIM", "RTSTRUCT"]
    struct = pydicom.dcmread(io.BytesIO(user("collaborator").get(address, type="RTSTRUCT").content))
    assert (struct.Modality, struct.StudyInstanceUID) == ("RTSTRUCT", first.StudyInstanceUID)
    assert [roi.ROIName for roi in struct.StructureSetROISequence] == ["lesion"]
    (contour,) = struct.ROIContourSequence[0].ContourSequence
    assert (contour.ContourGeometricType, contour.NumberOfContourPoints) == ("CLOSED_PLANAR", 3)
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    down, right = map(float, first.PixelSpacing)
    along, across = np.reshape(np.asarray(first.ImageOrientationPatient, float), (2, 3))
    corner = np.asarray(first.ImagePositionPatient, float) + 2 * right * along + 3 * down * across
    np.testing.assert_allclose(np.asarray(contour.ContourData[:3], float), corner, atol=1e-6)


def test_a_deleted_rtstruct_is_made_again_only_for_editors(admin, user, session, slices):
    """OhifRoiApi.getCollection: 404 for a user who may only read, because 403 would say that reading is not allowed."""
    stored = store(admin, session, make_contour(slices, [(2, 3), (6, 3), (6, 9)]), kind="AIM").text
    address = f"/xapi/roi/projects/P/collections/{stored}"
    resource = f"/data/experiments/{session}/assessors/{stored}/out/resources/RTSTRUCT"
    assert admin.delete(resource).status_code == 200
    assert user("collaborator").get(address, type="RTSTRUCT").status_code == 404
    assert user("member").get(address, type="RTSTRUCT").status_code == 200
    assert len(admin.rows(f"{resource}/files")) == 1


def test_without_a_type_a_collection_comes_as_it_was_stored(admin, session, slices):
    """OhifRoiApi.getCollection: the parameter type is not required."""
    content = make_contour(slices, [(2, 3), (6, 3), (6, 9)])
    store(admin, session, content, kind="AIM")
    assert admin.get("/xapi/roi/projects/P/collections/C").content == content


def test_overwritten_aim_has_the_rtstruct_of_the_new_one(admin, session, slices):
    store(admin, session, make_contour(slices, [(2, 3), (6, 3), (6, 9)]), kind="AIM")
    store(admin, session, make_contour(slices, [(2, 3), (6, 3), (6, 9), (2, 9)]), kind="AIM", overwrite="true")
    found = admin.get("/xapi/roi/projects/P/collections/C", type="RTSTRUCT").content
    assert pydicom.dcmread(io.BytesIO(found)).ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints == 4
