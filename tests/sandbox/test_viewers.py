"""The calls of viewers before they show a session, and those of XNAT Workstation when it saves."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pydicom
import pytest

SEG = {"xsiType": "xnat:segScanData", "xnat:segScanData/type": "SEG", "xnat:segScanData/series_description": "liver"}


@pytest.fixture
def session(xnat_sandbox, demo_dicom, admin):
    """The ID of a CT session with one imported series."""
    (address,) = xnat_sandbox.import_dicom(demo_dicom.cases[1].dicom, "P")
    return address.rpartition("/")[2]


@pytest.mark.claim("ROI collections and viewer", "XNAT-OHIF viewer")
def test_the_viewer_gets_the_images_of_a_session(admin, session, demo_dicom):
    """XNATStandaloneRouting.js: studies, their series and instances, each with its header and a relative address."""
    found = admin.get(f"/xapi/viewer/projects/P/experiments/{session}", headers={"Accept": "application/json"}).json()
    assert found["transactionId"] == session
    headers = {str(item.SOPInstanceUID): item for item in map(pydicom.dcmread, _files(demo_dicom))}
    ((study,), any_header) = found["studies"], next(iter(headers.values()))
    assert (study["StudyInstanceUID"], study["PatientID"]) == (any_header.StudyInstanceUID, any_header.PatientID)
    (series,) = study["series"]
    assert (series["SeriesInstanceUID"], series["Modality"]) == (any_header.SeriesInstanceUID, "CT")
    assert len(series["instances"]) == len(headers)
    for instance in series["instances"]:
        metadata = instance["metadata"]
        header = headers[metadata["SOPInstanceUID"]]
        assert (metadata["Rows"], metadata["NumberOfFrames"]) == (header.Rows, 1)
        assert metadata["ImagePositionPatient"] == list(map(float, header.ImagePositionPatient))
        assert instance["url"].startswith("/data/archive/projects/P/subjects/")
        image = pydicom.dcmread(io.BytesIO(admin.get(instance["url"]).content))
        assert image.SOPInstanceUID == header.SOPInstanceUID


def _files(demo_dicom):
    return sorted(path for path in demo_dicom.cases[1].dicom.rglob("*") if path.is_file())


@pytest.mark.claim("ROI collections and viewer", "XNAT-OHIF viewer")
def test_who_may_ask_what_of_the_viewer(admin, user, session):
    """OhifViewerApi: GET needs the right to read, POST the right to edit. A session of another project is 404."""
    address = f"/xapi/viewer/projects/P/experiments/{session}"
    reader, nobody = user("collaborator"), user("none")
    assert [reader.get(address + end).status_code for end in ("", "/exists")] == [200, 200]
    assert (reader.post(address).status_code, user("member").post(address).status_code) == (403, 200)
    assert nobody.get(address).status_code == 403
    admin.made("/data/projects/Q")
    assert admin.get(address.replace("projects/P", "projects/Q")).status_code == 404
    assert admin.get("/xapi/viewer/projects/P/experiments/none").status_code == 422
    assert admin.put(address).status_code == 405
    for incomplete in ("viewer/projects/P", "viewer/projects/P/experiments", "viewerConfig/projects"):
        assert admin.get(f"/xapi/{incomplete}").status_code == 404


@pytest.mark.claim("ROI collections and viewer", "XNAT-OHIF viewer")
def test_there_are_no_presets_of_the_viewer(admin, session):
    """OhifViewerConfigApi: a list for each type of ROI, and 404 for settings that nobody has made."""
    assert admin.get("/xapi/viewerConfig/projects/P/roipreset").json() == {"AIM": [], "SEG": [], "MEAS": []}
    assert admin.get("/xapi/viewerConfig/projects/P/roipreset", type="seg").json() == {"SEG": []}
    assert admin.get("/xapi/viewerConfig/projects/P/roipreset", type="x").status_code == 422
    assert admin.get("/xapi/viewerConfig/projects/P").status_code == 404


@pytest.fixture
def workstation_seg(shared):
    """A DICOM SEG as XNAT Workstation 0.6.1 wrote it."""
    return (shared / "cases" / "viewers" / "DEMO05_CT1_ws_seg.dcm").read_bytes()


@pytest.mark.claim("ROI collections and viewer", "XNAT-Workstation")
def test_a_segmentation_of_xnat_workstation_is_a_scan(admin, session, workstation_seg):
    """xnatClient.ts: uploadDicomSegAsScan, getScans, getScanFiles, downloadScanFile; and the scan's DICOM catalog."""
    scan = f"/data/experiments/{session}/scans/3002"
    admin.made(scan, **SEG)
    file = f"{scan}/resources/DICOM/files/segmentation.dcm"
    assert admin.put(file, workstation_seg, kind="application/dicom", format="DICOM", content="SEG").status_code == 200
    admin.made(scan, pullDataFromHeaders="true")
    header = pydicom.dcmread(io.BytesIO(workstation_seg))
    (row,) = admin.rows(f"/data/experiments/{session}/scans", columns="ID,type,xsiType,UID,modality")[1:]
    assert (row["ID"], row["type"], row["xsiType"], row["modality"]) == ("3002", "SEG", "xnat:segScanData", "SEG")
    assert row["UID"] == header.SeriesInstanceUID
    fields = admin.get(scan, format="json").json()["items"][0]["data_fields"]
    assert fields["start_date"] == f"{header.SeriesDate[:4]}-{header.SeriesDate[4:6]}-{header.SeriesDate[6:]}"
    (listed,) = admin.rows(f"{scan}/files")
    assert (listed["Name"], listed["collection"]) == ("segmentation.dcm", "DICOM")
    assert admin.get(listed["URI"]).content == workstation_seg
    catalog = ElementTree.fromstring(admin.get(f"{scan}/resources/DICOM", format="xml").content)
    space = "{http://nrg.wustl.edu/catalog}"
    (entry,) = catalog.iter(f"{space}entry")
    assert (entry.get("URI"), entry.get("format"), entry.get("content")) == ("segmentation.dcm", "DICOM", "SEG")


def test_a_pull_from_headers_without_dicom_is_an_error(admin, made):
    """PullScanDataFromHeaders: "Unable to locate DICOM or ECAT files", which ScanResource answers with 500."""
    assert admin.put(made.scan, pullDataFromHeaders="true").status_code == 500
    assert admin.put(made.long, pullDataFromHeaders="true").status_code == 500


def test_a_pull_from_headers_does_not_change_the_kind_of_a_scan(admin, made, workstation_seg):
    """PullScanDataFromHeaders: "Modification of scan modality (...) not supported."."""
    admin.made(f"{made.scan}/resources/DICOM/files/a.dcm", workstation_seg, format="DICOM")
    answer = admin.put(made.scan, pullDataFromHeaders="true")
    assert (answer.status_code, "not supported" in answer.text) == (500, True)
