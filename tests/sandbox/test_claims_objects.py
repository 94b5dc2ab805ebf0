"""Objects, as XNAT's own tests and other people's clients expect them. Each test names its source."""

from __future__ import annotations

import pydicom
import pytest

MR = {"xsiType": "xnat:mrSessionData"}
XNAT = 'xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def fields(api, path: str) -> dict:
    answer = api.get(path, format="json")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"][0]["data_fields"]


# Documents


@pytest.mark.claim("objects", "yaxil")
@pytest.mark.parametrize("as_form", [False, True], ids=["body", "multipart"])
def test_blank_names_in_a_document_count_as_not_given(admin, made, as_form):
    """TestXmlOddities puts documents with a blank ID. yaxil's storerest posts them as multipart."""
    document = f'<xnat:MRSession ID="" project="" label="m1" {XNAT}><xnat:note>n</xnat:note></xnat:MRSession>'
    path = "/data/projects/P/subjects/sub1/experiments/m1"
    if as_form:
        files = {"file": ("m1.xml", document, "text/xml")}
        answer = admin.http.put(admin.url + path, files=files, timeout=30)
    else:
        answer = admin.put(path, document.encode(), "text/xml")
    assert answer.status_code == 201, answer.text
    assert fields(admin, path)["note"] == "n"


PARTS = {
    "/data/projects/P": {"alias": "other", "description": "d & e", "xnat:projectData/PI/lastname": "B"},
    "/data/projects/P/subjects/s": {
        "xnat:subjectData/addID[name=mrn]/addID": "77",
        "gender": "male",
        "yob": "1980",
        "xnat:subjectData/fields/field[name=a]/field": "b",
    },
    "/data/projects/P/subjects/s/experiments/e": {
        **MR,
        "date": "2024-06-24",
        "xnat:mrSessionData/scanner/manufacturer": "S",
        "xnat:mrSessionData/fields/field[name=status]/field": "done",
    },
    "/data/projects/P/subjects/s/experiments/e/scans/1": {
        "xsiType": "xnat:mrScanData",
        "frames": "176",
        "xnat:mrScanData/parameters/tr": "3",
        "xnat:mrScanData/parameters/addParam[name=x]/addField": "v",
    },
    "/data/projects/P/subjects/s/experiments/e/assessors/a": {
        "xsiType": "icr:roiCollectionData",
        "icr:roiCollectionData/collectionType": "SEG",
        "icr:roiCollectionData/references/seriesUID": "1.2.3",
    },
}


def without_times(value):
    """Return the JSON of an item without the times of its parts."""
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if name not in ("start_date", "create_event_id")}
        return {name: without_times(inner) for name, inner in kept.items()}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.claim("objects", "TestXmlOddities.testXmlUploadRoundTripsSubject", "SAXWriter")
@pytest.mark.parametrize("query", [{}, {"allowDataDeletion": "true"}], ids=["kept", "whole"])
@pytest.mark.parametrize("path", PARTS)
def test_a_document_that_is_put_back_changes_nothing(admin, path, query):
    """Custom variables got a line end in front at every round, and those of a session were no variables any more."""
    for each, values in PARTS.items():
        admin.made(each, **values)
    before = without_times(admin.get(path, format="json").json())
    document = admin.get(path, format="xml").content
    assert admin.put(path, document, "text/xml", **query).status_code == 200
    assert without_times(admin.get(path, format="json").json()) == before


@pytest.mark.claim("objects", "ProjectResource")
def test_an_alias_in_a_document_names_the_project(admin):
    """It was kept as a text, and from then on each name that no project has was answered with 500."""
    document = f'<xnat:Project ID="A" {XNAT}><xnat:aliases><xnat:alias>nick</xnat:alias></xnat:aliases></xnat:Project>'
    assert admin.put("/data/projects/A", document.encode(), "text/xml").status_code == 200
    assert fields(admin, "/data/projects/nick")["ID"] == "A"
    assert admin.rows("/data/projects", columns="ID,alias") == [{"ID": "A", "alias": "nick", "URI": "/data/projects/A"}]
    assert admin.get("/data/projects/nobody", format="json").status_code == 404


@pytest.mark.claim("objects", "TestXmlOddities.testXmlUploadRejectsDoctype")
def test_a_document_type_is_refused(admin, made):
    document = f'<!DOCTYPE x [<!ENTITY a "b">]><xnat:Subject {XNAT}><xnat:group>&a;</xnat:group></xnat:Subject>'
    assert admin.put("/data/projects/P/subjects/x", document.encode(), "text/xml").status_code == 500
    assert admin.get("/data/projects/P/subjects/x", format="json").status_code == 404


@pytest.mark.claim("objects", "yaxil")
def test_an_assessor_is_posted_as_a_form(admin, made):
    document = f'<xnat:QCManualAssessment ID="qc_id" project="P" label="qc1" {XNAT}><xnat:rater>a</xnat:rater>'
    files = {"file": ("assessment.xml", f"{document}</xnat:QCManualAssessment>", "text/xml")}
    answer = admin.http.post(f"{admin.url}{made.session}/assessors", files=files, timeout=30)
    assert answer.status_code == 200, answer.text
    (row,) = admin.rows(f"{made.session}/assessors")
    assert (row["label"], row["ID"]) == ("qc1", "qc_id")
    assert admin.put(f"{made.session}/assessors/qc_id/resources/DATA").status_code == 200
    form = {"file": ("f.txt", b"hi", "text/plain")}
    address = f"{made.session}/assessors/qc_id/resources/DATA/files/x/f.txt"
    assert admin.http.put(admin.url + address, files=form, timeout=30).status_code == 200
    assert admin.get(address).content == b"hi"
    again = {"file": ("assessment.xml", f"{document}</xnat:QCManualAssessment>", "text/xml")}
    assert admin.http.post(f"{admin.url}{made.session}/assessors", files=again, timeout=30).status_code == 409


@pytest.mark.claim("objects", "TestSubjectResources.testSubjectResourceXMLCrud")
def test_absent_fields_stay_unless_data_may_be_deleted(admin, made):
    path = "/data/projects/P/subjects/sub1"

    def document(inner: str) -> bytes:
        body = f'<xnat:demographics xsi:type="xnat:demographicData">{inner}</xnat:demographics>'
        return f"<xnat:Subject {XNAT}>{body}</xnat:Subject>".encode()

    admin.made(path, document("<xnat:gender>male</xnat:gender><xnat:education>12</xnat:education>"), kind="text/xml")
    admin.made(path, document("<xnat:gender>male</xnat:gender>"), kind="text/xml")
    assert "education" in admin.get(path, format="xml").text
    admin.made(path, document("<xnat:gender>male</xnat:gender>"), kind="text/xml", allowDataDeletion="true")
    found = admin.get(path, format="xml").text
    assert ("education" in found, "male" in found) == (False, True)


@pytest.mark.claim("objects", "TestSubjAssessmentResources.testInvalidSubjectValidation")
def test_posting_under_an_unknown_subject_is_not_found(admin, made):
    document = f'<xnat:MRSession label="m1" {XNAT}/>'.encode()
    path = "/data/projects/P/subjects/INVALIDSUBJECT/experiments"
    assert admin.post(path, document, kind="text/xml").status_code == 404
    assert [row["label"] for row in admin.rows("/data/projects/P/subjects")] == ["sub1"]


@pytest.mark.parametrize("wrong", ["<xnat:date>20-20</xnat:date>", "<xnat:age>old</xnat:age>"])
def test_values_that_a_field_cannot_hold_are_refused(admin, made, wrong):
    document = f'<xnat:MRSession label="m1" {XNAT}>{wrong}</xnat:MRSession>'.encode()
    answer = admin.post("/data/projects/P/subjects/sub1/experiments", document, kind="text/xml")
    assert answer.status_code == (400 if "date" in wrong else answer.status_code)


# Never 200 for nothing


@pytest.mark.claim("objects", "SubjAssessmentResource")
@pytest.mark.parametrize("name", ["subject_ID", "xnat:ctSessionData/subject_ID"])
@pytest.mark.parametrize("target", ["label", "ID", "new"])
def test_a_session_moves_to_another_subject(admin, made, name, target):
    """SubjAssessmentResource: subject_ID of an existing session moves it, and an unknown subject is made."""
    other = admin.made("/data/projects/P/subjects/other") if target != "new" else ""
    admin.made(made.long, **{name: {"label": "other", "ID": other, "new": "fresh"}[target]})
    (row,) = admin.rows("/data/projects/P/experiments", columns="label,subject_label")
    assert row["subject_label"] == ("fresh" if target == "new" else "other")
    assert admin.get(made.long, format="json").status_code == 404


@pytest.mark.claim("objects", "TestArchive.testFixScanTypes")
def test_missing_types_of_scans_are_taken_from_similar_scans(admin, made):
    base = "/data/projects/P/subjects/sub1/experiments"
    for label, types in (("m1", ({}, {})), ("m2", ({"type": "MAPPED"},))):
        admin.made(f"{base}/{label}", **MR)
        for number, query in enumerate(types, start=1):
            query = {"xsiType": "xnat:mrScanData", "series_description": "localizer", **query}
            admin.made(f"{base}/{label}/scans/{number}", **query)
    assert admin.put(f"{base}/m1", fixScanTypes="true").status_code == 200
    assert [row["type"] for row in admin.rows(f"{base}/m1/scans")] == ["MAPPED", "MAPPED"]


@pytest.mark.claim("objects", "TestScans.testPullDataFromHeadersSession", "TestScans.testPullDataFromHeadersScan")
@pytest.mark.parametrize("of", ["session", "scan"])
def test_data_are_pulled_from_headers(admin, made, demo_dicom, of):
    file = sorted(demo_dicom.cases[1].dicom.rglob("*.dcm"))[0]
    scans = f"{made.long}/scans"
    for number in "23":
        admin.made(f"{scans}/{number}", xsiType="xnat:ctScanData", type="Unknown", quality="questionable")
        admin.made(f"{scans}/{number}/resources/DICOM/files/1.dcm", file.read_bytes(), format="DICOM")
    assert admin.put(made.long if of == "session" else f"{scans}/2", pullDataFromHeaders="true").status_code == 200
    header = pydicom.dcmread(file)
    found = {row["ID"]: row for row in admin.rows(scans, columns="ID,type,UID,modality,quality")}
    pulled = {"2", "3"} if of == "session" else {"2"}
    for number in "23":
        expected = (
            (header.SeriesDescription, header.SeriesInstanceUID, "CT") if number in pulled else ("Unknown", "", "")
        )
        row = found[number]
        assert (row["type"], row["UID"], row["modality"], row["quality"]) == (*expected, "questionable")
    session = fields(admin, made.long)
    date = f"{header.StudyDate[:4]}-{header.StudyDate[4:6]}-{header.StudyDate[6:]}"
    assert (session.get("UID"), session.get("date")) == (
        (header.StudyInstanceUID, date) if of == "session" else (None, None)
    )


@pytest.mark.claim("objects", "TestArchive.testSetScanProperties")
def test_an_existing_scan_may_be_put_without_a_type(admin, made):
    """TestArchive.testSetScanProperties, since 1.8.6. A new scan needs a type."""
    assert admin.put(made.scan).status_code == 200
    assert admin.put(f"{made.long}/scans/9").status_code == 417


@pytest.mark.claim("objects", "ScanList")
def test_a_scan_that_is_posted_gets_the_next_number_and_the_type_of_its_session(admin, made):
    """ScanList.handlePost."""
    assert admin.post(f"{made.long}/scans", type="T2").text.endswith("/scans/2")
    rows = admin.rows(f"{made.long}/scans", columns="ID,type,xsiType")
    assert (rows[1]["ID"], rows[1]["type"], rows[1]["xsiType"]) == ("2", "T2", "xnat:ctScanData")


@pytest.mark.claim("objects", "XNATApplication")
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/reconstructions/R",
        "/reconstructions/R/resources",
        "/reconstructions/R/out/resources/X/files/a",
        "/scans/1/assessors/A",
        "/nonsense",
        "/assessors/none/resources",
        "/resources/R/nonsense",
    ],
)
def test_what_is_not_served_says_so(admin, made, method, path):
    """The answer may be any error except a traceback, and never success."""
    answer = admin.ask(method, made.long + path, data=b"x" if method in ("PUT", "POST") else None)
    assert answer.status_code in (400, 403, 404, 405, 417), (answer.status_code, answer.text)


# Projects


@pytest.mark.claim("objects", "TestProjectValidation.*")
@pytest.mark.parametrize("taken", ["ID", "name", "secondary_ID", "alias"])
@pytest.mark.parametrize("wanted", ["ID", "name", "secondary_ID", "alias"])
def test_project_names_collide_across_id_title_secondary_id_and_alias(admin, taken, wanted):
    """TestProjectValidation: ID, title, secondary ID and alias, in upper or lower case."""
    names = {"ID": "ONE", "name": "Title one", "secondary_ID": "RUN1", "alias": "ALIAS1"}
    admin.made("/data/projects/ONE", **{key: value for key, value in names.items() if key != "ID"})
    value = names[taken].lower()
    if wanted == "ID":
        answer = admin.put(f"/data/projects/{value.replace(' ', '_')}")
        expected = (403, 409) if taken != "name" else (200,)
    else:
        answer, expected = admin.put("/data/projects/TWO", **{wanted: value}), (403, 409)
    assert answer.status_code in expected, answer.text


@pytest.mark.claim("objects", "TestProjectURIs.testPrearchiveConfig")
def test_every_code_of_the_prearchive_is_accepted(admin, made):
    for code in ("4", "0", "11"):
        assert admin.put(f"/data/projects/P/prearchive_code/{code}").status_code == 200


# Sharing


@pytest.mark.claim("sharing and rights", "TestSharing.testUnShared")
def test_ending_the_share_of_a_subject_ends_those_of_its_sessions(admin, made):
    admin.made("/data/projects/Q")
    admin.made("/data/projects/P/subjects/sub1/projects/Q", label="sq")
    admin.made(f"{made.long}/projects/Q", label="eq")
    assessor = admin.made(f"{made.long}/assessors/qc", xsiType="xnat:qcManualAssessorData")
    admin.made(f"{made.long}/assessors/qc/projects/Q", label="qcq")
    assert admin.delete("/data/projects/Q/subjects/sq").status_code == 200
    assert admin.rows("/data/projects/Q/experiments") == []
    assert [row["ID"] for row in admin.rows(f"/data/experiments/{assessor}/projects")] == ["P"]
    assert admin.put(f"{made.long}/projects/Q", label="eq").status_code == 200


@pytest.mark.claim("sharing and rights", "SubjAssessmentResource")
def test_scans_are_shared_with_their_session(admin, made):
    """SubjAssessmentResource: sharing a session shares its scans, and unsharing it unshares them."""
    admin.made("/data/projects/Q")
    admin.made(f"{made.long}/projects/Q", label="eq")
    assert {row["ID"] for row in admin.rows(f"{made.scan}/projects")} == {"P", "Q"}
    assert admin.delete("/data/projects/Q/experiments/eq").status_code == 200
    assert {row["ID"] for row in admin.rows(f"{made.scan}/projects")} == {"P"}


@pytest.mark.claim("sharing and rights", "TestSharing.testImageAssessorCreation")
def test_sharing_across_two_projects(admin, made, user):
    """TestSharing.testImageAssessorCreation: a session of a shared subject, shared back, with an assessor there."""
    admin.made("/data/projects/Q")
    admin.made("/data/projects/P/subjects/sub1/projects/Q")
    admin.made("/data/projects/Q/subjects/sub1/experiments/m", **MR)
    admin.made("/data/projects/Q/subjects/sub1/experiments/m/projects/P", label="back")
    path = "/data/projects/P/subjects/sub1/experiments/back/assessors/QC1"
    assert admin.put(path, xsiType="xnat:qcManualAssessorData").status_code == 201
    assert admin.put(f"{path}/projects/Q", label="ADMIN_QC1").status_code == 200
    assert admin.delete(f"{path}/projects/Q").status_code == 200
    assert admin.delete(path).status_code == 200
    assert admin.delete("/data/projects/P/subjects/sub1/experiments/back").status_code == 200
    assert admin.get("/data/projects/Q/experiments/m", format="json").status_code == 200


# Custom fields


@pytest.mark.claim(
    "custom fields",
    "TestCustomFieldPermissions.testCustomFieldSubjectPermissions",
    "TestCustomFieldPermissions.testCustomFieldExperimentPermissions",
    "TestCustomFieldPermissions.testCustomFieldScanPermissions",
    "TestCustomFieldPermissions.testCustomFieldAssessorPermissions",
)
def test_custom_fields_of_what_cannot_be_read(user, admin, made):
    """TestCustomFieldPermissions: 403, but 404 for a scan or assessor of a session that can be read."""
    base, nobody, reader = "/xapi/custom-fields", user("none"), user("collaborator")
    private = ["/projects/P", "/projects/none", f"/subjects/{made.subject_id}", "/subjects/none"]
    private += [f"/experiments/{made.session_id}", "/experiments/none", f"/experiments/{made.session_id}/scans/1"]
    for path in private:
        for address in (f"{base}{path}/fields", f"{base}{path}/fields/x"):
            assert nobody.get(address).status_code == 403, address
            assert nobody.delete(f"{base}{path}/fields/x").status_code == 403
            assert nobody.put(f"{base}{path}/fields", b"{}", "application/json").status_code == 403
    for inner in ("scans/9", "assessors/none"):
        address = f"{base}/experiments/{made.session_id}/{inner}/fields"
        assert reader.get(address).status_code == 404
        assert reader.put(address, b"{}", "application/json").status_code == 403
        assert reader.delete(f"{address}/x").status_code == 403
        assert admin.put(address, b"{}", "application/json").status_code == 404


@pytest.mark.claim(
    "custom fields",
    "TestCustomFieldPermissions.testCustomFieldProjectPermissions",
    "TestCustomFieldPermissions.testCustomFieldMemberPermissions",
)
def test_custom_fields_of_a_project_are_its_owners(user, made):
    address = "/xapi/custom-fields/projects/P/fields"
    assert user("member").put(address, b'{"a": 1}', "application/json").status_code == 403
    assert user("owner").put(address, b'{"a": 1}', "application/json").status_code == 200
    assert user("member").get(address).json() == {"a": 1}
    assert user("member").delete(f"{address}/a").status_code == 403


@pytest.mark.claim(
    "custom fields",
    "TestCustomFieldUsage.testFieldsLifecycleExperimentIdAssessorLabel",
    "TestCustomFieldUsage.testFieldsLifecycleExperimentIdAssessorId",
    "TestCustomFieldUsage.testFieldsLifecycleProjectsExperimentLabelAssessorLabel",
    "TestCustomFieldUsage.testFieldsLifecycleProjectsExperimentLabelAssessorId",
    "TestCustomFieldUsage.testFieldsLifecycleProjectsExperimentIdAssessorLabel",
    "TestCustomFieldUsage.testFieldsLifecycleProjectsExperimentIdAssessorId",
    "TestCustomFieldUsage.testFieldsLifecycleProjectsSubjectLabelExperimentLabelAssessorLabel",
    "TestCustomFieldUsage.testFieldsLifecycleProjectsSubjectLabelExperimentLabelAssessorId",
)
def test_assessors_have_custom_fields_by_label_too(admin, made):
    number = admin.made(f"{made.long}/assessors/qc", xsiType="xnat:qcManualAssessorData")
    parents = [
        f"/experiments/{made.session_id}",
        "/projects/P/experiments/s1",
        f"/projects/P/experiments/{made.session_id}",
    ]
    parents.append("/projects/P/subjects/sub1/experiments/s1")
    for place, parent in enumerate(parents):
        for name in ("qc", number):
            address = f"/xapi/custom-fields{parent}/assessors/{name}/fields"
            assert admin.put(address, f'{{"k{place}": 1}}'.encode(), "application/json").status_code == 200, address
    assert set(admin.get(address).json()) == {"k0", "k1", "k2", "k3"}
