"""The example bundle trains on the labels in XNAT, with MONAI's own command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import train_site

from monailabel_xnat.sandbox import Sandbox

BUNDLE = Path(__file__).parents[2] / "examples" / "train_bundle"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_bundle_trains_on_the_labels_in_xnat(tmp_path):
    # A copy is used, because a training writes into the folder of its bundle.
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "eval"))
    options = {"project": train_site.PROJECT, "labels": "{'ball': 1}", "max_epochs": 2}
    options |= {"spacing": "[2, 2, 2]", "patch": "[16, 16, 16]", "learning_rate": 0.005}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json"]
    command += ["--meta_file", "configs/metadata.json"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with Sandbox() as sandbox:
        train_site.fill(sandbox, tmp_path)
        environment = train_site.environment(sandbox, tmp_path / "cache")
        run = subprocess.run(
            command, cwd=bundle, env=environment, capture_output=True, text=True, timeout=800, check=False
        )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    begun = next(line for line in run.stdout.splitlines() if "cases to train on" in line)
    # The first of four patients is held out, with both images.
    assert begun.startswith("4 cases to train on, 2 to validate")
    manifest = json.loads(Path(begun.rpartition(" ")[2]).read_text())
    assert len(manifest["cases"]) == 6
    assert (bundle / "models" / "model.pt").stat().st_size > 10_000
    assert list((bundle / "eval").glob("events.out.tfevents.*"))
    assert "val_mean_dice" in run.stdout + run.stderr
