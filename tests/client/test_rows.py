"""Listings that are read while they arrive: the rows are the same for every cut, and never incomplete."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monailabel_xnat.client.rows import rows_of
from monailabel_xnat.errors import ServerError, TransferError

TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=12) | st.sampled_from(['"Result":[', "},{", "]}", "\\"])
ROWS = st.lists(st.dictionaries(TEXTS, TEXTS, max_size=4), max_size=6)
AROUND = st.dictionaries(st.sampled_from(["title", "Columns"]), TEXTS)


def written(rows, around, *, rows_first=True, **style):
    items = [("Result", rows), *around.items()] if rows_first else [*around.items(), ("Result", rows)]
    return json.dumps({"ResultSet": dict(items)}, **style).encode()


def cut(content, size):
    return [content[start : start + size] for start in range(0, len(content), size)]


@given(ROWS, AROUND, st.booleans(), st.booleans(), st.sampled_from([None, 1]), st.integers(1, 300))
def test_rows_are_the_same_however_they_arrive(rows, around, rows_first, ascii_only, indent, size):
    content = written(rows, around, rows_first=rows_first, ensure_ascii=ascii_only, indent=indent)
    assert list(rows_of(cut(content, size), "/x")) == rows


@given(ROWS, AROUND, st.integers(1, 60), st.integers(1, 100))
def test_half_a_listing_is_never_taken_for_a_whole_one(rows, around, missing, size):
    content = written(rows, around)[:-missing]
    with pytest.raises(TransferError, match="broken off"):
        list(rows_of(cut(content, size), "/x"))


@pytest.mark.parametrize("answer", [{}, [], "x", {"items": []}, {"ResultSet": []}, {"ResultSet": {"Result": "x"}}])
def test_an_answer_that_is_not_a_listing_is_an_error(answer):
    with pytest.raises(ServerError, match="not a listing"):
        list(rows_of([json.dumps(answer).encode()], "/x"))


@pytest.mark.parametrize("rows", [["a"], [1, 2], [["a"]], [None]])
def test_a_listing_with_rows_that_are_not_objects_is_an_error(rows):
    with pytest.raises(ServerError, match="not a listing"):
        list(rows_of([written(rows, {})], "/x"))


def test_rows_come_before_the_listing_has_ended():
    content = written([{"ID": str(number)} for number in range(100)], {})
    read = []

    def arriving():
        for block in cut(content, 64):
            read.append(block)
            yield block

    rows = rows_of(arriving(), "/x")
    assert next(rows) == {"ID": "0"}
    assert len(read) < 3


@pytest.mark.parametrize("size", [7, 10_000])
@pytest.mark.parametrize("rows_first", [True, False])
def test_a_listing_with_fewer_rows_than_xnat_counted_is_not_believed(rows_first, size):
    rows = [{"ID": str(number)} for number in range(5)]
    whole = written(rows, {"totalRecords": "5"}, rows_first=rows_first)
    assert list(rows_of(cut(whole, size), "/x")) == rows
    for left in (rows[:4], []):
        short = written(left, {"totalRecords": "5"}, rows_first=rows_first)
        with pytest.raises(TransferError, match=f"{len(left)} rows and says that they are 5"):
            list(rows_of(cut(short, size), "/x"))
