"""An archive, its images, and a series."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scan_bench import ArchiveDouble, Bench, make_series


@pytest.fixture
def bench(tmp_path):
    with ArchiveDouble() as archive:
        bench = Bench(archive, tmp_path / "cache")
        yield bench
        bench.close()


@pytest.fixture
def series(tmp_path):
    """A small CT series: contents of files, by name."""
    return make_series(tmp_path / "series")
