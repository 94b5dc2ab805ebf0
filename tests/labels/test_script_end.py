"""Scripts that end without close(): background work ends cleanly, and the rest is done at the next start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_viewer import collections, wait_for
from viewer import PROJECT, only, own_label

SCRIPT = """
import sys
from monailabel_xnat import XNATDatastore
from monailabel_xnat.errors import LabelNotUploadedError

server, user, password, project, folder, label = sys.argv[1:]
datastore = XNATDatastore(server, user, password, project, cache_path=folder, roi_write="final")
(image,) = datastore.list_images()
datastore.update_image_info(image, {"seen": True})
try:
    datastore.save_label(image, label, "final", {})
except LabelNotUploadedError:
    print("waits")
"""


def run_script(sandbox, folder, label):
    login = (sandbox.url, sandbox.username, sandbox.password)
    command = [sys.executable, "-c", SCRIPT, *login, PROJECT, str(folder), label]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_script_that_ends_without_close_leaves_nothing_undone(viewer, open_datastore, xnat_sandbox, tmp_path):
    assert run_script(xnat_sandbox, tmp_path / "script", own_label(viewer, tmp_path, 3)) == ""
    assert len(collections(viewer)) == 1
    datastore = open_datastore()
    assert datastore.get_labels_by_image_id(only(datastore)).keys() == {"final"}
    assert datastore.get_image_info(only(datastore))["seen"] is True


@pytest.mark.slow
def test_what_a_script_could_not_do_before_it_ended_is_done_at_the_next_start(
    viewer, open_datastore, xnat_sandbox, tmp_path
):
    xnat_sandbox.faults.add("/resources/MONAILABEL_final", method="PUT", status=500, times=None)
    assert run_script(xnat_sandbox, tmp_path / "script", own_label(viewer, tmp_path, 3)) == "waits\n"
    xnat_sandbox.faults.clear()
    assert collections(viewer) == []
    xnat_sandbox.faults.add("/xapi/roi/.*/collections/", method="PUT", status=500, times=None)
    assert run_script(xnat_sandbox, tmp_path / "script", own_label(viewer, tmp_path, 5)) == ""
    xnat_sandbox.faults.clear()
    datastore = open_datastore(cache_path=tmp_path / "script", roi_write="final")
    wait_for(viewer, 1)
    datastore.refresh()
    assert len(datastore.label_history(only(datastore), "final")) == 2
