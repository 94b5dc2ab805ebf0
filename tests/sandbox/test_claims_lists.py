"""Lists, as XNAT's own tests and other people's clients expect them. Each test names its source."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

MR = {"xsiType": "xnat:mrSessionData"}
QC = "xnat:qcManualAssessorData"


@pytest.fixture
def archive(admin):
    """Project P: subject A with sessions m (MR, two scans, one QC) and c (CT), and subject B without sessions."""
    admin.made("/data/projects/P")
    for subject in "AB":
        admin.made(f"/data/projects/P/subjects/{subject}", gender="F")
    base = "/data/projects/P/subjects/A/experiments"
    admin.made(f"{base}/m", fieldStrength="3.0", date="2024-01-02", **MR)
    admin.made(f"{base}/c", xsiType="xnat:ctSessionData", date="2024-01-03")
    for scan in "12":
        admin.made(f"{base}/m/scans/{scan}", xsiType="xnat:mrScanData", type=f"T{scan}")
    admin.made(f"{base}/m/assessors/qc", xsiType=QC)
    return admin


def shown(rows, *keys: str) -> list[tuple[str, ...]]:
    return sorted(tuple(row[key] for key in keys) for row in rows)


@pytest.mark.claim(
    "lists",
    "TestDynamicSearchSubjects.testStandardDynamicSubjectSearchGenericSessionJoin",
    "TestDynamicSearchSubjects.testStandardDynamicSubjectSearchMrSessionJoinImplicitFilter",
    "dax",
    "pyxnat",
)
def test_subjects_join_their_sessions(archive):
    """XNAT's QueryOrganizer joins subject assessors to subjects. dax and pyxnat request such columns."""
    column = "xnat:mrsessiondata/label"
    rows = archive.rows("/data/projects/P/subjects", columns=f"label,{column}")
    assert shown(rows, "label", column) == [("A", "m"), ("B", "")]
    column = "xnat:imagesessiondata/label"
    rows = archive.rows("/data/subjects", columns=f"label,{column}")
    assert shown(rows, "label", column) == [("A", "c"), ("A", "m"), ("B", "")]


@pytest.mark.claim("lists", "TestDynamicSearchSubjects.testStandardDynamicSubjectSearchMrSessionJoinScans")
def test_subjects_join_the_scans_and_assessors_of_their_sessions(archive):
    scan, session = "xnat:mrscandata/id", "xnat:mrsessiondata/label"
    rows = archive.rows("/data/subjects", columns=f"label,{session},{scan}", project="P")
    assert shown(rows, "label", session, scan) == [("A", "m", "1"), ("A", "m", "2"), ("B", "", "")]
    assessor = f"{QC.lower()}/label"
    rows = archive.rows("/data/subjects", columns=f"label,{assessor}")
    assert ("A", "qc") in shown(rows, "label", assessor)


@pytest.mark.claim("lists", "QueryOrganizer")
def test_subjects_are_filtered_by_what_is_joined(archive):
    column = "xnat:mrSessionData/fieldStrength"
    rows = archive.rows("/data/subjects", **{"columns": "label", column: "3.0"})
    assert shown(rows, "label") == [("A",)]


@pytest.mark.claim("lists", "TestDynamicSearchSubjectAssessors.testStandardDynamicSessionSearchJoinAssessors")
def test_image_sessions_join_their_assessors(archive):
    """xnat-rest-tests, the joined listing: a row for each session and assessor, with empty cells if there is none."""
    columns = "label,xnat:imageAssessorData/id,xnat:imageAssessorData/label"
    rows = archive.rows("/data/experiments", xsiType="xnat:imageSessionData", columns=columns)
    key = "xnat:imageassessordata/label"
    assert shown(rows, "label", key) == [("c", ""), ("m", "qc")]
    assert all(bool(row["xnat:imageassessordata/id"]) == bool(row[key]) for row in rows)


@pytest.mark.claim("lists", "QueryOrganizerResource", "yaxil")
def test_a_shortcut_of_a_type_makes_it_the_root(archive):
    """QueryOrganizerResource.getRootElementName also looks at shortcuts. yaxil requests fieldStrength."""
    rows = archive.rows("/data/experiments", columns="label,fieldStrength")
    assert shown(rows, "label", "fieldStrength") == [("m", "3.0")]
    assert "xnat:mrsessiondata/id" in rows[0]


@pytest.mark.claim("lists", "XMLPathShortcuts")
def test_every_shortcut_of_xnat_is_one_here(archive):
    """XMLPathShortcuts, the table behind ?fields."""
    named = {
        "/data/experiments": "visit_id visit pi_firstname validation_date dcmPatientName coil marker tracer_sa",
        "/data/projects/P/subjects": "pi_lastname ses education race ethnicity gestational_age birth_weight",
        "/data/projects/P/subjects/A/experiments/m/scans": "validation_notes coil transaxialFOV numFrames",
        "/data/projects": "ID secondary_ID name description keywords alias pi_firstname pi_lastname note",
    }
    for path, names in named.items():
        found = {row["key"] for row in archive.rows(path, fields="true")}
        assert set(names.split()) <= found, path


@pytest.mark.claim(
    "lists",
    "TestDynamicSearchScans.testStandardDynamicScanSearchMinimalColumns",
    "TestDynamicSearchScans.testStandardDynamicScanSearchMrScanFilter",
)
def test_the_scan_list_always_has_its_primary_key(archive):
    """ScanList: the list includes the key of the root, and xsiType restricts the list and changes the root."""
    scans = "/data/projects/P/subjects/A/experiments/m/scans"
    assert "xnat_imagescandata_id" in archive.rows(scans, columns="ID")[0]
    archive.made(f"{scans}/9", xsiType="xnat:otherDicomScanData")
    rows = archive.rows(scans, xsiType="xnat:mrScanData", columns="ID")
    assert shown(rows, "ID") == [("1",), ("2",)]
    assert rows[0]["xnat:mrscandata/xnat_imagescandata_id"].isdigit()


@pytest.mark.claim("lists", "TestDynamicSearchSubjects.testStandardDynamicSubjectSearchDemographicsColumns")
def test_floats_come_back_as_floats(archive):
    """TestSubjectResources: a height of 12 reads 12.0."""
    archive.made("/data/projects/P/subjects/A", height="12", age="30")
    (row,) = archive.rows("/data/projects/P/subjects", columns="label,height,age", label="A")
    assert (row["height"], row["age"]) == ("12.0", "30")
    assert "<xnat:height>12.0</xnat:height>" in archive.get("/data/projects/P/subjects/A", format="xml").text


@pytest.mark.claim("lists", "TestCustomVariables.testCustomVariablePutGet")
def test_custom_variables_are_joined(archive):
    """TestCustomVariables.testCustomVariablePutGet, with fields in the query and in a form."""
    path = "/data/projects/P/subjects/A/experiments/m"
    field = "xnat:mrSessionData/fields/field[name=test01]/field"
    columns = "xnat:mrSessionData/fields/field/field,xnat:mrSessionData/fields/field/name"
    keys = columns.lower().split(",")
    query = {"xnat:mrSessionData/label": "m", "columns": columns}
    archive.made(path, **{field: "12"})
    assert shown(archive.rows(path.rpartition("/")[0], **query), *keys) == [("12", "test01")]
    answer = archive.put(path, urlencode({field: "15"}), kind="application/x-www-form-urlencoded")
    assert answer.status_code == 200
    assert shown(archive.rows(path.rpartition("/")[0], **query), *keys) == [("15", "test01")]


@pytest.mark.claim("lists", "ItemValuesRepresentation", "xnat-tools")
@pytest.mark.parametrize("kind", ["experiments", "subjects"])
def test_values_of_one_object_as_a_table(archive, kind):
    """ItemValuesRepresentation; the first calls of brown-bnc's xnat-tools."""
    (session,) = archive.rows("/data/experiments", label="m", columns="ID,subject_ID")
    query = {"format": "json", "handler": "values"}
    if kind == "experiments":
        answer = archive.get(f"/data/experiments/{session['ID']}", columns="project,subject_ID,label", **query)
        expected = {"project": "P", "subject_ID": session["subject_ID"], "label": "m"}
    else:
        answer = archive.get(f"/data/subjects/{session['subject_ID']}", columns="label", **query)
        expected = {"label": "A"}
    assert answer.json()["ResultSet"]["Result"] == [expected]


@pytest.mark.claim("files", "TestFileFiltering.testFileFiltering")
def test_one_of_a_list_of_files_is_asked_for_by_its_place(archive):
    files = "/data/projects/P/subjects/A/experiments/m/resources/R/files"
    for number, content in enumerate(("one", "one", "two", "two", "three")):
        archive.made(f"{files}/{number}.jpg", f"{number}".encode(), content=content)
    assert len(archive.rows(files, file_content="two")) == 2
    assert archive.get(files, file_content="two", index="1").content == b"3"
    assert archive.get(files, file_content="three", index="1").status_code == 404


# Projects


@pytest.fixture
def projects(admin, user):
    """One project for each relation that the user ``none`` can have to a project."""
    levels = {"OWNED": "private", "JOINED": "private", "READ": "private"}
    levels.update({"PUBLIC": "public", "PROTECTED": "protected", "PRIVATE": "private"})
    for name, level in levels.items():
        admin.made(f"/data/projects/{name}", accessibility=level)
    for name, role in (("OWNED", "Owners"), ("JOINED", "Members"), ("READ", "Collaborators")):
        admin.made(f"/data/projects/{name}/users/{role}/none")
    return user("none")


def ids(rows, key: str = "id") -> set[str]:
    return {row[key] for row in rows}


@pytest.mark.claim(
    "lists",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchFilterableProjectsAccessible",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchFilterableProjectsDataReadable",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchFilterableProjectsDataWritable",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchFilterableProjectsOwner",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchFilterableProjectsMember",
)
def test_projects_by_role_and_access(projects):
    """TestDynamicSearchProjects; ProjectListResource.FilteredProjects."""
    everything = {"OWNED", "JOINED", "READ", "PUBLIC", "PROTECTED"}
    assert ids(projects.rows("/data/projects", accessible="true")) == everything
    assert ids(projects.rows("/data/projects", accessible="false")) == {"PUBLIC", "PROTECTED"}
    assert ids(projects.rows("/data/projects?data=readable")) == everything - {"PROTECTED"}
    assert ids(projects.rows("/data/projects?data=writable")) == {"OWNED", "JOINED"}
    assert ids(projects.rows("/data/projects", owner="true")) == {"OWNED"}
    assert ids(projects.rows("/data/projects", owner="true", member="true")) == {"OWNED", "JOINED"}


@pytest.mark.claim(
    "lists",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchRestrict",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchPermissionsMrSessions",
    "TestDynamicSearchProjects.testStandardDynamicProjectSearchCreatableTypes",
)
def test_projects_by_what_may_be_done(projects):
    """ProjectListResource: restrict keeps the default columns, permissions and creatableTypes have their own."""
    edited = projects.rows("/data/projects", restrict="edit")
    assert ids(edited, "ID") == {"OWNED", "JOINED"}
    assert {"secondary_ID", "name", "description", "pi_firstname", "pi_lastname", "URI"} <= set(edited[0])
    assert ids(projects.rows("/data/projects", restrict="delete"), "ID") == {"OWNED"}
    query = {"permissions": "edit", "dataType": "xnat:mrSessionData"}
    rows = projects.rows("/data/projects", **query)
    assert (ids(rows), set(rows[0])) == ({"OWNED", "JOINED"}, {"id", "secondary_id"})
    assert ids(projects.rows("/data/projects", **{**query, "permissions": "delete"})) == {"OWNED"}
    rows = projects.rows("/data/projects", creatableTypes="true")
    assert (ids(rows), set(rows[0])) == ({"OWNED", "JOINED"}, {"id", "secondary_id", "name", "description"})


@pytest.mark.claim("lists", "ProjectListResource")
def test_projects_are_filtered_by_their_fields(projects):
    assert ids(projects.rows("/data/projects", name="PUB*"), "ID") == {"PUBLIC"}
    assert ids(projects.rows("/data/projects", ID="OWNED,READ"), "ID") == {"OWNED", "READ"}


@pytest.mark.claim("lists", "XMLPathShortcuts", "pyxnat")
def test_a_list_of_projects_has_their_aliases(projects, admin):
    """pyxnat's resources_test reads the aliases of a project from the list of all projects."""
    for project, alias in (("OWNED", "one"), ("JOINED", "two")):
        admin.made(f"/data/projects/{project}", alias=alias)
    rows = admin.rows("/data/projects", columns="alias")
    found = {row["ID"]: row["alias"] for row in rows}
    assert (found["OWNED"], found["JOINED"], found["READ"]) == ("one", "two", "")
    assert [row["ID"] for row in admin.rows("/data/projects", alias="two", columns="ID")] == ["JOINED"]
    assert len(admin.rows("/data/projects")) == 6
