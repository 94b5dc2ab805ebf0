"""A server that cannot start says why in one line, not in the middle of a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from label_server import COMMAND, environment

APP = Path(__file__).parents[2] / "examples" / "organs_app"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["password", "address"])
def test_a_wrong_password_or_address_is_said_in_one_line(xnat_sandbox, tmp_path, what):
    environ = environment(xnat_sandbox, tmp_path)
    url = xnat_sandbox.url
    if what == "password":
        environ["MONAI_LABEL_XNAT_PASSWORD"] = "wrong"
    else:
        url, environ["MONAI_LABEL_XNAT_WAIT"] = "http://127.0.0.1:9", "0"
    words = [sys.executable, "-c", COMMAND, "start_server", "--app", str(APP), "--studies", url]
    run = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if "error:" in line]
    assert url in line
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_a_stand_in_that_others_may_write_to_is_not_run(xnat_sandbox, tmp_path):
    environ = {**environment(xnat_sandbox, tmp_path), "MONAI_LABEL_XNAT_PASSWORD": "wrong"}
    words = [sys.executable, "-c", COMMAND, "start_server", "--app", str(APP), "--studies", xnat_sandbox.url]

    def error_of_start():
        run = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, check=False)
        return next(line for line in run.stderr.splitlines() if "error:" in line)

    assert xnat_sandbox.url in error_of_start()
    (stand_in,) = (tmp_path / "data" / "monailabel_xnat" / "apps").iterdir()
    assert stand_in.stat().st_mode & 0o777 == 0o700
    stand_in.chmod(0o777)
    assert f"others may write to {stand_in}" in error_of_start()
