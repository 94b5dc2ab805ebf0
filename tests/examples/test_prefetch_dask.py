"""The example that fetches images with a Dask cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monailabel_xnat.sandbox import Sandbox

pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "prefetch_dask.py"


def test_the_example_fetches_all_images_with_workers_of_its_own(put_scans, tmp_path):
    image = nibabel.Nifti1Image(np.ones((4, 4, 3), np.int16), np.eye(4)).to_bytes()
    with Sandbox() as sandbox:
        put_scans(sandbox, dict.fromkeys("123", image))
        environ = {
            **os.environ,
            "MONAI_LABEL_XNAT_SERVER": sandbox.url,
            "MONAI_LABEL_XNAT_USERNAME": sandbox.username,
            "MONAI_LABEL_XNAT_PASSWORD": sandbox.password,
            "MONAI_LABEL_XNAT_CACHE_PATH": str(tmp_path / "cache"),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, str(EXAMPLE), "--project", "P"]
        done = subprocess.run(
            command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 fetched, 0 were here, 0 failed"
