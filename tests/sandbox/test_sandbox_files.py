"""Resources and files over HTTP, also where XNAT is unfriendly (xnat-rest.md 9 to 11)."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import tarfile
import threading
import time
import zipfile
from email.utils import formatdate
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.claim(
    "files", "FileList", "CatalogResource", "CatalogUtils", "ResourceModifierA", "ZipRepresentation"
)

FILE_ROW = {"Name", "Size", "URI", "collection", "file_tags", "file_format", "file_content", "cat_ID", "digest"}
CATALOG = "{http://nrg.wustl.edu/catalog}"


@pytest.fixture
def files(admin, made):
    """The address of the files of a scan's resource R, which exists."""
    admin.made(f"{made.scan}/resources/R", format="NIFTI", content="SEG")
    return f"{made.scan}/resources/R/files"


def paths(admin, files) -> list[str]:
    return sorted(row["URI"].partition("/files/")[2] for row in admin.rows(files))


def packed(members: dict[str, bytes], kind: str = "zip") -> bytes:
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=target, mode=kind) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


# Resources


def test_point_05_resource_put_on_a_label_in_use_is_409_and_delete_of_a_missing_one_200(admin, made):
    address = f"{made.scan}/resources/SEG"
    first = admin.put(address, format="NIFTI", content="SEG", description="d", tags="a,name:b")
    assert (first.status_code, first.text) == (200, "")
    again = admin.put(address)
    assert again.status_code == 409
    assert "<h3>Specified resource already exists.</h3>" in again.text
    assert admin.delete(address).status_code == 200
    assert admin.delete(address).status_code == 200
    assert admin.post(address).status_code == 200
    assert admin.put(f"{address}/more").status_code == 400


def test_resource_list_has_neither_uri_nor_id(admin, made, files):
    admin.made(f"{files}/a.nii", b"123")
    (row,) = admin.rows(f"{made.scan}/resources")
    number = row.pop("xnat_abstractresource_id")
    assert number.isdigit()
    assert row == {
        "label": "R",
        "element_name": "xnat:resourceCatalog",
        "category": "scans",
        "cat_id": "1",
        "cat_desc": "T1 w/contrast",
        "file_count": "1",
        "file_size": "3",
        "tags": "",
        "content": "SEG",
        "format": "NIFTI",
    }


def test_counts_are_unknown_until_something_is_written(admin, made, files):
    (row,) = admin.rows(f"{made.scan}/resources")
    assert (row["file_count"], row["file_size"]) == ("", "")
    admin.made(f"{files}/a.nii", b"123", **{"update-stats": "false"})
    assert admin.rows(f"{made.scan}/resources")[0]["file_count"] == ""
    assert admin.rows(f"{made.scan}/resources", file_stats="true")[0]["file_count"] == "1"
    assert admin.rows(f"{made.scan}/resources")[0]["file_count"] == ""
    admin.rows(f"{made.scan}/resources", file_stats="true", cache_file_stats="true")
    assert admin.rows(f"{made.scan}/resources")[0]["file_size"] == "3"


def test_all_resources_of_a_session_tell_where_they_are(admin, made, files):
    admin.made(f"{made.long}/resources/OWN")
    assert [row["label"] for row in admin.rows(f"{made.long}/resources")] == ["OWN"]
    found = {(row["category"], row["cat_id"]): row["label"] for row in admin.rows(f"{made.long}/resources", all="true")}
    assert found == {("resources", made.session_id): "OWN", ("scans", "1"): "R"}


@pytest.mark.parametrize("parent", ["/data/projects/P", "/data/projects/P/subjects/sub1"])
def test_projects_and_subjects_have_resources(admin, made, parent):
    admin.made(f"{parent}/resources/R/files/a.txt", b"abc")
    (row,) = admin.rows(f"{parent}/resources")
    assert (row["category"], row["cat_id"]) == ("resources", "")
    (file,) = admin.rows(f"{parent}/files")
    assert file["URI"].replace(made.subject_id, "sub1") == f"{parent}/resources/{file['cat_ID']}/files/a.txt"


def test_a_label_of_digits_is_taken_for_a_number(admin, made, files):
    number = admin.rows(f"{made.scan}/resources")[0]["xnat_abstractresource_id"]
    assert admin.get(f"{made.scan}/resources/{number}").status_code == 200
    assert admin.get(f"{made.scan}/resources/99999").status_code == 403
    assert admin.get(f"{made.scan}/resources/99999/files").status_code == 403
    assert admin.put(f"{made.scan}/resources/99999").status_code == 403


def test_point_11_a_resource_is_xml_whatever_is_asked(admin, made, files):
    admin.made(f"{files}/sub/a&b.nii", b"abc", tags="x,y", content="SEG")
    answer = admin.get(f"{made.scan}/resources/R", format="json", includeRootPath="true")
    assert answer.headers["content-type"].startswith("text/xml")
    assert answer.text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<cat:Catalog')
    document = ElementTree.fromstring(answer.text)
    (entry,) = document.iter(f"{CATALOG}entry")
    assert entry.get("URI") == "sub/a&b.nii"
    assert entry.get("digest") == hashlib.md5(b"abc").hexdigest()
    assert [tag.text for tag in entry.iter(f"{CATALOG}tag")] == ["x", "y"]
    assert [field.get("name") for field in document.iter(f"{CATALOG}metaField")] == ["AbsolutePath"]
    missing = admin.get(f"{made.scan}/resources/NONE")
    assert (missing.status_code, "Unable to find the specified catalog." in missing.text) == (404, True)


def test_point_04_members_make_resources_and_files_but_delete_none(user, made, files):
    member = user("member")
    assert member.put(f"{made.scan}/resources/MINE").status_code == 200
    member.made(f"{files}/a.nii", b"abc")
    assert member.delete(f"{files}/a.nii").status_code == 403
    assert member.delete(f"{made.scan}/resources/MINE").status_code == 403
    assert user("collaborator").put(f"{made.scan}/resources/OTHER").status_code == 403


# Lists


def test_point_10_file_uris_have_the_number_of_their_resource(admin, made, files):
    admin.made(f"{files}/sub/a.nii.gz", b"abc", format="NIFTI", content="SEG", tags="t")
    (row,) = admin.rows(files)
    number = row["cat_ID"]
    assert row == {
        "Name": "a.nii.gz",
        "Size": "3",
        "URI": f"/data/projects/P/subjects/{made.subject_id}/experiments/{made.session_id}/scans/1"
        f"/resources/{number}/files/sub/a.nii.gz",
        "collection": "R",
        "file_tags": "t",
        "file_format": "NIFTI",
        "file_content": "SEG",
        "cat_ID": number,
        "digest": hashlib.md5(b"abc").hexdigest(),
    }
    short = f"/data/experiments/{made.session_id}/scans/1/resources/{number}/files/sub/a.nii.gz"
    assert admin.rows(f"{made.session}/scans/1/resources/R/files")[0]["URI"] == short
    for several in (f"{made.long}/scans/ALL/files", f"{made.scan}/files", f"{made.long}/scans/1,2/files"):
        assert admin.rows(several)[0]["URI"] == short
    assert admin.rows(f"{made.long}/files", all="true")[0]["URI"] == short
    assert admin.get(row["URI"]).content == admin.get(short).content == b"abc"


def test_file_list_names_its_columns(admin, files):
    result = admin.get(files).json()["ResultSet"]
    assert result["Columns"] == [{"key": "URI", "serverRoot": ""}]
    assert (result["title"], result["totalRecords"], result["Result"]) == ("Files", "0", [])


def test_missing_label_gives_an_empty_list_and_missing_parent_404(admin, made):
    assert admin.rows(f"{made.scan}/resources/NONE/files") == []
    assert admin.get(f"{made.long}/scans/99/resources/R/files").status_code == 404


def test_list_options(admin, made, files):
    for name, kind in (("a.nii", "NIFTI"), ("sub/b.nii", "NIFTI"), ("sub/deep/c.txt", "TXT")):
        admin.made(f"{files}/{name}", b"abc", format=kind, content=kind)
    assert len(admin.rows(files, file_format="NIFTI")) == 2
    assert len(admin.rows(files, file_content="TXT")) == 1
    assert [row["Name"] for row in admin.rows(f"{files}/sub/")] == ["b.nii", "c.txt"]
    assert [row["Name"] for row in admin.rows(f"{files}/sub/", recursive="false")] == ["b.nii"]
    assert [row["Name"] for row in admin.rows(f"{made.scan}/files/sub*")] == ["b.nii", "c.txt"]
    assert admin.rows(files, locator="absolutePath")[0]["absolutePath"].endswith("/P/arc001/s1/SCANS/1/R/a.nii")
    assert admin.get(f"{files}/none", **{"accept-not-found": "true"}).status_code == 204


def test_assessor_files_carry_their_direction(admin, made):
    item = admin.made(f"{made.long}/assessors/A", xsiType="xnat:qcAssessmentData")
    admin.made(f"{made.long}/assessors/A/out/resources/R/files/a.txt", b"abc")
    short = f"{made.session}/assessors/{item}"
    number = admin.rows(f"{short}/out/resources")[0]["xnat_abstractresource_id"]
    assert admin.rows(f"{short}/out/resources/R/files")[0]["URI"] == f"{short}/out/resources/{number}/files/a.txt"
    assert admin.rows(f"{short}/resources/R/files")[0]["URI"] == f"{short}/resources/{number}/files/a.txt"
    assert admin.rows(f"{short}/files")[0]["URI"] == f"{short}/out/resources/{number}/files/a.txt"
    assert admin.rows(f"{short}/in/resources") == []


# Read


def test_point_19_one_range_is_206_several_are_416(admin, files):
    admin.made(f"{files}/a.bin", b"0123456789")
    for asked, content, place in (("2-4", b"234", "2-4"), ("7-", b"789", "7-9"), ("-2", b"89", "8-9")):
        answer = admin.get(f"{files}/a.bin", headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, content)
        assert answer.headers["Content-Range"] == f"bytes {place}/10"
        assert answer.headers["Accept-Ranges"] == "bytes"
    assert admin.get(f"{files}/a.bin", headers={"Range": "bytes=0-1,3-4"}).status_code == 416
    assert admin.get(f"{files}/a.bin", headers={"Range": "bytes=10-"}).status_code == 416
    whole = admin.get(f"{files}/a.bin", headers={"Range": "lines=1-2"})
    assert (whole.status_code, whole.content) == (200, b"0123456789")


def test_headers_of_a_file(admin, files):
    admin.made(f"{files}/a.txt", b"abc")
    for method in ("GET", "HEAD"):
        answer = admin.ask(method, f"{files}/a.txt")
        assert answer.headers["Content-Length"] == "3"
        assert answer.headers["Content-Type"] == "text/plain"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="a.txt"'
        assert answer.headers["Cache-Control"] == "must-revalidate"
        assert "ETag" not in answer.headers
    changed = admin.get(f"{files}/a.txt").headers["Last-Modified"]
    known = admin.get(f"{files}/a.txt", headers={"If-Modified-Since": changed})
    assert (known.status_code, known.content) == (304, b"")
    earlier = formatdate(time.time() - 3600, usegmt=True)
    assert admin.get(f"{files}/a.txt", headers={"If-Modified-Since": earlier}).status_code == 200


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.dcm", "application/octet-stream"), ("a.nii.gz", "application/octet-stream"), ("a.xml", "text/xml"),
     ("a.png", "image/png"), ("a.pdf", "application/pdf"), ("noext", "application/octet-stream")],
)  # fmt: skip
def test_content_type_goes_by_extension(admin, files, name, kind):
    admin.made(f"{files}/{name}", b"abc")
    assert admin.get(f"{files}/{name}").headers["Content-Type"] == kind


def test_missing_files_say_why(admin, made, files, xnat_sandbox):
    admin.made(f"{files}/a.txt", b"abc")
    missing = admin.get(f"{files}/b.txt")
    assert (missing.status_code, "Unable to find catalog entry for given uri." in missing.text) == (404, True)
    (stored,) = xnat_sandbox.folder.rglob("a.txt")
    stored.unlink()
    lost = admin.get(f"{files}/a.txt")
    assert (lost.status_code, "Unable to find file." in lost.text) == (404, True)
    assert len(admin.rows(files)) == 1


def test_files_lie_as_in_an_xnat_archive(admin, files, xnat_sandbox):
    admin.made(f"{files}/sub/a.txt", b"abc")
    assert (xnat_sandbox.folder / "files/P/arc001/s1/SCANS/1/R/sub/a.txt").read_bytes() == b"abc"


def test_member_of_a_stored_zip(admin, files):
    admin.made(f"{files}/a.zip", packed({"inner/b.txt": b"inside"}))
    assert admin.get(f"{files}/a.zip!/inner/b.txt").content == b"inside"
    assert admin.get(f"{files}/a.zip/inner/b.txt").content == b"inside"
    assert admin.get(f"{files}/a.zip!/inner/none").status_code == 404
    assert [row["File Name"] for row in admin.rows(f"{files}/a.zip", listContents="true")] == ["inner/b.txt"]


def test_point_13_names_are_decoded_only_where_a_blank_or_plus_is_encoded(admin, files):
    for encoded, stored in (
        ("a%20b.txt", "a b.txt"),
        ("%C3%A9.txt", "%C3%A9.txt"),
        ("%C3%A9%20x.txt", "é x.txt"),
        ("p%2Bq.txt", "p+q.txt"),
        ("r+s%20t.txt", "r s t.txt"),
        ("u+v.txt", "u+v.txt"),
    ):
        admin.made(f"{files}/{encoded}", b"abc", overwrite="true")
        assert stored in paths(admin, files)
        assert admin.get(f"{files}/{encoded}").content == b"abc"


# Write


def test_success_is_200_with_an_empty_text(admin, files):
    answer = admin.put(f"{files}/a.txt", b"abc")
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_point_01_existing_name_without_overwrite_is_200_with_duplicates(admin, files):
    admin.made(f"{files}/sub/a.txt", b"old")
    answer = admin.put(f"{files}/sub/a.txt", b"new")
    assert (answer.status_code, answer.json()) == (200, {"duplicates": ["sub/a.txt"]})
    assert answer.headers["Content-Type"].startswith("text/html")
    assert admin.get(f"{files}/sub/a.txt").content == b"old"
    assert admin.put(f"{files}/sub/a.txt", b"new", overwrite="false").json() == {"duplicates": ["sub/a.txt"]}
    assert admin.put(f"{files}/sub/a.txt", b"new", overwrite="true").text == ""
    assert admin.get(f"{files}/sub/a.txt").content == b"new"


def test_point_02_put_without_permission_is_200_and_nothing_is_stored(admin, user, files):
    answer = user("collaborator").put(f"{files}/a.txt", b"abc")
    assert (answer.status_code, answer.text) == (200, "")
    assert admin.rows(files) == []
    assert user("none").put(f"{files}/a.txt", b"abc").status_code == 404


@pytest.mark.parametrize("kind", ["application/json", None, "application/x-www-form-urlencoded"])
def test_point_12_other_content_types_are_400(admin, files, kind):
    answer = admin.put(f"{files}/a.txt", b"abc", kind=kind)
    assert (answer.status_code, "You tried to PUT a payload" in answer.text) == (400, True)
    assert admin.put(f"{files}/a.txt", b"abc", kind=kind, inbody="true").status_code == 200
    assert paths(admin, files) == ["a.txt"]


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "application/dicom", "text/plain", "text/csv", "image/png", "video/mp4",
             "application/gzip", "application/pdf", "application/vnd.ms-excel"]
)  # fmt: skip
def test_upload_types(admin, files, kind):
    assert admin.put(f"{files}/a.bin", b"abc", kind=kind).status_code == 200
    assert paths(admin, files) == ["a.bin"]


def test_point_12_chunked_and_empty_bodies_are_500(admin, files):
    assert admin.put(f"{files}/a.txt", b"").status_code == 500
    assert admin.put(f"{files}/a.txt", iter([b"abc"])).status_code == 500
    assert paths(admin, files) == []
    assert admin.put(f"{files}/a.zip", iter([packed({"x": b"y"})]), kind="application/zip").status_code == 200
    assert paths(admin, files) == ["a.zip"]


def test_form_uploads(admin, made, files):
    address = f"{admin.url}{files}"
    assert admin.http.post(address, files={"f": ("sub.txt", b"abc")}).status_code == 200
    assert admin.http.put(f"{address}/named.txt", files={"f": ("other.txt", b"def")}).status_code == 200
    assert paths(admin, files) == ["named.txt", "sub.txt"]
    assert admin.get(f"{files}/named.txt").content == b"def"
    assert admin.http.put(f"{address}/x?inbody=true", files={"f": ("x", b"abc")}).status_code == 406


@pytest.mark.parametrize(("name", "kind"), [("u.zip", "zip"), ("u.tar", "w"), ("u.tar.gz", "w:gz"), ("u.tgz", "w:gz")])
def test_archives_are_unpacked(admin, files, name, kind):
    admin.made(f"{files}/b.txt", b"old")
    body = packed({"sub/a.txt": b"new a", "b.txt": b"new b"}, kind)
    answer = admin.put(f"{files}/{name}", body, extract="true", format="F", content="C")
    assert answer.json() == {"duplicates": ["b.txt"]}
    assert paths(admin, files) == ["b.txt", "sub/a.txt"]
    assert admin.get(f"{files}/b.txt").content == b"old"
    assert {row["file_format"] for row in admin.rows(files)} == {"", "F"}
    assert admin.put(f"{files}/{name}", body, extract="true", overwrite="true").text == ""
    assert admin.get(f"{files}/b.txt").content == b"new b"


def test_a_gzip_alone_is_unpacked_to_its_content(admin, files):
    admin.made(f"{files}/a.nii.gz", gzip.compress(b"image"), extract="true")
    assert paths(admin, files) == ["a.nii"]
    assert admin.get(f"{files}/a.nii").content == b"image"


def test_damaged_archives_leave_nothing(admin, files):
    whole = packed({"a.txt": b"abc" * 1000, "b.txt": b"def"})
    damaged = whole.replace(b"abcabcabc", b"abcabcabX", 1)
    for body in (b"no archive", whole[:-30], damaged):
        assert admin.put(f"{files}/u.zip", body, extract="true").status_code == 500
    assert paths(admin, files) == []


@pytest.mark.parametrize("kind", ["zip", "w"])
def test_archives_do_not_reach_outside(admin, files, kind, xnat_sandbox):
    body = packed({"fine.txt": b"abc", "../../escaped.txt": b"abc"}, kind)
    assert admin.put(f"{files}/u.{'zip' if kind == 'zip' else 'tar'}", body, extract="true").status_code == 500
    assert list(xnat_sandbox.folder.rglob("escaped.txt")) == list(xnat_sandbox.folder.parent.glob("escaped.txt")) == []
    assert paths(admin, files) == []


def test_paths_do_not_reach_outside(admin, files, xnat_sandbox):
    assert admin.put(f"{files}/a%20/..%2F..%2F..%2Fescaped.txt", b"abc").status_code == 400
    assert list(xnat_sandbox.folder.rglob("escaped.txt")) == []
    for path in ("%2e%2e%20/%2e%2e%20/x", "%20..%2f..%2f..%2f..%2farchive.sqlite"):
        assert admin.get(f"{files}/{path}").status_code == 404


def test_catalogs_are_never_catalogued(admin, files):
    assert admin.put(f"{files}/scan_1_catalog.xml", b"<x/>", kind="text/xml").status_code == 200
    assert paths(admin, files) == []


def test_a_put_makes_its_resource_with_format_and_content(admin, made):
    admin.made(f"{made.scan}/resources/NEW/files/a.nii", b"abc", format="NIFTI", content="SEG")
    (row,) = admin.rows(f"{made.scan}/resources")
    assert (row["label"], row["format"], row["content"]) == ("NEW", "NIFTI", "SEG")


def test_writing_needs_one_scan(admin, made):
    admin.made(f"{made.long}/scans/2", xsiType="xnat:ctScanData")
    answer = admin.put(f"{made.long}/scans/ALL/resources/R/files/a.txt", b"abc")
    assert (answer.status_code, "Unable to identify scan" in answer.text) == (404, True)
    assert admin.put(f"{made.long}/scans/9/resources/R/files/a.txt", b"abc").status_code == 404


# Delete


def test_point_03_file_delete_goes_by_prefix(admin, files):
    for name in ("label_1.nii", "label_10.nii.gz", "label_2.nii", "sub/x.txt"):
        admin.made(f"{files}/{name}", b"abc")
    assert admin.delete(f"{files}/label_1").status_code == 200
    assert paths(admin, files) == ["label_2.nii", "sub/x.txt"]
    assert admin.delete(f"{files}/sub").status_code == 200
    assert admin.delete(f"{files}/lab*").status_code == 200
    assert paths(admin, files) == []
    missing = admin.delete(f"{files}/lab")
    assert (missing.status_code, "No matched files" in missing.text) == (404, True)
    assert admin.delete(f"{files}/lab", **{"accept-not-found": "true"}).status_code == 204


def test_delete_of_all_files_and_of_what_is_not_there(admin, made, files, xnat_sandbox):
    admin.made(f"{files}/a.txt", b"abc")
    assert admin.delete(files).status_code == 200
    assert admin.rows(f"{made.scan}/resources")[0]["file_count"] == "0"
    assert list(xnat_sandbox.folder.rglob("a.txt")) == []
    assert admin.delete(f"{made.scan}/resources/NONE/files/a.txt").status_code == 400


def test_delete_can_leave_the_file_on_disk(admin, files, xnat_sandbox):
    admin.made(f"{files}/a.txt", b"abc")
    assert admin.delete(f"{files}/a.txt", removeFiles="false").status_code == 200
    assert paths(admin, files) == []
    assert len(list(xnat_sandbox.folder.rglob("a.txt"))) == 1


# Zip


def test_point_20_zip_has_no_length_and_starts_with_the_session_label(admin, made, files):
    admin.made(f"{files}/sub/a.txt", b"abc" * 1000)
    admin.made(f"{made.long}/resources/OWN/files/b.txt", b"def")
    answer = admin.get(files, format="zip")
    assert "Content-Length" not in answer.headers
    assert answer.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        (info,) = archive.infolist()
        assert info.filename == "s1/scans/1-T1_w_contrast/resources/R/files/sub/a.txt"
        assert info.compress_size >= info.file_size
        assert info.flag_bits & 0x08  # the sizes are after the bytes, as in a stream
        assert archive.read(info) == b"abc" * 1000
    everything = admin.get(f"{made.long}/files", format="zip", all="true")
    with zipfile.ZipFile(io.BytesIO(everything.content)) as archive:
        assert sorted(archive.namelist()) == ["s1/resources/OWN/files/b.txt", info.filename]


@pytest.mark.parametrize(
    ("structure", "name"),
    [
        ("simplified", "s1/1-T1_w_contrast/R/a.txt"),
        ("improved", "P/sub1/s1/scans/1-T1_w_contrast/resources/R/files/a.txt"),
        ("legacy", "s1/SCANS/1/R/a.txt"),
    ],
)
def test_zip_structures(admin, files, structure, name):
    admin.made(f"{files}/a.txt", b"abc")
    answer = admin.get(files, format="zip", structure=structure, compression="9")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [name]


@pytest.mark.parametrize("kind", ["tar.gz", "tar"])
def test_tar(admin, files, kind):
    admin.made(f"{files}/a.txt", b"abc")
    answer = admin.get(files, format=kind)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        (name,) = archive.getnames()
        assert archive.extractfile(name).read() == b"abc"
    assert name.endswith("/files/a.txt")
    assert "Content-Length" not in answer.headers


def test_zip_of_nothing_is_404(admin, made, files):
    assert admin.get(files, format="zip").status_code == 404
    assert admin.get(f"{made.scan}/resources/NONE/files", format="zip").status_code == 404


# Several writers


class HalfSent:
    """A PUT of a file whose body is not sent to its end yet."""

    def __init__(self, admin, path: str, body: bytes) -> None:
        where = urlsplit(admin.url)
        self._rest = body[len(body) // 2 :]
        self._socket = socket.create_connection((where.hostname, where.port))
        cookie = admin.http.cookies.get("JSESSIONID")
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nCookie: JSESSIONID={cookie}\r\n"
        head += "Content-Type: application/octet-stream\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        self._socket.sendall(body[: len(body) // 2])
        time.sleep(0.2)

    def finish(self) -> bytes:
        self._socket.sendall(self._rest)
        answer = b""
        while block := self._socket.recv(65536):
            answer += block
        self._socket.close()
        return answer

    def abandon(self) -> None:
        self._socket.close()


def test_point_18_the_second_of_two_writers_of_a_catalog_gets_500(admin, files):
    admin.made(f"{files}/first.txt", b"abc")
    slow = HalfSent(admin, f"{files}/slow.txt", b"slow body")
    admin.made(f"{files}/quick.txt", b"quick")
    answer = slow.finish()
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"ConcurrentModificationException" in answer
    assert paths(admin, files) == ["first.txt", "quick.txt"]
    # The bytes are on disk without an entry, so a retry must overwrite them.
    assert admin.put(f"{files}/slow.txt", b"slow body").json() == {"duplicates": ["slow.txt"]}
    assert admin.put(f"{files}/slow.txt", b"slow body", overwrite="true").text == ""
    assert admin.get(f"{files}/slow.txt").content == b"slow body"


def test_writers_of_different_resources_do_not_disturb_each_other(admin, made, files):
    slow = HalfSent(admin, f"{files}/slow.txt", b"slow body")
    admin.made(f"{made.scan}/resources/OTHER/files/quick.txt", b"quick")
    assert slow.finish().startswith(b"HTTP/1.1 200")


def test_two_writers_make_two_resources_of_one_label(admin, made):
    slow = HalfSent(admin, f"{made.scan}/resources/NEW/files/slow.txt", b"slow body")
    admin.made(f"{made.scan}/resources/NEW/files/quick.txt", b"quick")
    assert slow.finish().startswith(b"HTTP/1.1 200")
    assert [row["label"] for row in admin.rows(f"{made.scan}/resources")] == ["NEW", "NEW"]
    assert len(admin.rows(f"{made.scan}/resources/NEW/files")) == 2
    assert admin.delete(f"{made.scan}/resources/NEW").status_code == 200
    assert admin.rows(f"{made.scan}/resources") == []


def test_a_body_shorter_than_promised_stores_nothing(admin, made, files):
    HalfSent(admin, f"{files}/slow.txt", b"slow body").abandon()
    HalfSent(admin, f"{made.scan}/resources/NEW/files/slow.txt", b"slow body").abandon()
    time.sleep(0.2)
    assert paths(admin, files) == []
    assert [row["label"] for row in admin.rows(f"{made.scan}/resources")] == ["R"]


def test_readers_get_old_or_new_bytes_never_a_mixture(admin, user, files):
    old, new = b"o" * 3_000_000, b"n" * 3_000_000
    admin.made(f"{files}/a.bin", old)
    seen = []

    def read() -> None:
        reader = user("owner")
        for _ in range(8):
            seen.append(reader.get(f"{files}/a.bin").content)

    thread = threading.Thread(target=read)
    thread.start()
    for body in (new, old, new):
        admin.made(f"{files}/a.bin", body, overwrite="true")
    thread.join()
    assert set(seen) <= {old, new}


def test_odd_names_are_refused_without_harm(admin, made, files):
    admin.made(f"{files}/a/b.txt", b"abc")
    assert admin.put(f"{files}/a", b"abc", overwrite="true").status_code == 500
    assert admin.put(f"{files}/a/b.txt/c", b"abc").status_code == 500
    assert admin.put(f"{files}/{'x' * 300}", b"abc").status_code == 500
    assert admin.put(f"{made.scan}/resources/it's").status_code == 400
    assert paths(admin, files) == ["a/b.txt"]


def test_labels_that_differ_in_case_have_folders_of_their_own(admin, made):
    for label in ("SEG", "seg", "Seg"):
        admin.made(f"{made.scan}/resources/{label}/files/a.txt", label.encode())
    for label in ("SEG", "seg", "Seg"):
        assert admin.get(f"{made.scan}/resources/{label}/files/a.txt").text == label


def test_files_move_with_the_label_of_their_session(admin, made, files, xnat_sandbox):
    admin.made(f"{files}/a.txt", b"abc")
    admin.made(made.long, label="renamed")
    assert (xnat_sandbox.folder / "files/P/arc001/renamed/SCANS/1/R/a.txt").read_bytes() == b"abc"
    assert admin.get(f"{made.session}/scans/1/resources/R/files/a.txt").content == b"abc"


def test_a_locked_session_takes_no_files(admin, made, files):
    admin.made(made.long, _lock="true")
    assert admin.put(f"{files}/a.txt", b"abc").status_code == 200
    assert admin.put(f"{made.scan}/resources/NEW").status_code == 403
    admin.made(made.long, _unlock="true")
    assert paths(admin, files) == []


def test_the_digest_follows_a_file_that_is_replaced_by_one_of_its_name_and_size(admin, made):
    files = f"{made.scan}/resources/R/files"
    seen = []
    for content in (b"abc", b"abd"):
        admin.made(f"{files}/a.json", content, overwrite="true")
        (row,) = admin.rows(files)
        catalog = ElementTree.fromstring(admin.get(files.rpartition("/")[0]).text)
        (entry,) = catalog.iter("{http://nrg.wustl.edu/catalog}entry")
        assert row["digest"] == entry.get("digest") == hashlib.md5(content).hexdigest()
        seen.append((row["Name"], row["Size"]))
    assert seen[0] == seen[1]
