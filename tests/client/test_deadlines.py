"""Requests that make no progress end in time, with one error, whatever the server does."""

from __future__ import annotations

import io
import socket
import sys
import time
from pathlib import Path

import pytest
import requests
import xnat

sys.path.insert(0, str(Path(__file__).parent))

from odd_server import LISTING, OddServer, answer, drip

from monailabel_xnat.client.download import download_file
from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.pace import Pace
from monailabel_xnat.client.rows import read_listing
from monailabel_xnat.errors import ServerTimeoutError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def connect(open_session):
    def make(server, owner=None, **settings):
        given = {"server": server, "username": "u", "password": "pw", "deadline": 1.0, "timeout": 1.5}
        return open_session(owner=owner, **{**given, **settings})

    return make


@pytest.fixture
def server():
    with OddServer() as running:
        yield running


def takes(call, least=0.5, most=3.0):
    """Make a call that must end with an error, and return the error."""
    started = time.monotonic()
    with pytest.raises((ServerTimeoutError, requests.Timeout)) as caught:
        call()
    assert least <= time.monotonic() - started < most
    return caught.value


def rows(session):
    return session.rows("/data/projects")


def test_dropped_packets_cost_the_deadline_once(connect):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        address = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for other in waiting:
            other.setblocking(False)
            other.connect_ex(address)
        session = connect(f"http://127.0.0.1:{address[1]}")
        takes(lambda: rows(session))
        for other in waiting:
            other.close()


def silent(connection, request):
    time.sleep(6)


def stalls_in_the_body(connection, request):
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + LISTING[:20])
    time.sleep(6)


def drips_headers(connection, request):
    connection.sendall(HEAD)
    drip(connection, b"X-Long: " + b"x" * 1000)


def drips_a_body(connection, request):
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
    drip(connection, b" " * 1000)


def drips_chunks(connection, request):
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\n \r\n")
        time.sleep(0.2)


def drips_to_the_end(connection, request):
    connection.sendall(HEAD + b"Connection: close\r\n\r\n")
    drip(connection, LISTING + b" " * 1000)


ODD = [silent, stalls_in_the_body, drips_headers, drips_a_body, drips_chunks, drips_to_the_end]


@pytest.mark.parametrize("behave", ODD)
@pytest.mark.parametrize("ask", ["json", "listing", "file", "xnatpy"])
def test_a_request_that_makes_no_progress_ends_in_time_and_is_not_repeated(server, connect, behave, ask):
    session = connect(server.url)
    session.user  # noqa: B018 - the login is made
    server.behave = behave
    remote = RemoteFile("f", None, "", "/data/projects")
    ways = {
        "json": lambda: rows(session),
        "listing": lambda: read_listing(session, "/data/projects", {}, list),
        "file": lambda: download_file(session, remote, session.settings.cache_path / "f"),
        "xnatpy": lambda: session.connection.download_stream("/data/projects", io.BytesIO()),
    }
    takes(ways[ask])
    assert server.asked("/data/projects") == 1


@pytest.mark.parametrize("behave", [silent, drips_headers, drips_a_body])
def test_a_login_that_makes_no_progress_ends_in_time(server, connect, behave):
    server.login = behave
    takes(lambda: rows(connect(server.url)))


@pytest.mark.parametrize("behave", [silent, drips_headers, drips_a_body])
def test_beside_a_session_of_somebody_else_requests_end_in_time_as_well(server, connect, behave):
    given = {"user": "u", "password": "pw", "no_parse_model": True, "loglevel": "CRITICAL"}
    with xnat.connect(server.url, **given, detect_redirect=False) as owner:
        session = connect(server.url, owner=owner, username=None, password=None)
        server.behave = behave
        takes(lambda: rows(session))
        server.behave = lambda connection, request: answer(LISTING)


def test_an_upload_that_nobody_reads_ends_in_time(connect):
    with OddServer() as odd:
        session = connect(odd.url)
        session.user  # noqa: B018 - the login is made
        odd._read = lambda connection: time.sleep(6) or b""
        session._sockets.close()
        takes(lambda: session.request("PUT", "/data/x", body=bytes(50_000_000)))


def test_a_transfer_that_moves_may_take_longer_than_the_deadline(server, connect):
    def slow(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n")
        for _ in range(6):
            connection.sendall(bytes(100_000))
            time.sleep(0.3)
        return b""

    server.behave = slow
    session = connect(server.url, deadline=0.8)
    with session.stream("/data/f") as response:
        assert len(b"".join(response.iter_content(1 << 20))) == 600_000
    assert len(session.request("GET", "/data/f").content) == 600_000


def test_a_slow_reader_is_not_treated_as_a_slow_server(server, connect):
    session = connect(server.url, deadline=0.3)
    server.behave = lambda connection, request: answer(bytes(300_000), b"application/octet-stream")
    with session.stream("/data/f") as response:
        parts = response.iter_content(100_000)
        first = next(parts)
        time.sleep(0.8)
        assert len(first + b"".join(parts)) == 300_000


@pytest.mark.slow
def test_a_server_that_was_silent_twice_is_left_alone_for_a_moment(server, connect):
    session = connect(server.url, deadline=3.0, timeout=5.0)
    session.user  # noqa: B018 - the login is made
    server.behave = silent
    takes(lambda: rows(session), least=2.5, most=4.5)
    takes(lambda: rows(session), least=1.5, most=2.9)
    error = takes(lambda: rows(session), least=0.0, most=0.5)
    assert "silent twice in a row" in str(error)
    assert server.asked("/data/projects") == 2


def test_one_slow_answer_does_not_make_a_server_silent():
    times = iter(range(100))
    pace = Pace(4, clock=lambda: next(times))
    since = pace.now()
    pace.answered()
    pace.was_silent(since)
    assert pace.patience(45.0) == 45.0
    pace.was_silent(pace.now())
    assert pace.patience(45.0) == 15.0
    pace.admit()
    pace.answered()
    assert pace.patience(45.0) == 45.0


def test_long_work_of_xnat_gets_more_time(server, connect):
    def busy(connection, request):
        time.sleep(1.0)
        return answer(LISTING)

    session = connect(server.url, deadline=0.5, timeout=4.0)
    server.behave = busy
    assert len(read_listing(session, "/data/experiments", {}, list)) == 1
    takes(lambda: rows(session), least=0.3, most=0.9)
