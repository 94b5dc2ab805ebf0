"""Settings: where they come from, what they may be, and that secrets stay secret."""

from __future__ import annotations

import dataclasses

import pytest

from monailabel_xnat.config import Secret, Settings
from monailabel_xnat.errors import SettingsError

SERVER = "https://xnat.example.org"


@pytest.fixture(autouse=True)
def _no_netrc(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))


def load(arguments=None, conf=None, environ=None, netrc="/nonexistent/netrc"):
    return Settings.load({"server": SERVER, **(arguments or {})}, conf, {"NETRC": str(netrc), **(environ or {})})


def test_the_first_source_wins():
    environ = {
        "MONAI_LABEL_XNAT_PROJECT": "C",
        "MONAI_LABEL_DATASTORE_PROJECT": "D",
    }
    assert load({"project": "A"}, {"xnat_project": "B"}, environ).project == ("A",)
    assert load({"project": None}, {"xnat_project": "B"}, environ).project == ("B",)
    assert load({"project": ""}, {}, environ).project == ("C",)
    del environ["MONAI_LABEL_XNAT_PROJECT"]
    assert load({}, {}, environ).project == ("D",)


def test_credentials_are_taken_from_xnatpys_variables():
    settings = load(environ={"XNATPY_USER": "ann", "XNATPY_PASS": "pw1", "XNAT_USER": "bob", "XNAT_PASS": "pw2"})
    assert (settings.username, settings.password.reveal()) == ("ann", "pw1")


@pytest.mark.parametrize("machine", ["xnat.example.org", "xnat.example.org:8443"])
def test_credentials_are_taken_from_netrc(tmp_path, machine):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {machine}\nlogin ann\npassword secret\n")
    netrc.chmod(0o600)
    settings = load({"server": f"https://{machine}"}, netrc=netrc)
    assert (settings.username, settings.password.reveal()) == ("ann", "secret")


def test_netrc_of_another_user_is_not_mixed_with_the_given_user(tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine xnat.example.org\nlogin ann\npassword secret\n")
    netrc.chmod(0o600)
    with pytest.raises(SettingsError, match="no password for user 'bob'"):
        load({"username": "bob"}, netrc=netrc)


def test_a_user_without_password_is_an_error_not_a_prompt():
    with pytest.raises(SettingsError, match="MONAI_LABEL_XNAT_PASSWORD"):
        load({"username": "ann"})


def test_a_password_in_conf_is_refused_without_showing_it():
    with pytest.raises(SettingsError) as caught:
        load(conf={"xnat_password": "hunter2"})
    assert "MONAI_LABEL_XNAT_PASSWORD" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_secrets_do_not_show():
    settings = load({"username": "ann", "password": "hunter2"})
    assert "hunter2" not in repr(settings) + str(settings) + repr(dataclasses.asdict(settings))
    assert settings.password == Secret("hunter2")


@pytest.mark.parametrize("address", ["xnat.example.org", "ftp://xnat.example.org", "https://", "https://ann:pw@host"])
def test_an_address_that_cannot_be_used_is_refused(address):
    with pytest.raises(SettingsError) as caught:
        load({"server": address})
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://xnat.example.org/", "https://xnat.example.org"),
        ("https://host/xnat/", "https://host/xnat"),
        ("https://host/xnat/data/projects", "https://host/xnat"),
        ("http://127.0.0.1:8080/app/template/Index.vm", "http://127.0.0.1:8080"),
    ],
)
def test_an_address_copied_from_a_browser_is_cut_down_to_the_site(given, used):
    assert load({"server": given}).server == used


def test_no_server_is_an_error_that_says_how_to_give_one():
    with pytest.raises(SettingsError, match="--studies"):
        Settings.load({}, {}, {})


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"xnat_projct.*xnat_project"):
        load(conf={"xnat_projct": "A"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("connections", "0"), ("connections", "many"), ("timeout", "-1"), ("read_only", "perhaps"), ("labels", "spleen")],
)
def test_a_wrong_value_is_refused_with_where_it_came_from(name, value):
    with pytest.raises(SettingsError, match=f"--conf xnat_{name}"):
        load(conf={f"xnat_{name}": value})


def test_values_are_read_from_text():
    conf = {
        "xnat_labels": "spleen=1, liver=2",
        "xnat_read_only": "yes",
        "xnat_timeout": "7.5",
        "xnat_project": "A, B,A",
    }
    settings = load(conf=conf)
    assert settings.label_values == {"spleen": 1, "liver": 2}
    assert (settings.read_only, settings.timeout, settings.project) == (True, 7.5, ("A", "B"))


def test_each_server_has_a_folder_of_its_own(tmp_path):
    one = load({"cache_path": tmp_path})
    other = load({"cache_path": tmp_path, "server": "https://xnat.example.org/other"})
    assert one.server_folder != other.server_folder
    assert one.server_folder.parent == tmp_path
