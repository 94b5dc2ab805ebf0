"""Imports of DICOM through XNAT's import service and the prearchive, and their results (xnat-rest.md 13)."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pydicom
import pytest

from monailabel_xnat.sandbox import Sandbox

IMPORT = "/data/services/import"
ENTRY = "{http://nrg.wustl.edu/catalog}entry"


def series_files(demo, number: int = 1) -> list[Path]:
    """Three slices of the CT series of a demo session."""
    return sorted(demo.cases[number].dicom.rglob("*.dcm"))[:3]


def changed(path: Path, **values) -> bytes:
    """Return a file with other header values. None deletes a value."""
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    target = io.BytesIO()
    dataset.save_as(target, write_like_original=False)
    return target.getvalue()


def zipped(*contents: bytes, **named: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"folder/{number}", content)
        for name, content in named.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.fixture
def slices(demo_dicom) -> list[bytes]:
    return [path.read_bytes() for path in series_files(demo_dicom)]


@pytest.fixture
def project(admin) -> str:
    admin.made("/data/projects/P")
    admin.made("/data/projects/P/prearchive_code/4")
    return "P"


def scans(admin, label: str) -> dict[str, dict[str, str]]:
    rows = admin.rows(f"/data/projects/P/experiments/{label}/resources", all="true")
    return {row["cat_id"]: row for row in rows}


# Into the archive


@pytest.mark.claim("import and prearchive", "TestImport.testDataProject", "SessionImporter")
def test_a_zip_becomes_a_session(admin, project, slices, demo_dicom):
    case = demo_dicom.cases[1]
    answer = admin.post(IMPORT, zipped(*slices), dest="/archive/projects/P")
    label = f"{case.subject}_CT1"
    assert (answer.status_code, answer.text) == (
        200,
        f"/data/archive/projects/P/subjects/{case.subject}/experiments/{label}\r\n",
    )
    item = admin.get(answer.text.strip(), format="json").json()["items"][0]
    assert item["meta"]["xsi:type"] == "xnat:ctSessionData"
    assert item["data_fields"]["UID"] == case.study_uid
    (scan,) = admin.rows(f"{answer.text.strip()}/scans", columns="ID,xsiType,UID,frames,modality")
    assert (scan["ID"], scan["xsiType"], scan["UID"]) == ("2", "xnat:ctScanData", case.series_uid)
    assert (scan["frames"], scan["modality"]) == ("3", "CT")
    (resource,) = admin.rows(f"{answer.text.strip()}/scans/2/resources")
    assert (resource["label"], resource["format"], resource["content"]) == ("DICOM", "DICOM", "RAW")
    catalog = ElementTree.fromstring(admin.get(f"{answer.text.strip()}/scans/2/resources/DICOM").text)
    assert catalog.get("UID") == case.series_uid
    uids = {pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID for content in slices}
    assert {entry.get("UID") for entry in catalog.iter(ENTRY)} == uids
    names = {row["Name"] for row in admin.rows(f"{answer.text.strip()}/scans/2/resources/DICOM/files")}
    assert all(re.fullmatch(rf"{re.escape(case.study_uid)}-2-\d+-[0-9a-f]+\.dcm", name) for name in names)


@pytest.mark.claim(
    "import and prearchive", "TestImport.testDataProjectExperimentNew", "TestImport.testNonPathBasedImport", "Importer"
)
@pytest.mark.parametrize(
    "query",
    [
        {"dest": "/archive/projects/P/subjects/sub/experiments/ses"},
        {"dest": "/archive", "project": "P", "subject": "sub", "session": "ses"},
        {"project": "P", "subject": "sub", "session": "ses"},
        {"project": "P", "subject": "sub", "session": "ses", "Direct-Archive": "true"},
        {"PROJECT_ID": "P", "SUBJECT_ID": "sub", "EXPT_LABEL": "ses", "import-handler": "SI"},
    ],
)
def test_destinations(admin, project, slices, query):
    answer = admin.post(IMPORT, zipped(slices[0]), **query)
    assert answer.text == "/data/archive/projects/P/subjects/sub/experiments/ses\r\n"


@pytest.mark.claim("import and prearchive", "Importer")
def test_tar_and_form(admin, project, slices):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.dcm")
        info.size = len(slices[0])
        archive.addfile(info, io.BytesIO(slices[0]))
    assert admin.post(IMPORT, target.getvalue(), kind="application/x-gzip", dest="/archive/projects/P").ok
    form = {"file": ("x.zip", zipped(slices[1]))}
    where = {"dest": "/archive/projects/P", "overwrite": "append"}
    assert admin.http.post(admin.url + IMPORT, files=form, params=where).status_code == 200
    two = [("a", ("a.zip", zipped(slices[0]))), ("b", ("b.zip", zipped(slices[1])))]
    assert admin.http.post(admin.url + IMPORT, files=two, params=where).status_code == 400


@pytest.mark.claim("import and prearchive", "GradualDicomImporter")
def test_single_objects_gather_in_one_session(admin, project, slices):
    for content in slices:
        answer = admin.post(
            IMPORT, content, kind="application/dicom", dest="/archive/projects/P", **{"import-handler": "gradual-DICOM"}
        )
        assert answer.status_code == 200
    (session,) = admin.rows("/data/projects/P/experiments")
    assert scans(admin, session["label"])["2"]["file_count"] == "3"
    (scan,) = admin.rows(f"/data/experiments/{session['ID']}/scans", columns="ID,frames")
    assert scan["frames"] == "3"


@pytest.mark.claim("import and prearchive", "Importer")
def test_chunked_bodies_are_fine_here(admin, project, slices):
    assert admin.post(IMPORT, iter([zipped(slices[0])]), dest="/archive/projects/P").status_code == 200


# What is there already


@pytest.mark.claim("import and prearchive", "TestImport.testDataDuplicateScanFilesOverwriteFDeleteF")
@pytest.mark.parametrize(("handler", "status"), [("DICOM-zip", 400), ("SI", 409)])
def test_a_session_that_exists_is_a_conflict(admin, project, slices, handler, status):
    query = {"dest": "/archive/projects/P", "import-handler": handler}
    assert admin.post(IMPORT, zipped(slices[0]), **query).status_code == 200
    answer = admin.post(IMPORT, zipped(slices[1]), **query)
    assert (answer.status_code, "retry with overwrite enabled" in answer.text) == (status, True)
    assert [row["status"] for row in admin.rows("/data/prearchive/projects/P")] == ["CONFLICT"]


@pytest.mark.claim("import and prearchive", "TestImport.testDataScan2partsFilesOverwriteTDeleteF", "xnat4tests")
@pytest.mark.parametrize("overwrite", ["append", "True", "maybe"])
def test_append_adds_what_is_missing(admin, project, slices, overwrite):
    """Unknown values of overwrite, such as the True that a common helper package sends, also add files."""
    query = {"dest": "/archive/projects/P", "overwrite": overwrite}
    address = admin.post(IMPORT, zipped(slices[0]), **query).text.strip()
    assert admin.post(IMPORT, zipped(*slices[1:]), **query).text.strip() == address
    assert len(admin.rows(f"{address}/scans/2/resources/DICOM/files")) == 3
    assert len(admin.rows(f"{address}/scans")) == 1


@pytest.mark.claim(
    "import and prearchive",
    "TestImport.testDataDuplicateScanFilesOverwriteTDeleteF",
    "TestImport.testDataScan2partsOverlapFilesOverwriteTDeleteF",
)
@pytest.mark.parametrize(("handler", "status"), [("DICOM-zip", 400), ("SI", 409)])
def test_appending_files_that_are_there_is_a_conflict(admin, project, slices, handler, status):
    """xnat-rest-tests TestImport: append of the same files fails unless overwrite_files says otherwise."""
    query = {"dest": "/archive/projects/P", "overwrite": "append", "import-handler": handler}
    address = admin.post(IMPORT, zipped(slices[0]), **query).text.strip()
    before = admin.rows(f"{address}/scans/2/resources/DICOM/files")
    answer = admin.post(IMPORT, zipped(*slices), **query)
    assert (answer.status_code, "overwrite_files" in answer.text) == (status, True)
    assert admin.rows(f"{address}/scans/2/resources/DICOM/files") == before
    (row,) = admin.rows("/data/prearchive/projects/P")
    assert (row["status"], row["name"]) == ("CONFLICT", address.rpartition("/")[2])


@pytest.mark.claim("import and prearchive", "TestImport.testDataDuplicateScanFilesOverwriteTDeleteFWithFileFlag")
def test_overwrite_files_replaces_those_that_are_there(admin, project, slices, demo_dicom):
    query = {"dest": "/archive/projects/P", "overwrite": "append", "overwrite_files": "true"}
    address = admin.post(IMPORT, zipped(*slices), **query).text.strip()
    before = {row["Name"]: row["digest"] for row in admin.rows(f"{address}/scans/2/resources/DICOM/files")}
    other = changed(series_files(demo_dicom)[0], InstitutionName="elsewhere")
    assert admin.post(IMPORT, zipped(other, slices[1]), **query).text.strip() == address
    after = {row["Name"]: row["digest"] for row in admin.rows(f"{address}/scans/2/resources/DICOM/files")}
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1


@pytest.mark.claim(
    "import and prearchive",
    "TestImport.testDataDuplicateScanFilesOverwriteTDeleteT",
    "TestImport.testDataScan2partsOverlapFilesOverwriteTDeleteT",
)
@pytest.mark.parametrize("overwrite", ["delete", "override"])
def test_delete_replaces_the_files_of_an_instance(admin, project, slices, demo_dicom, overwrite):
    address = admin.post(IMPORT, zipped(*slices), dest="/archive/projects/P").text.strip()
    other = changed(series_files(demo_dicom)[0], InstitutionName="elsewhere")
    query = {"dest": "/archive/projects/P", "overwrite": overwrite}
    assert admin.post(IMPORT, zipped(other), **query).status_code == 200
    files = admin.rows(f"{address}/scans/2/resources/DICOM/files")
    assert len(files) == 3
    contents = [admin.get(row["URI"]).content for row in files]
    assert contents.count(other) == 1


@pytest.mark.claim("import and prearchive", "DatabaseSession")
def test_another_study_under_the_same_label_is_a_conflict(admin, project, slices, demo_dicom):
    query = {"dest": "/archive/projects/P/subjects/s/experiments/e", "overwrite": "append"}
    assert admin.post(IMPORT, zipped(slices[0]), **query).status_code == 200
    other = changed(series_files(demo_dicom)[1], StudyInstanceUID="1.2.3")
    assert admin.post(IMPORT, zipped(other), **query).status_code == 400
    elsewhere = {**query, "dest": "/archive/projects/P/subjects/other/experiments/e"}
    assert admin.post(IMPORT, zipped(slices[1]), **elsewhere).status_code == 400


@pytest.mark.claim("import and prearchive", "TestImport.testModifiedSeriesUIDs")
def test_a_second_series_of_a_number_gets_a_longer_id(admin, project, slices, demo_dicom):
    query = {"dest": "/archive/projects/P", "overwrite": "append"}
    address = admin.post(IMPORT, zipped(slices[0]), **query).text.strip()
    other = changed(series_files(demo_dicom)[0], SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1")
    assert admin.post(IMPORT, zipped(other), **query).status_code == 200
    assert [row["ID"] for row in admin.rows(f"{address}/scans")] == ["2", "2-CT1"]


@pytest.mark.claim("import and prearchive", "DicomZipImporter")
def test_a_quarantined_session_is_locked(admin, project, slices):
    query = {"dest": "/archive/projects/P", "overwrite": "append"}
    assert admin.post(IMPORT, zipped(slices[0]), quarantine="true", **query).status_code == 200
    assert admin.post(IMPORT, zipped(slices[1]), **query).status_code == 423


def test_a_folder_imported_twice_is_the_same_archive(xnat_sandbox, admin, demo_dicom):
    first = xnat_sandbox.import_dicom(demo_dicom.dicom, "P")
    files = {row["label"]: row for row in admin.rows(f"{first[0]}/resources", all="true")}
    assert xnat_sandbox.import_dicom(demo_dicom.dicom, "P") == first
    assert {row["label"]: row for row in admin.rows(f"{first[0]}/resources", all="true")} == files
    assert len(first) == len(admin.rows("/data/projects/P/experiments")) == len(demo_dicom.cases)


# Refusals


@pytest.mark.claim("import and prearchive", "Importer")
def test_refusals(admin, user, project, slices):
    body = zipped(slices[0])
    assert admin.get(IMPORT).status_code == 405
    assert admin.post(IMPORT, body, **{"import-handler": "unknown"}).status_code == 404
    assert admin.post(IMPORT, body, dest="/archive/projects/NONE").status_code == 404
    assert admin.post(IMPORT, body, dest="/elsewhere").status_code == 400
    assert user("collaborator").post(IMPORT, body, dest="/archive/projects/P").status_code == 403
    assert user("none").post(IMPORT, body, dest="/archive/projects/P").status_code == 404
    assert user("member").post(IMPORT, body, dest="/archive/projects/P").status_code == 200
    for damaged in (b"", b"no archive", body[:-40], zipped(b"no dicom")):
        assert admin.post(IMPORT, damaged, dest="/archive/projects/P").status_code == 400


@pytest.mark.claim("import and prearchive", "TestImport.testUploadIgnoreUnparsableFalse")
def test_other_files_are_refused_unless_ignored(admin, project, slices):
    body = zipped(slices[0], **{"notes.txt": b"hello"})
    query = {"import-handler": "DICOM-zip", "dest": "/archive/projects/P"}
    answer = admin.post(IMPORT, body, **query)
    assert (answer.status_code, "notes.txt" in answer.text) == (400, True)
    assert admin.rows("/data/projects/P/experiments") == []
    assert admin.post(IMPORT, body, **query, **{"Ignore-Unparsable": "true"}).status_code == 200


def test_imports_do_not_reach_outside(admin, project, slices, xnat_sandbox):
    body = zipped(**{"../../escaped.dcm": slices[0]})
    assert admin.post(IMPORT, body, dest="/archive/projects/P").status_code == 400
    assert list(xnat_sandbox.folder.parent.glob("escaped*")) == []
    assert list((xnat_sandbox.folder / "staging").iterdir()) == []


@pytest.mark.claim("import and prearchive", "SessionImporter")
def test_a_project_may_refuse_to_overwrite(admin, project, slices):
    admin.made("/data/projects/P/prearchive_code/1")
    query = {"dest": "/archive/projects/P", "overwrite": "append"}
    assert admin.post(IMPORT, zipped(slices[0]), **query).status_code == 400


# Routes in the headers


@pytest.mark.claim(
    "import and prearchive",
    "TestDicomRouting.testXnatDefaultRoutingPatientCommentsImportApi",
    "TestDicomRouting.testXnatDefaultRoutingAddlPatHistImportApi",
)
@pytest.mark.parametrize(
    "values",
    [
        {"PatientComments": "Project:P Subject:sub Session:ses"},
        {"PatientComments": "some words; project: P; subject: sub; session: ses"},
        {"PatientComments": "", "AdditionalPatientHistory": "Project:P, Subject:sub, Session:ses"},
    ],
)
def test_comments_name_the_destination(admin, project, demo_dicom, values):
    body = zipped(changed(series_files(demo_dicom)[0], **values))
    assert admin.post(IMPORT, body).text == "/data/archive/projects/P/subjects/sub/experiments/ses\r\n"


@pytest.mark.claim("import and prearchive", "TestDicomRouting.testXnatDefaultRoutingStudyCommentsImportApi")
@pytest.mark.parametrize("comments", ["PatientComments", "StudyComments"])
@pytest.mark.parametrize(
    ("comment", "subject", "session"),
    [("", "Demo_Ben", "a_b"), ("Subject:sub", "sub", "a_b"), ("Session:ses", "Demo_Ben", "ses")],
)
def test_labels_are_the_patients_name_and_id(admin, project, demo_dicom, comments, comment, subject, session):
    """xnat-rest-tests TestImport: the subject comes from Patient's Name, the session from Patient ID.

    Names in the comments come before these.
    """
    values = {"PatientComments": "", comments: comment, "PatientID": "a b", "PatientName": "Demo^Ben"}
    body = zipped(changed(series_files(demo_dicom)[0], **values))
    answer = admin.post(IMPORT, body, dest="/archive/projects/P")
    assert answer.text == f"/data/archive/projects/P/subjects/{subject}/experiments/{session}\r\n"


@pytest.mark.claim("import and prearchive", "DatabaseSession")
def test_a_second_study_of_a_patient_waits_in_the_prearchive(admin, project, demo_dicom):
    first, second = series_files(demo_dicom)[:2]
    one = changed(first, PatientComments="")
    two = changed(second, PatientComments="", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4")
    assert admin.post(IMPORT, zipped(one), dest="/archive/projects/P").status_code == 200
    answer = admin.post(IMPORT, zipped(two), dest="/archive/projects/P", overwrite="append")
    assert (answer.status_code, "holds another study" in answer.text) == (400, True)
    (row,) = admin.rows("/data/prearchive/projects/P")
    assert (row["status"], row["tag"], row["name"]) == ("CONFLICT", "1.2.3", demo_dicom.cases[1].subject)


def test_a_folder_of_two_studies_of_a_patient_becomes_two_sessions(xnat_sandbox, admin, demo_dicom, tmp_path):
    first, second = series_files(demo_dicom)[:2]
    (tmp_path / "1").write_bytes(changed(first, PatientComments="", PatientID="a b"))
    other = {"PatientComments": "", "PatientID": "a b", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
    (tmp_path / "2").write_bytes(changed(second, **other))
    assert len(xnat_sandbox.import_dicom(tmp_path, "P")) == 2
    assert {row["label"] for row in admin.rows("/data/projects/P/experiments")} == {"a_b_CT1", "a_b_CT2"}


@pytest.mark.claim("import and prearchive", "xnatpy")
def test_scans_have_what_their_headers_say(admin, project, demo_dicom):
    """xnatpy's functional tests read the field strength and other fields of the scans that they import."""
    values = {"StationName": "CT99", "InstitutionName": "Somewhere", "GantryDetectorTilt": "1.5"}
    body = zipped(changed(series_files(demo_dicom)[0], **values))
    address = admin.post(IMPORT, body, dest="/archive/projects/P").text.strip()
    session = admin.get(address, format="json").json()["items"][0]["data_fields"]
    assert (session["scanner"], session["acquisition_site"]) == ("CT99", "Somewhere")
    scan = admin.get(f"{address}/scans/2", format="json").json()["items"][0]["data_fields"]
    spacing = pydicom.dcmread(series_files(demo_dicom)[0]).PixelSpacing
    assert (scan["quality"], scan["scanner"], scan["parameters/gantryTilt"]) == ("usable", "CT99", 1.5)
    assert (scan["parameters/voxelRes/x"], scan["parameters/voxelRes/y"]) == (spacing[1], spacing[0])


@pytest.mark.claim("import and prearchive", "TestDicomDataExtraction.testCTDicomExtraction")
def test_parameters_of_a_ct_scan_are_those_of_its_headers(admin, project, demo_dicom):
    values = {"AcquisitionNumber": 1, "ScanOptions": "HELICAL MODE", "DataCollectionDiameter": "500"}
    values |= {"DistanceSourceToDetector": "949.075012", "DistanceSourceToPatient": "541", "TableHeight": "174.699997"}
    values |= {"RotationDirection": "CW", "Exposure": 14, "FilterType": "BODY FILTER", "GeneratorPower": 52800}
    values |= {"SingleCollimationWidth": 7.0, "TotalCollimationWidth": 49.0, "TableSpeed": 30.0, "CTDIvol": 3.22}
    values |= {"TableFeedPerRotation": 98.0, "SpiralPitchFactor": 2.0, "RescaleIntercept": "-1024", "RescaleSlope": "1"}
    values["ImageOrientationPatient"] = [1, 0, 0, 0, 1, 0]
    body = zipped(changed(series_files(demo_dicom)[0], **values))
    address = admin.post(IMPORT, body, dest="/archive/projects/P").text.strip()
    scan = admin.get(f"{address}/scans/2", format="json").json()["items"][0]["data_fields"]
    expected = {"acquisitionNumber": 1, "options": "HELICAL MODE", "collectionDiameter": 500, "exposure": 14}
    expected |= {"distanceSourceToDetector": 949.075012, "distanceSourceToPatient": 541, "tableHeight": 174.699997}
    expected |= {"rotationDirection": "CW", "filter": "BODY FILTER", "generatorPower": 52800, "ctDIvol": 3.22}
    expected |= {"collimationWidth/single": 7, "collimationWidth/total": 49, "tableSpeed": 30, "pitchFactor": 2}
    expected |= {"tableFeedPerRotation": 98, "rescale/intercept": "-1024", "rescale/slope": "1", "orientation": "Tra"}
    found = {name.partition("/")[2]: value for name, value in scan.items() if name.startswith("parameters/")}
    assert {name: found.get(name) for name in expected} == expected


# The site's anonymisation


@pytest.mark.claim("import and prearchive", "TestAnonymizerLegacy.testDefaultAnonZipUploadSiteWide")
def test_archived_files_are_not_those_sent_where_the_site_anonymises(anonymising, slices):
    _, admin = anonymising
    admin.made("/data/projects/P")
    address = admin.post(IMPORT, zipped(*slices), dest="/archive/projects/P/subjects/s/experiments/e").text.strip()
    rows = admin.rows(f"{address}/scans/2/resources/DICOM/files")
    contents = [admin.get(row["URI"]).content for row in rows]
    assert set(contents).isdisjoint(slices)
    assert [row["digest"] for row in rows] == [hashlib.md5(content).hexdigest() for content in contents]
    sent = {dataset.SOPInstanceUID: dataset for dataset in (pydicom.dcmread(io.BytesIO(item)) for item in slices)}
    for content in contents:
        found = pydicom.dcmread(io.BytesIO(content))
        assert (found.StudyDescription, found.PatientName, found.PatientID) == ("P", "s", "e")
        original = sent.pop(found.SOPInstanceUID)
        assert (found.PixelData, found.SeriesInstanceUID) == (original.PixelData, original.SeriesInstanceUID)
    assert sent == {}
    fields = admin.get(address, format="json").json()["items"][0]["data_fields"]
    assert (fields["dcmPatientName"], fields["dcmPatientId"], fields["session_type"]) == ("s", "e", "P")


def test_a_folder_is_anonymised_in_the_archive_and_left_as_it_is(anonymising, demo_dicom):
    sandbox, admin = anonymising
    case = demo_dicom.cases[1]
    before = {path: path.read_bytes() for path in case.dicom.rglob("*.dcm")}
    (address,) = sandbox.import_dicom(case.dicom, "Q")
    assert {path: path.read_bytes() for path in case.dicom.rglob("*.dcm")} == before
    fields = admin.get(address, format="json").json()["items"][0]["data_fields"]
    assert fields["dcmPatientId"] == fields["label"] == case.session
    (row, *_) = admin.rows(f"{address}/scans/2/resources/DICOM/files")
    assert pydicom.dcmread(io.BytesIO(admin.get(row["URI"]).content)).PatientID == case.session


@pytest.mark.claim(
    "import and prearchive",
    "TestDicomRouting.testXnatDefaultRoutingStudyDescImportApi",
    "TestDicomRouting.testXnatDefaultRoutingAccessionDicomZip",
)
@pytest.mark.parametrize("field", ["StudyDescription", "AccessionNumber"])
def test_a_study_may_be_called_like_its_project(admin, project, demo_dicom, field):
    body = zipped(changed(series_files(demo_dicom)[0], **{field: "P"}))
    assert admin.post(IMPORT, body).text.startswith("/data/archive/projects/P/subjects/")


# Prearchive


@pytest.mark.claim("import and prearchive", "PrearcUtils")
def test_without_a_project_it_stays_unassigned(admin, user, project, slices):
    answer = admin.post(IMPORT, zipped(slices[0]), dest="/archive")
    assert re.fullmatch(r"/data/prearchive/projects/Unassigned/\d{8}_\d{9}/\S+\r\n", answer.text)
    (row,) = admin.rows("/data/prearchive/projects/Unassigned")
    assert (row["project"], row["status"]) == ("Unassigned", "READY")
    assert user("member").rows("/data/prearchive/projects") == []
    moved = admin.post("/data/services/prearchive/move", src=row["url"], newProject="P")
    assert moved.status_code == 200
    assert len(user("member").rows("/data/prearchive/projects/P")) == 1


@pytest.mark.claim(
    "import and prearchive", "TestArchive.testBasicArchiveFromPrearc", "TestPrearchiveMgmt.testPrearchiveListing"
)
def test_a_project_may_hold_what_arrives(admin, project, slices, demo_dicom):
    admin.made("/data/projects/P/prearchive_code/0")
    address = admin.post(IMPORT, zipped(*slices), project="P").text.strip()
    assert address.startswith("/data/prearchive/projects/P/")
    (row,) = admin.rows("/data/prearchive/projects")
    assert row["url"] == address[len("/data") :]
    assert (row["tag"], row["subject"]) == (demo_dicom.cases[1].study_uid, demo_dicom.cases[1].subject)
    assert admin.rows(address) == [row]
    (scan,) = admin.rows(f"{address}/scans")
    assert (scan["ID"], scan["xsiType"]) == ("2", "xnat:ctScanData")
    (resource,) = admin.rows(f"{address}/scans/2/resources")
    assert (resource["label"], resource["file_count"]) == ("DICOM", "3")
    files = admin.rows(f"{address}/scans/2/resources/DICOM/files")
    assert {admin.get(file["URI"]).content for file in files} == set(slices)
    archived = admin.post("/data/services/archive", src=row["url"], overwrite="append")
    assert archived.text.startswith("/data/archive/projects/P/subjects/")
    assert admin.rows("/data/prearchive/projects") == []
    assert len(admin.rows(f"{archived.text.strip()}/scans/2/resources/DICOM/files")) == 3


@pytest.mark.claim("import and prearchive", "GradualDicomImporter")
def test_single_objects_gather_in_the_prearchive(admin, project, slices):
    query = {"import-handler": "gradual-DICOM", "dest": "/prearchive/projects/P"}
    addresses = {admin.post(IMPORT, content, kind="application/dicom", **query).text for content in slices}
    assert len(addresses) == 1
    (row,) = admin.rows("/data/prearchive/projects")
    assert row["status"] == "RECEIVING"
    assert admin.rows(f"/data{row['url']}/scans/2/resources")[0]["file_count"] == "3"


@pytest.mark.claim("import and prearchive", "PrearcSessionListResource")
def test_the_prearchive_is_for_who_may_edit(admin, user, project, slices):
    address = admin.post(IMPORT, zipped(slices[0]), dest="/prearchive/projects/P").text.strip()
    assert user("member").get(address, format="json").status_code == 200
    assert user("collaborator").get(address, format="json").status_code == 404
    source = address[len("/data") :]
    assert user("collaborator").post("/data/services/prearchive/delete", src=source).status_code == 404
    assert admin.post("/data/services/prearchive/delete", src=source).status_code == 200
    assert admin.post("/data/services/prearchive/delete", src=source).status_code == 404
    assert admin.post("/data/services/archive").status_code == 400


@pytest.mark.claim("import and prearchive", "TestImport.testPrearcMergeNewScan")
def test_archiving_over_a_session_is_a_conflict(admin, project, slices):
    admin.post(IMPORT, zipped(slices[0]), dest="/archive/projects/P")
    waiting = admin.post(IMPORT, zipped(slices[1]), dest="/prearchive/projects/P").text.strip()[len("/data") :]
    assert admin.post("/data/services/archive", src=waiting).status_code == 409
    (row,) = admin.rows("/data/prearchive/projects/P")
    assert row["status"] == "CONFLICT"
    assert admin.post("/data/services/archive", src=waiting, overwrite="append").status_code == 200


# Other people's client


@pytest.fixture
def xnatpy(xnat_sandbox):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import xnat

        with xnat.connect(xnat_sandbox.url, user="admin", password=xnat_sandbox.password) as connection:
            yield connection


@pytest.mark.claim("other people's clients", "xnatpy")
def test_xnatpy_imports_and_walks_the_prearchive(xnatpy, project, demo_dicom, tmp_path, slices):
    folder = demo_dicom.cases[1].dicom
    session = xnatpy.services.import_dir(folder, project="P", destination="/archive")
    assert session.label == f"{demo_dicom.cases[1].subject}_CT1"
    (tmp_path / "a.zip").write_bytes(zipped(*slices))
    waiting = xnatpy.services.import_(tmp_path / "a.zip", project="P", destination="/prearchive")
    assert waiting.status == "READY"
    (found,) = xnatpy.prearchive.sessions()
    assert (found.id, found.project, found.tag) == (waiting.id, "P", demo_dicom.cases[1].study_uid)
    (scan,) = found.scans.values()
    assert [file.size for file in scan.files.values()] == [len(content) for content in sorted(slices, key=len)]
    assert scan.read_dicom().Modality == "CT"
    archived = found.archive(overwrite="delete")
    assert archived.label == session.label
    xnatpy.services.import_(tmp_path / "a.zip", project="P", destination="/prearchive").delete()
    assert xnatpy.prearchive.sessions() == []


def test_what_waits_survives_a_restart(tmp_path, slices):
    import requests

    folder = tmp_path / "data"
    with Sandbox(folder, users={"admin": "secret"}) as sandbox:
        http = requests.Session()
        http.auth = ("admin", "secret")
        http.put(f"{sandbox.url}/data/projects/P").raise_for_status()
        query = {"dest": "/prearchive/projects/P"}
        http.post(f"{sandbox.url}{IMPORT}", zipped(*slices), params=query).raise_for_status()
        http.close()
    with Sandbox(folder, users={"admin": "secret"}) as sandbox:
        answer = requests.get(f"{sandbox.url}/data/prearchive/projects/P", auth=("admin", "secret"))
        assert len(answer.json()["ResultSet"]["Result"]) == 1


def test_a_folder_with_two_studies_of_one_label_is_filed_all_the_same(xnat_sandbox, admin, demo_dicom, tmp_path):
    first, second = series_files(demo_dicom)[:2]
    comment = "Project:P Subject:sub Session:ses"
    (tmp_path / "1").write_bytes(changed(first, PatientComments=comment))
    (tmp_path / "2").write_bytes(changed(second, PatientComments=comment, StudyInstanceUID="1.2.3"))
    assert len(xnat_sandbox.import_dicom(tmp_path, "P")) == 2
    assert {row["label"] for row in admin.rows("/data/projects/P/experiments")} == {"ses", "sub_CT1"}
