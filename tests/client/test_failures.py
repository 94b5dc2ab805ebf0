"""The messages when a connection fails: who said it, what exactly, and what to do. Also, what is sent to whom."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from odd_server import LISTING, OddServer, answer, redirect

from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.rows import read_listing
from monailabel_xnat.client.upload import upload
from monailabel_xnat.errors import AccessDeniedError, ServerError, ServerTimeoutError, SettingsError

TOKEN = "0123abcd-0123-0123-0123-0123456789ab"


@pytest.fixture
def connect(open_session):
    def make(server, sleep=lambda seconds: None, **settings):
        given = {"server": server, "username": "u", "password": "hunter2", **settings}
        return open_session(Backoff(sleep=sleep), **given)

    return make


@pytest.fixture
def server():
    with OddServer() as running:
        yield running


@pytest.fixture
def other():
    with OddServer() as running:
        yield running


def rows(session):
    return session.rows("/data/projects")


# Logins


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_login_is_repeated_when_xnat_is_busy_for_a_moment(xnat_sandbox, connect, status):
    pauses = []
    login = {"username": xnat_sandbox.username, "password": xnat_sandbox.password}
    session = connect(xnat_sandbox.url, pauses.append, **login)
    xnat_sandbox.faults.add("/data/services/auth", status=status, retry_after="3")
    assert rows(session) == []
    assert pauses[0] == pytest.approx(3.0, abs=0.5)
    xnat_sandbox.expire_sessions()
    xnat_sandbox.faults.add("/data/services/auth", drop_after=0)
    assert rows(session) == []


# 504 and long work


def test_what_a_proxy_gave_up_is_not_asked_again_for_xnat_is_still_at_work(server, connect):
    server.behave = lambda connection, request: b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"
    session = connect(server.url)
    for ask in (rows, lambda session: read_listing(session, "/data/experiments", {}, list)):
        with pytest.raises(ServerTimeoutError, match="504"):
            ask(session)
    assert (server.asked("/data/projects"), server.asked("/data/experiments")) == (1, 1)


def test_a_listing_whose_connection_was_dropped_after_long_is_not_asked_again_at_once(server, connect, monkeypatch):
    monkeypatch.setattr("monailabel_xnat.client.patience._AT_WORK", 0.2)

    def drop(connection, request):
        time.sleep(0.4)

    server.behave = drop
    with pytest.raises(ServerError):
        read_listing(connect(server.url), "/data/experiments", {}, list)
    assert server.asked("/data/experiments") == 1


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("username", ["u", TOKEN, ""])
def test_a_login_goes_to_no_other_host_and_the_error_names_it(server, other, connect, status, username):
    target = other.url.replace("127.0.0.1", "localhost")
    server.login = lambda connection, request: redirect(status, f"{target}/data/services/auth")
    settings = {"username": username, "password": "hunter2"} if username else {"username": None, "password": None}
    with pytest.raises(ServerError, match=rf"sends its visitors on to {target}.*give its address"):
        rows(connect(server.url, **settings))
    assert other.requests == []


def test_no_password_is_sent_in_clear_to_a_site_that_moves_everybody_to_https(server, connect, monkeypatch):
    """The server acts as a proxy, so that the site can have the name of another machine."""
    monkeypatch.setenv("http_proxy", server.url)
    everything = lambda connection, request: redirect(301, "https://xnat.example.org/login")  # noqa: E731
    server.login = server.behave = everything
    with pytest.raises(ServerError, match=r"sends its visitors on to https://xnat\.example\.org/login"):
        rows(connect("http://xnat.example.org"))
    assert len(server.requests) == 1
    assert b"hunter2" not in b"".join(server.requests)


def test_where_a_site_has_moved_is_remembered(server, other, connect):
    server.login = server.behave = lambda connection, request: redirect(
        302, other.url + request.split(b" ", 2)[1].decode()
    )
    session = connect(server.url)
    assert len(rows(session)) == len(rows(session)) == 1
    assert len(server.requests) == 1


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")
    for name, host in (("good", "localhost"), ("other", "elsewhere.example")):
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-addext", f"subjectAltName=DNS:{host}"]
        subprocess.run([*make, *files], cwd=folder, check=True, capture_output=True)
    (folder / "none.pem").write_text("nothing")
    return folder


@pytest.fixture
def secure(certificates):
    """Start a server with a certificate, and return its address."""
    running = []

    def start(name, wants_certificate=False):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        if wants_certificate:
            tls.verify_mode = ssl.CERT_REQUIRED
            tls.maximum_version = ssl.TLSVersion.TLSv1_2  # later versions refuse only after the handshake
            tls.load_verify_locations(certificates / "good.pem")
        server = OddServer()
        serve = server._serve

        def serve_securely(connection):
            try:
                serve(tls.wrap_socket(connection, server_side=True))
            except OSError:
                connection.close()

        server._serve = serve_securely
        running.append(server.__enter__())
        return server.url.replace("http://127.0.0.1", "https://localhost")

    yield start
    for server in running:
        server.__exit__()


def test_everything_works_over_tls(secure, certificates, connect):
    assert len(rows(connect(secure("good"), ca_bundle=certificates / "good.pem"))) == 1


@pytest.mark.parametrize(
    ("name", "settings", "reason", "hint"),
    [
        ("good", {}, "self-signed certificate", "ca_bundle"),
        ("other", {"ca_bundle": "other.pem"}, "Hostname mismatch", "for which the certificate was issued"),
        ("wants", {"ca_bundle": "good.pem"}, "ALERT", "setting client_certificate"),
        ("plain", {}, "WRONG_VERSION_NUMBER", "nothing speaks TLS at that port"),
    ],
)
def test_openssl_s_own_reason_is_told(secure, server, certificates, connect, name, settings, reason, hint):
    if name == "plain":
        url = server.url.replace("http:", "https:")

        def answer_without_tls(connection):
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

        server._serve = answer_without_tls
    else:
        url = secure("good" if name == "wants" else name, wants_certificate=name == "wants")
    given = {key: certificates / value for key, value in settings.items()}
    with pytest.raises(ServerError, match=f"{reason}.*{hint}"):
        rows(connect(url, **given))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ca_bundle": "missing.pem"}, "cannot be read: No such file"),
        ({"ca_bundle": "none.pem"}, "OpenSSL cannot use .*none.pem"),
        ({"client_certificate": "missing.pem"}, "cannot be read: No such file"),
        ({"client_certificate": "good.pem"}, "OpenSSL cannot use .*good.pem.*certificate and its key"),
    ],
)
def test_files_with_certificates_are_read_before_anything_is_sent(certificates, connect, settings, reason):
    ((name, file),) = settings.items()
    with pytest.raises(SettingsError, match=rf"setting {name}: .*{reason}|setting {name}: {reason}"):
        connect("https://localhost:9", **{name: certificates / file})


# Proxies


PAGE = b"<html><head><title>%s</title></head><body><center><h1>%s</h1></center><hr>nginx</body></html>"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "The plain HTTP request was sent to HTTPS port"),
        (413, "413 Request Entity Too Large"),
        (414, "414 Request-URI Too Large"),
        (502, "502 Bad Gateway"),
    ],
)
def test_the_error_says_that_a_proxy_answered(server, connect, status, words):
    page = PAGE % (words.encode(), words.encode())
    server.behave = lambda connection, request: answer(page, b"text/html").replace(b"200 OK", b"%d Bad" % status)
    with pytest.raises(ServerError, match=f"a proxy before XNAT answered {status} to GET .*: {words}"):
        rows(connect(server.url))


def test_a_dead_proxy_is_named_without_its_password(connect, monkeypatch):
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:9")
    for scheme in ("http", "https"):
        with pytest.raises(ServerError, match=r"the proxy http://127\.0\.0\.1:9 on the way .*https_proxy") as caught:
            rows(connect(f"{scheme}://xnat.example.org"))
        assert "secret" not in str(caught.value)


def test_a_proxy_that_wants_a_password_is_named(server, connect, monkeypatch):
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, server.url)
    denied = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    server.login = server.behave = lambda connection, request: denied
    with pytest.raises(ServerError, match=r"the proxy on the way to XNAT answered 407.*user name and password"):
        rows(connect("http://xnat.example.org"))
    with pytest.raises(ServerError, match=rf"the proxy {server.url} on the way .* wants user name and password"):
        rows(connect("https://xnat.example.org"))


# Rights


def test_a_guest_is_told_to_log_in(server, connect):
    server.login = lambda connection, request: answer(
        b"guest" if b"/data/auth " in request else b"A" * 32, b"text/plain"
    )
    server.behave = lambda connection, request: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(AccessDeniedError, match="log in: set MONAI_LABEL_XNAT_USERNAME"):
        rows(connect(server.url, username=None, password=None))


def test_for_a_session_that_is_shared_rights_in_the_project_of_its_owner_are_missing(server, connect):
    def behave(connection, request):
        path = request.split(b" ", 2)[1]
        if request.startswith(b"PUT"):
            return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        item = b'{"items": [{"data_fields": {"project": "A"}}]}'
        return answer(item if b"/files" not in path else LISTING.replace(b'{"ID": "P"}', b"").replace(b'"1"', b'"0"'))

    server.behave = behave
    place = "/data/projects/B/subjects/S/experiments/E/scans/1/resources/X"
    with pytest.raises(AccessDeniedError, match=r"in project 'A' .*shared from that project, where rights are missing"):
        upload(connect(server.url), place, "f.nii.gz", b"x", format="NIFTI", content="SEG")
