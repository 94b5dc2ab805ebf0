"""The connection: logins that expire, servers that fail for a moment, and errors that say what to do."""

from __future__ import annotations

import multiprocessing
import socket
import threading

import pytest
import requests

from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import quoted
from monailabel_xnat.errors import (
    AccessDeniedError,
    LoginError,
    NotInArchiveError,
    ServerError,
    ServerTimeoutError,
    TransferError,
)
from monailabel_xnat.sandbox import Sandbox


@pytest.fixture
def sandbox():
    with Sandbox() as running:
        running.archive.create_project("P")
        yield running


@pytest.fixture
def open_sandbox():
    with Sandbox(require_login=False) as running:
        running.archive.create_project("PRIVATE")
        running.archive.create_project("PUBLIC", accessibility="public")
        yield running


@pytest.fixture
def connect(tmp_path, open_session):
    def make(server, username=None, password=None, sleep=lambda seconds: None, **settings):
        given = {"server": server, "username": username, "password": password, **settings}
        return open_session(Backoff(sleep=sleep), environ={"NETRC": str(tmp_path / "none")}, **given)

    return make


@pytest.fixture
def session(sandbox, connect):
    return connect(sandbox.url, sandbox.username, sandbox.password)


def projects(session):
    return [row["ID"] for row in session.rows("/data/projects")]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_one_login_serves_many_requests(sandbox, session):
    for _ in range(5):
        assert projects(session) == ["P"]
    logins = [served for served in sandbox.requests if served.path == "/data/services/auth"]
    assert len(logins) == 1
    assert session.user == "admin"


def test_an_expired_login_is_renewed_once_and_the_request_repeated(sandbox, session):
    assert projects(session) == ["P"]
    sandbox.expire_sessions()
    sandbox.requests.clear()
    assert projects(session) == ["P"]
    assert [served.path for served in sandbox.requests].count("/data/services/auth") == 1


def test_many_threads_with_an_expired_login_log_in_once(sandbox, session):
    projects(session)
    sandbox.expire_sessions()
    sandbox.requests.clear()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(projects(session))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["P"]] * 8
    assert [served.path for served in sandbox.requests].count("/data/services/auth") == 1


def test_a_login_page_answered_with_200_is_taken_for_an_expired_login(sandbox, session):
    projects(session)
    sandbox.faults.add("/data/projects", login_page=True)
    assert projects(session) == ["P"]


def test_login_pages_for_ever_are_an_error_and_never_data(sandbox, session):
    projects(session)
    sandbox.faults.add("/data/projects", login_page=True, times=None)
    with pytest.raises(ServerError, match="web page"):
        projects(session)


def test_on_an_open_site_an_expired_login_does_not_turn_into_a_guest(open_sandbox, connect):
    session = connect(open_sandbox.url, open_sandbox.username, open_sandbox.password)
    assert projects(session) == ["PRIVATE", "PUBLIC"]
    open_sandbox.expire_sessions()
    assert projects(session) == ["PRIVATE", "PUBLIC"]


def test_without_credentials_an_open_site_is_read_as_guest(open_sandbox, connect):
    session = connect(open_sandbox.url)
    assert projects(session) == ["PUBLIC"]
    assert session.user == "guest"


def test_a_closed_site_tells_a_guest_how_to_log_in(sandbox, connect):
    with pytest.raises(LoginError, match="MONAI_LABEL_XNAT_USERNAME"):
        projects(connect(sandbox.url))


def test_a_wrong_password_names_user_and_server_but_not_the_password(sandbox, connect):
    with pytest.raises(LoginError, match="admin") as caught:
        projects(connect(sandbox.url, "admin", "hunter2"))
    assert sandbox.url in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_alias_token_logs_in(sandbox, connect):
    auth = (sandbox.username, sandbox.password)
    token = requests.get(f"{sandbox.url}/data/services/tokens/issue", auth=auth, timeout=10).json()
    session = connect(sandbox.url, token["alias"], token["secret"])
    assert projects(session) == ["P"]
    assert session.user == "admin"


def test_a_server_that_is_not_there_is_named(connect):
    server = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=server):
        projects(connect(server, "ann", "pw"))


def test_a_path_without_an_xnat_is_named(sandbox, connect):
    with pytest.raises(ServerError, match="no XNAT at"):
        projects(connect(f"{sandbox.url}/elsewhere", sandbox.username, sandbox.password))


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_passing_failure_is_repeated(sandbox, session, status):
    projects(session)
    sandbox.faults.add("/data/projects", status=status, times=2)
    assert projects(session) == ["P"]


def test_the_server_s_wish_to_wait_is_honoured(sandbox, connect):
    pauses = []
    session = connect(sandbox.url, sandbox.username, sandbox.password, sleep=pauses.append)
    projects(session)
    sandbox.faults.add("/data/projects", status=503, retry_after="7")
    assert projects(session) == ["P"]
    assert pauses == [pytest.approx(7, abs=0.5)]


def test_a_server_that_wants_a_long_pause_counts_as_away(sandbox, session):
    projects(session)
    sandbox.faults.add("/data/projects", status=503, retry_after="3600", times=None)
    with pytest.raises(ServerError, match="503"):
        projects(session)


def test_a_lasting_failure_ends_after_a_few_attempts_with_growing_pauses(sandbox, connect):
    pauses = []
    session = connect(sandbox.url, sandbox.username, sandbox.password, sleep=pauses.append)
    projects(session)
    sandbox.faults.add("/data/projects", status=502, times=None)
    with pytest.raises(ServerError, match="502"):
        projects(session)
    assert len(pauses) == 3
    assert pauses[0] < pauses[1] < pauses[2]


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, AccessDeniedError), (404, NotInArchiveError), (500, ServerError), (504, ServerTimeoutError)],
)
def test_an_answer_is_not_asked_for_again(sandbox, session, status, error):
    projects(session)
    sandbox.faults.add("/data/projects", status=status, times=None)
    sandbox.requests.clear()
    with pytest.raises(error) as caught:
        projects(session)
    assert caught.value.status == status
    assert len([served for served in sandbox.requests if served.path == "/data/projects"]) == 1


def test_a_post_is_never_repeated(sandbox, session):
    projects(session)
    sandbox.faults.add("/data/services/import", status=503, times=None)
    sandbox.requests.clear()
    with pytest.raises(ServerError):
        session.request("POST", "/data/services/import", body=b"x")
    assert len([served for served in sandbox.requests if served.method == "POST"]) == 1


def test_a_dropped_connection_is_asked_again(sandbox, session):
    projects(session)
    sandbox.faults.add("/data/projects", drop_after=0)
    assert projects(session) == ["P"]


def test_a_download_that_breaks_off_is_a_transfer_error(sandbox, session):
    projects(session)
    sandbox.faults.add("/data/projects", drop_after=5, times=None)
    with pytest.raises(TransferError, match="broke off"), session.stream("/data/projects") as response:
        response.content  # noqa: B018 - reading it is the point


def test_a_silent_server_times_out(sandbox, connect):
    session = connect(sandbox.url, sandbox.username, sandbox.password, timeout=0.3)
    projects(session)
    sandbox.faults.add("/data/projects", delay=1.0, times=None)
    with pytest.raises(ServerTimeoutError, match="no answer"):
        projects(session)


def test_closing_logs_out_and_a_later_request_logs_in_again(sandbox, session):
    projects(session)
    session.close()
    assert [served.method for served in sandbox.requests if served.path == "/data/JSESSION"][-1] == "DELETE"
    assert projects(session) == ["P"]


def ask_in_child(session, queue):
    queue.put(projects(session))
    session.close()


def test_a_forked_child_opens_a_session_of_its_own(sandbox, session):
    projects(session)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=ask_in_child, args=(session, queue))
    child.start()
    assert queue.get(timeout=20) == ["P"]
    child.join(20)
    sandbox.requests.clear()
    assert projects(session) == ["P"]
    assert [served.path for served in sandbox.requests] == ["/data/projects"]


def test_paths_are_encoded_part_by_part():
    assert quoted("data", "projects", "a b/ü") == "/data/projects/a%20b%2F%C3%BC"
