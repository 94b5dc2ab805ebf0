"""Filters: which images they choose, and the message if they choose none."""

from __future__ import annotations

import pytest
from archive_rows import make_scan

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.catalog.left_out import scans_left_out
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.config.patterns import matches, split

BRAIN = "[BR-DY_CTAC] Brain Dynamic"


@pytest.fixture
def archive(xnat_sandbox):
    xnat_sandbox.archive.create_project("P")
    return xnat_sandbox.archive


def scans_of(datastore):
    return sorted(image.split("/")[3] for image in datastore.list_images())


@pytest.fixture
def described(archive):
    for number, description in enumerate([BRAIN, "T1, post contrast", "T1", "*tse2d1", "post contrast", "B Brain"], 1):
        make_scan(archive, str(number), series_description=description)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (BRAIN, ["1"]),
        (BRAIN.upper(), ["1"]),
        ([BRAIN], ["1"]),
        (r"\[BR-*", ["1"]),
        ("!" + BRAIN, ["2", "3", "4", "5", "6"]),
        ("T1, post contrast", ["2"]),
        (["T1, post contrast"], ["2"]),
        (r"T1\, post contrast", ["2"]),
        (r"T1\,*", ["2"]),
        ("T1, *post*", ["2", "3", "5"]),
        (["T1", "post contrast"], ["3", "5"]),
        (r"\*tse*", ["4"]),
        ("*tse2d1", ["4"]),
        ("[bt]*", ["2", "3", "6"]),
    ],
)
def test_a_name_is_taken_as_it_stands_before_it_is_a_pattern(described, open_xnat_datastore, given, chosen):
    datastore = open_xnat_datastore(project="P", series_description=given)
    assert scans_of(datastore) == chosen
    assert "filters" not in datastore.status()


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (r"\[a\]", "[a]", True),
        (r"\[a\]", "a", False),
        (r"\?", "x", False),
        (r"\!x", "!x", True),
        ("t1", " T1 ", True),
        ("!t1", "T1 ", False),
        (r"a\\b", r"a\b", True),
        (r"a\b", r"a\b", True),
        ("a|b", "a", False),
        ("[]", "[]", True),
        ("(x", "(x", True),
        ("[!a]b", "cb", True),
        (r"end\\", "end\\", True),
    ],
)
def test_a_backslash_takes_the_next_character_as_it_is(pattern, text, fits):
    assert matches((pattern,), text) is fits


def test_commas_separate_unless_escaped():
    assert split(r"a\,b, c\\,!d") == [r"a\,b", r"c\\", "!d"]


@pytest.mark.parametrize(
    ("settings", "named", "hint"),
    [
        ({"series_description": "T3*"}, "series_description='T3*' fits none of 6 scans", BRAIN),
        ({"scan_type": "axail"}, "scan_type='axail'", "AXIAL"),
        ({"modality": ["MR"]}, "modality='MR'", "'CT'"),
        ({"quality": "good"}, "quality='good'", "usable"),
        ({"subject": "nobody"}, "subject='nobody'", ""),
        ({"session": "nothing"}, "session='nothing'", ""),
        ({"image_resource": "DICM"}, "image_resource='DICM'", "DICOM"),
        ({"min_frames": 9}, "min_frames=9", "7"),
        (
            {"series_description": "T1", "scan_type": "AXIAL", "min_frames": 5},
            "series_description, min_frames",
            "7 scans",
        ),
    ],
)
def test_a_filter_that_leaves_no_image_is_named(archive, open_xnat_datastore, caplog, settings, named, hint):
    descriptions = [BRAIN, "T1, post contrast", "T1", "*tse2d1", "post contrast", "B Brain"]
    for number, description in enumerate(descriptions, 1):
        make_scan(archive, str(number), series_description=description, frames=str(number if number != 6 else 7))
    if "scan_type" in settings and "min_frames" in settings:
        make_scan(archive, "7", series_description="loc", type="LOC", frames="9")
    datastore = open_xnat_datastore(project="P", **settings)
    assert datastore.list_images() == []
    said = datastore.status()["filters"]
    assert named in said
    assert hint in said
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [said in warning for warning in warnings] == [True]
    datastore.refresh()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_the_warning_does_not_put_names_of_patients_into_the_log(archive, open_xnat_datastore, caplog):
    make_scan(archive, "1", subject="Doe^Jane", session="Doe_CT1")
    open_xnat_datastore(project="P", subject="nobody")
    assert "subject='nobody'" in caplog.text
    assert "Doe" not in "".join(record.getMessage() for record in caplog.records if record.levelno > 20)


def test_an_unknown_image_says_which_filter_leaves_none(archive, open_xnat_datastore):
    make_scan(archive, "1")
    datastore = open_xnat_datastore(project="P", scan_type="T1*")
    with pytest.raises(KeyError, match="scan_type='T1"):
        datastore.update_image_info("P/subj01/subj01_CT1/1", {"a": 1})


def test_a_project_without_images_is_no_fault_of_the_filters(archive, open_xnat_datastore):
    assert "filters" not in open_xnat_datastore(project="P", scan_type="T1*").status()


def test_the_problem_goes_when_there_are_images(archive, open_xnat_datastore):
    make_scan(archive, "1")
    datastore = open_xnat_datastore(project="P", scan_type="T1*")
    assert "filters" in datastore.status()
    make_scan(archive, "2", type="T1w")
    datastore.refresh()
    assert "filters" not in datastore.status()
    assert scans_of(datastore) == ["2"]


REASONS = {
    "derived": ("SEG is no image",),
    "quality": ("the setting quality='!unusable' leaves out 'unusable'",),
    "two": (
        "the setting series_description='*axial*' leaves out 'localizer'",
        "the setting modality='CT' leaves out 'MR'",
    ),
    "nameless": ("the setting series_description='*axial*' leaves out a scan without it",),
    "empty": ("it has no files",),
    "own": ("it has no files",),
    "resource": ("the setting image_resource='DICOM' leaves out 'SNAPSHOTS'",),
    "short": ("the setting min_frames=2 leaves out 1",),
}


def test_each_scan_that_is_no_image_has_its_reasons(archive, xnat_sandbox, tmp_path):
    make_scan(archive, "image", frames="9")
    make_scan(archive, "derived", modality="SEG")
    make_scan(archive, "quality", quality="unusable")
    make_scan(archive, "two", modality="MR", series_description="localizer")
    make_scan(archive, "nameless", series_description="")
    make_scan(archive, "empty", resources=())
    make_scan(archive, "own", resources=("MONAILABEL_final",))
    make_scan(archive, "resource", resources=("SNAPSHOTS",))
    make_scan(archive, "short", frames="1")
    chosen = {"series_description": "*axial*", "modality": "CT", "min_frames": 2, "image_resource": "DICOM"}
    login = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
    given = {**login, "project": "P", "cache_path": tmp_path, "quality": "!unusable", **chosen}
    settings = Settings.load(given, environ={})
    session = Session(settings)
    catalog = Catalog(session)
    try:
        found = {scan.image_id.scan: reason for scan, reason in scans_left_out(session, catalog)}
        assert [image.rpartition("/")[2] for image in catalog.ids()] == ["image"]
        assert found == {scan: "; ".join(reasons) for scan, reasons in REASONS.items()}
    finally:
        catalog.close()
        session.close()
