"""The table of paths.

Each handler in it exists, a path that is not in it is 404, and nothing is loaded before it is needed.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from monailabel_xnat.sandbox.http.router import ROUTES, handlers_of, methods_of

ROWS = [(path, group, row) for group, rows in ROUTES.items() for path, row in rows.items()]


@pytest.mark.parametrize(("path", "group", "row"), ROWS)
def test_every_path_of_the_table_has_its_handlers(path, group, row):
    """Each handler gets the words in braces of its path by name."""
    words = set(re.findall(r"\w+(?=\})", path))
    for name in methods_of(row).values():
        handler = getattr(handlers_of(group), name)
        if group != "dicom.prearchive_calls:PrearchiveCalls":
            assert words <= set(inspect.signature(handler).parameters), name


def test_no_path_stands_twice_in_the_table():
    paths = [path for path, _, _ in ROWS]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/data",
        "/data/nothing",
        "/data/services",
        "/data/services/import/more",
        "/data/search/saved",
        "/xapi",
    ],
)
def test_what_is_not_in_the_table_is_404(admin, path):
    assert admin.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/data/services/import", "POST"),
        ("GET", "/data/search", "POST"),
        ("PUT", "/data/users", "GET, HEAD"),
        ("POST", "/xapi/schemas", "GET, HEAD"),
        ("PUT", "/xapi/siteConfig", "GET, HEAD, POST"),
    ],
)
def test_another_method_is_405_and_told_which_there_are(admin, method, path, allowed):
    answer = admin.ask(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def loaded(statement: str) -> set[str]:
    """Return the modules that a new process has loaded after a statement."""
    program = f"{statement}; import sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return set(run.stdout.split())


def test_the_datastore_loads_nothing_of_the_sandbox():
    """The sandbox is an independent source: if both shared an error, no test would see it."""
    found = loaded("from monailabel_xnat import XNATDatastore, XNATAppMixin, Settings")
    assert {name for name in found if name.startswith("monailabel_xnat.sandbox")} == set()


def test_the_sandbox_loads_nothing_of_the_datastore_and_no_dicom_before_it_is_asked():
    """The sandbox starts in less than a second. Importing pydicom would take half of that."""
    found = loaded("from monailabel_xnat.sandbox import Sandbox; sandbox = Sandbox().start(); sandbox.stop()")
    assert not {"pydicom", "xnat", "monailabel"} & found
    ours = {name.split(".")[1] for name in found if name.startswith("monailabel_xnat.")}
    assert ours <= {"sandbox", "ids", "errors"}
