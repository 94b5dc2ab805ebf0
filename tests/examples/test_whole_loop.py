"""The whole loop as a newcomer runs it, with fewer epochs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_trains_from_labels_in_xnat_and_a_second_server_sees_them(tmp_path):
    command = [sys.executable, "-m", "monailabel_xnat.demo.loop", "--check", "--epochs", "15"]
    command += ["--output", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1400, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"]["label_tags"]["final"] == 6
    assert summary["mean_after"] > summary["mean_before"] + 0.3
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000
    assert "it does" in run.stdout
