"""The server itself: data on disk, restarts, kills, users, locks, faults, the log and the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from monailabel_xnat.sandbox import Sandbox

SERVE = """
import sys
from monailabel_xnat.sandbox import Sandbox
sandbox = Sandbox(sys.argv[1], users={"admin": "pw"})
sandbox.listen()
print(sandbox.url, flush=True)
sandbox.serve()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def put(sandbox_or_url, path, user=("admin", "pw"), **options):
    url = getattr(sandbox_or_url, "url", sandbox_or_url)
    return requests.put(f"{url}{path}", auth=user, timeout=30, **options)


def get(sandbox_or_url, path, user=("admin", "pw"), **options):
    url = getattr(sandbox_or_url, "url", sandbox_or_url)
    return requests.get(f"{url}{path}", auth=user, timeout=30, **options)


def fill(url):
    assert put(url, "/data/projects/P").status_code == 200
    assert put(url, "/data/projects/P/subjects/s/experiments/e?xsiType=xnat:mrSessionData").status_code == 201
    headers = {"Content-Type": "application/octet-stream"}
    path = "/data/projects/P/experiments/e/resources/R/files/a.txt"
    assert put(url, path, data=b"kept", headers=headers).status_code == 200


def check(url):
    assert get(url, "/data/projects/P/experiments/e/resources/R/files/a.txt").content == b"kept"
    assert get(url, "/data/projects/P/experiments").json()["ResultSet"]["totalRecords"] == "1"


# Data on disk


def test_data_survives_a_restart(folder):
    for attempt in range(2):
        with Sandbox(folder, users={"admin": "pw"}) as sandbox:
            if attempt == 0:
                fill(sandbox.url)
            check(sandbox.url)
            assert put(sandbox, f"/data/projects/P{attempt}").status_code == 200
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_data_survives_a_kill(folder):
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        fill(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with Sandbox(folder, users={"admin": "pw"}) as sandbox:
        check(sandbox.url)
        assert put(sandbox, "/data/projects/P/subjects/t").text == "XNAT_S00002"


@pytest.mark.parametrize("exists", [False, True])
def test_it_starts_at_once(folder, exists):
    if exists:
        with Sandbox(folder) as sandbox:
            sandbox.archive.create_project("P")
            sandbox.archive.seed_sessions("P", 2000, 2)
    started = time.process_time()
    with Sandbox(folder):
        seconds = time.process_time() - started
    assert seconds < 1


def test_a_temporary_archive_is_removed():
    with Sandbox() as sandbox:
        folder = sandbox.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_folder_that_others_can_read_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="0700"):
        Sandbox(folder)


def test_two_sandboxes_do_not_share_a_folder(folder):
    with Sandbox(folder), pytest.raises(BlockingIOError, match="another sandbox"):
        Sandbox(folder)
    with Sandbox(folder):
        pass


def test_another_format_is_refused(folder):
    with Sandbox(folder) as sandbox, sandbox.archive.store.write() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="format 99"):
        Sandbox(folder)


# Users


def test_passwords_are_made_once_and_outlive_a_restart(folder):
    with Sandbox(folder) as sandbox:
        made = dict(sandbox.users)
        assert set(made) == {"admin", "owner", "member", "collaborator", "none"}
        assert len(set(made.values())) == 5
    with Sandbox(folder) as sandbox:
        assert sandbox.users == {}
        assert set(sandbox.logins) == set(made)
        for login, password in made.items():
            assert get(sandbox, "/data/auth", (login, password)).text == f"User '{login}' is logged in"
        with pytest.raises(LookupError, match="only its hash"):
            _ = sandbox.password


def test_a_given_password_replaces_the_old_one(folder):
    with Sandbox(folder, users={"owner": "one", "ann": "x"}) as sandbox:
        assert get(sandbox, "/data/auth", ("ann", "x")).status_code == 200
    with Sandbox(folder, users={"owner": "two"}) as sandbox:
        assert get(sandbox, "/data/auth", ("owner", "one")).status_code == 401
        assert get(sandbox, "/data/auth", ("owner", "two")).status_code == 200
        assert get(sandbox, "/data/auth", ("ann", "x")).status_code == 200


@pytest.mark.parametrize("users", [{"": "x"}, {"a": ""}, {"guest": "x"}, {"a:b": "x"}])
def test_logins_that_are_refused(folder, users):
    with pytest.raises(ValueError, match="cannot make user"):
        Sandbox(folder, users=users)
    Sandbox(folder).stop()


def test_no_password_is_on_disk(folder):
    with Sandbox(folder, users={"owner": "a-very-special-password"}) as sandbox:
        token = get(sandbox, "/data/services/tokens/issue", ("owner", "a-very-special-password")).json()["secret"]
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"a-very-special-password" not in file.read_bytes()
            assert sandbox.password.encode() not in file.read_bytes()
            assert token.encode() not in file.read_bytes()


# Many at once


def test_many_threads_at_once(xnat_sandbox, admin):
    admin.made("/data/projects/P")
    user = ("admin", xnat_sandbox.password)

    def work(number):
        path = f"/data/projects/P/subjects/s{number % 10}/experiments/e{number}"
        made = put(xnat_sandbox, f"{path}?xsiType=xnat:mrSessionData", user)
        scan = put(xnat_sandbox, f"{path}/scans/1?xsiType=xnat:mrScanData&type=T1", user)
        return made.status_code, scan.status_code, made.text, get(xnat_sandbox, "/data/experiments", user).status_code

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(40)))
    assert {item[:2] + item[3:] for item in done} == {(201, 200, 200)}
    assert len({item[2] for item in done}) == 40
    assert len(admin.rows("/data/projects/P/experiments")) == 40
    assert len(admin.rows("/data/projects/P/subjects")) == 10


def test_the_same_label_at_once_is_made_once(xnat_sandbox, admin):
    admin.made("/data/projects/P")
    user, barrier = ("admin", xnat_sandbox.password), threading.Barrier(6)

    def work(_):
        barrier.wait()
        return put(xnat_sandbox, "/data/projects/P/subjects/same", user).status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(work, range(6)))
    assert statuses.count(201) == 1
    assert set(statuses) <= {200, 201, 409}
    assert len(admin.rows("/data/projects/P/subjects")) == 1


# Faults and the log


@pytest.mark.parametrize("status", [401, 403, 404, 423, 429, 500, 502, 503, 504])
def test_any_status(xnat_sandbox, admin, status):
    xnat_sandbox.faults.add("/data/projects", status=status, retry_after="7")
    failed = admin.get("/data/projects")
    assert (failed.status_code, failed.headers["Retry-After"]) == (status, "7")
    assert admin.get("/data/projects").status_code == 200


def test_faults_are_counted_by_path_and_method(xnat_sandbox, admin):
    xnat_sandbox.faults.add("/data/projects$", method="GET", skip=1, times=2, status=500)
    assert admin.get("/data/auth").status_code == 200
    assert admin.put("/data/projects/X").status_code == 200
    assert [admin.get("/data/projects").status_code for _ in range(4)] == [200, 500, 500, 200]
    xnat_sandbox.faults.add(status=500, times=None)
    assert [admin.get("/data/auth").status_code for _ in range(3)] == [500] * 3
    xnat_sandbox.faults.clear()
    assert admin.get("/data/auth").status_code == 200


def test_a_connection_is_dropped(xnat_sandbox, admin):
    for length in (0, 10):
        xnat_sandbox.faults.add("/xapi/schemas/xnat", drop_after=length)
        with pytest.raises(requests.exceptions.RequestException):
            admin.get("/xapi/schemas/xnat")
    assert admin.get("/xapi/schemas/xnat").status_code == 200


def test_an_answer_is_cut_and_ended_properly(xnat_sandbox, admin):
    whole = admin.get("/xapi/schemas/xnat").content
    xnat_sandbox.faults.add("/xapi/schemas/xnat", truncate=100)
    cut = admin.get("/xapi/schemas/xnat")
    assert cut.status_code == 200
    assert cut.content == whole[:-100]


def test_a_delay(xnat_sandbox, admin):
    xnat_sandbox.faults.add("/data/auth", delay=0.3)
    assert admin.get("/data/auth").elapsed.total_seconds() >= 0.3


def test_sessions_expire_on_request(xnat_sandbox, admin):
    admin.get("/data/auth")
    admin.http.auth = None
    xnat_sandbox.faults.add("/data/auth", expire=True)
    assert admin.get("/data/auth").status_code == 401


def test_the_login_page_with_200(xnat_sandbox, admin):
    xnat_sandbox.faults.add("/data/projects", login_page=True)
    answer = admin.get("/data/projects")
    assert answer.status_code == 200
    assert answer.text.startswith("<!DOCTYPE")


def test_a_write_is_lost(xnat_sandbox, admin):
    xnat_sandbox.faults.add("/data/projects/LOST", method="PUT", lose=True)
    assert admin.put("/data/projects/LOST").status_code == 200
    assert admin.get("/data/projects/LOST", format="json").status_code == 404


def test_the_log_tells_what_was_served(xnat_sandbox, admin):
    admin.get("/data/projects", columns="ID")
    admin.put("/data/projects/L", b"<x/>", "application/json")
    read, written = list(xnat_sandbox.requests)[-2:]
    assert (read.method, read.path, read.query, read.user, read.status) == (
        "GET",
        "/data/projects",
        {"columns": "ID"},
        "admin",
        200,
    )
    assert (written.method, written.bytes_in) == ("PUT", 4)
    for _ in range(100):
        if read.seconds > 0:
            break
        time.sleep(0.01)
    assert read.seconds > 0
    assert read.bytes_out > 0


# Addresses


def test_it_listens_on_loopback_unless_told_otherwise(xnat_sandbox):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", xnat_sandbox.url)


def test_a_site_may_be_deployed_under_a_path(folder):
    with Sandbox(folder, users={"admin": "pw"}, context="/xnat") as sandbox:
        assert sandbox.url.endswith("/xnat")
        answer = put(sandbox, "/data/projects/P")
        assert answer.status_code == 200
        assert "JSESSIONID" in answer.cookies
        assert "Path=/xnat" in answer.headers["Set-Cookie"]
        assert get(sandbox, "/data/projects").json()["ResultSet"]["Result"][0]["URI"] == "/data/projects/P"
        assert get(sandbox.url[: -len("/xnat")], "/data/projects").status_code == 404
        assert get(sandbox.url + "more", "/data/projects").status_code == 404


def test_importing_it_is_cheap():
    heavy = "torch", "monai", "monailabel", "SimpleITK", "xnat", "pydicom"
    program = f"import sys, monailabel_xnat.sandbox; sys.exit(str([m for m in {heavy!r} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stderr.strip() == "[]"


# The command


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_announces_itself_and_cleans_up(end, tmp_path):
    command = [sys.executable, "-m", "monailabel_xnat", "sandbox", "--user", "owner=given", "--session-timeout", "60"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        text = "".join(lines)
        assert "not an archive for patients" in text
        url = re.search(r"http://\S+", text)[0]
        password = re.search(r"user admin +password (\S+)", text)[1]
        assert "given" not in re.search(r"user owner +password (.*)", text)[1].replace("(as given)", "")
        assert get(url, "/data/auth", ("admin", password)).status_code == 200
        assert get(url, "/data/auth", ("owner", "given")).status_code == 200
    finally:
        process.send_signal(end)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_the_command_remembers_users(folder, tmp_path):
    with Sandbox(folder):
        pass
    command = [sys.executable, "-m", "monailabel_xnat", "sandbox", "--data", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        text = "".join(iter(process.stdout.readline, "\n"))
        while "Ctrl-C" not in text:
            text += process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert len(re.findall(r"\(as before\)", text)) == 5


@contextmanager
def started(*words, environment=None):
    """Run the command until the end of the block, and yield what it has printed."""
    command = [sys.executable, "-m", "monailabel_xnat", "sandbox", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        text = ""
        while "Ctrl-C" not in text:
            text += process.stdout.readline()
            assert process.poll() is None
        yield text
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_an_archive_that_is_kept_keeps_its_port_and_the_passwords_given(folder):
    with started("--data", str(folder), "--user", "admin=kept") as text:
        url = re.search(r"http://\S+", text)[0]
    with started("--data", str(folder)) as text:
        assert re.search(r"http://\S+", text)[0] == url
        assert get(url, "/data/auth", ("admin", "kept")).status_code == 200
        command = [sys.executable, "-m", "monailabel_xnat", "sandbox", "--port", url.rpartition(":")[2]]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"another program listens at {url}" in second.stderr


@pytest.mark.slow
def test_the_demo_prints_what_works_when_it_is_pasted_and_leaves_no_cache(folder, tmp_path):
    homes = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "share")}
    with started("--demo", "--data", str(folder), "--user", "owner=given", environment=homes) as text:
        assert "LABELLED: 4 sessions, 5 labels were saved" in text
        pasted = [line.strip() for line in text.splitlines() if line.startswith("  ") and "password" not in line[:30]]
        exports = "\n".join(line for line in pasted if line.startswith("export"))
        python = "\n".join(line for line in pasted if line.startswith(("from", "datastore", "print")))
        ls = f"'{sys.executable}' -m monailabel_xnat ls --project LABELLED --json"
        environment = {**os.environ, **homes}
        done = subprocess.run(
            ["bash", "-c", f"{exports}\n{ls}"], capture_output=True, text=True, timeout=120, env=environment
        )
        listed = json.loads(done.stdout)
        assert [sorted(image["labels"]) for image in listed] == [["final"], ["final", "original"], ["final"], []]
        assert {image["labels"]["final"]["saved_by"] for image in listed[:3]} == {"member"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", python], capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert "'label':" in done.stdout
    # Nothing is in the folders of the user: the caches of clients are beside the archive.
    assert not (tmp_path / "cache").exists()
    with started("--demo", "--data", str(folder), "--user", "member=again", environment=homes) as text:
        assert "LABELLED: 4 sessions, 0 labels were saved" in text
        assert "USERNAME=member MONAI_LABEL_XNAT_PASSWORD='again'" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--user", "owner"], "NAME=PASSWORD"),
        (["--user", "guest=x"], "cannot make user"),
        (["--schemas", "."], "holds no XNAT schema"),
        (["--import", "nowhere"], "no such folder"),
        (["--import", "."], "no DICOM"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(words, message, tmp_path):
    command = [sys.executable, "-m", "monailabel_xnat", "sandbox", *words]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    (tmp_path / "here").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path / "here")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_connections_end_with_their_threads(xnat_sandbox):
    store = xnat_sandbox.archive.store
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(30):
        thread = threading.Thread(target=store.all, args=("SELECT 1",))
        thread.start()
        thread.join()
    if before:
        assert len(os.listdir("/proc/self/fd")) < before + 20


def test_seeding_a_project_that_is_not_there_says_so(xnat_sandbox):
    with pytest.raises(LookupError, match="no project 'NOWHERE'"):
        xnat_sandbox.archive.seed_sessions("NOWHERE", 1, 1)


def test_values_that_do_not_fit_the_archive_are_an_error_in_plain_words(xnat_sandbox):
    archive = xnat_sandbox.archive
    with pytest.raises(ValueError, match="project, subject or session is not in the archive"):
        archive.create_subject("NOWHERE", "s")
    archive.create_project("P")
    archive.create_subject("P", "s")
    with pytest.raises(ValueError, match="already has one in subjects with the same project and label"):
        archive.create_subject("P", "s")
    assert len(archive.subjects("P")) == 1


def test_an_archive_from_before_a_setting_was_added_is_read(folder):
    with Sandbox(folder) as sandbox:
        sandbox.archive.create_project("P")
    with sqlite3.connect(folder / "archive.sqlite") as db:
        db.execute("ALTER TABLE projects DROP COLUMN quarantine_code")
    db.close()
    with Sandbox(folder) as sandbox:
        assert sandbox.archive.project("P").quarantine_code == 0


def test_a_sandbox_that_serves_or_was_stopped_is_not_started_again():
    sandbox = Sandbox().start()
    try:
        with pytest.raises(RuntimeError, match="serves already"):
            sandbox.start()
    finally:
        sandbox.stop()
    with pytest.raises(RuntimeError, match="was stopped"):
        sandbox.start()


def test_a_port_in_use_is_named_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with Sandbox() as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: .* choose another port"):
            Sandbox(port=port).start()
        assert list(tmp_path.iterdir()) == [first.folder]


def test_the_command_names_a_port_in_use(tmp_path):
    with Sandbox() as first:
        port = first.url.rpartition(":")[2]
        command = [sys.executable, "-m", "monailabel_xnat", "sandbox", "--port", port]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
    assert (done.returncode, f":{port} " in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_dicom_is_named(tmp_path, xnat_sandbox):
    with pytest.raises(ValueError, match=f"no DICOM file in {tmp_path}"):
        xnat_sandbox.import_dicom(tmp_path, "P")
    assert xnat_sandbox.archive.project("P") is None
