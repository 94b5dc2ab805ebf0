"""The package: the contents of wheel and source distribution, that they install, and that type checkers see types."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools

from monailabel_xnat import __version__

ROOT = Path(__file__).parents[1]

KINDS = {".py", ".xsd", ".j2", ".css", ".typed"}
TYPED_PROGRAM = """
from pathlib import Path
from monailabel_xnat import ImageId, XNATDatastore
from monailabel_xnat.sandbox import Sandbox

def draft(datastore: XNATDatastore, label: Path) -> str:
    for image in datastore.list_images():
        datastore.save_label(image, str(label), "original", {"by": "test"})
        return datastore.save_label(image, label, "final", {})
    return str(ImageId.parse("P/s/e/1"))

with Sandbox() as sandbox:
    datastore = XNATDatastore(sandbox.url, project=["A", "B"], cache_path=Path("cache"), modality=["CT"])
    draft(datastore, Path("label.nii.gz"))
"""


FILES = ("setup.cfg", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
FILES += ("constraints.txt", "ruff.toml")
FOLDERS = ("monailabel_xnat", "tests", "docs", "examples", "benchmarks", ".ci")
OFFLINE = "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def run(*command, cwd=None, env=None, timeout=120):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build the source distribution from a copy, because a build leaves folders beside the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-c", BUILD_SDIST, str(target), cwd=source)
    return next(target.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Build the wheel from the source distribution, as users do who get no wheel."""
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", str(target), str(sdist))
    return next(target.glob("*.whl"))


def test_the_source_distribution_holds_all_that_the_repository_holds(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"docs/quickstart.md", "docs/demo.png", "tests/conftest.py", "examples/train_segmentation.py"} <= expected
    assert expected | set(FILES) <= names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs_into_an_empty_environment(kind, request, tmp_path):
    python = tmp_path / "env" / "bin" / "python"
    venv.create(tmp_path / "env", with_pip=False)
    if kind == "sdist":  # what a build in an environment of its own would have brought
        (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
        (packages / "build.pth").write_text(str(Path(setuptools.__file__).parents[1]), encoding="utf-8")
    package = str(request.getfixturevalue(kind))
    run(sys.executable, "-m", "pip", "--python", str(python), "install", *OFFLINE, package, cwd=tmp_path)
    shown = "import monailabel_xnat; print(monailabel_xnat.__version__, monailabel_xnat.__file__)"
    version, place = run(str(python), "-I", "-c", shown).split()
    assert (version, Path(place).is_relative_to(tmp_path)) == (__version__, True)
    assert (tmp_path / "env" / "bin" / "monailabel-xnat").exists()


def test_the_description_of_the_package_leads_to_nothing_in_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        about = message_from_bytes(archive.read(name))
    text = str(about.get_payload())
    assert (about["Version"], about["Description-Content-Type"]) == (__version__, "text/markdown")
    assert "# monailabel_xnat" in text
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
    assert re.findall(r"(?:src|href)=\"(?!https://)[^\"]*\"|^\[[^\]]+\]: (?!https://).*", text, re.MULTILINE) == []
    # In the repository, the README has pictures. Elsewhere these links would not work.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"docs/demo.png", "docs/report.png"} <= set(re.findall(r"\]\(([^)]*)\)", readme))
    assert "demo.png" not in text
    assert "build-constraint" in text


def test_the_changelog_has_the_version():
    versions = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[:2] == ["Unreleased", __version__]


def test_the_wheel_holds_the_package_its_types_and_schemas_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = (path for path in (ROOT / "monailabel_xnat").rglob("*") if path.suffix in KINDS)
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"monailabel_xnat/py.typed", "monailabel_xnat/sandbox/schemas/xnat.xsd"} <= expected
    assert {
        "monailabel_xnat/cli/demo/organs_app/main.py",
        "monailabel_xnat/cli/demo/organs_app/lib/train.py",
    } <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_brings_the_command_and_the_pytest_plugin(wheel):
    entries = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        entries.read_string(archive.read(name).decode())
    assert dict(entries["console_scripts"]) == {"monailabel-xnat": "monailabel_xnat.__main__:main"}
    assert dict(entries["pytest11"]) == {"monailabel_xnat": "monailabel_xnat.pytest_plugin"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(find_spec("torch") is None, reason="the demo trains")
def test_the_demo_of_the_wheel_trains_in_an_empty_folder_and_a_second_server_sees_the_labels(wheel, tmp_path):
    """The whole loop as a newcomer runs it, with fewer epochs; what the wheel requires is borrowed from this Python."""
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "empty").mkdir()
    python = str(tmp_path / "env" / "bin" / "python")
    words = "-m", "monailabel_xnat", "demo", "--check", "--epochs", "15", "--output", "out"
    said = run(python, *words, cwd=tmp_path / "empty", env=environ, timeout=1400)
    summary = json.loads((tmp_path / "empty" / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["counts"]["label_tags"]["final"] == 6
    assert summary["mean_after"] > summary["mean_before"] + 0.3
    assert (tmp_path / "empty" / "out" / "demo.png").stat().st_size > 10_000
    assert "it does" in said
    log = (tmp_path / "empty" / "out" / "monailabel.log").read_text(encoding="utf-8")
    assert str(Path(__file__).parents[1] / "monailabel_xnat") not in log


@pytest.mark.slow
def test_a_typed_program_passes_mypy_against_the_wheel(wheel, tmp_path):
    pytest.importorskip("mypy")
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)

    def errors_in(program):
        (tmp_path / "program.py").write_text(program, encoding="utf-8")
        python = "--python-executable", str(tmp_path / "env/bin/python"), "--cache-dir", str(tmp_path / "cache")
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *python, "program.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280).stdout

    assert errors_in(TYPED_PROGRAM).startswith("Success")
    assert "[arg-type]" in errors_in(TYPED_PROGRAM.replace('project=["A", "B"]', "project=3"))
