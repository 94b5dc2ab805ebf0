"""Logging in and out: Basic, cookies, forms, tokens, guests, browsers, CSRF, limits."""

from __future__ import annotations

import re
import time

import pytest
import requests

from monailabel_xnat.sandbox import Sandbox
from monailabel_xnat.sandbox.access.accounts import Sessions, User

pytestmark = pytest.mark.claim(
    "logging in",
    "UserSession",
    "UserAuth",
    "AuthenticationRestlet",
    "AliasTokenRestlet",
    "XnatBasicAuthenticationFilter",
)

BROWSER = {"User-Agent": "Mozilla/5.0 (X11) AppleWebKit/537"}
PATHS = ["/data/projects", "/data/auth", "/REST/projects", "/xapi/schemas", "/data/JSESSION", "/data/version", "/"]


@pytest.fixture
def client():
    with requests.Session() as session:
        yield session


@pytest.fixture
def open_site(tmp_path):
    with Sandbox(tmp_path / "open", require_login=False, session_timeout=60) as sandbox:
        sandbox.archive.create_project("PUB", accessibility="public")
        sandbox.archive.create_project("PROT", accessibility="protected")
        sandbox.archive.create_project("PRIV")
        for project in ("PUB", "PROT", "PRIV"):
            sandbox.archive.create_subject(project, "s")
        yield sandbox


def login(sandbox, name="owner"):
    return name, sandbox.users[name]


# Credentials


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("credentials", [("owner", "wrong"), ("nobody", "x"), ("", ""), ("guest", "guest")])
def test_wrong_credentials_are_401_everywhere(xnat_sandbox, open_site, client, path, credentials):
    for sandbox in (xnat_sandbox, open_site):
        assert client.get(sandbox.url + path, auth=credentials, allow_redirects=False).status_code == 401


@pytest.mark.parametrize("header", ["Basic", "Basic %%%", "Basic " + "/w==", "Basic b3duZXI="])
def test_broken_basic_headers_are_401(xnat_sandbox, client, header):
    assert client.get(f"{xnat_sandbox.url}/data/projects", headers={"Authorization": header}).status_code == 401


def test_no_credentials_on_a_closed_site(xnat_sandbox, client):
    for path in PATHS[:-1]:
        answer = client.get(xnat_sandbox.url + path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert "JSESSIONID" not in answer.cookies
    page = client.get(f"{xnat_sandbox.url}/data/projects").text
    assert re.search("<h3>(.*)</h3>", page)[1] == "The request requires user authentication"


def test_browsers_get_the_login_page(xnat_sandbox, client):
    answer = client.get(f"{xnat_sandbox.url}/data/projects", headers=BROWSER)
    assert answer.status_code == 200
    assert answer.history[0].status_code == 302
    assert answer.text.startswith("<!DOCTYPE html>")


def test_a_cookie_replaces_the_credentials(xnat_sandbox, client):
    first = client.get(f"{xnat_sandbox.url}/data/auth", auth=login(xnat_sandbox))
    assert first.text == "User 'owner' is logged in"
    assert re.fullmatch("[0-9A-F]{32}", client.cookies["JSESSIONID"])
    assert "HttpOnly" in first.headers["Set-Cookie"]
    second = client.get(f"{xnat_sandbox.url}/data/auth")
    assert second.text == "User 'owner' is logged in"
    assert "JSESSIONID" not in second.headers["Set-Cookie"]


def test_each_basic_request_without_a_cookie_opens_a_session(xnat_sandbox):
    found = {
        requests.get(f"{xnat_sandbox.url}/data/JSESSION", auth=login(xnat_sandbox), timeout=10).text for _ in range(3)
    }
    assert len(found) == 3


def test_other_credentials_beside_a_cookie_change_the_user(xnat_sandbox, client):
    client.get(f"{xnat_sandbox.url}/data/auth", auth=login(xnat_sandbox))
    assert "'member'" in client.get(f"{xnat_sandbox.url}/data/auth", auth=login(xnat_sandbox, "member")).text
    assert client.get(f"{xnat_sandbox.url}/data/auth", auth=("admin", "wrong")).status_code == 401


def test_jsession(xnat_sandbox, client):
    url = f"{xnat_sandbox.url}/data/JSESSION"
    found = client.get(url, auth=login(xnat_sandbox))
    assert found.headers["Content-Type"].startswith("text/plain")
    assert found.text == client.cookies["JSESSIONID"] == client.post(url).text
    name, token = client.get(url, params={"CSRF": "true"}).text.split("; XNAT_CSRF=")
    assert name == found.text
    assert re.fullmatch("[0-9a-f-]{36}", token)
    assert client.put(url).status_code == 405
    assert (client.delete(url).status_code, client.delete(url).status_code) == (200, 401)


def test_form_login(xnat_sandbox, client):
    url = f"{xnat_sandbox.url}/data/services/auth"
    name, password = login(xnat_sandbox)
    answer = client.put(url, data={"username": name, "password": password})
    assert (answer.status_code, answer.text) == (200, client.cookies["JSESSIONID"])
    assert "'owner'" in client.get(f"{xnat_sandbox.url}/data/auth").text
    wrong = client.post(url, data={"username": name, "password": "wrong"})
    assert wrong.status_code == 401
    assert "<h3>Authentication failed.</h3>" in wrong.text
    assert client.get(url).status_code == 405
    for provider in ("ldap", ["localdb", "localdb"]):
        form = {"username": name, "password": password, "provider": provider}
        assert client.put(url, data=form).status_code == 400
    assert client.put(url, data={"username": name, "password": password, "provider": "localdb"}).status_code == 200


def test_a_user_may_name_the_provider(xnat_sandbox, client):
    name, password = login(xnat_sandbox)
    assert client.get(f"{xnat_sandbox.url}/data/auth", auth=(f"localdb/{name}", password)).status_code == 200
    client.cookies.clear()
    assert client.get(f"{xnat_sandbox.url}/data/auth", auth=(f"ldap/{name}", password)).status_code == 401


def test_point_16_version_is_404_and_the_expiry_cookie_is_quoted(xnat_sandbox, client):
    answer = client.get(f"{xnat_sandbox.url}/data/version", auth=login(xnat_sandbox))
    assert answer.status_code == 404
    cookie = re.search(r'SESSION_EXPIRATION_TIME="(\d+),(\d+)"; Path=/', answer.headers["Set-Cookie"])
    assert abs(int(cookie[1]) / 1000 - time.time()) < 60
    assert int(cookie[2]) == 900_000


def test_point_16_after_expiry_on_an_open_site_one_is_a_guest_without_a_word(open_site, client):
    url = f"{open_site.url}/data"
    client.get(f"{url}/auth", auth=login(open_site))
    assert client.get(f"{url}/projects/PRIV", params={"format": "json"}).status_code == 200
    before = client.cookies["JSESSIONID"]
    open_site.expire_sessions()
    assert client.get(f"{url}/projects/PRIV", params={"format": "json"}).status_code == 404
    assert client.cookies["JSESSIONID"] != before
    assert client.get(f"{url}/auth").text == "guest"
    listed = client.get(f"{url}/projects").json()["ResultSet"]["Result"]
    assert [row["ID"] for row in listed] == ["PROT", "PUB"]


def test_after_expiry_on_a_closed_site_it_is_401(xnat_sandbox, client):
    client.get(f"{xnat_sandbox.url}/data/auth", auth=login(xnat_sandbox))
    xnat_sandbox.expire_sessions()
    assert client.get(f"{xnat_sandbox.url}/data/auth").status_code == 401


def test_sessions_expire_after_a_time_without_requests(tmp_path, client):
    with Sandbox(tmp_path / "x", session_timeout=0.01) as sandbox:
        url = f"{sandbox.url}/data/auth"
        assert client.get(url, auth=login(sandbox)).status_code == 200
        time.sleep(0.05)
        assert client.get(url).status_code == 401


def test_each_request_restarts_the_time_of_a_session():
    clock = [0.0]
    sessions = Sessions(60, clock=lambda: clock[0])
    session = sessions.open(User("owner"))
    for clock[0] in (50.0, 100.0, 150.0):
        assert sessions.touch(session.id) is session
    clock[0] = 211.0
    assert sessions.touch(session.id) is None
    assert len(sessions) == 0


def test_a_guest_keeps_the_session(open_site, client):
    url = f"{open_site.url}/data/JSESSION"
    assert client.get(url).text == client.get(url).text == client.cookies["JSESSIONID"]


def test_the_front_page_tells_a_guest(open_site, client):
    page = client.get(open_site.url).text
    assert '<span id="user_info">Logged in as: <span style="color:red;">Guest</span>' in page


def test_guests_change_nothing(open_site, client):
    for method, path in (("PUT", "projects/NEW"), ("DELETE", "projects/PUB"), ("PUT", "projects/PUB/subjects/x")):
        assert client.request(method, f"{open_site.url}/data/{path}").status_code == 403


# CSRF


def test_browsers_need_the_csrf_token_to_write_scripts_do_not(xnat_sandbox, client):
    url, token_url = f"{xnat_sandbox.url}/data/projects/C", f"{xnat_sandbox.url}/data/JSESSION?CSRF=true"
    client.get(token_url, auth=login(xnat_sandbox))
    assert client.put(url, headers=BROWSER).status_code == 403
    assert client.put(url, headers=BROWSER, params={"XNAT_CSRF": "wrong"}).status_code == 403
    token = client.get(token_url).text.split("XNAT_CSRF=")[1]
    assert client.put(url, headers=BROWSER, params={"XNAT_CSRF": token}).status_code == 200
    assert client.put(url, params={"XNAT_CSRF": "whatever"}).status_code == 200
    assert client.put(url).status_code == 200
    assert client.get(url, headers=BROWSER).status_code == 200


# Tokens


def test_an_alias_token_logs_in(xnat_sandbox, client):
    services = f"{xnat_sandbox.url}/data/services/tokens"
    token = client.get(f"{services}/issue", auth=login(xnat_sandbox)).json()
    assert token["xdatUserId"] == "owner"
    assert len(token["secret"]) == 64
    pair = token["alias"], token["secret"]
    assert client.get(f"{services}/validate/{'/'.join(pair)}").json() == {"valid": "owner"}
    assert "valid" not in client.get(f"{services}/validate/{pair[0]}/wrong").json()
    assert [item["alias"] for item in client.get(f"{services}/show").json()] == [pair[0]]
    answer = requests.get(f"{xnat_sandbox.url}/data/auth", auth=pair, timeout=10)
    assert answer.text == "User 'owner' is logged in"
    assert client.get(f"{services}/invalidate/{pair[0]}").json() == {"result": "OK"}
    assert requests.get(f"{xnat_sandbox.url}/data/auth", auth=pair, timeout=10).status_code == 401
    assert client.get(f"{services}/invalidate/{pair[0]}").status_code == 404


def test_tokens_of_others(xnat_sandbox, client):
    services = f"{xnat_sandbox.url}/data/services/tokens"
    token = client.get(f"{services}/issue", auth=login(xnat_sandbox)).json()
    assert client.get(f"{services}/invalidate/{token['alias']}", auth=login(xnat_sandbox, "member")).status_code == 403
    assert client.get(f"{services}/issue/user/owner").status_code == 403
    admin = login(xnat_sandbox, "admin")
    assert client.get(f"{services}/issue/user/owner", auth=admin).json()["xdatUserId"] == "owner"
    assert client.get(f"{services}/issue/user/nobody").status_code == 404
    assert client.get(f"{services}/invalidate/{token['alias']}").status_code == 200


def test_guests_get_no_token(open_site, client):
    assert client.get(f"{open_site.url}/data/services/tokens/issue").status_code == 403


# Limits


def test_too_many_wrong_passwords_lock_a_user_out(xnat_sandbox, client):
    url = f"{xnat_sandbox.url}/data/auth"
    for _ in range(20):
        client.get(url, auth=("collaborator", "wrong"))
    assert client.get(url, auth=login(xnat_sandbox, "collaborator")).status_code == 401
    assert client.get(url, auth=login(xnat_sandbox)).status_code == 200


def test_a_user_has_a_thousand_sessions_at_most(xnat_sandbox, client):
    sessions, user = xnat_sandbox._sessions, xnat_sandbox._accounts.get("member")
    opened = [sessions.open(user) for _ in range(1000)]
    assert all(opened)
    url = f"{xnat_sandbox.url}/data/auth"
    assert client.get(url, auth=login(xnat_sandbox, "member")).status_code == 401
    assert client.get(url, auth=login(xnat_sandbox, "owner")).status_code == 200


# What the site says about itself


def test_xapi(xnat_sandbox, client):
    client.auth = login(xnat_sandbox)
    xapi = f"{xnat_sandbox.url}/xapi"
    assert client.get(f"{xapi}/users/username").text == "owner"
    info = client.get(f"{xapi}/siteConfig/buildInfo").json()
    assert info["version"].startswith("1.9")
    assert all(isinstance(value, str) for value in info.values())
    assert {"Days", "Hours"} <= set(client.get(f"{xapi}/siteConfig/uptime").json())
    assert {"xnat", "xdat", "roi"} <= set(client.get(f"{xapi}/schemas").json())
    schema = client.get(f"{xapi}/schemas/xnat")
    assert schema.headers["Content-Type"] == "application/xml"
    assert client.get(f"{xnat_sandbox.url}/schemas/xnat/xnat.xsd").content == schema.content
    missing = client.get(f"{xapi}/schemas/nothing")
    assert missing.status_code == 404
    assert missing.headers["Content-Type"].startswith("text/plain")
    assert client.post(f"{xapi}/schemas").status_code == 405


def test_data_types(xnat_sandbox, client):
    client.auth = login(xnat_sandbox)
    url = f"{xnat_sandbox.url}/data/search/elements"
    rows = client.get(url, params={"format": "json"}).json()["ResultSet"]["Result"]
    assert set(rows[0]) == {"ELEMENT_NAME", "SINGULAR", "PLURAL", "SECURED", "COUNT"}
    names = {row["ELEMENT_NAME"] for row in rows}
    assert {"xnat:projectData", "xnat:subjectData", "xnat:mrSessionData", "icr:roiCollectionData"} <= names
    fields = client.get(f"{url}/xnat:mrSessionData", params={"format": "json"}).json()["ResultSet"]
    assert fields["title"] == "Search Fields"
    assert fields["Result"][0]["ELEMENT_NAME"] == "xnat:mrSessionData"
    assert client.get(f"{url}/xnat:nonsense").status_code == 404


def test_users_are_for_administrators(xnat_sandbox, client):
    url = f"{xnat_sandbox.url}/data/users"
    assert client.get(url, auth=login(xnat_sandbox)).status_code == 403
    rows = client.get(url, auth=login(xnat_sandbox, "admin")).json()["ResultSet"]["Result"]
    assert set(rows[0]) == {"xdat_user_id", "login", "firstname", "lastname", "email"}
    assert {"admin", "owner", "member", "collaborator", "none"} == {row["login"] for row in rows}
