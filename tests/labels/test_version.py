from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.ids import LabelId
from monailabel_xnat.labels.version import version_name, versions_among

TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc))
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(TIMES, DIGESTS)
def test_a_version_is_found_by_its_name_and_can_be_named_in_a_label_id(time, digest):
    name = version_name(time, digest)
    assert [version.name for version in versions_among([RemoteFile(f"{name}.nii.gz", 1, "", "")])] == [name]
    assert LabelId.parse(f"P/S/E/1@{name}").version == name


@given(TIMES, TIMES, DIGESTS, DIGESTS)
def test_what_is_saved_later_sorts_behind_whatever_the_clock_says(one, other, first, second):
    earlier = version_name(one, first)
    assert version_name(other, second, after=earlier) > earlier


def test_names_are_in_utc():
    time = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert version_name(time, "ab" * 32) == "20260228T233000000000Z-abababababab"


def test_versions_are_found_among_other_files_newest_first():
    old, new, result = (f"2026010{day}T000000000000Z-0123456789ab" for day in (1, 2, 3))
    names = [
        f"{new}.json",
        f"{old}.nii.gz",
        f"{new}.nii.gz",
        f"{result}.result.json",
        "20260104T000000000000Z-0123456789ab.json",
        "notes.txt",
        f"sub/{old}.nii.gz",
    ]
    versions = versions_among([RemoteFile(name, 1, "", "") for name in names])
    assert [(version.name, version.suffix) for version in versions] == [
        (result, ".result.json"),
        (new, ".nii.gz"),
        (old, ".nii.gz"),
    ]
    assert [version.description_file is not None for version in versions] == [False, True, False]
    assert versions[2].saved_at == datetime(2026, 1, 1, tzinfo=timezone.utc)
