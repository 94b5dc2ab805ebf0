"""The site's calls, searches and the prearchive, as XNAT's own tests and clients expect them.

Each test names its source.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from pathlib import Path

import pydicom
import pytest
import requests

MR = {"xsiType": "xnat:mrSessionData"}
IMPORT = "/data/services/import"


# Settings, users, plugins


@pytest.mark.claim(
    "site and users",
    "TestXapiSiteConfig.testGetSiteConfigClosedXnat",
    "TestXapiSiteConfig.testGetSiteConfigPropertyClosedXnat",
    "TestXapiSiteConfig.testPostSiteConfigMapClosedXnat",
)
def test_settings_are_shown_only_to_users_who_may_see_them(admin, user):
    """TestXapiSiteConfig: some settings are public, some for users, some for administrators. siteId needs no login."""
    given = {"sitewidePetTracers": "PIB", "passwordComplexityMessage": "complex", "ownPreference": "x"}
    assert admin.ask("POST", "/xapi/siteConfig", _json(given), {"Content-Type": "application/json"}).status_code == 200
    everything = admin.get("/xapi/siteConfig").json()
    assert given.items() <= everything.items()
    of_users = user("member").get("/xapi/siteConfig").json()
    assert of_users["siteId"] == "XNAT"
    assert of_users["sitewidePetTracers"] == "PIB"
    assert {"passwordComplexityMessage", "ownPreference"}.isdisjoint(of_users)
    assert requests.get(f"{admin.url}/xapi/siteConfig", timeout=30).status_code == 401
    for name, for_user, for_all in (
        ("siteId", 200, 200),
        ("sitewidePetTracers", 200, 401),
        ("passwordComplexityMessage", 403, 401),
        ("ownPreference", 403, 401),
    ):
        assert admin.get(f"/xapi/siteConfig/{name}").text == {**given, "siteId": "XNAT"}[name]
        assert user("member").get(f"/xapi/siteConfig/{name}").status_code == for_user
        assert requests.get(f"{admin.url}/xapi/siteConfig/{name}", timeout=30).status_code == for_all


@pytest.mark.claim("site and users", "TestXapiSiteConfig.testPostSiteConfigPropertyClosedXnat")
def test_settings_are_changed_by_administrators_alone(admin, user):
    for api, status in ((user("owner"), 403), (admin, 200)):
        answer = api.ask("POST", "/xapi/siteConfig/sitewidePetTracers", "FDG", {"Content-Type": "application/json"})
        assert answer.status_code == status
    assert admin.get("/xapi/siteConfig/sitewidePetTracers").text == "FDG"


@pytest.mark.claim("site and users", "AnonymizeApi")
def test_the_anonymisation_script_can_be_switched(admin, user):
    """TestImport switches it off before it compares files."""
    assert admin.get("/xapi/anonymize/site/enabled").json() is False
    assert user("owner").put("/xapi/anonymize/site/enabled", enable="true").status_code == 403
    assert admin.put("/xapi/anonymize/site/enabled", enable="true").status_code == 200
    assert admin.get("/xapi/siteConfig/enableSitewideAnonymizationScript").json() is True


@pytest.mark.claim("site and users", "SiteConfigApi")
def test_build_info_by_property(admin):
    assert (
        admin.get("/xapi/siteConfig/buildInfo/version").text
        == admin.get("/xapi/siteConfig/buildInfo").json()["version"]
    )
    assert admin.get("/xapi/siteConfig/buildInfo/nothing").status_code == 404


@pytest.mark.claim("site and users", "xnat4tests")
def test_plugins_are_an_object(admin):
    """xnat4tests: `"containers" in login.get("/xapi/plugins").json()`."""
    found = admin.get("/xapi/plugins").json()
    assert isinstance(found, dict)
    assert "containers" not in found


@pytest.mark.claim("site and users", "UsersApi")
def test_users_and_profiles(admin, user):
    assert "member" in admin.get("/xapi/users").json()
    profiles = {found["username"]: found for found in admin.get("/xapi/users/profiles").json()}
    assert {"id", "firstName", "lastName", "email", "enabled"} <= set(profiles["member"])
    assert user("member").get("/xapi/users/profiles").status_code == 403
    assert user("member").get("/xapi/users/profile/member").json()["username"] == "member"
    assert user("member").get("/xapi/users/profile/owner").status_code == 403


@pytest.mark.claim("logging in", "UsersApi", "UserSession")
def test_sessions_are_ended(admin, user):
    """UsersApi: DELETE of a user's active sessions; NRG's client: DELETE /data/JSESSION/ID."""
    number = user("member").get("/data/JSESSION").text
    assert number in admin.delete("/xapi/users/active/member").json()
    assert requests.get(f"{admin.url}/data/auth", cookies={"JSESSIONID": number}, timeout=30).status_code == 401
    number = user("member").get("/data/JSESSION").text
    assert user("owner").delete("/xapi/users/active/member").status_code == 403
    api = user("member")
    assert api.delete(f"/data/JSESSION/{number}").status_code == 200
    assert requests.get(f"{admin.url}/data/auth", cookies={"JSESSIONID": number}, timeout=30).status_code == 401


@pytest.mark.claim("site and users", "TestSchemasOnlyApi.testSchemasSchemaGet")
def test_schemas_are_below_xapi_too(admin):
    for name in admin.get("/xapi/schemas").json():
        assert admin.get(f"/xapi/{name}.xsd").content == admin.get(f"/schemas/{name}.xsd").content
    assert "xnat:mrSessionData" in admin.get("/xapi/schemas/datatypes").json()


@pytest.mark.claim("ROI collections and viewer", "XNAT-OHIF viewer")
def test_the_front_page_has_the_token_that_viewers_read(admin):
    """OHIF viewer and XNAT's own pages: var csrfToken = '...'."""
    token = re.search(r"var csrfToken = '([^']+)'", admin.get("/").text)
    assert token is not None
    assert token.group(1) in admin.get("/data/JSESSION", CSRF="true").text


# Searches


@pytest.fixture
def archive(admin):
    """Project P: subjects A (with MR session a1) and B (without)."""
    admin.made("/data/projects/P")
    for subject, gender in (("A", "female"), ("B", "male")):
        admin.made(f"/data/projects/P/subjects/{subject}", gender=gender, age="30")
    admin.made("/data/projects/P/subjects/A/experiments/a1", date="2024-01-02", **MR)
    admin.made("/data/projects/P/subjects/A/experiments/a2", date="2025-01-02", **MR)
    return admin


def search(root: str, fields: list[str], *criteria: tuple[str, str, str], method: str = "AND") -> bytes:
    def listed(place: int, name: str) -> str:
        element, _, number = name.partition("/")
        inner = f"<xdat:element_name>{element}</xdat:element_name><xdat:field_ID>{number}</xdat:field_ID>"
        return f"<xdat:search_field>{inner}<xdat:sequence>{place}</xdat:sequence></xdat:search_field>"

    def criterion(field: str, kind: str, value: str) -> str:
        inner = f"<xdat:schema_field>{field}</xdat:schema_field><xdat:comparison_type>{kind}</xdat:comparison_type>"
        return f"<xdat:criteria>{inner}<xdat:value>{value}</xdat:value></xdat:criteria>"

    where = "".join(criterion(field, kind.replace("<", "&lt;"), value) for field, kind, value in criteria)
    shown = "".join(listed(place, name) for place, name in enumerate(fields))
    return (
        f'<xdat:bundle xmlns:xdat="http://nrg.wustl.edu/security"><xdat:root_element_name>{root}</xdat:root_element_name>'
        f'{shown}<xdat:search_where method="{method}">{where}</xdat:search_where></xdat:bundle>'
    ).encode()


def found(api, document: bytes, key: str) -> list[str]:
    answer = api.post("/data/search", document, kind="text/xml", format="json")
    assert answer.status_code == 200, answer.text
    return sorted(row[key] for row in answer.json()["ResultSet"]["Result"])


@pytest.mark.claim("searches", "SearchResource", "pyxnat", "xnatpy")
@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ([("xnat:subjectData/SUBJECT_LABEL", "=", "A")], ["A"]),
        ([("xnat:subjectData/SUBJECT_LABEL", "LIKE", "%")], ["A", "B"]),
        ([("xnat:subjectData/GENDER_TEXT", "!=", "female")], ["B"]),
        ([("xnat:mrSessionData/DATE", ">", "2024-06-01")], ["A"]),
        ([("xnat:mrSessionData/DATE", "<", "2020-01-01")], []),
        ([("xnat:subjectData/AGE", ">=", "30"), ("xnat:projectData/ID", "=", "P")], ["A", "B"]),
        ([("xnat:subjectData/AGE", "<", "30")], []),
        ([("xnat:mrSessionData/ID", "IS NULL", "")], ["B"]),
    ],
)
def test_searches_for_subjects(archive, criteria, expected):
    """TestSearch and TestSearchJoins, in the documents that pyxnat and xnatpy write."""
    document = search("xnat:subjectData", ["xnat:subjectData/SUBJECT_LABEL"], *criteria)
    assert found(archive, document, "subject_label") == expected


@pytest.mark.claim("searches", "SearchResource")
def test_fields_of_other_elements_come_back_with_their_name(archive):
    """SearchResource.setColumnProperties. If there are several sessions, the latest is shown."""
    fields = ["xnat:subjectData/SUBJECTID", "xnat:subjectData/PROJECT", "xnat:mrSessionData/LABEL"]
    answer = archive.post("/data/search", search("xnat:subjectData", fields), kind="text/xml", format="json")
    result = answer.json()["ResultSet"]
    assert [row["xnat_mrsessiondata_label"] for row in result["Result"]] == ["a2", ""]
    assert {"subjectid", "project", "quarantine_status"} <= set(result["Result"][0])
    assert (result["rootElementName"], result["Columns"][2]["key"]) == ("xnat:subjectData", "xnat_mrsessiondata_label")


@pytest.mark.claim("searches", "TestSearchPermissions.testSessionSearchAccess")
def test_searches_see_what_their_user_sees(archive, user):
    document = search("xnat:mrSessionData", ["xnat:mrSessionData/LABEL"])
    assert found(archive, document, "label") == ["a1", "a2"]
    assert found(user("none"), document, "label") == []
    assert archive.get("/data/search").status_code == 405
    assert archive.post("/data/search", b"<a/>", kind="text/xml").status_code == 422


@pytest.mark.claim("other people's clients", "xnatpy")
def test_xnatpy_queries(archive, xnat_sandbox):
    """xnatpy's documentation: query(), filter(), view(), all()."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import xnat

        with xnat.connect(xnat_sandbox.url, user="admin", password=xnat_sandbox.password) as connection:
            subjects = connection.classes.SubjectData
            assert {subject.label for subject in subjects.query().all()} == {"A", "B"}
            assert [subject.label for subject in subjects.query().filter(subjects.label == "B").all()] == ["B"]
            sessions = connection.classes.MrSessionData
            query = sessions.query().filter(sessions.label == "a1")
            assert query.one().label == "a1"
            assert query.view(sessions.label).tabulate_dict()[0]["session_id"].startswith("XNAT_E")


@pytest.mark.claim("other people's clients", "pyxnat")
def test_pyxnat_searches(archive, xnat_sandbox):
    """pyxnat's documentation: select(...).where(...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyxnat

        interface = pyxnat.Interface(xnat_sandbox.url, "admin", xnat_sandbox.password)
        try:
            columns = ["xnat:subjectData/SUBJECT_ID", "xnat:subjectData/SUBJECT_LABEL"]
            table = interface.select("xnat:subjectData", columns).where(
                [("xnat:subjectData/SUBJECT_LABEL", "=", "A"), "AND"]
            )
            assert [row["subject_label"] for row in table.data] == ["A"]
            # pyxnat makes a text of a single match, and reads each of its letters as a subject.
            subjects = interface.select("/projects/*/subjects").where([("xnat:subjectData/AGE", "=", "30"), "AND"])
            assert sorted(subject.label() for subject in subjects) == ["A", "B"]
        finally:
            interface.disconnect()


# Prearchive


def zipped(*contents: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.dcm", content)
    return target.getvalue()


@pytest.fixture
def slices(demo_dicom) -> list[bytes]:
    return [path.read_bytes() for path in sorted(demo_dicom.cases[1].dicom.rglob("*.dcm"))[:3]]


def of_series(content: bytes, **values: str) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    target = io.BytesIO()
    dataset.save_as(target, write_like_original=False)
    return target.getvalue()


@pytest.mark.claim(
    "import and prearchive", "TestImport.testPrearcGradualImport", "TestImport.testManualArchiveGradualImport"
)
def test_a_study_gathers_in_one_session_until_it_is_committed(admin, slices):
    admin.made("/data/projects/P")
    query = {"dest": "/prearchive/projects/P", "import-handler": "DICOM-zip"}
    addresses = {admin.post(IMPORT, zipped(content), **query).text.strip() for content in slices}
    assert len(addresses) == 1
    (address,) = addresses
    answer = admin.post(address, action="commit")
    assert (answer.status_code, answer.text) == (200, address)
    answer = admin.http.post(admin.url + address, params={"action": "commit", "AA": "true"}, allow_redirects=False)
    assert (answer.status_code, answer.text.startswith("/data/archive/projects/P/subjects/")) == (301, True)
    assert len(admin.rows(f"{answer.text.strip()}/scans/2/resources/DICOM/files")) == 3
    assert admin.rows("/data/prearchive/projects/P") == []


@pytest.mark.claim(
    "import and prearchive",
    "TestImport.testUnassignedManualArchiveGradualImport",
    "TestPrearchiveMgmt.testUnassignedMove",
)
def test_an_unassigned_session_is_built_moved_and_committed(admin, slices):
    admin.made("/data/projects/P")
    waiting = of_series(slices[0], PatientComments="")
    address = admin.post(IMPORT, zipped(waiting), dest="/prearchive").text.strip()
    assert "/Unassigned/" in address
    assert admin.post(address, action="build").status_code == 200
    moved = admin.http.post(
        admin.url + address, params={"action": "move", "newProject": "P"}, allow_redirects=False, timeout=30
    )
    assert (moved.status_code, moved.text) == (301, address.replace("Unassigned", "P"))
    assert admin.get(moved.text, format="json").status_code == 200
    assert admin.post(moved.text, action="nonsense").status_code == 400


@pytest.mark.claim(
    "import and prearchive",
    "TestPrearchiveMgmt.testPrearchiveWithDestination",
    "TestPrearchiveMgmt.testPrearchiveSessionDelete",
    "TestImport.testPrearcMergeDiffUidSi",
    "TestImport.testPrearcMergeDiffUidDicomZip",
)
def test_an_address_in_the_prearchive_may_be_chosen(admin, slices):
    """TestPrearchiveMgmt.testPrearchiveWithDestination, TestImport.testPrearcMergeDiffUid..."""
    admin.made("/data/projects/P")
    address = "/prearchive/projects/P/20000101_050505/11223344556677"
    query = {"dest": address, "subject": "SUBJ9", "session": "SUBJ9_MRI", "overwrite": "append"}
    assert admin.post(IMPORT, zipped(slices[0]), **query).text.strip() == f"/data{address}"
    (row,) = admin.rows("/data/prearchive/projects/P")
    assert (row["subject"], row["name"], row["folderName"]) == ("SUBJ9", "SUBJ9_MRI", "11223344556677")
    other = of_series(slices[1], StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4", SeriesNumber="7")
    assert admin.post(IMPORT, zipped(other), **query, **{"import-handler": "DICOM-zip"}).status_code == 400
    assert admin.post(IMPORT, zipped(other), **query, **{"import-handler": "SI"}).status_code == 200
    assert sorted(scan["ID"] for scan in admin.rows(f"/data{address}/scans")) == ["2", "7"]
    assert admin.delete(f"/data{address}").status_code == 200


@pytest.mark.claim("import and prearchive", "TestArchive.testBasicArchiveFromPrearcWParams")
def test_parameters_of_the_archive_service_name_the_session(admin, slices):
    admin.made("/data/projects/P")
    address = admin.post(IMPORT, zipped(*slices), dest="/prearchive/projects/P").text.strip()
    paths = {"xnat:ctSessionData/subject_id": "SUBJ", "xnat:ctSessionData/label": "MR1"}
    answer = admin.post("/data/services/archive", src=address, overwrite="append", **paths)
    assert answer.text.strip() == "/data/archive/projects/P/subjects/SUBJ/experiments/MR1"


@pytest.mark.claim("import and prearchive", "TestImport.testDataProjectExperimentNewExptXSIOverwriteTDeleteF")
def test_sessions_of_another_modality_are_not_mixed(admin, slices):
    """TestImport.testDataProjectExperimentNewExptXSIOverwriteTDeleteF: not possible even with overwrite=delete."""
    admin.made("/data/projects/P")
    admin.made("/data/projects/P/subjects/s/experiments/e", xsiType="xnat:petSessionData")
    query = {"dest": "/archive/projects/P/subjects/s/experiments/e", "overwrite": "delete"}
    assert admin.post(IMPORT, zipped(slices[0]), **query).status_code == 400


@pytest.mark.claim("import and prearchive", "TestImport.testDataProjectExperimentOldRes")
def test_a_session_that_was_made_by_hand_takes_its_scans(admin, slices):
    """TestImport.testDataProjectExperimentOldRes: append to a session without a UID. Its date does not change."""
    admin.made("/data/projects/P")
    admin.made("/data/projects/P/subjects/s/experiments/e", xsiType="xnat:ctSessionData", date="2000-01-01")
    query = {"dest": "/archive/projects/P/subjects/s/experiments/e", "overwrite": "append"}
    address = admin.post(IMPORT, zipped(*slices), **query).text.strip()
    assert admin.get(address, format="json").json()["items"][0]["data_fields"]["date"] == "2000-01-01"
    assert len(admin.rows(f"{address}/scans")) == 1


@pytest.mark.claim("import and prearchive", "ProjectResource")
def test_a_project_may_quarantine_what_arrives(admin, slices):
    """ProjectResource: quarantine_code 1. A setting that does not exist is refused."""
    admin.made("/data/projects/P")
    assert admin.put("/data/projects/P/quarantine_code/1").status_code == 200
    assert admin.get("/data/projects/P/quarantine_code").text == "1"
    address = admin.post(IMPORT, zipped(slices[0]), dest="/archive/projects/P").text.strip()
    assert admin.get(f"{address}/status").text == "quarantine"
    assert admin.put("/data/projects/P/quarantine_code/7").status_code == 400
    assert admin.put("/data/projects/P/current_arc/arc002").status_code == 400


@pytest.mark.claim(
    "import and prearchive",
    "TestImport.testUploadIgnoreUnparsableMissingParam",
    "TestImport.testUploadIgnoreUnparsableTrue",
)
def test_a_file_that_is_not_dicom_is_named(admin, slices):
    admin.made("/data/projects/P")
    body = io.BytesIO(zipped(slices[0]))
    with zipfile.ZipFile(body, "a") as archive:
        archive.writestr("folder/non_dicom_text_file.dcm", b"I am a text file")
    query = {"import-handler": "DICOM-zip", "project": "P"}
    answer = admin.post(IMPORT, body.getvalue(), **query)
    assert (answer.status_code, "unable to read DICOM object non_dicom_text_file.dcm" in answer.text) == (400, True)
    assert admin.post(IMPORT, body.getvalue(), **query, **{"Ignore-Unparsable": "true"}).status_code == 200


def _json(value: object) -> str:
    import json

    return json.dumps(value)


@pytest.mark.claim("other people's clients", "xnat4tests")
def test_xnat4tests_uploads_dicom(admin, xnat_sandbox, demo_dicom, tmp_path: Path):
    """These are the calls of xnat4tests.data: project, subject, import into the archive, triggerPipelines."""
    packed = tmp_path / "dicom.zip"
    packed.write_bytes(zipped(*(path.read_bytes() for path in sorted(demo_dicom.cases[1].dicom.rglob("*.dcm"))[:2])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import xnat

        with xnat.connect(xnat_sandbox.url, user="admin", password=xnat_sandbox.password) as login:
            assert "containers" not in login.get("/xapi/plugins").json()
            uri = "/data/archive/projects/TESTS"
            with pytest.raises(xnat.exceptions.XNATResponseError):
                login.get(uri)
            login.put(uri)
            query = {"xsiType": "xnat:subjectData", "req_format": "qs", "xnat:subjectData/label": "subj"}
            login.put(f"{uri}/subjects/subj", query=query)
            where = {"dest": "/archive/projects/TESTS/subjects/subj/experiments/sess", "Direct-Archive": True}
            query = {**where, "Ignore-Unparsable": True, "inbody": True, "overwrite": True}
            login.upload(IMPORT, str(packed), query=query, content_type="application/zip", method="post")
            experiment = login.projects["TESTS"].experiments["sess"].id
            assert login.put(f"/data/experiments/{experiment}?triggerPipelines=true").status_code == 200
            assert login.put(f"/data/experiments/{experiment}?pullDataFromHeaders=true").status_code == 200


@pytest.mark.claim(
    "logging in",
    "TestAliasTokenService.testProxyAliasTokenClosedXnat",
    "TestAliasTokenService.testAliasTokenValidationClosedXnat",
)
def test_tokens_of_others_are_for_administrators(admin, user):
    """TestAliasTokenService: 403 that names the admin; an unknown alias is not found."""
    answer = user("member").get("/data/services/tokens/issue/user/owner")
    assert (answer.status_code, "admin" in answer.text) == (403, True)
    assert admin.get("/data/services/tokens/issue/user/owner").json()["xdatUserId"] == "owner"
    assert admin.get("/data/services/tokens/validate/nothing/secret").status_code == 404
