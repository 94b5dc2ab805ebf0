"""A datastore on a session of xnatpy that somebody else has opened and still uses."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import xnat

from monailabel_xnat import XNATDatastore
from monailabel_xnat.errors import InvalidIdError, LabelNotUploadedError, LoginError, SettingsError
from monailabel_xnat.sandbox import Sandbox

PROJECT = "P"
SESSIONS = 4


@pytest.fixture
def site(xnat_sandbox):
    xnat_sandbox.archive.create_project(PROJECT)
    xnat_sandbox.archive.seed_sessions(PROJECT, sessions=SESSIONS, scans=2)
    return xnat_sandbox


@pytest.fixture
def connect():
    opened = []

    def connect(site, user=None, password=None, **options):
        login = {"user": user or site.username, "password": password or site.password}
        opened.append(xnat.connect(site.url, **{**login, "loglevel": "ERROR", "no_parse_model": True, **options}))
        return opened[-1]

    yield connect
    for session in opened:
        if session.interface is not None:
            try:
                session.disconnect()
            except Exception:  # noqa: BLE001 - its login may be gone
                session._server = None
                session.disconnect()


@pytest.fixture
def owner(connect, site):
    return connect(site)


@pytest.fixture
def open_over(tmp_path):
    opened = []

    def open_over(owner, **given):
        settings = {"project": PROJECT, "cache_path": tmp_path / "over", "prefetch": 0, **given}
        opened.append(XNATDatastore(connection=owner, **settings))
        return opened[-1]

    yield open_over
    for datastore in opened:
        datastore.close()


def session_ids(owner):
    return [cookie.value for cookie in owner.interface.cookies if cookie.name == "JSESSIONID"]


def projects(owner):
    return [row["ID"] for row in owner.get_json("/data/projects")["ResultSet"]["Result"]]


def test_nothing_but_the_session_is_needed_and_nobody_logs_in(site, owner, open_over):
    site.requests.clear()
    datastore = open_over(owner)
    assert len(datastore.list_images()) == 2 * SESSIONS
    assert "/data/services/auth" not in [served.path for served in site.requests]
    assert len(site.requests) == 3
    assert repr(datastore) == f"<XNATDatastore {site.url}: P, as admin>"


def test_the_owner_s_session_is_neither_changed_nor_closed(site, owner, open_over):
    adapters, ids = dict(owner.interface.adapters), session_ids(owner)
    with open_over(owner) as datastore:
        datastore.refresh()
    assert owner.interface.adapters == adapters
    assert session_ids(owner) == ids
    assert owner.keepalive
    assert projects(owner) == [PROJECT]
    assert datastore.list_images()


def test_an_expired_login_is_renewed_for_both_with_the_credentials_beside_it(site, owner, open_over):
    datastore = open_over(owner, username=site.username, password=site.password)
    before = session_ids(owner)
    site.expire_sessions()
    datastore.refresh()
    assert len(session_ids(owner)) == 1
    assert session_ids(owner) != before
    assert projects(owner) == [PROJECT]
    datastore.close()
    assert projects(owner) == [PROJECT]


def test_objects_come_out_through_an_expired_login_too(site, owner, open_over):
    datastore = open_over(owner, username=site.username, password=site.password)
    image = datastore.list_images()[0]
    site.expire_sessions()
    scan = datastore.scan(image)
    assert scan.xnat_session is owner is datastore.xnat
    assert datastore.image_id(scan) == image
    assert projects(owner) == [PROJECT]


def test_an_object_of_a_closed_session_is_refused(site, connect, open_xnat_datastore):
    datastore = open_xnat_datastore(project=PROJECT)
    image = datastore.list_images()[0]
    other = connect(site, no_parse_model=False)
    scan = other.create_object(datastore.scan(image).uri)
    assert datastore.image_id(scan) == image
    other.disconnect()
    with pytest.raises(InvalidIdError, match="is closed"):
        datastore.image_id(scan)


def test_without_credentials_an_expired_login_says_what_to_do(site, owner, open_over, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", site.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
    datastore = open_over(owner)
    site.expire_sessions()
    with pytest.raises(LoginError, match="give username and password beside connection"):
        datastore.refresh()
    with pytest.raises(LoginError, match="has expired"):
        datastore.set_name("n")


def test_credentials_of_another_user_are_not_used_for_a_new_login(tmp_path, connect, open_over):
    with Sandbox(users={"ann": "pw", "bob": "pw"}) as site:
        site.archive.create_project(PROJECT, accessibility="public")
        owner = connect(site, "ann", "pw")
        datastore = open_over(owner, username="bob", password="pw")
        assert repr(datastore).endswith("as ann>")
        site.expire_sessions()
        with pytest.raises(LoginError, match=r"belonged to 'ann'.*'bob'"):
            datastore.refresh()
        owner._server = None  # nothing to log out from


def test_on_an_open_site_the_session_never_turns_into_a_guest_s(connect, open_over):
    with Sandbox(require_login=False) as site:
        for project, access in ((PROJECT, "private"), ("PUBLIC", "public")):
            site.archive.create_project(project, accessibility=access)
            site.archive.seed_sessions(project, sessions=1, scans=1)
        owner = connect(site)
        datastore = open_over(owner, project="")
        renewing = open_over(owner, project="", username=site.username, password=site.password)
        assert len(datastore.list_images()) == 2
        site.expire_sessions()
        with pytest.raises(LoginError):
            datastore.refresh()
        assert projects(owner) == ["PUBLIC"]  # xnatpy has not noticed, and took the cookie of a guest
        renewing.refresh()
        assert len(renewing.list_images()) == 2
        assert projects(owner) == [PROJECT, "PUBLIC"]


def test_the_owner_works_beside_us_in_threads_through_an_expired_login(site, owner, open_over):
    datastore = open_over(owner, username=site.username, password=site.password, connections=3)
    seen, failures, ends = [], [], time.monotonic() + 4

    def use(ask):
        while time.monotonic() < ends:
            try:
                seen.append(ask())
            except Exception as error:  # noqa: BLE001 - shown below
                failures.append(error)

    def ask_as_owner():
        try:
            return projects(owner)
        except xnat.exceptions.XNATResponseError as error:  # until our next request renews it
            return [PROJECT] if error.status_code == 401 else [str(error)]

    def ask_as_datastore():
        datastore.refresh()
        return [PROJECT] if len(datastore.list_images()) == 2 * SESSIONS else []

    threads = [threading.Thread(target=use, args=(ask,)) for ask in [ask_as_owner] * 2 + [ask_as_datastore] * 2]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.8)
        site.expire_sessions()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {tuple(answer) for answer in seen} == {(PROJECT,)}
    datastore.refresh()
    assert projects(owner) == [PROJECT]


def test_the_heartbeat_keeps_the_login_while_the_datastore_is_open(connect, open_over):
    with Sandbox(session_timeout=3.0) as site:
        site.archive.create_project(PROJECT)
        owner = connect(site)
        owner.keepalive = False
        datastore = open_over(owner)
        time.sleep(5)
        assert projects(owner) == [PROJECT]
        datastore.close()
        site.requests.clear()
        time.sleep(2.5)
        assert len(site.requests) == 0


@pytest.mark.parametrize("login", ["token", "basic", "jsession"])
def test_whatever_login_xnatpy_knows_will_do(site, connect, open_over, login):
    if login == "token":
        auth = (site.username, site.password)
        token = requests.get(f"{site.url}/data/services/tokens/issue", auth=auth, timeout=10).json()
        owner = connect(site, token["alias"], token["secret"])
    elif login == "jsession":
        owner = connect(site, jsession=connect(site).jsession)
    else:  # xnatpy does this if there is no session id
        owner = connect(site)
        owner.interface.auth = (site.username, site.password)
        owner.interface.cookies.clear()
    datastore = open_over(owner)
    assert len(datastore.list_images()) == 2 * SESSIONS
    assert repr(datastore).endswith("as admin>")


def test_its_adapters_and_tls_settings_are_used(site, owner, open_over, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)  # requests prefers it to the session's own setting
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    passed = []

    class Counting(requests.adapters.HTTPAdapter):
        def send(self, request, **options):
            passed.append((request.method, options["verify"], options["cert"]))
            return super().send(request, **options)

    owner.interface.mount("http://", Counting())
    owner.interface.verify = False
    open_over(owner)
    assert len(passed) == 3
    assert set(passed) == {("GET", False, None)}


def use_in_child(datastore, queue):
    try:
        datastore.refresh()
    except LoginError as error:
        queue.put(str(error))


def test_in_another_process_it_is_refused_before_anything_is_sent(site, owner, open_over):
    datastore = open_over(owner, username=site.username, password=site.password)
    site.requests.clear()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=use_in_child, args=(datastore, queue))
    child.start()
    assert "cannot be used in another process" in queue.get(timeout=20)
    child.join(20)
    handed_over = pickle.loads(pickle.dumps(datastore))
    with pytest.raises(LoginError, match="cannot be used in another process"):
        handed_over.list_images()
    assert len(site.requests) == 0
    assert projects(owner) == [PROJECT]


def ask_for_objects_in_child(datastore, image, scan, queue):
    for ask in (lambda: datastore.xnat, lambda: datastore.scan(image), lambda: datastore.get_image_uri(scan)):
        try:
            queue.put(repr(ask()))
        except LoginError as error:
            queue.put(str(error))


def test_objects_are_refused_in_another_process_before_anything_is_sent(site, owner, open_over):
    datastore = open_over(owner, username=site.username, password=site.password)
    image, other = datastore.list_images()[:2]
    scan = datastore.scan(image)
    site.requests.clear()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=ask_for_objects_in_child, args=(datastore, other, scan, queue))
    child.start()
    for _ in range(3):
        assert "cannot be used in another process" in queue.get(timeout=20)
    child.join(20)
    assert len(site.requests) == 0
    assert datastore.scan(other).id == other.split("/")[-1]


@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"status": 429}, {"drop_after": 0}, {"login_page": True, "expire": True}]
)
def test_objects_of_the_owner_come_out_of_a_server_that_fails_for_a_moment(site, owner, open_over, fault):
    datastore = open_over(owner, username=site.username, password=site.password)
    images = datastore.list_images()
    datastore.scan(images[0])
    site.faults.add("/scans/", **fault)
    assert datastore.image_id(datastore.scan(images[1])) == images[1]


def test_a_label_of_the_owner_s_scan_is_kept_while_xnat_is_away(site, owner, open_over, demo_dicom):
    (address,) = site.import_dicom(demo_dicom.cases[0].dicom, PROJECT)
    datastore = open_over(owner, series_description="!*localizer*")
    (image,) = [image for image in datastore.list_images() if image.split("/")[2] == address.split("/")[-1]]
    datastore.get_image_uri(image)
    scan = datastore.scan(image)
    scan.clearcache()  # now xnatpy must ask for its id, and even for its name
    away = site.faults.add("", drop_after=0, times=None)
    with pytest.raises(LabelNotUploadedError, match="It is safe in"):
        datastore.save_label(scan, demo_dicom.cases[0].truth, "final", {"a": 1})
    away.times = 0
    datastore._store.replay()
    assert datastore.get_label_info(image, "final")["a"] == 1


def test_after_its_owner_has_closed_the_session_an_error_says_so(site, owner, open_over):
    datastore = open_over(owner, username=site.username, password=site.password)
    image = datastore.list_images()[0]
    scan = datastore.scan(image)
    owner.disconnect()
    for ask in (lambda: datastore.xnat, lambda: datastore.scan(image)):
        with pytest.raises(LoginError, match="given as connection is closed"):
            ask()
    with pytest.raises(InvalidIdError, match="is closed"):
        datastore.image_id(scan)
    datastore.refresh()  # with a login of its own
    datastore.close()


def test_workers_of_an_executor_do_not_become_guests(owner, open_over):
    datastore = open_over(owner)
    with ThreadPoolExecutor(1) as pool, pytest.raises(LoginError, match="its workers log in themselves"):
        datastore.prefetch(datastore.list_images(), executor=pool)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"connection": requests.Session()}, "no open session of xnatpy"),
        ({"username": "ann"}, "no password"),
        ({"password": "pw"}, "no username"),
        ({"api_url": "http://elsewhere.example.org"}, "but api_url is"),
    ],
)
def test_what_does_not_fit_is_refused(owner, given, message):
    with pytest.raises(SettingsError, match=message):
        XNATDatastore(**{"connection": owner, "project": PROJECT, **given})


def test_a_closed_session_is_refused(connect, site):
    owner = connect(site)
    owner.disconnect()
    with pytest.raises(SettingsError, match="no open session"):
        XNATDatastore(connection=owner, project=PROJECT)
