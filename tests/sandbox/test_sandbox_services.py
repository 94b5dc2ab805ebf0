"""Catalog refresh and header dump (xnat-rest.md 16)."""

from __future__ import annotations

import hashlib

import pytest

pytestmark = pytest.mark.claim("files", "RefreshCatalog", "DicomDump")

REFRESH = "/data/services/refresh/catalog"
DUMP = "/data/services/dicomdump"


@pytest.fixture
def resource(admin, made) -> str:
    admin.made(f"{made.scan}/resources/R/files/kept.txt", b"kept")
    admin.made(f"{made.scan}/resources/R/files/lost.txt", b"lost")
    return f"/archive/experiments/{made.session_id}/scans/1/resources/R"


@pytest.fixture
def folder(resource, xnat_sandbox):
    """The folder of the resource on disk, in which tests change files without the server's knowledge."""
    folder = xnat_sandbox.folder / "files/P/arc001/s1/SCANS/1/R"
    (folder / "lost.txt").unlink()
    (folder / "sub").mkdir()
    (folder / "sub/new.txt").write_bytes(b"new one")
    return folder


def names(admin, made) -> dict[str, str]:
    return {row["Name"]: row["digest"] for row in admin.rows(f"{made.scan}/resources/R/files")}


def test_the_catalog_follows_the_disk_only_when_asked(admin, made, resource, folder):
    assert set(names(admin, made)) == {"kept.txt", "lost.txt"}
    assert admin.post(REFRESH, resource=resource, options="append").status_code == 200
    assert names(admin, made)["new.txt"] == ""
    assert set(names(admin, made)) == {"kept.txt", "lost.txt", "new.txt"}
    assert admin.post(REFRESH, resource=resource, options="delete,checksum").status_code == 200
    assert names(admin, made) == {
        "kept.txt": hashlib.md5(b"kept").hexdigest(),
        "new.txt": hashlib.md5(b"new one").hexdigest(),
    }
    assert admin.post(REFRESH, resource=resource, options="populateStats").status_code == 200
    (row,) = admin.rows(f"{made.scan}/resources")
    assert (row["file_count"], row["file_size"]) == ("2", "11")


@pytest.mark.parametrize("level", ["scan", "session", "project form"])
def test_whole_objects_can_be_refreshed(admin, made, resource, folder, level):
    address = {
        "scan": resource.rpartition("/resources")[0],
        "session": f"/archive/experiments/{made.session_id}",
        "project form": "/data/archive/projects/P/experiments/s1/scans/1",
    }[level]
    assert admin.post(REFRESH, resource=address, all="true").status_code == 200
    assert set(names(admin, made)) == {"kept.txt", "new.txt"}


def test_refresh_refuses(admin, user, made, resource):
    assert user("collaborator").post(REFRESH, resource=resource).status_code == 403
    assert user("none").post(REFRESH, resource=resource).status_code == 404
    assert admin.post(REFRESH).status_code == 400
    assert admin.post(REFRESH, resource=resource + "X").status_code == 404
    assert admin.get(REFRESH, resource=resource).status_code == 405


def test_header_dump(admin, user, xnat_sandbox, demo_dicom):
    case = demo_dicom.cases[1]
    (session,) = xnat_sandbox.import_dicom(case.dicom, "P")
    source = f"{session.replace('/data', '/archive')}/scans/2"
    rows = admin.rows(DUMP, src=source, field=["00080060", "PatientID", "0020000E"])
    assert [(row["tag1"], row["vr"], row["value"]) for row in rows] == [
        ("(0008,0060)", "CS", "CT"),
        ("(0010,0020)", "LO", case.subject),
        ("(0020,000E)", "UI", case.series_uid),
    ]
    assert rows[0]["desc"] == "Modality"
    everything = admin.rows(DUMP, src=source)
    assert len(everything) > 30
    assert {row["value"] for row in everything} >= {case.subject, case.study_uid}
    assert admin.rows(DUMP, src=f"/archive/projects/P/experiments/{case.session}/scans/2", field="Modality") == rows[:1]
    assert admin.get(DUMP, src=source, field="NoSuchField").status_code == 400
    assert admin.get(DUMP, src=source + "9").status_code == 404
    assert admin.get(DUMP).status_code == 400
    assert user("none").get(DUMP, src=source).status_code == 404


def test_unknown_services_are_404(admin):
    assert admin.get("/data/services/none").status_code == 404
