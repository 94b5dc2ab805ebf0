"""Calls of packages that use xnatpy and requests: xnat4tests uploads a dataset, and xnat-tools reads a session."""

from __future__ import annotations

import pytest
import xnat

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.claim("other people's clients", "xnat4tests")
@pytest.mark.parametrize("method", ["tar_file", "tgz_memory", "per_file"])
def test_a_dataset_is_uploaded_as_scans(xnat_sandbox, admin, tmp_path, method):
    """xnat4tests.data._upload_directly."""
    for name in ("a.nii", "b.json"):
        (tmp_path / name).write_text(name)
    uri = "/data/archive/projects/TESTS"
    with xnat.connect(xnat_sandbox.url, user="admin", password=xnat_sandbox.password, loglevel="ERROR") as login:
        with pytest.raises(xnat.exceptions.XNATResponseError):
            login.get(uri)
        login.put(uri)
        query = {"xsiType": "xnat:subjectData", "req_format": "qs", "xnat:subjectData/label": "subj"}
        login.put(f"{uri}/subjects/subj", query=query)
        project = login.projects["TESTS"]
        with pytest.raises(xnat.exceptions.XNATResponseError):
            login.get(f"{uri}/subjects/subj/experiments/sess")
        subject = login.classes.SubjectData(label="subj", parent=project)
        session = login.classes.MrSessionData(label="sess", parent=subject)
        scan = login.classes.MrScanData(id=1, type="T1", parent=session)
        scan.create_resource("NIFTI").upload_dir(tmp_path, method=method)
    files = "/data/projects/TESTS/subjects/subj/experiments/sess/scans/1/resources/NIFTI/files"
    assert [admin.get(row["URI"]).text for row in admin.rows(files)] == ["a.nii", "b.json"]


@pytest.mark.claim("other people's clients", "xnat-tools")
def test_a_session_is_read_by_its_id_alone(admin, made):
    """xnat_tools.xnat_utils: project, subject and scans of a session, the files of a scan, and the end of the login."""
    admin.made(made.scan, series_description="localizer")
    admin.made(f"{made.scan}/resources/DICOM/files/1.dcm", b"x")
    query = {"format": "json", "handler": "values"}
    (session,) = admin.get(made.session, columns="project,subject_ID,label", **query).json()["ResultSet"]["Result"]
    assert session == {"project": "P", "subject_ID": made.subject_id, "label": "s1"}
    answer = admin.get(f"/data/subjects/{session['subject_ID']}", columns="label", **query)
    assert answer.json()["ResultSet"]["Result"] == [{"label": "sub1"}]
    scans = admin.rows(f"{made.session}/scans")
    assert [(int(row["ID"]), row["series_description"]) for row in scans] == [(1, "localizer")]
    (file,) = admin.rows(f"{made.session}/scans/1/resources/DICOM/files")
    assert admin.get(file["URI"]).content == b"x"
    assert admin.delete("/data/JSESSION").status_code == 200
