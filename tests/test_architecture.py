"""Imports point one way, so that each part can be understood and tested without those above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from monailabel_xnat.client.roi import SUFFIXES
from monailabel_xnat.labels.drawings import READERS

PACKAGE = Path(__file__).parents[1] / "monailabel_xnat"

# The layers from the bottom to the top. A part may import from its own layer and those before it.
LAYERS = (
    {"ids", "errors", "background"},
    {"disk"},
    {"config"},
    {"client"},
    {"convert"},
    {"catalog"},
    {"images"},
    {"labels"},
    {"training"},
    {"datastore"},
    {"app"},
    {"cli", "pytest_plugin"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
# The sandbox is beside the client side, as an independent source of what XNAT does.
WITNESS_MAY_IMPORT = {"sandbox", "ids", "errors"}
# The parts that may import each of the large packages.
HOMES = {
    "xnat": {"client"},
    "requests": {"client", "cli/demo"},  # the demo asks MONAI Label's server as a viewer does
    "monailabel": {"datastore", "app"},
    "torch": set(),
    "monai": set(),
}


# An app of MONAI Label: the wheel contains its files, and only MONAI Label imports them.
CARRIED = PACKAGE / "cli" / "demo" / "organs_app"


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(CARRIED))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, *, at_once: bool = False) -> set[str]:
    """Return what a module imports; ``at_once`` leaves out imports inside its functions."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in module.body if at_once else ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_only_downward(path):
    part = part_of(path)
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("monailabel_xnat.")}
    ours = {name for name in ours if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}
    if part in ("__init__", "__main__"):
        return
    if part == "sandbox":
        assert ours <= WITNESS_MAY_IMPORT
        return
    if part in ("cli", "pytest_plugin"):
        ours.discard("sandbox")
    assert {name for name in ours if RANK[name] > RANK[part]} == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_large_packages_stay_where_they_belong(path):
    packages = {name.split(".")[0] for name in imported(path)}
    place = path.relative_to(PACKAGE).with_suffix("")
    at_home = {package for package, homes in HOMES.items() if any(place.is_relative_to(home) for home in homes)}
    assert packages & HOMES.keys() - at_home == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_client_knows_paths_and_sends_requests(path):
    if part_of(path) in ("client", "sandbox"):
        return
    code = path.read_text(encoding="utf-8")
    assert re.findall(r"/data/|/xapi/|quoted\(|\bsession\.(?:json|rows|request|stream|download)\(", code) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_holds_more_than_one_noun(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_modules_import_each_other_in_no_circle():
    arrows = {}
    for path in modules():
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            arrows[name] = imported(path, at_once=True)
    while ground := {name for name, below in arrows.items() if not below & arrows.keys()}:
        for name in ground:
            del arrows[name]
    assert arrows == {}


@pytest.mark.parametrize("names", ["__version__", "ImageId, Settings", "XNATDatastore, XNATAppMixin, __version__"])
def test_importing_the_package_loads_no_torch(names):
    heavy = "torch", "monai", "SimpleITK", *(() if "Datastore" in names else ("xnat", "monailabel"))
    program = (
        f"import sys; from monailabel_xnat import {names}; sys.exit(str([m for m in {heavy!r} if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stderr.strip() == "[]"


def test_each_kind_of_drawing_that_is_read_has_a_reader():
    assert READERS.keys() == SUFFIXES.keys()


def test_no_two_test_files_bear_one_name():
    """pytest imports them by their bare names, so a second file of one name would end the whole run."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert {name for name in names if names.count(name) > 1} == set()


def test_a_bundle_that_asks_monai_for_a_name_gets_ours():
    """MONAI looks for a bare name of a bundle, such as ``Dataset``, in all modules whose name begins with ``monai``.

    ``ComponentLocator`` in monai/bundle/config_item.py (MONAI 1.5) does so, and takes the first of several.
    """
    spec = find_spec("monai")
    if spec is None or spec.origin is None:
        pytest.skip("MONAI is not installed")
    assert not _defined_in(Path(spec.origin).parent) & _defined_in(PACKAGE)


def _defined_in(folder: Path) -> set[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    modules = (ast.parse(file.read_bytes()) for file in folder.rglob("*.py"))
    return {node.name for module in modules for node in module.body if isinstance(node, kinds)}
