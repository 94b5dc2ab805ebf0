"""Facts about xnatpy that we handle in another way: each row of docs/xnatpy.md, shown on xnatpy alone.

If a test fails here, xnatpy has fixed the problem. Then the exception and its row can be removed.
"""

from __future__ import annotations

import getpass
import io
import multiprocessing
import re
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import requests
import xnat
from xnat.core import XNATBaseListing
from xnat.exceptions import XNATError, XNATResponseError, XNATUploadError, XNATValueError

DOCUMENT = Path(__file__).parents[2] / "docs" / "xnatpy.md"
FILES = "/data/projects/P/resources/R/files"
PAGE = b"<!DOCTYPE html>\n<html>A report</html>"

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def site(xnat_sandbox):
    xnat_sandbox.archive.create_project("P")
    return xnat_sandbox


@pytest.fixture
def connect(site):
    opened = []

    def connect(**options):
        given = {"user": site.username, "password": site.password, "loglevel": "CRITICAL", "no_parse_model": True}
        opened.append(xnat.connect(site.url, **{**given, **options}))
        return opened[-1]

    yield connect
    for session in opened:
        try:
            session.disconnect()
        except (XNATError, requests.RequestException):  # its login is gone
            session._server = None
            session.disconnect()


@pytest.fixture
def plain(connect):
    """A plain session of xnatpy, without our code."""
    session = connect()
    session.put("/data/projects/P/resources/R")
    return session


@pytest.fixture
def with_model(connect, site):
    site.archive.seed_sessions("P", sessions=2, scans=2)
    session = connect(no_parse_model=False)
    site.requests.clear()
    return session


def asked(site):
    return [f"{served.method} {served.path}" for served in site.requests]


def test_every_row_names_a_test_of_this_file_and_every_test_has_a_row():
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", text)
    here = {name for name in globals() if name.startswith("test_")}
    assert set(named) == {name for name in here if not name.startswith("test_every_row_")}
    assert f"xnatpy {version('xnat')}" in text


def test_every_row_names_a_line_of_code():
    folder = Path(xnat.__file__).parent
    places = re.findall(r"`(\w+\.py):(\d+)`", DOCUMENT.read_text(encoding="utf-8"))
    assert len(places) > 20
    for file, number in places:
        line = (folder / file).read_text(encoding="utf-8").splitlines()[int(number) - 1].strip()
        assert line, f"{file}:{number}"
        assert not line.startswith("#"), f"{file}:{number}"


def test_connect_takes_no_certificate_authority(connect):
    assert connect(verify="/some/authority.pem").interface.verify is True


def test_connect_asks_for_a_password_at_the_terminal(connect, monkeypatch, tmp_path):
    prompts = []
    monkeypatch.delenv("XNATPY_PASS", raising=False)
    monkeypatch.delenv("XNAT_PASS", raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: prompts.append(prompt) or "wrong")
    with pytest.raises(XNATError):
        connect(user="ann", password=None, netrc_file=str(tmp_path / "none"))
    assert prompts


def test_connect_loads_the_whole_data_model_at_once(with_model, connect, site):
    connect(no_parse_model=False)
    assert len(asked(site)) > 20


def test_an_expired_login_ends_a_session_and_its_objects(plain, site):
    site.expire_sessions()
    for _ in range(2):
        with pytest.raises(XNATResponseError, match="401"):
            plain.get("/data/projects")


def disconnect(session):
    session.disconnect()


def test_disconnecting_a_forked_child_ends_the_login_of_its_parent(plain):
    child = multiprocessing.get_context("fork").Process(target=disconnect, args=(plain,))
    child.start()
    child.join(30)
    with pytest.raises(XNATResponseError, match="401"):
        plain.get("/data/projects")


def test_a_session_that_is_garbage_logs_out(plain, site):
    site.requests.clear()
    plain.__del__()  # as the garbage collector does
    assert asked(site) == ["DELETE /data/JSESSION"]


def test_a_heartbeat_that_fails_is_the_last(plain, site):
    plain.keepalive = 1
    site.faults.add("/data/JSESSION", status=503)
    time.sleep(2.5)
    assert not plain._keepalive_thread.is_alive()


def test_keepalive_true_means_every_second(plain):
    plain.keepalive = True
    assert plain._keepalive_interval == 1
    plain.keepalive = False


def test_a_busy_server_is_not_asked_again(plain, site):
    site.faults.add("/data/projects", status=503, retry_after="1")
    with pytest.raises(XNATResponseError, match="503"):
        plain.get("/data/projects")


def test_a_stored_html_file_is_taken_for_an_error(plain):
    plain.upload_string(f"{FILES}/report.html", PAGE)
    with pytest.raises(XNATResponseError, match="Invalid content"):
        plain.get(f"{FILES}/report.html")


def test_verbs_read_every_body_as_text(plain, monkeypatch):
    plain.upload_string(f"{FILES}/image.nii", bytes(range(256)))
    read = []
    text = requests.Response.text
    monkeypatch.setattr(requests.Response, "text", property(lambda self: read.append(self.url) or text.fget(self)))
    plain.get(f"{FILES}/image.nii")
    assert read


def test_a_login_page_is_written_as_the_file(plain, site):
    plain.upload_string(f"{FILES}/image.nii", b"image")
    site.faults.add(FILES, login_page=True)
    target = io.BytesIO()
    plain.download_stream(f"{FILES}/image.nii", target)
    assert b"Log in to XNAT" in target.getvalue()


def test_downloads_do_not_say_when_the_file_was_stored(plain):
    plain.upload_string(f"{FILES}/drawing.dcm", b"drawing")
    assert plain.download_stream(f"{FILES}/drawing.dcm", io.BytesIO()) is None


def test_transfers_have_no_limit_of_time(plain, monkeypatch):
    limits = []
    request = requests.Session.request

    def noted(self, method, url, **options):
        limits.append(options.get("timeout"))
        return request(self, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", noted)
    plain.upload_string(f"{FILES}/a", b"a")
    plain.download_stream(f"{FILES}/a", io.BytesIO())
    assert limits == [None, None]


def test_an_upload_that_xnat_ignored_is_a_success(plain, site):
    site.faults.add(FILES, method="PUT", lose=True)
    plain.upload_string(f"{FILES}/lost", b"lost")
    assert plain.get_json(FILES)["ResultSet"]["Result"] == []


def test_a_refused_upload_does_not_say_its_status(plain):
    with pytest.raises(XNATUploadError) as caught:
        plain.upload_string("/data/projects/NONE/resources/R/files/f", b"f")
    assert not hasattr(caught.value, "status_code")


def test_the_error_for_text_that_is_not_json_holds_the_whole_answer(plain):
    plain.upload_string(f"{FILES}/words.txt", b"words of a patient")
    with pytest.raises(XNATValueError, match="words of a patient"):
        plain.get_json(f"{FILES}/words.txt")


def test_a_redirect_to_an_archived_session_is_followed_to_its_page(plain, demo_dicom, site):
    site.import_dicom(demo_dicom.cases[0].dicom, "P")
    plain.put("/data/projects/P/prearchive_code/0")
    waiting = into_prearchive(plain, demo_dicom.cases[1].dicom)
    with pytest.raises(XNATResponseError, match="Invalid content"):
        plain.post(waiting, query={"action": "commit", "AA": "true"})


def into_prearchive(session, folder):
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, path in enumerate(sorted(folder.rglob("*.dcm"))[:2]):
            archive.write(path, f"{number}.dcm")
    query = {"dest": "/prearchive/projects/P", "import-handler": "DICOM-zip"}
    options = {"method": "post", "query": query, "content_type": "application/zip"}
    return session.upload_stream("/data/services/import", packed, **options).text.strip()


def test_objects_ask_once_for_each_of_them(with_model, site):
    scans = [scan for session in with_model.projects["P"].experiments.values() for scan in session.scans.values()]
    site.requests.clear()
    assert len({scan.series_description for scan in scans}) > 0
    assert len(asked(site)) == len(scans) == 4


def test_listings_are_never_forgotten(with_model):
    before = len(XNATBaseListing.__ALL_LISTINGS__)
    for _ in range(100):
        with_model.projects["P"].clearcache()
        assert with_model.projects["P"].experiments is not None
    assert len(XNATBaseListing.__ALL_LISTINGS__) >= before + 100


def test_a_resource_is_made_with_three_requests_and_without_content(with_model, site):
    project = with_model.projects["P"]
    site.requests.clear()
    project.create_resource("NEW")
    assert len(asked(site)) == 3
    with pytest.raises(TypeError):
        project.create_resource("OTHER", content="SEG")


def test_a_session_is_made_by_listing_its_project_first(with_model, site):
    subject = with_model.projects["P"].subjects[0]
    with_model.clearcache()
    site.requests.clear()
    with_model.classes.CtSessionData(parent=subject, label="made")
    assert "GET /data/archive/projects/P/experiments" in asked(site) or "GET /data/projects/P/experiments" in asked(
        site
    )


def test_a_folder_is_downloaded_without_comparing_anything(with_model, site, demo_dicom, tmp_path):
    site.import_dicom(demo_dicom.cases[0].dicom, "P")
    with_model.projects["P"].clearcache()
    resources = [
        scan.resources["DICOM"]
        for session in with_model.projects["P"].experiments.values()
        for scan in session.scans.values()
        if session.label.startswith(demo_dicom.cases[0].subject)
    ]
    site.requests.clear()
    resources[0].download_dir(str(tmp_path), verbose=False)
    assert len(asked(site)) == 1
