"""The documentation agrees with the code: settings, commands, messages, tests, paths, names."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

import monailabel_xnat
from monailabel_xnat import XNATDatastore, errors
from monailabel_xnat.cli.main import COMMANDS
from monailabel_xnat.config import Settings
from monailabel_xnat.datastore.opening import SettingArguments

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
REGENERATE = "run `make docs`, or `python docs/site/generate.py`, and commit what it wrote"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "site" / "generate.py"))


def test_the_page_of_settings_lists_every_setting_with_its_default_and_meaning(generator):
    page = text_of(DOCS / "settings.md")
    assert len(re.findall(r"^\| `\w+` \|", page, re.MULTILINE)) == len(dataclasses.fields(Settings)), REGENERATE
    assert generator["with_settings_table"](page) == page, REGENERATE


def test_the_page_of_the_sandbox_counts_the_claims_of_its_tests(generator):
    page = text_of(DOCS / "sandbox.md")
    assert generator["with_claims"](page) == page, REGENERATE


def test_every_claim_names_a_source_and_no_test_that_xnat_does_not_have(generator):
    known, _ = generator["xnats_own_tests"]()
    for claim in generator["claims"]():
        assert claim.sources, claim.test
        named = generator["named"](claim.sources, known)
        assert named <= {f"{name}.{test}" for name, tests in known.items() for test in tests}, claim.test
        unknown = [
            source for source in claim.sources if source.startswith("Test") and source.partition(".")[0] not in known
        ]
        assert unknown == [], claim.test


def test_help_of_the_settings_says_what_each_means():
    shown = " ".join(str(inspect.getdoc(Settings)).split())
    for field in dataclasses.fields(Settings):
        assert f"{field.name} {' '.join(field.metadata['meaning'].split())}" in shown


@pytest.mark.skipif(
    Version(metadata.version("click")) < Version("8.2"), reason="click before 8.2 lays the help out in another way"
)
def test_the_page_of_commands_is_their_help(generator):
    assert text_of(DOCS / "commands.md") == generator["commands_page"](), REGENERATE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_points_to_exists(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", text_of(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra `docs` is not installed")
def test_the_web_site_is_built_without_a_warning(tmp_path):
    site = "--config-file", str(DOCS / "site" / "mkdocs.yml"), "--site-dir", str(tmp_path)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", *site], capture_output=True, text=True, timeout=280
    )
    assert (built.returncode, "WARNING" in built.stderr) == (0, False), built.stderr
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert "save_label" in api
    assert "Store a label in XNAT as a new version" in api


def test_every_page_is_in_the_contents_and_in_the_navigation():
    contents, navigation = text_of(DOCS / "index.md"), text_of(DOCS / "site" / "mkdocs.yml")
    names = {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    assert {name for name in names if f": {name}\n" not in navigation} == set()
    assert {
        name for name in names - {"images.md", "xnatpy.md", "benchmarks.md"} if f"({name})" not in contents
    } == set()


def test_every_path_that_contributing_names_exists():
    text = text_of(ROOT / "CONTRIBUTING.md")
    paths = [path for path in re.findall(r"`([\w./-]+(?:/|\.py|\.md|\.cfg))`", text) if not path.startswith("../")]
    assert "datastore.py" in {Path(path).name for path in paths}
    assert [path for path in paths if not ((ROOT / path).exists() or (ROOT / "monailabel_xnat" / path).exists())] == []


@cache
def functions_in(file: Path) -> set[str]:
    tree = ast.parse(text_of(file)) if file.is_file() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_guarantee_names_tests_that_exist():
    rows = [
        row for row in text_of(DOCS / "guarantees.md").splitlines() if row.startswith("| ") and "promise" not in row
    ]
    named = {row: re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row) for row in rows}
    assert rows
    assert [row for row, tests in named.items() if not tests] == []
    tests = {test for row in named.values() for test in row}
    assert [f"{file}::{name}" for file, name in sorted(tests) if name not in functions_in(ROOT / file)] == []


def test_every_message_under_troubleshooting_is_one_of_the_code():
    code = "\n".join(text_of(path) for path in (ROOT / "monailabel_xnat").rglob("*.py") if "sandbox" not in path.parts)
    first = [row.split("|")[1] for row in text_of(DOCS / "troubleshooting.md").splitlines() if row.startswith("| ")]
    messages = [message for cell in first for message in re.findall(r"`([^`]* [^`]*)`", cell)]
    pieces = {piece.strip() for message in messages for piece in message.split("…") if piece.strip()}
    assert len(pieces) > 20
    assert sorted(piece for piece in pieces if piece not in code) == []


def test_every_field_of_the_status_under_operations_is_one_of_the_code():
    code = "\n".join(text_of(path) for path in (ROOT / "monailabel_xnat").rglob("*.py") if "sandbox" not in path.parts)
    table = text_of(DOCS / "operations.md").partition("| field | meaning |")[2].partition("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 10
    assert sorted(name for name in named if f'"{name}"' not in code) == []


def test_the_files_for_a_container_are_those_of_the_page():
    page = text_of(DOCS / "container.md")
    for name in ("Dockerfile", "compose.yml"):
        assert text_of(DOCS / "container" / name).split("\n", 1)[1] in page


def test_the_volumes_of_the_compose_file_are_those_of_the_image():
    service = yaml.safe_load(text_of(DOCS / "container" / "compose.yml"))["services"]["monailabel"]
    volumes = re.search(r"^VOLUME (.*)$", text_of(DOCS / "container" / "Dockerfile"), re.MULTILINE)
    assert sorted(place.partition(":")[2] for place in service["volumes"]) == sorted(json.loads(volumes[1]))
    assert service["command"][0] in {command.name for command in COMMANDS}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_finds_nothing_wrong_with_the_unit_under_operations(tmp_path):
    unit = re.search(r"```ini\n(.*?)```", text_of(DOCS / "operations.md"), re.DOTALL)[1]
    program = "/opt/monailabel-xnat/bin/monailabel-xnat"
    assert program in unit
    (tmp_path / "monailabel-xnat.service").write_text(unit.replace(program, sys.executable))
    asked = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "monailabel-xnat.service")]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert [line for line in found.stderr.splitlines() if "monailabel-xnat.service" in line] == []


def test_the_constructor_spells_every_setting_out():
    own = set(inspect.signature(XNATDatastore).parameters) - {"settings", "conf", "environ", "api_url", "connection"}
    spelt = own | set(SettingArguments.__annotations__) | {"server"}
    assert spelt == {field.name for field in dataclasses.fields(Settings)}
    assert own.isdisjoint(SettingArguments.__annotations__)


def test_all_that_is_documented_or_returned_can_be_imported_from_the_package():
    names = re.findall(r"from monailabel_xnat import ([\w, ]+)", "\n".join(map(text_of, PAGES)))
    assert names
    documented = {name.strip() for line in names for name in line.split(",")}
    ours = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    returned = {kind.__name__ for kind in ours if issubclass(kind, errors.XNATDatastoreError)}
    returned |= {"TrainingSet", "PrefetchReport", "Progress"}
    assert documented | returned <= set(monailabel_xnat.__all__)
    assert all(getattr(monailabel_xnat, name) is not None for name in monailabel_xnat.__all__)


def test_every_public_name_is_on_the_page_about_python():
    page = text_of(DOCS / "api.md")
    public = set(monailabel_xnat.__all__) - {"__version__"}
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)", page, re.MULTILINE)}
    assert {"errors", "convert"} <= documented
    of_convert = re.search(r"^::: monailabel_xnat\.convert\n +options:\n +members: \[(.*)\]", page, re.MULTILINE)[1]
    documented |= set(of_convert.split(", "))
    assert documented - {"errors", "convert"} <= public
    assert public - documented == {name for name in public if hasattr(errors, name)}
