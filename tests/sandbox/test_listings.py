"""Lists: columns, keys, filters, joined rows, shares, pages; and their speed."""

from __future__ import annotations

import time

import pytest

JOINED = (
    "ID,label,URI,project,date,insert_date,subject_label,xnat:imagesessiondata/subject_id,UID,"
    "xnat:imagescandata/id,xnat:imagescandata/type,xnat:imagescandata/uid,xnat:imagescandata/quality,"
    "xnat:imagescandata/note,xnat:imagescandata/frames,xnat:imagescandata/series_description,"
    "xnat:imagescandata/modality,xnat:imagescandata/file/label"
)
SESSIONS = {"project": "P", "xsiType": "xnat:imageSessionData"}


@pytest.fixture
def archive(admin):
    """Fill project P: subject A with MR session a1 (scans 1, 2) and CT session a2 (no scan), subject B with MR b1."""
    admin.made("/data/projects/P")
    admin.made("/data/projects/Q")
    for path, query in (
        ("A/experiments/a1", {"xsiType": "xnat:mrSessionData", "date": "2024-01-10", "UID": "1.2.1"}),
        ("A/experiments/a2", {"xsiType": "xnat:ctSessionData", "date": "2024-02-10"}),
        ("B/experiments/b1", {"xsiType": "xnat:mrSessionData", "date": "2024-03-10", "note": "x, y"}),
        ("A/experiments/a1/scans/1", {"xsiType": "xnat:mrScanData", "type": "T1", "frames": "10"}),
        ("A/experiments/a1/scans/2", {"xsiType": "xnat:mrScanData", "type": "T2", "frames": "20"}),
        ("B/experiments/b1/scans/1", {"xsiType": "xnat:mrScanData", "type": "T1", "frames": "30"}),
        ("A/experiments/a1/scans/1/resources/DICOM", {"format": "DICOM"}),
        ("A/experiments/a1/scans/1/resources/LABELS", {"format": "NIFTI"}),
    ):
        admin.made(f"/data/projects/P/subjects/{path}", **query)
    return admin


def labels(rows, key="label"):
    return sorted(row[key] for row in rows)


# Keys


@pytest.mark.claim("lists", "ProjSubExptList")
def test_project_list_has_its_defaults(archive):
    rows = archive.rows("/data/projects/P/experiments")
    keys = "ID project date xsiType label insert_date xnat:subjectassessordata/id URI"
    assert set(rows[0]) == set(keys.split())
    assert rows[0]["URI"] == f"/data/experiments/{rows[0]['ID']}"
    assert labels(rows) == ["a1", "a2", "b1"]


@pytest.mark.claim("lists", "ExperimentListResource")
def test_site_list_has_its_defaults(archive):
    assert set(archive.rows("/data/experiments")[0]) == {
        "ID",
        "project",
        "date",
        "xsiType",
        "label",
        "insert_date",
        "URI",
    }
    keys = "ID project date xsiType label insert_date subject_ID subject_label xnat:mrsessiondata/id URI"
    assert set(archive.rows("/data/experiments", xsiType="xnat:mrSessionData")[0]) == set(keys.split())


@pytest.mark.claim("lists", "XFTTable")
def test_point_08_values_are_texts(archive):
    answer = archive.get("/data/experiments", columns=JOINED, **SESSIONS).json()["ResultSet"]
    assert answer["title"] == "Matching experiments"
    assert answer["totalRecords"] == "5"
    assert all(isinstance(value, str) for row in answer["Result"] for value in row.values())


@pytest.mark.claim("lists", "QueryOrganizer", "dax")
def test_point_08_paths_come_back_lower_cased_or_as_their_shortcut(archive):
    asked = "ID,xnat:imageScanData/Series_Description,xnat:imageSessionData/UID,xnat:imageSessionData/label"
    row = archive.rows("/data/experiments", columns=asked, **SESSIONS)[0]
    assert set(row) == {
        "ID",
        "xnat:imagescandata/series_description",
        "UID",
        "session_label",
        "xsiType",
        "project",
        "session_ID",
        "URI",
    }
    row = archive.rows("/data/experiments", columns="studyInstanceUID,xnat:imagesessiondata/subject_id", **SESSIONS)[0]
    assert set(row) == {"UID", "xnat:imagesessiondata/subject_id", "xsiType", "project", "session_ID", "URI"}


@pytest.mark.claim("lists", "QueryOrganizerResource", "dax")
def test_point_08_abstract_roots_add_type_and_project_concrete_ones_do_not(archive):
    assert {"xsiType", "project"} <= set(archive.rows("/data/experiments", columns="label")[0])
    row = archive.rows("/data/experiments", columns="label", xsiType="xnat:mrSessionData")[0]
    assert set(row) == {"label", "xnat:mrsessiondata/id", "URI"}


@pytest.mark.claim("lists", "QueryOrganizer", "dax")
def test_point_08_rows_are_multiplied(archive):
    rows = archive.rows("/data/experiments", columns=JOINED, **SESSIONS)
    scan, file = "xnat:imagescandata/id", "xnat:imagescandata/file/label"
    assert sorted((row["label"], row[scan], row[file]) for row in rows) == [
        ("a1", "1", "DICOM"),
        ("a1", "1", "LABELS"),
        ("a1", "2", ""),
        ("a2", "", ""),
        ("b1", "1", ""),
    ]
    assert {row["subject_label"] for row in rows} == {"A", "B"}
    assert {row["xsiType"] for row in rows} == {"xnat:mrSessionData", "xnat:ctSessionData"}


@pytest.mark.claim("lists", "QueryOrganizer")
def test_full_paths_to_scans_work_as_well(archive):
    rows = archive.rows("/data/experiments", columns="label,xnat:imageSessionData/scans/scan/ID", **SESSIONS)
    assert labels(rows, "xnat:imagesessiondata/scans/scan/id") == ["", "1", "1", "2"]


@pytest.mark.claim("lists", "QueryOrganizerResource")
def test_unknown_shortcuts_are_dropped_unknown_types_are_refused(archive):
    assert set(archive.rows("/data/projects/P/experiments", columns="label,nonsense")[0]) == {
        "label",
        "xsiType",
        "project",
        "xnat:subjectassessordata/id",
        "URI",
    }
    assert archive.get("/data/projects/P/experiments", columns="foo:bar/ID").status_code == 400


@pytest.mark.claim("lists", "QueryOrganizerResource")
def test_default_stands_for_the_defaults(archive):
    row = archive.rows("/data/projects/P/experiments", columns="DEFAULT,note")[0]
    assert {"insert_date", "note"} <= set(row)


@pytest.mark.claim("lists", "XMLPathShortcuts")
@pytest.mark.parametrize("path", ["/data/experiments", "/data/subjects", "/data/projects/P/subjects"])
def test_fields_answers_the_shortcuts(archive, path):
    rows = archive.rows(path, fields="all")
    assert set(rows[0]) == {"key", "xpath"}
    assert "label" in labels(rows, "key")


# Roots and filters


@pytest.mark.claim(
    "lists", "TestDynamicSearchSubjectAssessors.testStandardDynamicSessionSearchFilters", "QueryOrganizerResource"
)
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"xsiType": "xnat:mrSessionData"}, ["a1", "b1"]),
        ({"xsiType": "xnat:mrSessionData,xnat:ctSessionData"}, ["a1", "a2", "b1"]),
        ({"columns": "label,xnat:mrSessionData/date"}, ["a1", "b1"]),
        ({"xnat:ctSessionData/date": "2024-02-10"}, ["a2"]),
        ({"label": "a1"}, ["a1"]),
        ({"label": "a1,b1"}, ["a1", "b1"]),
        ({"label": "a*"}, ["a1", "a2"]),
        ({"label": "%1"}, ["a1", "b1"]),
        ({"label": "A1"}, []),
        ({"subject_label": "B"}, ["b1"]),
        ({"date": "2024-02-10"}, ["a2"]),
        ({"date": "02/10/2024"}, ["a2"]),
        ({"date": "02/01/2024-03/31/2024"}, ["a2", "b1"]),
        ({"date": "2024-01-01-2024-02-28"}, ["a1", "a2"]),
        ({"insert_date": "01/01/2020-01/01/2100"}, ["a1", "a2", "b1"]),
        ({"insert_date": "01/01/2000-01/01/2001"}, []),
        ({"xnat:imageScanData/type": "T2"}, ["a1"]),
        ({"xnat:imageScanData/frames": "15-30"}, ["a1", "b1"]),
        ({"xnat:imageScanData/frames": "10,30"}, ["a1", "b1"]),
        ({"xnat:imageScanData/type": "T1", "label": "a*"}, ["a1"]),
        ({"ID": "nothing"}, []),
        ({"XNAT_CSRF": "x", "nonsense": "y"}, ["a1", "a2", "b1"]),
    ],
)
def test_filters(archive, query, expected):
    assert labels(archive.rows("/data/projects/P/experiments", **{"columns": "label", **query})) == expected


@pytest.mark.claim("lists", "QueryOrganizerResource")
def test_a_date_that_is_none_is_refused(archive):
    assert archive.get("/data/projects/P/experiments", date="yesterday").status_code == 400


@pytest.mark.claim("lists", "XFTTable")
def test_sorting(archive):
    rows = archive.rows("/data/projects/P/experiments", sortBy="date", sortOrder="DESC")
    assert [row["label"] for row in rows] == ["b1", "a2", "a1"]


@pytest.mark.claim("lists", "SecureResource")
def test_paging_leaves_the_total_out(archive):
    answer = archive.get("/data/projects/P/experiments", limit="2", offset="1").json()["ResultSet"]
    assert len(answer["Result"]) == 2
    assert "totalRecords" not in answer
    assert len(archive.rows("/data/projects/P/subjects", offset="1")) == 1
    assert len(archive.rows("/data/experiments", limit="*")) == 3
    assert archive.get("/data/experiments", limit="many").status_code == 400


# Shares and assessors


@pytest.mark.claim("lists", "ProjSubExptList", "dax")
def test_point_17_project_lists_include_what_is_shared_in_and_the_filter_misses_it(archive):
    archive.made("/data/projects/P/subjects/A/projects/Q", label="AQ")
    archive.made("/data/projects/P/experiments/a1/projects/Q", label="a1q")
    rows = archive.rows("/data/projects/Q/experiments", columns="label,subject_label,project")
    assert [(row["label"], row["subject_label"], row["project"]) for row in rows] == [("a1q", "AQ", "Q")]
    assert archive.rows("/data/experiments", project="Q", xsiType="xnat:imageSessionData") == []
    shared = archive.rows(
        "/data/experiments",
        **{"xsiType": "xnat:imageSessionData", "xnat:imageSessionData/sharing/share/project": "Q", "columns": "label"},
    )
    assert [(row["label"], row["project"]) for row in shared] == [("a1", "P")]
    assert [row["label"] for row in archive.rows("/data/projects/Q/subjects")] == ["AQ"]


@pytest.mark.claim("lists", "ProjSubExptList")
@pytest.mark.parametrize(
    ("root", "label"),
    [("", "a1q"), ("xnat:subjectAssessorData", "a1q"), ("xnat:mrSessionData", "a1q"), ("xnat:imageSessionData", "a1")],
)
def test_a_list_of_image_sessions_names_shared_ones_as_their_owner_does(archive, root, label):
    """XNAT's ProjSubExptList inserts the labels of the list's project, but does not find the rows under this root."""
    archive.made("/data/projects/P/subjects/A/projects/Q", label="AQ")
    archive.made("/data/projects/P/experiments/a1/projects/Q", label="a1q")
    query = {"xsiType": root} if root else {}
    (row,) = archive.rows("/data/projects/Q/experiments", columns="label,subject_label,project", **query)
    assert (row["label"], row["subject_label"], row["project"]) == (
        (label, "AQ", "Q") if label == "a1q" else ("a1", "A", "P")
    )
    (row,) = archive.rows("/data/projects/Q/experiments", columns="project", **query)
    assert row["project"] == "P"
    # The filter uses the owner's label, because the other one is inserted after the query.
    assert len(archive.rows("/data/projects/Q/experiments", columns="label", label="a1", **query)) == 1
    assert archive.rows("/data/projects/Q/experiments", columns="label", label="a1q", **query) == []


@pytest.mark.claim("lists", "QueryOrganizer")
def test_a_session_shared_twice_has_two_rows_where_a_share_is_asked_for(archive):
    archive.made("/data/projects/R")
    for project in "QR":
        archive.made(f"/data/projects/P/subjects/A/projects/{project}")
        archive.made(f"/data/projects/P/experiments/a1/projects/{project}")
    column = "xnat:imagesessiondata/sharing/share/project"
    rows = archive.rows("/data/experiments", columns=f"label,{column}", label="a1", **SESSIONS)
    assert labels(rows, column) == ["Q", "R"]


@pytest.mark.claim("lists", "ProjSubExptAsstList")
def test_point_09_assessors_are_not_in_project_lists_and_have_their_own_uri(archive):
    number = archive.made(
        "/data/projects/P/subjects/A/experiments/a1/assessors/qc", xsiType="xnat:qcManualAssessorData"
    )
    assert labels(archive.rows("/data/projects/P/experiments")) == ["a1", "a2", "b1"]
    named = archive.rows("/data/projects/P/experiments", xsiType="xnat:qcManualAssessorData")
    listed = archive.rows("/data/projects/P/subjects/A/experiments/a1/assessors")
    assert [row["label"] for row in named] == [row["label"] for row in listed] == ["qc"]
    assert listed[0]["URI"] == named[0]["URI"] == f"/data/experiments/{number}"
    keys = "ID project label date xsiType insert_date session_ID session_label xnat:imageassessordata/id URI"
    assert set(listed[0]) == set(keys.split())
    assert listed[0]["session_label"] == "a1"


@pytest.mark.claim("lists", "ProjSubExptAsstList")
def test_fields_of_roi_collections_are_columns(archive):
    path = "/data/projects/P/subjects/A/experiments/a1/assessors/roi"
    fields = {"collectionType": "SEG", "name": "liver", "UID": "1.2"}
    archive.made(
        path,
        **{"xsiType": "icr:roiCollectionData", **{f"icr:roiCollectionData/{key}": fields[key] for key in fields}},
    )
    archive.made(f"{path}/out/resources/SEG", format="DICOM")
    columns = "ID,label,session_ID,session_label,icr:roicollectiondata/uid,icr:roicollectiondata/collectiontype"
    rows = archive.rows(
        "/data/experiments",
        project="P",
        xsiType="icr:roiCollectionData",
        columns=f"{columns},icr:roicollectiondata/name,icr:roicollectiondata/out/file/label",
    )
    assert len(rows) == 1
    assert rows[0]["icr:roicollectiondata/collectiontype"] == "SEG"
    assert rows[0]["icr:roicollectiondata/name"] == "liver"
    assert rows[0]["icr:roicollectiondata/out/file/label"] == "SEG"
    assert rows[0]["session_label"] == "a1"


# Subjects, scans, projects


@pytest.mark.claim(
    "lists", "TestDynamicSearchSubjects.testStandardDynamicSubjectSearchDefaultColumns", "SubjectListResource"
)
def test_subject_list(archive):
    archive.made("/data/projects/P/subjects/A", gender="F", group="g")
    assert set(archive.rows("/data/projects/P/subjects")[0]) == {
        "ID",
        "project",
        "label",
        "insert_date",
        "insert_user",
        "URI",
    }
    rows = archive.rows("/data/subjects", project="P", gender="F", columns="label,gender,xnat:subjectData/group")
    assert [(row["label"], row["gender"], row["group"]) for row in rows] == [("A", "F", "g")]


@pytest.mark.claim("lists", "TestDynamicSearchScans.testStandardDynamicScanSearchDefaultColumns", "ScanList")
def test_scan_list(archive):
    path = "/data/projects/P/subjects/A/experiments/a1/scans"
    rows = archive.rows(path)
    keys = "xnat_imagescandata_id ID type quality xsiType note series_description URI"
    assert set(rows[0]) == set(keys.split())
    session = archive.rows("/data/projects/P/experiments", label="a1")[0]["ID"]
    assert [row["URI"] for row in rows] == [f"/data/experiments/{session}/scans/{number}" for number in (1, 2)]


@pytest.mark.claim("lists", "ScanList")
def test_scan_list_ignores_filters_and_needs_the_id(archive):
    path = "/data/projects/P/subjects/A/experiments/a1/scans"
    assert labels(archive.rows(path, type="T1"), "type") == ["T1", "T2"]
    assert archive.get(path, columns="type").status_code == 500
    assert labels(archive.rows(path, columns="ID,xnat:mrScanData/frames"), "xnat:mrscandata/frames") == ["10", "20"]
    assert archive.rows(path, columns="ID,xnat:ctScanData/parameters/kvp") == []


@pytest.mark.claim("lists", "TestDynamicSearchProjects.testStandardDynamicProjectSearch", "ProjectListResource")
def test_project_list(archive):
    assert set(archive.rows("/data/projects")[0]) == {
        "ID",
        "secondary_ID",
        "name",
        "description",
        "pi_firstname",
        "pi_lastname",
        "URI",
    }
    row = archive.rows("/data/archive/projects", columns="ID,URI,name")[0]
    assert row == {"ID": "P", "name": "P", "URI": "/data/projects/P"}
    assert archive.rows("/data/projects", ID="Q", columns="ID")[0]["ID"] == "Q"


@pytest.mark.claim("lists", "ProjectListResource")
def test_project_list_by_role_has_other_columns(archive, user):
    row = archive.rows("/data/projects", accessible="true")[0]
    assert {"id", "name", "secondary_id", "project_access", "insert_date"} <= set(row)
    assert user("none").rows("/data/projects", accessible="true") == []
    assert labels(user("member").rows("/data/projects", member="true"), "id") == ["P", "Q"]
    assert user("member").rows("/data/projects", owner="true") == []
    assert user("collaborator").rows("/data/projects", permissions="edit") == []


# Speed


@pytest.mark.slow
@pytest.mark.parametrize(("sessions", "scans"), [(5000, 4), (20000, 1)])
def test_thousands_of_sessions_are_one_request(xnat_sandbox, admin, sessions, scans):
    admin.made("/data/projects/P")
    # Processor time is measured, because the machine may be busy. It is that of the server and the client.
    started = time.process_time()
    xnat_sandbox.archive.seed_sessions("P", sessions, scans)
    seeded = time.process_time()
    rows = admin.rows("/data/experiments", columns=JOINED, **SESSIONS)
    listed = time.process_time()
    assert len(rows) == sessions * scans
    assert len({row["session_ID"] for row in rows}) == sessions
    assert seeded - started < 5
    assert listed - seeded < 8


def test_seeding_twice_adds(xnat_sandbox, admin):
    admin.made("/data/projects/P")
    for _ in range(2):
        xnat_sandbox.archive.seed_sessions("P", 3, 2, ["DICOM", "LABELS"])
    assert len(admin.rows("/data/projects/P/experiments")) == 6
    assert len(admin.rows("/data/experiments", columns=JOINED, **SESSIONS)) == 24
