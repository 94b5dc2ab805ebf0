"""Renames, deletions, documents and rights, as XNAT's own tests expect them. Each test names its source."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

import pytest
import requests

MR = {"xsiType": "xnat:mrSessionData"}
QC = {"xsiType": "xnat:qcManualAssessorData"}
XNAT = 'xmlns:xnat="http://nrg.wustl.edu/xnat" xmlns:prov="http://www.nbirn.net/prov"'
SUBJECT = "/data/projects/P/subjects/sub1"


def document(tag: str, inner: str = "", attributes: str = "") -> bytes:
    return f"<xnat:{tag} {XNAT} {attributes}>{inner}</xnat:{tag}>".encode()


def xml(api, path: str) -> str:
    answer = api.get(path, format="xml")
    assert answer.status_code == 200, answer.text
    return answer.text


# Renames


@pytest.mark.claim("objects", "TestRename.testExptRename", "TestRename.testSubjRename")
def test_files_are_where_they_were_after_a_rename(admin, made):
    paths = [f"{made.long}/resources/R/files/a", f"{made.scan}/resources/R/files/a", f"{SUBJECT}/resources/R/files/a"]
    for path in paths:
        admin.made(path, path.encode())
    assert admin.put(made.long, label="MOD1").status_code == 200
    assert admin.put(SUBJECT, label="MOD2").status_code == 200
    for path in paths:
        moved = path.replace("/s1", "/MOD1").replace("/sub1", "/MOD2")
        assert admin.get(moved).content == path.encode()
        (row,) = admin.rows(moved.rpartition("/")[0])
        assert row["digest"] == hashlib.md5(path.encode()).hexdigest()


@pytest.mark.claim("sharing and rights", "TestRename.testExptWAssessRename")
def test_a_shared_session_is_renamed_by_those_who_may_edit_its_project(admin, user, made):
    admin.made("/data/projects/Q")
    for path in (SUBJECT, made.long):
        admin.made(f"{path}/projects/Q")
    assessor = "/data/projects/Q/subjects/sub1/experiments/s1/assessors/QC1"
    admin.made(assessor, **QC)
    admin.made(f"{made.long}/resources/R/files/a", b"session")
    admin.made(f"{assessor}/out/resources/R/files/a", b"assessor")
    admin.made("/data/projects/Q/users/Members/none")
    person = user("none")
    assert person.put(made.long, label="MOD3").status_code == 404
    admin.made("/data/projects/P/users/Collaborators/none")
    assert person.put(made.long, label="MOD3").status_code in (403, 417)
    assert person.get(f"{made.long}/resources/R/files/a").content == b"session"
    admin.made("/data/projects/P/users/Members/none")
    assert person.put(made.long, label="MOD3").status_code == 200
    renamed = made.long.replace("/s1", "/MOD3")
    assert person.get(f"{renamed}/resources/R/files/a").content == b"session"
    assert person.get(f"{renamed}/assessors/QC1/out/resources/R/files/a").content == b"assessor"


# Deletions


@pytest.mark.claim("objects", "TestContextlessExperiments.testContextlessExptDelete")
def test_experiments_are_deleted_by_their_id_alone(admin, made):
    number = admin.made(f"{made.long}/assessors/qc", **QC)
    assert admin.delete(f"/data/experiments/{number}").status_code == 200
    assert admin.rows(f"{made.session}/assessors") == []
    assert admin.delete(made.session).status_code == 200
    assert admin.rows(f"{SUBJECT}/experiments") == []


@pytest.mark.claim("objects", "TestDeletionAccuracy.*")
@pytest.mark.parametrize("neighbour", ["empty session", "with a scan", "with files", "assessor", "subject", "project"])
def test_deleting_an_object_removes_nothing_of_others(admin, made, neighbour):
    files = f"{made.scan}/resources/DICOM/files"
    for number in range(3):
        admin.made(f"{files}/{number}.dcm", str(number).encode())
    other = {
        "assessor": f"{made.long}/assessors/qc",
        "subject": "/data/projects/P/subjects/sub",
        "project": "/data/projects/PP",
    }.get(neighbour, f"{SUBJECT}/experiments/s")
    admin.made(other, **{"assessor": QC, "subject": {}, "project": {}}.get(neighbour, MR))
    if neighbour in ("with a scan", "with files"):
        admin.made(f"{other}/scans/1", xsiType="xnat:mrScanData")
    if neighbour == "with files":
        admin.made(f"{other}/scans/1/resources/DICOM/files/0.dcm", b"other")
    assert admin.delete(other, removeFiles="true").status_code == 200
    assert [admin.get(row["URI"]).content for row in admin.rows(files)] == [b"0", b"1", b"2"]
    assert admin.rows(f"{made.scan}/resources")[0]["file_count"] == "3"


@pytest.mark.claim("objects", "TestProjectURIs.testProjectDeleteCrossover")
def test_deleting_a_project_leaves_the_resources_of_another(admin, made):
    for project in ("P", "P2"):
        admin.made(f"/data/projects/{project}")
        admin.made(f"/data/projects/{project}/resources/TESTING/files/a", project.encode())
    assert admin.delete("/data/projects/P2", removeFiles="true").status_code == 200
    assert admin.get("/data/projects/P/resources/TESTING/files/a").content == b"P"


# Documents


@pytest.mark.claim(
    "objects",
    "TestXmlOddities.testXmlTimestampSpaceCreate",
    "TestXmlOddities.testXmlTimestampSpaceEdit",
    "TestXmlOddities.testXmlTimestampTCreate",
    "TestXmlOddities.testXmlTimestampTEdit",
    "TestXmlOddities.testXmlTimestampTZCreate",
    "TestXmlOddities.testXmlTimestampTZEdit",
)
@pytest.mark.parametrize("stamp", ["2020-01-01 01:02:03", "2020-01-01T01:02:03", "2020-01-01T01:02:03Z"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "edited"])
def test_times_in_documents_are_read_in_every_spelling(admin, made, stamp, exists):
    path = f"{made.long}/assessors/qc"
    number = admin.made(path, xsiType="xnat:qcAssessmentData") if exists else ""
    step = f'<prov:program version="1">recon</prov:program><prov:timestamp>{stamp}</prov:timestamp><prov:cvs/>'
    step += "<prov:user>1</prov:user><prov:machine>cube</prov:machine><prov:platform>linux</prov:platform>"
    inner = f"<xnat:imageSession_ID>{made.session_id}</xnat:imageSession_ID>"
    inner += f"<xnat:provenance><prov:processStep>{step}</prov:processStep></xnat:provenance>"
    body = document("QCAssessment", inner, f'ID="{number}" project="P" label="qc"')
    assert admin.put(path, body, "text/xml").status_code in (200, 201)
    assert "2020-01-01T01:02:03" in xml(admin, path)


@pytest.mark.claim(
    "objects",
    "TestSubjAssessmentResources.testDateFormatValidation",
    "TestSubjAssessmentResources.testIntegerFormatValidation",
    "TestSubjAssessmentResources.testLengthValidation",
)
@pytest.mark.parametrize(
    "inner",
    ["<xnat:date>2001</xnat:date>", "<xnat:delay>12.5</xnat:delay>", f"<xnat:marker>{'x' * 300}</xnat:marker>"],
    ids=["date", "integer", "length"],
)
def test_a_document_whose_values_do_not_fit_is_refused(admin, made, inner):
    answer = admin.post(f"{SUBJECT}/experiments", document("MRSession", inner, 'label="E1"'), kind="text/xml")
    assert answer.status_code == 400, answer.text
    assert [row["label"] for row in admin.rows("/data/projects/P/experiments")] == ["s1"]


@pytest.mark.claim("objects", "TestProjectResources.testProjectList", "TestProjectResources.testProjectXmlCRUD")
def test_a_project_is_made_changed_and_deleted_by_documents(admin):
    assert admin.get("/data/projects", format="html").status_code == 200
    names = {"name": "One", "description": "first"}
    for description in ("first", "second", "second"):
        inner = f"<xnat:name>One</xnat:name><xnat:description>{description}</xnat:description>"
        inner += "<xnat:keywords>k</xnat:keywords><xnat:PI><xnat:lastname>L</xnat:lastname></xnat:PI>"
        assert admin.put("/data/projects/D", document("Project", inner), "text/xml").status_code == 200
        found = xml(admin, "/data/projects/D")
        names["description"] = description
        for text in (*names.values(), "k", "<xnat:lastname>L</xnat:lastname>"):
            assert text in found
    assert admin.delete("/data/projects/D").status_code == 200
    assert admin.get("/data/projects/D", format="xml").status_code == 404


@pytest.mark.claim("objects", "TestProjectResources.testQueryCRUD")
def test_a_project_is_found_by_the_alias_that_it_is_given(admin, made):
    assert admin.put("/data/projects/P", format="xml", req_format="qs", alias="P_ALIAS").status_code == 200
    assert 'ID="P"' in xml(admin, "/data/projects/P_ALIAS")


@pytest.mark.claim("objects", "TestExptAssessmentResources.testExptAssessmentXmlCrud")
def test_an_assessor_is_made_shared_and_deleted_by_documents(admin, made):
    admin.made("/data/projects/Q")
    path = f"{made.long}/assessors/R1"

    def put(comment: str) -> int:
        scan = "".join(f"<xnat:{name}>1</xnat:{name}>" for name in ("imageScan_ID", "coverage", "comments", "pass"))
        kind = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="xnat:mrQcScanData"'
        inner = f"<xnat:rater>r</xnat:rater><xnat:scans><xnat:scan {kind}>{scan}</xnat:scan></xnat:scans>"
        inner += f"<xnat:comments>{comment}</xnat:comments><xnat:pass>1</xnat:pass>"
        body = document("QCManualAssessment", inner, 'ID="" project="" label="R1"')
        return admin.put(path, body, "text/xml").status_code

    assert put("one") == 201
    assert "<xnat:comments>one</xnat:comments>" in xml(admin, path)
    assert "<xnat:imageScan_ID>1</xnat:imageScan_ID>" in xml(admin, path)
    assert admin.get(f"{made.long}/assessors", format="html").status_code == 200
    assert put("two") == 200
    assert "<xnat:comments>two</xnat:comments>" in xml(admin, path)
    assert admin.delete(path).status_code == 200
    assert admin.rows(f"{made.session}/assessors") == []
    assert admin.get(path, format="xml").status_code == 404
    assert put("three") == 201
    (row,) = admin.rows(f"{made.session}/assessors")
    by_id = f"{made.session}/assessors/{row['ID']}"
    for method, expected in (("PUT", 2), ("DELETE", 1)):
        assert admin.ask(method, f"{by_id}/projects/Q").status_code == 200
        assert len(admin.rows(f"{by_id}/projects")) == expected
    assert [admin.delete(by_id).status_code for _ in range(2)] == [200, 404]


@pytest.mark.claim("objects", "TestSubjAssessmentResources.testSubjectAssessmentXMLCRUD")
def test_a_session_is_made_changed_and_deleted_by_documents(admin, made):
    path = f"{SUBJECT}/experiments/E1"
    scans = '<xnat:scans><xnat:scan ID="4" type="MPRAGE" xsi:type="xnat:mrScanData"/></xnat:scans>'
    kind = 'label="E1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    for coil, status in (("test", 201), ("test2", 200)):
        inner = f"<xnat:date>2001-01-01</xnat:date><xnat:scanner>S</xnat:scanner>{scans}<xnat:coil>{coil}</xnat:coil>"
        assert admin.put(path, document("MRSession", inner, kind), "text/xml").status_code == status
        assert f"<xnat:coil>{coil}</xnat:coil>" in xml(admin, path)
    assert [row["ID"] for row in admin.rows(f"{path}/scans")] == ["4"]
    assert admin.delete(path).status_code == 200
    assert admin.get(f"{SUBJECT}/experiments", format="html").status_code == 200
    assert admin.get(path, format="xml").status_code == 404


# Files


@pytest.mark.claim(
    "files",
    "TestFileUpload.testResourcesUpload",
    "TestFileUpload.testScanUpload",
    "TestFileUpload.testMRResourceUpload",
    "TestFileUpload.testSubjectResourceUpload",
    "TestFileUpload.testProjectResourceUpload",
    "TestFileUpload.testTextIMGUploadWOPrecreate",
)
@pytest.mark.parametrize("parent", ["session", "subject", "project", "scan"])
def test_forms_put_files_below_every_object(admin, made, parent):
    where = {"session": made.long, "subject": SUBJECT, "project": "/data/projects/P", "scan": made.scan}[parent]
    files = f"{where}/resources/TEST/files"
    for path in ("1.dcm", "sub/2.dcm", "sub/folder/3.dcm"):
        form = {"file": ("3.dcm", path.encode())}
        assert admin.http.put(f"{admin.url}{files}/{path}", files=form, timeout=30).status_code == 200
        assert admin.get(f"{files}/{path}").content == path.encode()
        assert admin.get(f"{where}/files/{path}").content == path.encode()
    assert len(admin.rows(f"{files}/sub/")) == 2
    assert len(admin.rows(f"{files}/sub/", recursive="false")) == 1
    assert admin.get(f"{files}/sub/", format="zip").content.count(b"PK\x01\x02") == 2
    assert admin.delete(f"{files}/sub/folder").status_code == 200
    assert len(admin.rows(f"{files}/sub/")) == 1


@pytest.mark.claim(
    "files",
    "TestFileUpload.testMRResourceUploadZip",
    "TestFileUpload.testMRResourceUploadTar",
    "TestFileUpload.testMRResourceUploadTarGz",
    "TestFileUpload.testMRResourceUploadTgz",
    "TestFileUpload.testScanResourceUploadZip",
    "TestFileUpload.testScanResourceUploadTar",
    "TestFileUpload.testScanResourceUploadTarGz",
    "TestFileUpload.testScanResourceUploadTgz",
    "TestFileUpload.testSubjectResourceUploadZip",
    "TestFileUpload.testSubjectResourceUploadTar",
    "TestFileUpload.testSubjectResourceUploadTarGz",
    "TestFileUpload.testSubjectResourceUploadTgz",
    "TestFileUpload.testProjectResourceUploadZip",
    "TestFileUpload.testProjectResourceUploadTar",
    "TestFileUpload.testProjectResourceUploadTarGz",
    "TestFileUpload.testProjectResourceUploadTgz",
)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("parent", ["session", "subject", "project", "scan"])
def test_archives_are_unpacked_below_every_object(admin, made, parent, kind):
    where = {"session": made.long, "subject": SUBJECT, "project": "/data/projects/P", "scan": made.scan}[parent]
    names = ["mr_1/1.dcm", "mr_1/2.dcm"]
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name in names:
                archive.writestr(name, name)
    else:
        with tarfile.open(fileobj=target, mode="w" if kind == "tar" else "w:gz") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(name)
                archive.addfile(info, io.BytesIO(name.encode()))
    form = {"file": (f"mr_1.{kind}", target.getvalue())}
    address = f"{admin.url}{where}/resources/TEST/files/mr_1.{kind}"
    assert admin.http.put(address, params={"extract": "true"}, files=form, timeout=30).status_code == 200
    rows = admin.rows(f"{where}/resources/TEST/files")
    assert [admin.get(row["URI"]).text for row in rows] == names


@pytest.mark.claim("files", "TestFileUpload.testMRResourcesTotalRecordsCount")
def test_the_total_of_a_list_of_resources_is_the_number_of_its_rows(admin, made):
    for label in ("A", "B", "C"):
        admin.made(f"{made.long}/resources/{label}/files/a", b"x")
    result = admin.get(f"{made.long}/resources", format="json").json()["ResultSet"]
    assert (result["totalRecords"], len(result["Result"])) == ("3", 3)


# Rights


@pytest.mark.claim("sharing and rights", "TestInvalidUserAccess.testProtectedXMLCRUD")
def test_a_protected_project_refuses_strangers_and_the_unknown(admin, user, made):
    admin.made("/data/projects/P/accessibility/protected")
    person, unknown = user("none"), requests.Session()
    unknown.auth = ("nobody", "wrong")
    body = document("Subject")
    with unknown:
        for method, path, query, expected in (
            ("GET", "/data/projects/P/accessibility", {}, 200),
            ("PUT", "/data/projects/P/accessibility/public", {}, 403),
            ("DELETE", "/data/projects/P", {"removeFiles": "true"}, 403),
            ("PUT", "/data/projects/P", {"alias": "other"}, 403),
            ("POST", "/data/projects/P/subjects", {"inbody": "true"}, 403),
            ("PUT", "/data/projects/P/subjects/2", {"inbody": "true"}, 403),
            ("PUT", "/data/projects/P/subjects/1", {"req_format": "qs", "gender": "female"}, 403),
        ):
            query, data = {"format": "xml", **query}, body if "inbody" in query else None
            answer = unknown.request(method, admin.url + path, params=query, data=data, timeout=30)
            assert answer.status_code == 401, path
            assert person.ask(method, path, data, **query).status_code == expected, path
    assert admin.get("/data/projects/P/accessibility").text == "protected"


@pytest.mark.claim("logging in", "TestUserAccess.testUserSessionInvalidation")
def test_sessions_that_an_administrator_ended_show_nothing(admin, user):
    person = user("none")
    person.made("/data/projects/MINE")
    opened = {requests.get(f"{admin.url}/data/JSESSION", auth=person.http.auth, timeout=30).text for _ in range(2)}
    opened.add(person.http.cookies["JSESSIONID"])
    assert set(admin.delete("/xapi/users/active/none").json()) == opened
    for number in opened:
        answer = requests.get(f"{admin.url}/data/projects/MINE", cookies={"JSESSIONID": number}, timeout=30)
        assert (answer.status_code, "MINE" in answer.text) == (401, False)


@pytest.mark.claim("site and users", "TestUsersApi.testRestletUsersCall")
def test_everybody_may_list_users_where_the_site_says_so(admin, user):
    for restricted, status in (("false", 200), ("true", 403)):
        answer = admin.ask(
            "POST", "/xapi/siteConfig/restrictUserListAccessToAdmins", restricted, {"Content-Type": "application/json"}
        )
        assert answer.status_code == 200
        assert user("member").get("/data/users", format="json").status_code == status
        assert "member" in {row["login"] for row in admin.rows("/data/users")}


@pytest.mark.claim("files", "SecureResource")
@pytest.mark.parametrize("value", ["1", "yes", "TRUE"])
def test_any_value_but_false_and_0_is_true(admin, made, value):
    files = f"{made.scan}/resources/R/files/a"
    for number, overwrite in enumerate(("false", "0", value)):
        admin.made(files, str(number).encode(), overwrite=overwrite)
    assert admin.get(files).content == b"2"
