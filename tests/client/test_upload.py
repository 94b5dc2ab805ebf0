from __future__ import annotations

import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest

from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, project_of, remove_file, upload, upload_files, writing
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, ServerError, TransferError
from monailabel_xnat.sandbox import Sandbox


@pytest.fixture(scope="module")
def archive():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def open_as(archive, open_session):
    def open_as(username="admin") -> Session:
        login = {"server": archive.url, "username": username, "password": archive.users[username]}
        return open_session(Backoff(first_pause=0.01), **login)

    yield open_as
    archive.faults.clear()


@pytest.fixture
def session(open_as):
    return open_as()


@pytest.fixture
def resource(session):
    """The label of a resource that does not exist yet, in a project of its own."""
    project = f"/data/projects/U{secrets.token_hex(4)}"
    session.request("PUT", project)
    return f"{project}/resources/FILES"


def put(session, resource, name="a.txt", source=b"content", **options):
    return upload(session, resource, name, source, format="TEXT", content="TEST", **options)


def writes(archive):
    return [entry for entry in archive.requests if entry.method == "PUT" and "/files/" in entry.path]


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_file_is_stored_and_read_back(session, resource, tmp_path, kind):
    (tmp_path / "source").write_bytes(b"content")
    stored = put(session, resource, source=b"content" if kind == "bytes" else tmp_path / "source")
    assert (stored.path, stored.size, stored.md5) == ("a.txt", 7, hashlib.md5(b"content").hexdigest())
    assert session.request("GET", stored.uri).content == b"content"


def test_what_is_there_already_is_not_sent_again(session, resource, archive):
    put(session, resource)
    before = len(writes(archive))
    put(session, resource)
    assert len(writes(archive)) == before


def test_another_file_of_the_name_is_replaced_only_on_demand(session, resource):
    put(session, resource)
    with pytest.raises(TransferError, match=r"already holds another file a\.txt"):
        put(session, resource, source=b"other")
    assert session.request("GET", f"{resource}/files/a.txt").content == b"content"
    put(session, resource, source=b"other", overwrite=True)
    assert session.request("GET", f"{resource}/files/a.txt").content == b"other"


def test_several_files_cost_one_listing_before_and_one_after(session, resource, archive):
    uploads = [Upload(f"{n}.txt", b"content", "TEXT", "TEST") for n in range(3)]
    put(session, resource, "first.txt")
    before = len(list(archive.requests))
    listing = upload_files(session, resource, uploads)
    assert {file.path for file in listing} == {"first.txt", "0.txt", "1.txt", "2.txt"}
    assert len(list(archive.requests)) - before == 2 + 3


def test_a_resource_is_made_once(session, resource):
    for n in range(3):
        put(session, resource, f"{n}.txt")
    parent = resource.rpartition("/")[0]
    assert [row["label"] for row in session.rows(parent)] == ["FILES"]


def test_threads_that_write_at_once_make_one_resource_with_all_files(session, open_as, resource):
    sessions = [session, open_as(), open_as()]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: put(sessions[n % 3], resource, f"{n}.txt"), range(12)))
    assert len(list_files(session, resource)) == 12
    assert len(session.rows(resource.rpartition("/")[0])) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_user_who_may_not_write_gets_an_error(session, open_as, resource, archive, exists):
    if exists:  # then XNAT answers 200 and stores nothing
        put(session, resource, "other.txt")
    project = project_of(resource)
    session.request("PUT", f"/data/projects/{project}/accessibility/public")
    reader = open_as("collaborator")
    with pytest.raises(AccessDeniedError, match=rf"'collaborator' has no permission to edit in project '{project}'"):
        put(reader, resource)


def test_a_lost_write_is_sent_again(session, resource, archive):
    archive.faults.add("/files/", method="PUT", lose=True, times=2)
    put(session, resource)
    assert len(list_files(session, resource)) == 1


def test_a_500_is_looked_at_and_repeated_with_overwrite(session, resource, archive):
    archive.faults.add("/files/", method="PUT", status=500, times=1)
    put(session, resource)
    assert session.request("GET", f"{resource}/files/a.txt").content == b"content"


def test_a_500_that_stays_is_raised(session, resource, archive):
    archive.faults.add("/files/", method="PUT", status=500, times=None)
    with pytest.raises(ServerError, match="500"):
        put(session, resource)


@pytest.mark.parametrize("status", [413, 404])
def test_a_refusal_is_not_repeated(session, resource, archive, status):
    archive.faults.add("/files/", method="PUT", status=status, times=None)
    before = len(writes(archive))
    with pytest.raises(ServerError, match=str(status)):
        put(session, resource)
    assert len(writes(archive)) - before == 1


def test_an_object_that_does_not_exist_is_an_error(session):
    with pytest.raises(NotInArchiveError):
        put(session, "/data/projects/NONE/resources/FILES")


def test_only_the_file_meant_is_deleted(session, resource):
    for name in ("a.nii", "a.nii.gz", "b"):
        put(session, resource, name)
    listing = {file.path: file for file in list_files(session, resource)}
    with pytest.raises(ServerError, match=r"a\.nii\.gz as well"):
        remove_file(session, listing["a.nii"], list(listing.values()))
    remove_file(session, listing["a.nii.gz"], list(listing.values()))
    assert {file.path for file in list_files(session, resource)} == {"a.nii", "b"}
    remove_file(session, listing["b"], [])
    remove_file(session, listing["b"], [])


def test_a_writer_may_enter_its_own_resource_again(session, resource):
    with writing(session.settings, resource), writing(session.settings, resource):
        put(session, resource)


@pytest.mark.parametrize(
    ("path", "project"),
    [("/data/projects/P%20x/subjects/S", "P x"), ("/data/projects/P", "P"), ("/data/experiments/E", "")],
)
def test_the_project_of_a_path(path, project):
    assert project_of(path) == project
