"""Zip archives that are read while they arrive, compared with what Python's zipfile writes and reads."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile

import pytest
from archive_double import Unseekable, make_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from monailabel_xnat.client.zipstream import BadZipError, zip_members

CONTENTS = {
    "a.dcm": b"first",
    "sub folder/é ü.dcm": b"PK\x07\x08" * 30,
    "large": random.Random(1).randbytes(300_000),
    "plain": b"0" * 200_000,
    "empty": b"",
}


def unpacked(data: bytes, piece: int = 1 << 20) -> dict[str, bytes]:
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    return {member.name: b"".join(bytes(block) for block in member.content) for member in zip_members(pieces)}


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("streamed", [False, True], ids=["sizes before", "sizes behind"])
@pytest.mark.parametrize("piece", [1, 3, 8192, 1 << 22])
def test_reads_what_zipfile_writes(packed, streamed, piece):
    data = make_zip(CONTENTS, head="", packed=packed, streamed=streamed)
    assert unpacked(data, piece) == CONTENTS


def test_reads_level_0_as_java_writes_it():
    target = Unseekable()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    assert unpacked(bytes(target.data)) == CONTENTS


@pytest.mark.parametrize("seekable", [False, True])
def test_reads_members_prepared_for_more_than_4_gigabytes(seekable):
    target = io.BytesIO() if seekable else Unseekable()
    with zipfile.ZipFile(target, "w") as archive, archive.open("long", "w", force_zip64=True) as stream:
        stream.write(b"short after all")
    assert unpacked(target.getvalue() if seekable else bytes(target.data)) == {"long": b"short after all"}


def test_folders_are_left_out_and_an_empty_archive_has_no_members():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/file", b"x")
    assert unpacked(target.getvalue()) == {"folder/file": b"x"}
    assert unpacked(make_zip({})) == {}


def test_a_member_that_nobody_reads_is_passed_over():
    assert [member.name for member in zip_members([make_zip(CONTENTS, head="")])] == list(CONTENTS)


@settings(deadline=None)
@given(
    contents=st.dictionaries(st.text("abcé/ ", min_size=1).filter(lambda n: n[-1] != "/"), st.binary(max_size=100)),
    packed=st.booleans(),
    streamed=st.booleans(),
    piece=st.integers(1, 200),
)
def test_any_archive_round_trips(contents, packed, streamed, piece):
    assert unpacked(make_zip(contents, head="", packed=packed, streamed=streamed), piece) == contents


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("streamed", [False, True], ids=["sizes before", "sizes behind"])
def test_an_archive_cut_anywhere_is_refused(packed, streamed):
    data = make_zip({"a": b"A" * 300, "b": bytes(range(256))}, head="", packed=packed, streamed=streamed)
    for length in range(len(data)):
        with pytest.raises(BadZipError):
            unpacked(data[:length])


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("streamed", [False, True], ids=["sizes before", "sizes behind"])
def test_a_flipped_bit_in_a_member_is_noticed(packed, streamed):
    data = bytearray(make_zip({"a": CONTENTS["large"]}, head="", packed=packed, streamed=streamed))
    data[150_000] ^= 4
    with pytest.raises(BadZipError):
        unpacked(bytes(data))


SMALL = {"a.dcm": b"first", "sub folder/é": b"PK\x07\x08" * 30, "noise": random.Random(1).randbytes(3000), "empty": b""}
VARIANTS = [
    make_zip(SMALL, head="", packed=packed, streamed=streamed) for packed in (False, True) for streamed in (False, True)
]
DAMAGES = st.tuples(
    st.sampled_from(["flip", "number", "cut", "repeat", "end"]), st.integers(0, 4000), st.integers(0, 255)
)


def damaged(data: bytes, damages: list[tuple[str, int, int]]) -> bytes:
    """Damage an archive, most often in its headers, because its members are large."""
    changed = bytearray(data)
    heads = [found.start() for found in re.finditer(b"PK", data)]
    for kind, place, value in damages:
        at = (heads[place % len(heads)] + value % 50 if place % 4 else place) % max(1, len(changed))
        if kind == "flip":
            changed[at : at + 1] = bytes([value])
        elif kind == "number":
            changed[at : at + 4] = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"PK\3\4"][value % 4]
        elif kind == "cut":
            del changed[at : at + 1 + value]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + 1 + value]
        else:
            del changed[at:]
    return bytes(changed)


@settings(deadline=None, max_examples=200)
@given(data=st.sampled_from(VARIANTS), damages=st.lists(DAMAGES, min_size=1, max_size=3), piece=st.integers(1, 4000))
def test_a_damaged_archive_is_refused_or_its_members_are_whole(data, damages, piece):
    changed = damaged(data, damages)
    try:
        found = unpacked(changed, piece)
    except BadZipError:
        return
    assert all(content in SMALL.values() for content in found.values())


@pytest.mark.parametrize("streamed", [False, True], ids=["sizes before", "sizes behind"])
def test_a_small_archive_of_a_large_file_is_read_piece_by_piece(streamed):
    data = make_zip({"much": bytes(50_000_000)}, head="", packed=True, streamed=streamed)
    assert len(data) < 300_000
    (sizes,) = [[len(block) for block in member.content] for member in zip_members([data])]
    assert (sum(sizes), max(sizes) <= 1 << 24) == (50_000_000, True)


@pytest.mark.parametrize("data", [b"", b"<html>", b"PK", b"\x1f\x8b\x08 a gzip file", b"{}" * 100])
def test_a_file_that_is_not_a_zip_is_refused(data):
    with pytest.raises(BadZipError, match="starts like no zip"):
        unpacked(data)


def test_a_missing_member_is_noticed():
    data = make_zip({"a": b"1", "b": b"2"}, head="", streamed=False)
    second = data.index(b"PK\x03\x04", 1)
    directory = data.index(b"PK\x01\x02")
    with pytest.raises(BadZipError, match="lists 2 members and holds 1"):
        unpacked(data[:second] + data[directory:])


def test_an_encrypted_member_and_an_unknown_method_are_refused():
    data = bytearray(make_zip({"a": b"1"}, head="", streamed=False))
    encrypted, unknown = bytearray(data), bytearray(data)
    struct.pack_into("<H", encrypted, 6, 1)
    struct.pack_into("<H", unknown, 8, 14)
    with pytest.raises(BadZipError, match="encrypted"):
        unpacked(bytes(encrypted))
    with pytest.raises(BadZipError, match="method 14"):
        unpacked(bytes(unknown))
