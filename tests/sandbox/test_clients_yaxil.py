"""The requests of yaxil (harvard-nrg), sent without yaxil. Each test names the function whose calls it makes."""

from __future__ import annotations

import csv
import io
import zipfile

import pytest

pytestmark = pytest.mark.claim("other people's clients", "yaxil")

EXPERIMENT_COLUMNS = "ID,label,project,xnat:subjectassessordata/subject_id,subject_label,insert_date,note"
MR_COLUMNS = (
    "ID,insert_date,insert_user,coil,xnat:mrsessiondata/operator,xnat:mrscandata/id,xnat:mrscandata/quality,"
    "xnat:mrscandata/series_description,xnat:mrscandata/scanner,xnat:mrscandata/scanner/manufacturer,"
    "xnat:mrscandata/frames,xnat:mrscandata/parameters/voxelres/x,xnat:mrscandata/parameters/tr"
)


@pytest.fixture
def session(admin) -> str:
    """ID of MR session m of subject A in project P, with an MR scan that has a file, and another scan."""
    admin.made("/data/projects/P")
    base = "/data/projects/P/subjects/A/experiments/m"
    number = admin.made(
        base, xsiType="xnat:mrSessionData", date="2024-01-02", note="n", fieldStrength="3.0", operator="op"
    )
    admin.made(f"{base}/scans/1", xsiType="xnat:mrScanData", type="T1", **{"xnat:mrScanData/parameters/tr": "1200"})
    admin.made(f"{base}/scans/2", xsiType="xnat:otherDicomScanData", type="X")
    admin.made(f"{base}/scans/1/resources/DICOM/files/a.dcm", b"abc")
    return number


def test_subjects(admin, session):
    (row,) = admin.rows("/data/subjects", columns="ID,label,project", label="A", project="P")
    assert (row["label"], row["project"], row["URI"]) == ("A", "P", f"/data/subjects/{row['ID']}")


@pytest.mark.parametrize(
    "query",
    [
        {"label": "m", "project": "P"},
        {"project": "P", "date": "01/01/2024-02/01/2024"},
        {"project": "P", "insert_date": "01/01/2020-01/01/2100"},
    ],
)
def test_experiments_and_accession(admin, session, query):
    (row,) = admin.rows("/data/experiments", columns=EXPERIMENT_COLUMNS, **query)
    found = {name: row[name] for name in ("ID", "label", "project", "subject_label", "note", "URI")}
    expected = {"ID": session, "label": "m", "project": "P", "subject_label": "A", "note": "n"}
    assert found == {**expected, "URI": f"/data/experiments/{session}"}
    # The column is requested by its path, and read by its shortcut.
    assert row["subject_ID"].startswith("XNAT_S")


def test_experiment_details(admin, session):
    columns = "xsiType,ID,label,project,subject_ID,subject_label,subject_project,date,time,fieldStrength"
    (row,) = admin.rows("/data/experiments", ID=session, columns=columns)
    assert (row["xsiType"], row["subject_project"], row["fieldStrength"]) == ("xnat:mrSessionData", "P", "3.0")
    assert (row["date"], row["time"]) == ("2024-01-02", "")


def test_scansearch(admin, session):
    text = admin.get(f"/data/experiments/{session}/scans", format="csv").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["ID"] for row in rows if row["type"] == "T1"] == ["1"]


def test_mrscans(admin, session):
    (row,) = admin.rows(f"/data/experiments/{session}/scans", columns=MR_COLUMNS)
    assert (row["xnat:mrscandata/id"], row["xnat:mrsessiondata/operator"]) == ("1", "op")
    assert (row["xnat:mrscandata/parameters/tr"], row["insert_user"]) == ("1200.0", "admin")


def test_has_and_exists(admin, session):
    counts = [
        admin.get("/data/experiments", xsiType=kind, columns="ID", project="P", format="json").json()["ResultSet"]
        for kind in ("xnat:mrSessionData", "xnat:petSessionData")
    ]
    assert [found["totalRecords"] for found in counts] == ["1", "0"]
    assert admin.get(f"/data/experiments/{session}").status_code == 200
    assert admin.get("/data/experiments/none").status_code == 404


def test_history(admin, session):
    assert admin.get(f"/data/experiments/{session}/history").json()["ResultSet"]["totalRecords"] == "1"


@pytest.mark.parametrize("scans", ["ALL", "1", "1,2"])
def test_download(admin, session, scans):
    answer = admin.get(f"/data/experiments/{session}/scans/{scans}/files", format="zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        (name,) = archive.namelist()
        assert archive.read(name) == b"abc"


def test_start_and_end_of_a_session(admin, session):
    number = admin.get("/data/JSESSION").text
    assert admin.delete(f"/data/JSESSION/{number}").status_code == 200
