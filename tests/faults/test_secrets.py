"""No output holds a secret: logs at DEBUG, errors, commands, pickles, files on disk, and answers to clients."""

from __future__ import annotations

import base64
import copyreg
import logging
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "labels"))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))
sys.path.insert(0, str(Path(__file__).parents[1] / "app"))

from label_archive import AFFINE, SHAPE, fill

USER, PASSWORD = "admin", "MARKER+of/a secret&42=%"
COMMANDS = (
    ["check"],
    ["settings"],
    ["ls", "--json"],
    ["labels", "history", "{image}", "final"],
    ["outbox"],
    ["cache", "verify"],
    ["pull", "{folder}/pulled"],
)


def forms_of(user: str, password: str) -> list[bytes]:
    """Return how a password may be written: plain, in an address, in JSON or repr, as Basic authentication."""
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    own = base64.b64encode(password.encode()).decode().rstrip("=")
    texts = {password, quote(password), quote(password, safe=""), quote_plus(password), repr(password)[1:-1]}
    texts |= {basic, own}
    return [text.encode() for text in texts]


def require_none(what: str, content: bytes | str, forms: list[bytes]) -> None:
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    for form in forms:
        place = data.find(form)
        assert place < 0, f"a secret in {what}: ...{data[max(0, place - 100) : place]!r} HERE"


@pytest.fixture(scope="module")
def site():
    with Sandbox(users={USER: PASSWORD}) as sandbox:
        with requests.Session() as admin:
            admin.auth = (USER, PASSWORD)
            fill(sandbox.url, "P", admin)
        yield sandbox


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Pauses before a repetition take no time."""
    patient = Backoff.__init__
    monkeypatch.setattr(Backoff, "__init__", lambda self, *_, **__: patient(self, sleep=lambda seconds: None))


@pytest.fixture
def forms():
    return forms_of(USER, PASSWORD)


@pytest.fixture
def all_logs(caplog):
    """Make all loggers log everything, whatever their level was."""
    caplog.set_level(logging.DEBUG)
    for name in ("", "urllib3", "requests", "xnat", "monailabel_xnat", "monailabel"):
        caplog.set_level(logging.DEBUG, logger=name or None)
    return caplog


def open_one(site, folder, **given):
    arguments = {"username": USER, "password": PASSWORD, "project": "P", "cache_path": folder, "environ": {}}
    return XNATDatastore(site.url, **{**arguments, "roi_write": "", **given})


def draw(folder):
    path = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), path)
    return path


def test_logs_texts_and_files_of_a_datastore_hold_no_secret(site, forms, all_logs, tmp_path):
    datastore = open_one(site, tmp_path / "cache", roi_write="final")
    image = datastore.list_images()[0]
    datastore.get_image_uri(image)
    datastore.save_label(image, draw(tmp_path), "final", {"a": 1})
    datastore.update_image_info(image, {"b": 2})
    datastore.training_set()
    site.expire_sessions()
    datastore.refresh()
    texts = {
        "repr": repr(datastore),
        "json": repr(datastore.json()),
        "status": repr(datastore.status()),
        "description": datastore.name() + datastore.description(),
        "image info": repr(datastore.get_image_info(image)),
        "label info": repr(datastore.get_label_info(image, "final")),
        "history": repr(datastore.label_history(image, "final")),
        "pickle": pickle.dumps(datastore),
    }
    token = next(cookie.value for cookie in datastore.xnat.interface.cookies if cookie.name == "JSESSIONID")
    datastore.close()
    forms = [*forms, token.encode()]
    for what, text in texts.items():
        require_none(what, text, forms)
    assert "logged in to" in all_logs.text
    require_none("the log", all_logs.text, forms)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            require_none(str(file), file.read_bytes(), forms)


def test_settings_hold_no_secret_that_shows(site, forms, tmp_path):
    settings = Settings.load({"server": site.url, "username": USER, "password": PASSWORD}, environ={})
    for text in (repr(settings), str(settings), f"{settings.password}", f"{settings.password!r}", str(vars(settings))):
        require_none("the settings", text, forms)
    with pytest.raises(XNATDatastoreError) as caught:
        Settings.load({"server": f"http://{USER}:{quote(PASSWORD, safe='')}@host", "username": ""}, environ={})
    require_none("the error", str(caught.value), forms)


@pytest.mark.parametrize(
    "what",
    [
        {"status": 500},
        {"status": 401},
        {"status": 403},
        {"status": 503, "retry_after": "600"},
        {"login_page": True},
        {"json": "[1]"},
        {"drop_after": 0},
    ],
    ids=str,
)
def test_no_error_holds_a_secret(site, forms, all_logs, tmp_path, what):
    datastore = open_one(site, tmp_path / "cache")
    image = datastore.list_images()[0]
    calls = (
        lambda: open_one(site, tmp_path / "other"),
        datastore.refresh,
        lambda: datastore.get_image_uri(image),
        lambda: datastore.save_label(image, draw(tmp_path), "final", {}),
        lambda: datastore.add_image(None, draw(tmp_path), {}),
    )
    texts = []
    for call in calls:
        site.expire_sessions()
        site.faults.add(**what, times=None)
        try:
            call()
        except XNATDatastoreError as error:
            chain = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
            texts += [str(error), repr(error), repr(vars(error)), chain]
            require_none("a pickled error", pickle.dumps(error), forms)
        finally:
            site.faults.clear()
    datastore.close()
    assert texts
    for text in [*texts, all_logs.text]:
        require_none(f"an error of {what}", text, forms)


@pytest.mark.parametrize("what", [{"status": 500}, {"status": 401}, {"drop_after": 0}], ids=str)
def test_an_error_is_its_own_cause_and_cannot_leave_a_dask_worker(site, tmp_path, what):
    """Dask sends an error with its causes and its traceback, for which it changes how errors are pickled."""
    pickling = pytest.importorskip("tblib.pickling_support")
    datastore = open_one(site, tmp_path / "cache")
    image = datastore.list_images()[0]
    calls = (
        datastore.refresh,
        lambda: datastore.get_image_uri(image),
        lambda: datastore.save_label(image, draw(tmp_path), "final", {}),
        lambda: datastore.add_image(None, draw(tmp_path), {}),
    )
    registered = dict(copyreg.dispatch_table)
    for call in calls:
        site.expire_sessions()
        site.faults.add(**what, times=None)
        try:
            with pytest.raises(XNATDatastoreError) as caught:
                call()
            pickling.install(caught.value)
            sent = pickle.loads(pickle.dumps(caught.value))
        finally:
            copyreg.dispatch_table.clear()
            copyreg.dispatch_table.update(registered)
            site.faults.clear()
        assert (type(sent), str(sent)) == (type(caught.value), str(caught.value))
        assert sent.__cause__ is not sent
    datastore.close()


def test_a_login_that_is_refused_shows_neither_password(site, all_logs, tmp_path):
    wrong = PASSWORD + "-mistyped"
    with pytest.raises(XNATDatastoreError) as caught:
        open_one(site, tmp_path, password=wrong)
    for form in forms_of(USER, wrong):
        require_none("the error", str(caught.value) + repr(caught.value.__cause__) + all_logs.text, [form])


@pytest.mark.slow
def test_no_command_prints_a_secret(site, forms, tmp_path):
    with open_one(site, tmp_path / "cache") as datastore:
        image = datastore.list_images()[0]
        datastore.save_label(image, draw(tmp_path), "final", {})
    environ = {**os.environ, "MONAI_LABEL_XNAT_PASSWORD": PASSWORD, "MONAI_LABEL_XNAT_USERNAME": USER}
    for words in COMMANDS:
        for fault in ({}, {"status": 500, "times": None}):
            if fault:
                site.faults.add(**fault)
            given = [word.format(image=image, folder=tmp_path) for word in words]
            options = ["--studies", site.url, "--cache-path", str(tmp_path / "cache"), "--project", "P", "--debug"]
            run = subprocess.run(
                [sys.executable, "-m", "monailabel_xnat", *given, *options],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
            site.faults.clear()
            assert b"no such option" not in run.stdout.lower(), run.stdout
            assert run.stdout
            require_none(f"{' '.join(given)}", run.stdout, forms)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_label_server_tells_its_clients_and_its_log_no_secret(tmp_path):
    pytest.importorskip("torch")
    from clinic import clinic

    with clinic(tmp_path, login="owner") as server:
        password = server.sandbox.users["owner"]
        told = server.get("/info/").text + server.get("/datastore/", output="all").text + server.get("/logs/").text
        server.sandbox.faults.add(status=500, times=None)
        told += server.get("/datastore/image", image=server.image() + "x").text
        server.sandbox.faults.clear()
        log = server.log.read_text()
    require_none("what clients are told", told, forms_of("owner", password))
    require_none("the log of the server", log, forms_of("owner", password))
