"""If an XNAT cannot list the scans of a project at once, the same images are found session by session."""

from __future__ import annotations

import logging
import random

import pytest
from archive_rows import make_scan

JOINED = "/experiments$"
SCANS = ("1", "2", "4-MR1", "a b", "5,6", "scan%41", "ünï")
LABELS = ("subj", "Subject 7", "x_y-z", "Ünal", "100%", "a.b")


@pytest.fixture
def no_joins(xnat_sandbox):
    """Make the server refuse every list with columns of scans, as a server does that does not know them."""

    def refuse():
        xnat_sandbox.faults.add(JOINED, status=400, query="imagescandata", times=None)

    return refuse


def fill(archive, seed):
    """Make a random archive: two projects with sessions, some shared into the other project, some empty, odd names."""
    chance = random.Random(seed)
    for project in ("P", "Q"):
        archive.create_project(project)
    shared = []
    for number in range(12):
        project = chance.choice("PQ")
        subject, session = f"{chance.choice(LABELS)}{number % 5}", f"{chance.choice(LABELS)}_CT{number}"
        for scan in chance.sample(SCANS, chance.randint(1, 3)):
            resources = chance.sample(("DICOM", "NIFTI", "MONAILABEL_final", "SNAPSHOTS"), chance.randint(0, 3))
            fields = {"quality": chance.choice(("usable", "questionable")), "frames": chance.choice((None, 20))}
            count = chance.choice((None, 3))
            ids = make_scan(archive, scan, subject, session, project, resources, count, UID=f"1.2.{number}", **fields)
        if chance.random() < 0.4:
            other = "Q" if project == "P" else "P"
            if chance.random() < 0.5 and ids[0] not in shared:
                archive.share(ids[0], other, f"{subject}_of_{project}")
                shared.append(ids[0])
            archive.share(ids[1], other, f"{session}_of_{project}")
    owner = archive.create_subject("P", "empty")
    archive.create_experiment("P", "empty_MR1", "xnat:mrSessionData", subject=owner.id)


def found(datastore):
    return {str(scan.image_id): scan for scan in datastore._catalog.scans()}


@pytest.mark.parametrize("project", ["P", "P,Q", ""])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_find_the_same_images_under_the_same_ids(
    xnat_sandbox, open_xnat_datastore, no_joins, tmp_path, seed, project
):
    fill(xnat_sandbox.archive, seed)
    joined = found(open_xnat_datastore(project=project))
    no_joins()
    walked = found(open_xnat_datastore(project=project, cache_path=tmp_path / "other"))
    assert joined
    assert walked == joined


def test_the_log_says_that_each_session_is_asked(xnat_sandbox, open_xnat_datastore, no_joins, caplog, monkeypatch):
    monkeypatch.setattr("monailabel_xnat.client.rows._SECONDS_BETWEEN_NEWS", 0.0)
    xnat_sandbox.archive.create_project("P")
    xnat_sandbox.archive.seed_sessions("P", sessions=3, scans=2)
    no_joins()
    xnat_sandbox.requests.clear()
    with caplog.at_level(logging.INFO):
        assert len(open_xnat_datastore(project="P").list_images()) == 6
    assert "asking for each of its 3 sessions" in caplog.text
    assert "2 of 3 sessions of the project are read" in caplog.text
    items = [served.path for served in xnat_sandbox.requests if served.path.startswith("/data/experiments/XNAT_E")]
    assert len(items) == 3


def test_a_project_without_sessions_is_no_error(xnat_sandbox, open_xnat_datastore, no_joins):
    xnat_sandbox.archive.create_project("P")
    no_joins()
    assert open_xnat_datastore(project="P").list_images() == []
