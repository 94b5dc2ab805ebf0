"""Half a minute of the soak; `make soak SECONDS=600` runs longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SEED = 20261


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_accepted_on_a_bad_day_is_in_xnat_once():
    script = Path(__file__).with_name("soak.py")
    run = subprocess.run(
        [sys.executable, str(script), "--seconds", "25", "--seed", str(SEED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:]
