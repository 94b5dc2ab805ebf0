"""Downloads over real HTTP: the files are complete and as listed, or there is an error."""

from __future__ import annotations

import stat

import pytest
from archive_double import ArchiveDouble, make_zip

from monailabel_xnat.client.download import download_file, download_files
from monailabel_xnat.client.files import RemoteFile, list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import ServerError, TransferError

RESOURCE = "/data/projects/P/subjects/S/experiments/E/scans/1/resources/DICOM"
FILES = {f"{number:03d}.dcm": bytes([number]) * 1000 * number for number in range(1, 6)}
ZIP = f"{RESOURCE}/files?zip"


@pytest.fixture
def archive():
    with ArchiveDouble() as archive:
        archive.resources[RESOURCE] = dict(FILES)
        yield archive


@pytest.fixture
def session(archive, tmp_path):
    values = {"server": archive.url, "username": "u", "password": "p", "cache_path": str(tmp_path / "cache")}
    session = Session(Settings.load(values, {}, {}))
    yield session
    session.close()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def download(session, folder) -> dict[str, bytes]:
    download_files(session, RESOURCE, list_files(session, RESOURCE), folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_are_downloaded_with_one_request(archive, session, folder):
    assert download(session, folder) == FILES
    assert archive.asked == [f"{RESOURCE}/files", ZIP]


def test_the_files_are_only_for_this_user(archive, session, folder):
    archive.resources[RESOURCE] = {"sub/a.dcm": b"1", "b.dcm": b"2"}
    download(session, folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.dcm")} == {0o600}
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "names", [("sub/a", "sub/b", "a"), ("with space.dcm", "Schädel ü.dcm"), ("a'b&c;d", "x=1+2%41")]
)
def test_sub_folders_and_unusual_names(archive, session, folder, names):
    archive.resources[RESOURCE] = {name: name.encode() for name in names}
    assert download(session, folder) == archive.resources[RESOURCE]


@pytest.mark.parametrize(
    "head",
    [
        "S1/scans/4-T1_MPRAGE/resources/DICOM/files/",
        "S1/scans/4/resources/DICOM/files/",
        "a/files/b/scans/4/resources/DICOM/files/",
        "S1/4/DICOM/",
        "",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_members_in_any_order_below_any_head(archive, session, folder, head, packed):
    shuffled = dict(sorted(FILES.items(), reverse=True))
    archive.answers[ZIP] = lambda: ("application/zip", make_zip(shuffled, head=head, packed=packed), None)
    assert download(session, folder) == FILES


def test_what_the_list_does_not_name_is_left_out(archive, session, folder):
    more = {**FILES, "scan_1_catalog.xml": b"<x/>", "../../evil": b"!", "/etc/evil": b"!"}
    archive.answers[ZIP] = lambda: ("application/zip", make_zip(more), None)
    assert download(session, folder) == FILES
    assert not list(folder.parent.glob("evil"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a//b", "C:/evil", "..\\evil", "."])
def test_a_listed_name_that_leaves_the_folder_is_refused(archive, session, folder, name):
    files = [RemoteFile(name, 1, "", "x"), RemoteFile("b", 1, "", "y")]
    with pytest.raises(TransferError, match="leaves its folder"):
        download_files(session, RESOURCE, files, folder)
    assert archive.asked == []


def answer_once(archive, path, answer):
    """Send one odd answer, and then the right ones."""

    def first():
        del archive.answers[path]
        return answer

    archive.answers[path] = first


def test_a_zip_that_breaks_off_is_fetched_once_more(archive, session, folder):
    whole = make_zip(FILES)
    answer_once(archive, ZIP, ("application/zip", whole[: len(whole) // 2], None))
    assert download(session, folder) == FILES
    assert archive.asked.count(ZIP) == 2


BROKEN = {
    "cut, chunked": lambda: ("application/zip", make_zip(FILES)[:5000], None),
    "cut, with length": lambda: ("application/zip", make_zip(FILES)[:5000], len(make_zip(FILES))),
    "nothing": lambda: ("application/zip", b"", None),
    "a page labelled zip": lambda: ("application/zip", b"<html><h3>login</h3></html>", None),
    "a file missing": lambda: ("application/zip", make_zip(dict(list(FILES.items())[1:])), None),
    "a file shorter": lambda: ("application/zip", make_zip({**FILES, "003.dcm": b"short"}), None),
    "a file longer": lambda: ("application/zip", make_zip({**FILES, "003.dcm": bytes(50_000)}), None),
    "other bytes": lambda: ("application/zip", make_zip({**FILES, "003.dcm": bytes(3000)}), None),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_not_as_listed_is_an_error(archive, session, folder, answer):
    archive.answers[ZIP] = answer
    with pytest.raises(TransferError):
        download(session, folder)
    assert archive.asked.count(ZIP) == 2


def test_a_web_page_instead_of_a_zip_is_an_error(archive, session, folder):
    archive.answers[ZIP] = lambda: ("text/html", b"<!DOCTYPE html><html>Sign on</html>", -1)
    with pytest.raises(ServerError, match="web page"):
        download(session, folder)


def test_the_error_names_what_is_missing(archive, session, folder):
    archive.answers[ZIP] = lambda: ("application/zip", make_zip({"001.dcm": FILES["001.dcm"]}), None)
    with pytest.raises(TransferError, match=r"lacks 002.dcm, 003.dcm, 004.dcm and 1 more"):
        download(session, folder)


def test_without_digests_the_sizes_are_compared(archive, session, folder):
    archive.with_digests = False
    archive.answers[ZIP] = lambda: ("application/zip", make_zip({**FILES, "003.dcm": b"short"}), None)
    with pytest.raises(TransferError, match=r"003.dcm came with 5 bytes instead of 3000"):
        download(session, folder)


def test_a_single_file_is_fetched_by_its_name(archive, session, folder):
    archive.resources[RESOURCE] = {"only one.dcm": b"x" * 5000}
    assert download(session, folder) == {"only one.dcm": b"x" * 5000}
    assert archive.asked[-1] == f"{RESOURCE}/files{quoted('only one.dcm')}"


def test_a_single_file_that_xnat_does_not_find_by_its_name_comes_in_a_zip(archive, session, folder):
    archive.resources[RESOURCE] = {"%C3%A9.dcm": b"x" * 5000}
    assert download(session, folder) == {"%C3%A9.dcm": b"x" * 5000}
    archive.resources[RESOURCE] = {"b.dcm": b"x"}
    archive.answers[f"{RESOURCE}/files/b.dcm"] = lambda: ("text/html", b"<h3>Unable to find file.</h3>", -1, 404)
    assert download(session, folder)["b.dcm"] == b"x"
    assert archive.asked[-1] == ZIP


def test_one_file_alone_is_compared_with_the_list(archive, session, folder):
    file = next(file for file in list_files(session, RESOURCE) if file.path == "002.dcm")
    download_file(session, file, folder / "there")
    assert (folder / "there").read_bytes() == FILES["002.dcm"]
    archive.resources[RESOURCE]["002.dcm"] = bytes(2000)
    with pytest.raises(TransferError, match="MD5"):
        download_file(session, file, folder / "there")


class Received:
    """Records what it gets."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.added: list[str] = []

    def take(self, path, content):
        self.taken.append((path.name, content))

    def add(self, path):
        self.added.append(path.name)
        assert path.exists()


def test_a_receiver_gets_small_files_in_memory_and_large_ones_on_the_disk(archive, session, folder):
    large = bytes(3_000_000)
    archive.resources[RESOURCE]["large.dcm"] = large
    received = Received()
    download_files(session, RESOURCE, list_files(session, RESOURCE), folder, received)
    assert dict(received.taken) == FILES
    assert received.added == ["large.dcm"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"large.dcm": large}


def test_a_receiver_gets_nothing_that_is_not_as_listed(archive, session, folder):
    archive.answers[ZIP] = BROKEN["other bytes"]
    received = Received()
    with pytest.raises(TransferError):
        download_files(session, RESOURCE, list_files(session, RESOURCE), folder, received)
    assert "003.dcm" not in dict(received.taken)


def test_a_receiver_gets_a_file_again_that_comes_again(archive, session, folder):
    answer_once(archive, ZIP, ("application/zip", make_zip(FILES)[:-50], None))
    received = Received()
    download_files(session, RESOURCE, list_files(session, RESOURCE), folder, received)
    assert [name for name, _ in received.taken] == 2 * list(FILES)


def test_an_error_of_the_receiver_ends_the_download(archive, session, folder, monkeypatch):
    received = Received()
    monkeypatch.setattr(received, "take", lambda path, content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        download_files(session, RESOURCE, list_files(session, RESOURCE), folder, received)
