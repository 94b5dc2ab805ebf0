"""The listing of images: which scans are images, which names they may have, and how few requests a listing needs."""

from __future__ import annotations

import time

import pytest
from archive_rows import make_scan

from monailabel_xnat.catalog import Catalog, Resource
from monailabel_xnat.catalog.selection import image_rank
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import InvalidIdError, NotInArchiveError, TransferError, UnknownImageError


@pytest.fixture
def archive(xnat_sandbox):
    archive = xnat_sandbox.archive
    archive.create_project("P")
    return archive


@pytest.fixture
def open_catalog(xnat_sandbox, open_session):
    def make(clock=time.monotonic, **settings):
        login = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
        session = open_session(Backoff(sleep=lambda seconds: None), **{**login, "project": "P", **settings})
        return Catalog(session, clock)

    return make


class Clock:
    """A clock whose seconds pass only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def ids(catalog):
    return [str(scan.image_id) for scan in catalog.scans()]


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listings(sandbox):
    return [served for served in sandbox.requests if served.path.endswith("/experiments")]


def test_rows_of_one_scan_are_folded(archive, open_catalog):
    subject, session = make_scan(archive, "1", resources=("DICOM", "SNAPSHOTS", "MONAILABEL_final"), UID="1.2.3.1")
    (scan,) = open_catalog().scans()
    assert str(scan.image_id) == f"P/{subject}/{session}/1"
    assert [resource.label for resource in scan.resources] == ["DICOM", "SNAPSHOTS", "MONAILABEL_final"]
    assert (scan.subject_label, scan.session_label) == ("subj01", "subj01_CT1")
    assert (scan.study_uid, scan.series_uid, scan.modality) == ("1.2.3", "1.2.3.1", "CT")
    assert scan.path == f"/data/projects/P/subjects/{subject}/experiments/{session}/scans/1"


def test_a_scan_without_an_image_is_left_out(archive, open_catalog):
    make_scan(archive, "1")
    make_scan(archive, "2", resources=())
    make_scan(archive, "3", resources=("SNAPSHOTS",))
    make_scan(archive, "4", count=0)
    make_scan(archive, "5", modality="SEG")
    make_scan(archive, "6", quality="unusable")
    make_scan(archive, "7", count=None)
    assert [scan.image_id.scan for scan in open_catalog().scans()] == ["1", "7"]


@pytest.mark.parametrize(
    ("settings", "scans"),
    [
        ({"scan_type": "T1*"}, ["1"]),
        ({"scan_type": "t1*,flair"}, ["1", "2"]),
        ({"series_description": "!*localizer*"}, ["1", "2"]),
        ({"modality": "CT"}, ["3"]),
        ({"quality": "*"}, ["1", "2", "3", "4"]),
        ({"min_frames": "100"}, ["1"]),
        ({"subject": "other"}, []),
        ({"session": "subj01_*"}, ["1", "2", "3"]),
        ({"image_resource": "NIFTI"}, []),
        ({"image_resource": "dic*"}, ["1", "2", "3"]),
        ({"image_resource": "*,!DICOM"}, []),
    ],
)
def test_filters_choose_the_images(archive, open_catalog, settings, scans):
    make_scan(archive, "1", type="T1w", modality="MR", frames="176", series_description="t1 mprage")
    make_scan(archive, "2", type="FLAIR", modality="MR", frames="30", series_description="flair")
    make_scan(archive, "3", type="loc", modality="CT", frames="3", series_description="3-plane Localizer")
    make_scan(archive, "4", quality="unusable", frames="9", type="bad", modality="XA", series_description="localizer 2")
    assert [scan.image_id.scan for scan in open_catalog(**settings).scans()] == scans


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("", ["DICOM", "NIFTI"]),
        ("NIFTI,DICOM", ["NIFTI", "DICOM"]),
        ("!dicom", ["NIFTI"]),
        ("NIFTI_*,*,!SNAP*", ["NIFTI_al", "DICOM", "NIFTI"]),
        ("nifti*", ["NIFTI", "NIFTI_al"]),
        ("MONAILABEL_*", []),
    ],
)
def test_resources_are_chosen_by_patterns_best_first_and_our_own_are_never_the_image(patterns, found):
    given = {"server": "http://127.0.0.1", "image_resource": patterns}
    wanted = Settings.load({key: value for key, value in given.items() if value}, environ={}).image_resource
    ranks = {
        label: image_rank(wanted, label) for label in ("SNAPSHOTS", "NIFTI_al", "MONAILABEL_final", "NIFTI", "DICOM")
    }
    assert sorted((label for label in ranks if ranks[label]), key=ranks.__getitem__) == found


def test_an_image_is_found_by_every_name_it_has(archive, open_catalog):
    subject, session = make_scan(archive, "2", UID="1.2.840.7")
    make_scan(archive, "1")
    catalog = open_catalog()
    wanted = f"P/{subject}/{session}/2"
    for name in (wanted, "P/subj01/subj01_CT1/2", f"P/subj01/{session}/2", f"OTHER/{subject}/{session}/2", "1.2.840.7"):
        assert str(catalog.scan(name).image_id) == wanted


@pytest.mark.parametrize("name", ["P/subj01/subj01_CT1/9", "P/nobody/subj01_CT1/2", "Q/subj01/subj01_CT1/2", "1.2.3.4"])
def test_an_image_that_is_not_there_is_unknown(archive, open_catalog, name):
    make_scan(archive, "2")
    with pytest.raises(UnknownImageError, match=name):
        open_catalog().scan(name)


def test_a_malformed_id_is_told_from_an_unknown_one(archive, open_catalog):
    make_scan(archive, "2")
    with pytest.raises(InvalidIdError, match="project/subject/experiment/scan"):
        open_catalog().scan("P/subj01/2")


def test_scan_ids_with_slashes_and_commas_are_asked_for_as_xnat_wants(archive, open_catalog):
    make_scan(archive, "4/a,b")
    catalog = open_catalog()
    (scan,) = catalog.scans()
    assert scan.path.endswith("/scans/4%5BSLASH%5Da%5BCOMMA%5Db")
    assert catalog.scan(str(scan.image_id)) is scan


@pytest.mark.parametrize("sessions", [1, 50])
def test_two_requests_list_a_project_of_any_size(xnat_sandbox, archive, open_catalog, sessions):
    archive.seed_sessions("P", sessions=sessions, scans=4)
    catalog = open_catalog()
    assert len(catalog) == 4 * sessions
    assert len(listings(xnat_sandbox)) == 2  # one for the project, and one for its ROI collections
    xnat_sandbox.requests.clear()
    catalog.renew()
    for _ in range(20):
        catalog.scans()
        catalog.scan(ids(catalog)[3])
    assert len(listings(xnat_sandbox)) == len(xnat_sandbox.requests) == 2


def test_a_third_request_is_made_where_sessions_are_shared_in(xnat_sandbox, archive, open_catalog):
    archive.create_project("Q")
    make_scan(archive, "1")
    subject, session = make_scan(archive, "1", project="Q", session="q_CT1", subject="q")
    archive.share(subject, "P", "q")
    archive.share(session, "P", "q_in_P")
    catalog = open_catalog()
    assert len(catalog) == 2
    assert [served.query.get("project") for served in listings(xnat_sandbox)] == [None, "P", "Q"]


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_joins_no_scans_to_a_project_is_asked_the_other_way(xnat_sandbox, archive, open_catalog, status):
    archive.create_project("Q")
    own, shared = make_scan(archive, "1"), make_scan(archive, "1", project="Q", session="q_CT1", subject="q")
    archive.share(shared[0], "P", "q")
    archive.share(shared[1], "P", "q_in_P")
    xnat_sandbox.faults.add("/data/projects/P/experiments", status=status, times=None)
    catalog = open_catalog()
    assert ids(catalog) == [f"P/{own[0]}/{own[1]}/1", f"P/{shared[0]}/{shared[1]}/1"]
    xnat_sandbox.requests.clear()
    catalog.renew()
    assert {served.path for served in listings(xnat_sandbox)} == {"/data/experiments"}


@pytest.mark.parametrize("fault", [{"truncate": 9}, {"truncate": 5000}, {"drop_after": 30000}])
def test_a_listing_that_breaks_off_is_read_again(xnat_sandbox, archive, open_catalog, fault):
    archive.seed_sessions("P", sessions=100, scans=4)
    xnat_sandbox.faults.add("/data/projects/P/experiments", **fault)
    catalog = open_catalog()
    assert len(catalog) == 400
    assert len(listings(xnat_sandbox)) == 3


def test_a_listing_that_always_breaks_off_is_an_error(xnat_sandbox, archive, open_catalog):
    archive.seed_sessions("P", sessions=100, scans=4)
    xnat_sandbox.faults.add("/data/projects/P/experiments", truncate=5000, times=None)
    with pytest.raises(TransferError, match="broken off"):
        open_catalog().scans()


def test_an_old_listing_is_served_while_it_is_renewed(xnat_sandbox, archive, open_catalog):
    clock = Clock()
    make_scan(archive, "1")
    catalog = open_catalog(clock, max_age=60)
    assert len(catalog.scans()) == 1
    make_scan(archive, "2")
    assert len(catalog.scans()) == 1
    clock.now += 61
    assert len(catalog.scans()) == 1
    wait_until(lambda: len(catalog.scans()) == 2)


def test_a_failing_renewal_keeps_the_old_listing_and_says_so(xnat_sandbox, archive, open_catalog, caplog):
    clock = Clock()
    make_scan(archive, "1")
    catalog = open_catalog(clock)
    assert len(catalog.scans()) == 1
    fault = {"status": 500, "times": None}
    xnat_sandbox.faults.add("/experiments", **fault)
    clock.now += 61
    catalog.scans()
    wait_until(lambda: catalog.problem)
    assert "500" in catalog.problem
    assert len(catalog.scans()) == 1
    xnat_sandbox.faults.clear()
    catalog.renew()
    assert catalog.problem == ""


def test_our_own_writes_are_seen_at_once_and_survive_a_renewal_under_way(archive, open_catalog):
    make_scan(archive, "1")
    catalog = open_catalog()
    (scan,) = catalog.scans()
    catalog.put_resource(scan.image_id, Resource("MONAILABEL_final", 2, 10))
    assert catalog.scan(scan.image_id).resource("MONAILABEL_final") == Resource("MONAILABEL_final", 2, 10)
    catalog.put_resource(scan.image_id, Resource("MONAILABEL_final", 4, 20))
    assert catalog.scan(scan.image_id).resource("MONAILABEL_final") == Resource("MONAILABEL_final", 4, 20)
    assert len(catalog.scan(scan.image_id).resources) == len(scan.resources) + 1
    catalog.drop(scan.image_id)
    assert catalog.scans() == []


def test_a_session_shared_in_is_listed_once(archive, open_catalog):
    archive.create_project("Q")
    subject, session = make_scan(archive, "1", project="Q", session="q_CT1", subject="q")
    archive.share(subject, "P", "q")
    archive.share(session, "P", "q_in_P")
    assert ids(open_catalog()) == [f"P/{subject}/{session}/1"]
    assert ids(open_catalog(project="P,Q")) == [f"Q/{subject}/{session}/1"]
    assert str(open_catalog().scan(f"Q/{subject}/{session}/1").image_id) == f"P/{subject}/{session}/1"


def test_without_a_project_all_that_can_be_read_is_listed(archive, open_catalog):
    archive.create_project("Q")
    make_scan(archive, "1")
    make_scan(archive, "1", project="Q", session="q_CT1", subject="q")
    assert {image.split("/")[0] for image in ids(open_catalog(project=None))} == {"P", "Q"}


def test_an_unknown_project_is_named(archive, open_catalog):
    with pytest.raises(NotInArchiveError, match=r"'NOPE'.*admin"):
        open_catalog(project="NOPE").scans()


def test_an_empty_project_lists_nothing(archive, open_catalog):
    assert open_catalog().scans() == []


def test_on_an_open_site_an_expired_login_does_not_empty_the_listing(tmp_path):
    from monailabel_xnat.sandbox import Sandbox

    with Sandbox(require_login=False) as sandbox:
        sandbox.archive.create_project("P")
        make_scan(sandbox.archive, "1")
        given = {"server": sandbox.url, "username": sandbox.username, "password": sandbox.password, "project": "P"}
        session = Session(Settings.load({**given, "cache_path": tmp_path}, environ={}))
        catalog = Catalog(session)
        assert len(catalog.scans()) == 1
        sandbox.expire_sessions()
        catalog.renew()
        assert len(catalog.scans()) == 1
        session.close()
