"""The examples in the documentation work. Each one is run, page by page, against one sandbox.

Blocks of Python are run unless the line before them is ``<!-- not run: reason -->``, and blocks of shell commands only
after ``<!-- run -->``. Blocks of one page share their variables and a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import SimpleITK

from monailabel_xnat.sandbox import Sandbox

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>(?:not )?run\b[^>]*) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
COMMAND = 'set -euo pipefail\nmonailabel-xnat() { "$PYTHON" -m monailabel_xnat "$@"; }\n'


class Block(NamedTuple):
    language: str
    code: str


class Site(NamedTuple):
    sandbox: Sandbox
    home: Path
    dicom: Path
    truth: Path
    session: str

    def here(self, code: str) -> str:
        """Return an example with this site in place of the one that it names."""
        for page, ours in {
            r"https://xnat\.example\.org|http://127\.0\.0\.1:8080": self.sandbox.url,
            r"\bann\b": "admin",
            r'PASSWORD=secret|(?<=password=)"\.\.\."': '"admin"' if "password=" in code else "PASSWORD=admin",
            r"patient7_CT1": self.session,
        }.items():
            code = re.sub(page, ours, code)
        return code


def blocks_of(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [
        Block(block["language"], block["code"]) for block in found if is_run(block["language"], block["mark"] or "")
    ]


def is_run(language: str, mark: str) -> bool:
    return mark == "run" or (language == "python" and not mark.startswith("not run:"))


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if blocks_of(page)]


@pytest.fixture(scope="module")
def site(demo_dicom, tmp_path_factory):
    """Yield a sandbox with the projects of the examples, and a home with the login of its administrator."""
    home = tmp_path_factory.mktemp("home")
    case = next(case for case in demo_dicom.cases if case.labelled)
    with Sandbox(users={"admin": "admin"}) as sandbox:
        for project in ("DEMO", "LIVER"):
            sandbox.import_dicom(demo_dicom.dicom, project)
        netrc = home / ".netrc"
        netrc.write_text(f"machine {urlsplit(sandbox.url).hostname} login admin password admin\n", encoding="utf-8")
        netrc.chmod(0o600)
        yield Site(sandbox, home, case.dicom, case.truth, case.session)


@pytest.fixture
def folder(site, tmp_path, monkeypatch):
    """Work in a folder with the files that examples read, as a user without any settings."""
    for name in [name for name in os.environ if name.startswith(("MONAI_LABEL_", "MONAILABEL_", "XNAT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(site.home))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site.dicom, tmp_path / "scan" / "DICOM")
    shutil.copytree(site.dicom, tmp_path / "some" / "folder" / "of" / "dicom")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(site.truth)), str(tmp_path / "drawn.nrrd"))
    return tmp_path


# MONAI's own warning, when an app is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_work(page, site, folder):
    if any("XNATAppMixin" in block.code for block in blocks_of(page)):
        pytest.importorskip("torch")  # absent in .ci/matrix
    asked_before = len(site.sandbox.requests)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        code = site.here(block.code)
        if block.language == "bash":
            run("bash", "-c", COMMAND + code)
        elif "def test_" in code:
            (folder / "test_example.py").write_text(code, encoding="utf-8")
            run(sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "test_example.py")
        else:
            exec(compile(code, str(page), "exec"), namespace)
    paths = {request.path for request in list(site.sandbox.requests)[asked_before:]}
    assert sorted(path for path in paths if not is_documented(path)) == []


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"


def is_documented(path: str) -> bool:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = page.partition("<!-- paths:")[2].partition("<!-- end of paths -->")[0]
    documented = re.findall(r"`(/[\w/.]*)`", rows)
    return path in documented or path.startswith(tuple(name + "/" for name in documented if name != "/"))


def test_examples_of_each_kind_are_found():
    languages = {block.language for page in PAGES for block in blocks_of(page)}
    assert languages == {"bash", "python"}
    assert {"README", "quickstart", "training", "with-xnatpy"} <= {page.stem for page in PAGES}
