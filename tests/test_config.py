"""Settings: where they come from, what they may be, and that secrets stay secret."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from monailabel_xnat import XNATDatastore
from monailabel_xnat.config import Secret, Settings
from monailabel_xnat.errors import SettingsError, UnknownSettingError

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


def test_a_misspelt_keyword_of_the_constructor_is_refused_before_anything_is_sent(xnat_sandbox, open_xnat_datastore):
    for wrong, meant in {
        "readonly": "read_only",
        "verify_tsl": "verify_tls",
        "cache_dir": "cache_path",
        "serie_description": "series_description",
        "user": "username",
        "url": "api_url",
    }.items():
        with pytest.raises(UnknownSettingError, match=f"'{wrong}'.*did you mean .*{meant}") as caught:
            open_xnat_datastore(**{wrong: "x"})
        assert isinstance(caught.value, SettingsError)
        assert isinstance(caught.value, TypeError)
    assert len(xnat_sandbox.requests) == 0


def test_a_second_address_of_the_server_is_refused():
    with pytest.raises(UnknownSettingError, match="api_url"):
        XNATDatastore(SERVER, server="https://other.example.org", environ={})


def test_a_keyword_like_nothing_is_refused_with_all_that_there_are():
    with pytest.raises(UnknownSettingError, match=r"'zzz'.*known are .*read_only"):
        load({"zzz": 1})


@pytest.mark.slow
def test_type_checkers_know_the_settings(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(
        "from monailabel_xnat import XNATDatastore\n"
        "def good() -> None:\n"
        "    XNATDatastore('u', project='P', read_only=True, series_description=['T1, a'], labels={'spleen': 1})\n"
        "def misspelt() -> None:\n"
        "    XNATDatastore('u', readonly=True)\n"
        "def wrong_type() -> None:\n"
        "    XNATDatastore('u', connections='four')\n"
    )
    found = mypy.run([str(program), "--strict", "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"])
    lines = [line for line in found[0].splitlines() if ": error:" in line]
    assert [line.split(":")[1] for line in lines] == ["5", "7"], found


@pytest.mark.parametrize("key", ["xnat_read_onyl", "XNAT_READ_ONLY", "xnat-read-only", "Xnat_read_only"])
def test_a_misspelt_conf_key_is_refused_with_the_one_that_was_meant(key):
    with pytest.raises(UnknownSettingError, match=f"--conf {key}.*did you mean xnat_read_only"):
        load(conf={key: "true"})


def test_a_conf_key_without_our_prefix_is_the_apps_and_warned_about(caplog):
    assert load(conf={"read_only": "true", "models": "deepedit"}).read_only is False
    assert "write xnat_read_only" in caplog.text
    assert "models" not in caplog.text


@pytest.mark.parametrize("name", ["MONAI_LABEL_XNAT_READONLY", "monai_label_xnat_read_only"])
def test_an_unknown_environment_variable_is_warned_about_without_its_value(caplog, name):
    load(environ={name: "hunter2", "MONAI_LABEL_XNAT_TIMEOUT": "7"})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{name} is no setting" in record.getMessage()
    assert "did you mean MONAI_LABEL_XNAT_READ_ONLY?" in record.getMessage()
    assert "hunter2" not in caplog.text


def test_a_variable_for_the_address_that_is_none_is_answered_with_the_one_that_is(caplog):
    Settings.load({"server": "https://x"}, environ={"MONAI_LABEL_XNAT_URL": "https://y"})
    (record,) = caplog.records
    assert "did you mean MONAI_LABEL_XNAT_SERVER?" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("read_only", "flase"),
        ("read_only", 2),
        ("read_only", []),
        ("allow_delete", object()),
        ("connections", 2.5),
        ("connections", True),
        ("timeout", True),
        ("timeout", "nan"),
        ("cache_path", 5),
        ("cache_path", ["/tmp"]),
        ("username", ["ann"]),
        ("roi_tag", False),
        ("scan_type", 5),
        ("scan_type", [5.0, None]),
        ("scan_type", {"T1": 1}),
        ("labels", {"spleen": 1.5}),
        ("labels", {"spleen": True}),
        ("labels", "spleen=1,spleen=2"),
        ("labels", "=1"),
        ("image_format", "dcm"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_not_bent(name, value):
    with pytest.raises(SettingsError, match=f"argument {name}"):
        load({name: value})


def test_texts_in_a_list_are_not_split_and_commas_in_a_text_can_be_escaped():
    assert load({"series_description": ["T1, post contrast"]}).series_description == ("T1, post contrast",)
    assert load({"series_description": r"T1\, post, T2"}).series_description == (r"T1\, post", "T2")
    assert load({"labels": r"kidney\, left=1,spleen=2"}).label_values == {"kidney, left": 1, "spleen": 2}
    assert load({"roi_write": r"a\,b"}).roi_write == ("a,b",)


def test_settings_can_be_pickled_for_other_processes():
    settings = load({"series_description": "T1, post", "labels": "spleen=1"})
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.series_description.text == "T1, post"
