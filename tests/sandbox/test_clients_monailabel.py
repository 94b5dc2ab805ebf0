"""MONAI Label's built-in XNAT datastore, unmodified, against the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from monailabel_xnat.sandbox import Sandbox

pytest.importorskip("monai")
pytestmark = [pytest.mark.slow, pytest.mark.claim("other people's clients", "MONAI Label")]
HERE = Path(__file__).parent


@pytest.fixture
def program(tmp_path):
    """Put MONAI Label's external converter on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "itkimage2segimage"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "segimage.py"}" "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run(sandbox, tmp_path, environment, label=""):
    words = [sandbox.url, "owner", sandbox.users["owner"], "DEMO", str(tmp_path / "cache"), str(label)]
    command = [sys.executable, "-W", "ignore", str(HERE / "monai_client.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    return done.returncode, done.stdout, done.stderr


def test_login_list_download_and_save(tmp_path, program, demo_dicom):
    # Release 0.8.5 requests its CSRF token without credentials. Only an open site answers that.
    with Sandbox(require_login=False) as sandbox:
        case = demo_dicom.cases[0]
        (address,) = sandbox.import_dicom(case.dicom, "DEMO")
        session = address.rpartition("/")[2]
        sandbox.archive.set_accessibility("DEMO", "public")
        status, output, errors = run(sandbox, tmp_path, program, case.truth)
        assert status == 0, errors
        found = json.loads(output.splitlines()[-1])
        admin = requests.Session()
        admin.auth = ("admin", sandbox.password)
        with admin:
            listed = admin.get(f"{sandbox.url}{address}/scans").json()["ResultSet"]["Result"]
            subject = admin.get(f"{sandbox.url}{address}?format=json").json()["items"][0]["data_fields"]["subject_ID"]
            assert found["images"] == [f"DEMO/{subject}/{session}/{row['ID']}" for row in listed]
            project, subject, session, scan = found["images"][0].split("/")
            assert found["status"]["total"] == len(listed)
            assert found["info"] == {"project": project, "subject": subject, "experiment": session, "scan": scan}
            files = admin.get(f"{sandbox.url}{address}/scans/{scan}/resources/DICOM/files").json()["ResultSet"]
            assert len(list(Path(found["folder"]).glob("*.dcm"))) == int(files["totalRecords"])
            labels = admin.get(f"{sandbox.url}{address}/scans/{scan}/resources/AI/files").json()["ResultSet"]["Result"]
            assert [row["Name"] for row in labels] == [f"pat_{subject}_exp_{session}_S_{scan}_AI_liver.nii.gz"]
            assert int(labels[0]["Size"]) == case.truth.stat().st_size
            assessors = admin.get(f"{sandbox.url}{address}/assessors").json()["ResultSet"]["Result"]
            assert [row["label"] for row in assessors] == [f"Pat{subject}_S{scan}_liver"], errors
            assert assessors[0]["xsiType"] == "icr:roiCollectionData"


def test_a_closed_site_refuses_it_as_xnat_does(tmp_path, program, xnat_sandbox):
    status, _, errors = run(xnat_sandbox, tmp_path, program)
    assert status != 0
    assert "Could not get XNAT CSRF token" in errors
