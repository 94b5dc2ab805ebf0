"""From objects of xnatpy to images, in archives with sharing and odd names."""

from __future__ import annotations

import pytest
from archive_rows import make_scan


@pytest.mark.parametrize("projects", ["P", "P,Q", "Q", ""])
def test_a_project_holds_what_is_shared_into_it_whichever_projects_are_listed(
    xnat_sandbox, open_xnat_datastore, projects
):
    archive = xnat_sandbox.archive
    for project in "PQR":
        archive.create_project(project)
    shared = make_scan(archive, "01", "s1", "e1", "P")
    make_scan(archive, "1", "s2", "e2", "P")
    make_scan(archive, "1", "s3", "e3", "Q")
    archive.share(shared[1], "Q", "e1 in Q")
    datastore = open_xnat_datastore(project=projects)
    found = {name: datastore.image_ids(datastore.xnat.projects[name]) for name in "PQR"}
    images = datastore.list_images()
    for name, ids in found.items():
        listed = {
            (experiment.id, scan.id)
            for experiment in datastore.xnat.projects[name].experiments.values()
            for scan in experiment.scans.values()
        }
        assert ids == [image for image in images if tuple(image.split("/")[2:]) in listed]
    assert found["R"] == []
    assert any(image.endswith("/01") for image in found["Q"])


def test_the_label_of_a_session_that_is_the_id_of_another_one_does_not_lead_to_it(xnat_sandbox, open_xnat_datastore):
    archive = xnat_sandbox.archive
    for project in "PQ":
        archive.create_project(project)
    _, number = make_scan(archive, "1", "s1", "e1", "Q")
    make_scan(archive, "1", "s2", "e2", "P", series_description="of e2")
    with xnat_sandbox.archive.store.write() as db:
        db.execute("UPDATE experiments SET label = ? WHERE label = 'e2'", (number,))
    datastore = open_xnat_datastore(project="P,Q")
    (meant,) = [image for image in datastore.list_images() if image.startswith("P/")]
    scan = datastore.xnat.create_object(f"/data/projects/P/subjects/s2/experiments/{number}/scans/1")
    assert scan.series_description == "of e2"
    assert datastore.image_id(scan) == meant
    assert datastore.image_id(f"P/s2/{number}/1") == meant
