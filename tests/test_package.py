"""The wheel, as users install it: what is in it, and that its types are seen."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, since a build leaves folders behind beside the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "monailabel_xnat", source / "monailabel_xnat", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    offline = "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(target), str(source)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stdout + made.stderr
    return next(target.glob("*.whl"))


def test_the_wheel_holds_the_package_its_types_and_schemas_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = (path for path in (ROOT / "monailabel_xnat").rglob("*") if path.suffix in {".py", ".xsd", ".typed"})
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"monailabel_xnat/py.typed", "monailabel_xnat/sandbox/schemas/xnat.xsd"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_brings_the_command_and_the_pytest_plugin(wheel):
    entries = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        entries.read_string(archive.read(name).decode())
    assert dict(entries["console_scripts"]) == {"monailabel-xnat": "monailabel_xnat.cli.main:main"}
    assert dict(entries["pytest11"]) == {"monailabel_xnat": "monailabel_xnat.pytest_plugin"}


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
