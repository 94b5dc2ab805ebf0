"""Every operation meets every fault. The outcomes are in one table, which docs/faults.md shows."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import pytest
import requests

from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "labels"))

from fault_cells import FAULTS, OPERATIONS, PATIENCE, World, outcome
from fault_table import EXPECTED, as_markdown
from label_archive import fill

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
# Tried in each run of the quick tests; the others are marked as slow.
SAMPLE = {("save label", "502"), ("get image, first time", "the body is cut short"), ("refresh", "401")}
_patient = Backoff.__init__


def cells():
    for operation in OPERATIONS:
        for fault in FAULTS:
            marks = () if (operation.name, fault.name) in SAMPLE else (pytest.mark.slow,)
            yield pytest.param(operation, fault, id=f"{operation.name}-{fault.name}", marks=marks)


@pytest.fixture(scope="module")
def site():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def world(site, tmp_path, monkeypatch):
    """A project that only this cell uses, and pauses that take no time."""
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
    project = f"P{secrets.token_hex(4)}"
    with requests.Session() as admin:
        admin.auth = (site.username, site.password)
        fill(site.url, project, admin)
    world = World(site, project, tmp_path)
    world.draw()
    yield world
    site.faults.clear()
    world.close()


@pytest.mark.parametrize(("operation", "fault"), list(cells()))
def test_the_outcome_of_a_fault_is_as_in_the_table_and_nothing_is_lost(operation, fault, world, monkeypatch):
    attempts = 2 if fault.is_slow else 4
    patience = {"attempts": attempts, "sleep": lambda seconds: None}
    monkeypatch.setattr(Backoff, "__init__", lambda self, *_, **__: _patient(self, **patience))
    world.timeout = PATIENCE if fault.is_slow else 30.0
    what = outcome(operation, fault, world)
    assert what == EXPECTED[operation.name][fault.name]


def test_the_document_shows_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == as_markdown()
