"""A process that MONAI Label starts for scoring ends as soon as it has the scores. They still arrive in XNAT."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
from monailabel_xnat import XNATDatastore
datastore = XNATDatastore(*sys.argv[1:4], "DEMO", cache_path=sys.argv[4], environ={})
for number, image in enumerate(datastore.list_images()):
    datastore.update_image_info(image, {"dice": number + 1})
"""


def test_scores_of_a_process_that_ends_at_once_are_not_lost(xnat_sandbox, demo_dicom, open_xnat_datastore, tmp_path):
    for case in demo_dicom.cases[:3]:
        xnat_sandbox.import_dicom(case.dicom, "DEMO")
    words = [xnat_sandbox.url, xnat_sandbox.username, xnat_sandbox.password, str(tmp_path / "scoring")]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    datastore = open_xnat_datastore(project="DEMO")
    assert [datastore.get_image_info(image)["dice"] for image in datastore.list_images()] == [1, 2, 3]
