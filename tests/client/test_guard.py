"""The rules below xnatpy: its own verbs, transfers and objects, with everything that may happen to a request."""

from __future__ import annotations

import gc
import io
import multiprocessing
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LoginError, ServerError, ServerTimeoutError, TransferError

FILES = "/data/projects/P/resources/R/files"
PAGE = b"<!DOCTYPE html>\n<html><body><form action='/search'>A report. Please log in.</form></body></html>"


@pytest.fixture
def connect(xnat_sandbox, open_session):
    xnat_sandbox.archive.create_project("P")

    def make(**settings):
        login = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
        return open_session(Backoff(first_pause=0.01), **{**login, **settings})

    return make


@pytest.fixture
def session(connect):
    session = connect()
    session.request("PUT", "/data/projects/P/resources/R")
    return session


@pytest.fixture
def xnat(session):
    """The xnatpy session that uses the guard."""
    return session.connection


def sent(sandbox, method, path=FILES):
    return [served for served in sandbox.requests if served.method == method and served.path.startswith(path)]


def session_ids(xnat):
    return [cookie.value for cookie in xnat.interface.cookies if cookie.name == "JSESSIONID"]


def a_file(session, name="f.bin", content=b"content"):
    session.request("PUT", f"{FILES}/{name}", body=content)
    return f"{FILES}/{name}"


# Logins


@pytest.mark.parametrize("happens", ["expiry", "login page", "busy", "dropped connection"])
def test_xnatpy_s_transfers_pass_through_what_happens(xnat_sandbox, session, xnat, happens):
    def let_it_happen():
        fault = {"login page": {"login_page": True}, "busy": {"status": 503}, "dropped connection": {"drop_after": 0}}
        if happens == "expiry":
            xnat_sandbox.expire_sessions()
        else:
            xnat_sandbox.faults.add(FILES, **fault[happens])

    let_it_happen()
    xnat.upload_stream(f"{FILES}/up.bin", io.BytesIO(b"up" * 1000), overwrite=True)
    target = io.BytesIO()
    if happens != "dropped connection":  # the caller reads the body of a stream
        let_it_happen()
    xnat.download_stream(f"{FILES}/up.bin", target)
    assert target.getvalue() == b"up" * 1000
    let_it_happen()
    assert [row["Name"] for row in xnat.get_json(FILES)["ResultSet"]["Result"]] == ["up.bin"]


def test_a_new_login_changes_the_one_session_id_in_place(xnat_sandbox, session, xnat):
    ids = []
    for _ in range(3):
        xnat.get_json("/data/projects")
        ids += session_ids(xnat)
        xnat_sandbox.expire_sessions()
    assert len(set(ids)) == len(ids) == 3
    xnat.get_json("/data/projects")
    assert session_ids(xnat) == [xnat.jsession]
    assert xnat.session_expiration_time[1] == 900


def test_the_session_is_the_same_for_the_life_of_the_process(xnat_sandbox, session):
    held = session.connection
    xnat_sandbox.expire_sessions()
    session.rows("/data/projects")
    session.close()
    session.rows("/data/projects")
    assert session.connection is held
    assert held.logged_in_user == "admin"


def test_nothing_is_sent_before_the_first_request_and_no_thread_stays(xnat_sandbox, connect):
    threads = threading.active_count()
    xnat_sandbox.requests.clear()
    session = connect()
    assert len(xnat_sandbox.requests) == 0
    session.rows("/data/projects")
    while threading.active_count() > threads:  # the thread that ends slow requests ends by itself
        assert {thread.name for thread in threading.enumerate()} >= {"xnat-deadlines"}
        time.sleep(0.05)
    assert [served.path for served in xnat_sandbox.requests] == ["/data/services/auth", "/data/auth", "/data/projects"]


def test_disconnecting_logs_out_and_the_garbage_collector_sends_nothing(xnat_sandbox, connect):
    session = connect()
    session.rows("/data/projects")
    session.connection.disconnect()
    assert [served.path for served in xnat_sandbox.requests][-1] == "/data/JSESSION"
    session.rows("/data/projects")
    xnat_sandbox.requests.clear()
    other = connect()
    other.rows("/data/projects")
    xnat_sandbox.requests.clear()
    del other
    gc.collect()
    assert len(xnat_sandbox.requests) == 0


def test_closing_does_not_wait_for_a_server_that_is_away(xnat_sandbox, tmp_path):
    waited = []
    given = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
    settings = Settings.load({**given, "cache_path": tmp_path}, environ={})
    session = Session(settings, Backoff(sleep=waited.append))
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/JSESSION", status=503, times=None)
    session.close()
    assert waited == []


def test_an_authentication_provider_is_named_at_the_login(xnat_sandbox, connect, monkeypatch):
    bodies = []
    send = requests.adapters.HTTPAdapter.send

    def noted(self, request, **options):
        bodies.append(str(request.body))
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", noted)
    connect(auth_provider="localdb").rows("/data/projects")
    assert bodies[0].endswith("provider=localdb")


def disconnect_in_child(session, queue):
    session.connection.disconnect()
    queue.put([row["ID"] for row in session.connection.get_json("/data/projects")["ResultSet"]["Result"]])
    session.connection.disconnect()


def test_a_forked_child_never_ends_its_parent_s_login(xnat_sandbox, session):
    session.rows("/data/projects")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=disconnect_in_child, args=(session, queue))
    child.start()
    assert queue.get(timeout=20) == ["P"]
    child.join(20)
    assert child.exitcode == 0
    xnat_sandbox.requests.clear()
    session.rows("/data/projects")
    assert [served.path for served in xnat_sandbox.requests] == ["/data/projects"]


# Bodies


@pytest.mark.parametrize("happens", ["expiry", "busy"])
def test_a_body_that_cannot_be_rewound_is_sent_once_and_no_more(xnat_sandbox, session, xnat, happens):
    if happens == "expiry":
        xnat_sandbox.expire_sessions()
    else:
        xnat_sandbox.faults.add(FILES, status=503)
    xnat_sandbox.requests.clear()
    started = time.monotonic()
    url = xnat_sandbox.url + f"{FILES}/x.bin"
    headers = {"Content-Type": "application/octet-stream"}

    def send():
        return xnat.interface.put(url, data=iter([b"a", b"b"]), headers=headers)

    if happens == "expiry":
        with pytest.raises(LoginError, match="do it once more") as caught:
            send()
        assert isinstance(caught.value, requests.RequestException)
    else:
        assert send().status_code == 503
    assert len(sent(xnat_sandbox, "PUT")) == 1
    assert time.monotonic() - started < 10
    assert session.rows("/data/projects") != []


def test_transfers_without_a_limit_of_their_own_end_in_time(xnat_sandbox, connect):
    session = connect(timeout=0.5)
    session.rows("/data/projects")
    xnat_sandbox.faults.add("/data/projects/P", delay=3.0, times=None)
    with pytest.raises(requests.Timeout) as caught:
        session.connection.upload_stream(f"{FILES}/x.bin", io.BytesIO(b"x"))
    assert isinstance(caught.value, ServerTimeoutError)
    with pytest.raises(ServerTimeoutError):
        session.connection.download_stream(f"{FILES}/x.bin", io.BytesIO())


@pytest.mark.parametrize("name", ["report.html", "page.htm", "no-ending"])
def test_html_files_in_xnat_can_be_read(session, xnat, name):
    path = a_file(session, name, PAGE)
    target = io.BytesIO()
    xnat.download_stream(path, target)
    assert target.getvalue() == PAGE
    assert xnat.get(path).content == PAGE
    assert session.request("GET", path).content == PAGE
    with session.stream(path) as response:
        assert response.raw.read() == PAGE
    with session.stream(path) as response:
        assert b"".join(response.iter_content(7)) == PAGE


def test_a_long_html_file_comes_whole(session, xnat):
    page = b"<html>" + bytes(range(32, 127)) * 20_000
    path = a_file(session, "long.html", page)
    target = io.BytesIO()
    xnat.download_stream(path, target)
    assert target.getvalue() == page


def test_an_html_file_that_looks_like_a_login_page_is_read_all_the_same(session, xnat):
    page = b"<html><form method='post' action='/login'>saved from somewhere</form></html>"
    assert xnat.get(a_file(session, "saved.html", page)).content == page


def test_a_login_page_is_never_written_as_a_file(xnat_sandbox, session, xnat):
    path = a_file(session)
    xnat_sandbox.faults.add(path, login_page=True, times=None)
    target = io.BytesIO()
    with pytest.raises(ServerError, match="web page"):
        xnat.download_stream(path, target)
    assert target.getvalue() == b""


# Slots


def taken(session):
    return session.pace.summary()["under_way"]


def test_a_slot_is_given_back_at_the_end_of_the_body(session, xnat):
    path = xnat._format_uri(a_file(session))
    response = xnat.interface.get(path, stream=True)
    assert taken(session) == 1
    assert b"".join(response.iter_content(2)) == b"content"
    assert taken(session) == 0


def test_a_slot_is_given_back_at_close_and_when_nobody_holds_the_answer(session, xnat):
    path = xnat._format_uri(a_file(session, content=b"long" * 100_000))
    response = xnat.interface.get(path, stream=True)
    assert taken(session) == 1
    response.close()
    assert taken(session) == 0
    response = xnat.interface.get(path, stream=True)
    assert taken(session) == 1
    del response
    gc.collect()
    assert taken(session) == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_answer_that_nobody_reads_blocks_the_others_until_the_deadline(connect):
    session = connect(connections=1, timeout=1.0)
    session.request("PUT", "/data/projects/P/resources/R")
    path = session.connection._format_uri(a_file(session, content=b"long" * 100_000))
    unread = []
    reader = threading.Thread(target=lambda: unread.append(session.connection.interface.get(path, stream=True)))
    reader.start()
    reader.join()
    started = time.monotonic()
    assert session.rows("/data/projects") != []
    assert 0.5 < time.monotonic() - started < 10
    unread[0].close()


def test_answers_without_body_and_refusals_take_no_slot(session, xnat):
    path = a_file(session)
    assert xnat.head(path).headers["Content-Length"] == "7"
    with pytest.raises(ServerError):
        session.request("GET", f"{FILES}/nothing")
    with pytest.raises(ServerError), session.stream(f"{FILES}/nothing"):
        pass
    assert taken(session) == 0


# Redirects


def test_a_session_of_the_prearchive_is_committed_and_moved(xnat_sandbox, session, xnat, demo_dicom):
    xnat_sandbox.archive.create_project("Q")
    session.request("PUT", "/data/projects/P/prearchive_code/0")
    case = demo_dicom.cases[0].dicom
    (waiting,) = into_prearchive(session, case)
    moved = session.request("POST", waiting, query={"action": "move", "newProject": "Q"})
    assert moved.text.startswith("/data/prearchive/projects/Q/")
    committed = xnat.post(moved.text, query={"action": "commit", "AA": "true"})
    assert committed.text.startswith("/data/archive/projects/Q/subjects/")
    assert session.json(committed.text)["items"][0]["data_fields"]["project"] == "Q"


def into_prearchive(session, folder):
    content = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(content, "w") as packed:
        for number, path in enumerate(sorted(folder.rglob("*.dcm"))[:3]):
            packed.write(path, f"{number}.dcm")
    answer = session.request(
        "POST",
        "/data/services/import",
        query={"dest": "/prearchive/projects/P", "import-handler": "DICOM-zip"},
        body=content.getvalue(),
        headers={"Content-Type": "application/zip"},
    )
    return answer.text.split()


@pytest.fixture
def moved_site(xnat_sandbox):
    """The address that a site had before. Everything is redirected to the same path at another port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def redirect(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(302)
            self.send_header("Location", xnat_sandbox.url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_DELETE = redirect  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_written_to_a_site_that_has_moved_arrives_whole(connect, moved_site):
    session = connect(server=moved_site)
    session.request("PUT", "/data/projects/P/resources/R")
    path = a_file(session, content=b"whole")
    assert session.request("GET", path).content == b"whole"


# Errors


def test_errors_of_the_adapter_are_ours_and_those_of_requests(xnat_sandbox, connect):
    session = connect(password="wrong")
    for call in (session.connection.get_json, session.rows):
        with pytest.raises(LoginError, match="refused the login of user 'admin'") as caught:
            call("/data/projects")
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.status, again.url) == (str(caught.value), 401, xnat_sandbox.url)
        assert isinstance(caught.value, requests.RequestException) == (call != session.rows)
    assert type(caught.value) is LoginError


def test_a_connection_that_cannot_be_made_is_both_as_well(connect, moved_site):
    session = connect(server="http://127.0.0.1:9")
    with pytest.raises(requests.ConnectionError) as caught:
        session.connection.get_json("/data/projects")
    assert isinstance(caught.value, ServerError)
    assert not isinstance(caught.value, TransferError)
