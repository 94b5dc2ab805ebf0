"""Ids are values: every id that is written and read again is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.ids import ImageId, LabelId

PARTS = st.text(min_size=1, max_size=20).filter(lambda text: text not in (".", ".."))
IMAGES = st.builds(ImageId, PARTS, PARTS, PARTS, PARTS)
VERSION = "20261123T101500123456Z-0123456789ab"


@given(IMAGES)
def test_an_image_id_reads_back_as_it_was_written(image):
    assert ImageId.parse(str(image)) == image
    assert str(image).count("/") == 3


@given(IMAGES, st.sampled_from([{}, {"version": VERSION}, {"collection": "SEG_2026#1/a b"}]))
def test_a_label_id_reads_back_as_it_was_written(image, suffix):
    label = LabelId(image, **suffix)
    assert LabelId.parse(str(label)) == label


@given(IMAGES, IMAGES)
def test_file_stems_are_safe_and_differ_where_ids_differ(one, other):
    assert all(character.isascii() and (character.isalnum() or character in "_-") for character in one.file_stem)
    assert (one.file_stem == other.file_stem) == (one == other)


def test_plain_ids_look_as_the_viewer_sends_them():
    assert str(ImageId("LIVER", "XNAT_S00001", "XNAT_E00001", "2")) == "LIVER/XNAT_S00001/XNAT_E00001/2"
    assert str(LabelId(ImageId("P", "S", "E", "4-MR1"))) == "P/S/E/4-MR1"


@pytest.mark.parametrize(
    ("part", "written"), [("a/b", "a%2Fb"), ("50%", "50%25"), (" x ", "%20x%20"), ("a b", "a b"), ("#1", "%231")]
)
def test_only_what_would_be_misread_is_encoded(part, written):
    assert str(ImageId("P", "S", "E", part)) == f"P/S/E/{written}"


@pytest.mark.parametrize(
    "text", ["", "abc", "a/b/c", "a/b/c/d/e", "a//c/d", "/b/c/d", "a/b/../d", "a/b/c/%2E", None, 7]
)
def test_a_malformed_id_is_refused_with_the_expected_form(text):
    with pytest.raises(InvalidIdError, match="expected project/subject/experiment/scan"):
        ImageId.parse(text)


def test_a_malformed_version_is_no_label_id():
    with pytest.raises(InvalidIdError, match="malformed label version"):
        LabelId(ImageId("P", "S", "E", "1"), version="latest")
