from __future__ import annotations

import re
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monailabel_xnat.errors import LabelError
from monailabel_xnat.labels.tags import resource_of, tag_of, text_of

TAGS = st.text(min_size=1, max_size=25).filter(lambda tag: not any(0xD800 <= ord(letter) < 0xE000 for letter in tag))


@given(TAGS)
def test_a_tag_survives_the_way_through_a_resource_label(tag):
    assert tag_of(resource_of(tag)) == tag


@given(TAGS)
def test_a_resource_label_has_only_characters_that_xnat_takes_and_is_no_number(tag):
    assert re.fullmatch(r"MONAILABEL_[A-Za-z0-9_.-]+", resource_of(tag))


@given(TAGS, TAGS)
def test_two_tags_never_share_a_resource(one, other):
    assert (resource_of(one) == resource_of(other)) == (one == other)


@given(st.text(max_size=40))
def test_only_what_we_would_write_is_read_as_a_tag(text):
    tag = tag_of(text)
    assert tag is None or resource_of(tag) == text


@pytest.mark.parametrize("tag", ["final", "original", "version_1", "review-2", "42"])
def test_ordinary_tags_stand_for_themselves(tag):
    assert resource_of(tag) == f"MONAILABEL_{tag}"


@pytest.mark.parametrize("tag", ["info", "INFO", "Info", "datastore"])
def test_a_tag_never_gets_a_resource_that_holds_something_else(tag):
    assert resource_of(tag).lower() not in ("monailabel_info", "monailabel_datastore")
    assert tag_of(resource_of(tag)) == tag


@pytest.mark.parametrize(
    "resource", ["MONAILABEL_info", "MONAILABEL_datastore", "MONAILABEL_", "DICOM", "MONAILABEL_a.2e", "MONAILABEL_.41"]
)
def test_other_resources_are_no_tags(resource):
    assert tag_of(resource) is None


@pytest.mark.parametrize("tag", ["", "x" * 300, "\ud800"])
def test_a_tag_that_cannot_be_stored_is_refused(tag):
    with pytest.raises(LabelError):
        resource_of(tag)


def test_an_enum_stands_for_its_value_on_every_python():
    class Tag(str, Enum):
        FINAL = "final"

    assert text_of(Tag.FINAL) == "final"
    assert type(text_of(Tag.FINAL)) is str
    assert text_of(None) == ""
