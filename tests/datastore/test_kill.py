"""kill -9 while labels are saved through the public API: accepted labels are there, and there are no half labels."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest

PROJECT = "P"
KILLS = 6
# Saves labels with their number in every voxel and in the info, and prints each number once it is accepted.
SAVER = """
import sys
import nibabel
import numpy
from monailabel_xnat import XNATDatastore
server, user, password, project, folder, image, first = sys.argv[1:]
datastore = XNATDatastore(server, user, password, project, cache_path=folder, roi_write="", prefetch=0)
grid = nibabel.load(datastore.get_image_uri(image))
for number in range(int(first), int(first) + 1000):
    label = nibabel.Nifti1Image(numpy.full(grid.shape, number, "uint16"), grid.affine)
    path = f"{folder}/label.nii.gz"
    nibabel.save(label, path)
    print("begin", number, flush=True)
    datastore.save_label(image, path, "final", {"number": number})
    print("saved", number, flush=True)
"""


@pytest.mark.slow
def test_kill_9_while_saving_loses_no_label_that_was_accepted(xnat_sandbox, open_xnat_datastore, demo_dicom, tmp_path):
    xnat_sandbox.archive.create_project(PROJECT)
    xnat_sandbox.import_dicom(demo_dicom.cases[0].dicom, PROJECT)
    datastore = open_xnat_datastore(project=PROJECT, series_description="!*localizer*", roi_write="")
    image = datastore.list_images()[0]
    login = (xnat_sandbox.url, xnat_sandbox.username, xnat_sandbox.password)
    folder = tmp_path / "killed"
    begun, accepted = set(), set()
    for kill in range(KILLS):
        command = [sys.executable, "-c", SAVER, *login, PROJECT, str(folder), image, str(1 + 1000 * kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
            lines = [saver.stdout.readline()]
            time.sleep(random.uniform(0, 0.4))
            saver.send_signal(signal.SIGKILL)
            lines += saver.stdout.readlines()
        for word, number in (line.split() for line in lines if line.strip()):
            (begun if word == "begin" else accepted).add(int(number))
    heir = open_xnat_datastore(project=PROJECT, cache_path=folder, series_description="!*localizer*", roi_write="")
    ends = time.monotonic() + 60
    while heir.status().get("outbox") and time.monotonic() < ends:
        time.sleep(0.05)
    datastore.refresh()
    history = datastore.label_history(image, "final")
    found = {}
    for version in history:
        label_id = f"{image}@{version['version']}"
        number = datastore.get_label_info(label_id, "final")["number"]
        assert np.unique(np.asarray(nibabel.load(datastore.get_label_uri(label_id, "final")).dataobj)) == [number]
        found[number] = version
    assert accepted <= set(found) <= begun
