"""The pytest fixtures of the package, used as other people use them."""

from __future__ import annotations

import pytest
import requests


def test_sandbox_is_empty_at_the_start_of_each_test(xnat_sandbox):
    user = (xnat_sandbox.username, xnat_sandbox.password)
    assert requests.get(f"{xnat_sandbox.url}/data/projects", auth=user).json()["ResultSet"]["Result"] == []
    requests.put(f"{xnat_sandbox.url}/data/projects/LEFTOVER", auth=user).raise_for_status()
    xnat_sandbox.faults.add("never", status=500)


test_sandbox_is_empty_at_the_start_of_the_next_test = test_sandbox_is_empty_at_the_start_of_each_test


def test_site_is_a_project_to_fill(xnat_site, demo_dicom):
    found = xnat_site.import_dicom(demo_dicom.cases[0].dicom)
    assert [line.startswith(f"/data/archive/projects/{xnat_site.project}/subjects/") for line in found] == [True]


def test_datastore_shows_what_the_site_holds(xnat_site, xnat_datastore, demo_dicom):
    assert xnat_datastore.list_images() == []
    xnat_site.import_dicom(demo_dicom.cases[0].dicom)
    xnat_datastore.refresh()
    assert len(xnat_datastore.list_images()) == 1


PLUGIN_TEST = """
def test_lists(xnat_site):
    assert xnat_site.is_live
    assert xnat_site.session.rows(f"/data/projects/{xnat_site.project}/subjects") == []

def test_needs_no_server():
    raise AssertionError("left out with a live server")
"""


@pytest.mark.slow
def test_live_server_gets_a_project_that_is_deleted_again(pytester, xnat_sandbox, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", "admin")
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", xnat_sandbox.password)
    pytester.makepyfile(PLUGIN_TEST)
    result = pytester.runpytest_subprocess("--live-xnat", xnat_sandbox.url, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, deselected=1)
    changes = [(served.method, served.path) for served in xnat_sandbox.requests if "/projects/" in served.path]
    made, deleted = changes[0], changes[-1]
    assert (made[0], deleted[0], made[1]) == ("PUT", "DELETE", deleted[1])
    assert made[1].startswith("/data/projects/monailabel_test_")
