"""The script that shows xnatpy and the datastore side by side does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "xnatpy_objects.py"


def test_the_example_drafts_a_label_of_the_first_image(xnat_sandbox, open_xnat_datastore, demo_dicom, tmp_path):
    xnat_sandbox.archive.create_project("LIVER")
    for case in demo_dicom.cases[:2]:
        xnat_sandbox.import_dicom(case.dicom, "LIVER")
    login = {"XNAT_HOST": xnat_sandbox.url, "XNAT_USER": xnat_sandbox.username, "XNAT_PASS": xnat_sandbox.password}
    environment = {**os.environ, **login, "MONAI_LABEL_XNAT_CACHE_PATH": str(tmp_path)}
    command = [sys.executable, str(EXAMPLE), "LIVER"]
    run = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    datastore = open_xnat_datastore(project="LIVER")
    (image,) = datastore.get_labeled_images("original")
    assert run.stdout.startswith(image)
    assert "MONAILABEL_original holds " in run.stdout
    assert f"{len(datastore.list_images())} images in LIVER" in run.stdout
    assert datastore.get_label_info(image, "original")["made_by"] == EXAMPLE.name
