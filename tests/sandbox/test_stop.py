"""Sandboxes that are stopped while clients still use them."""

from __future__ import annotations

import subprocess
import sys

import pytest

# It runs in a process of its own, because the error that this test looks for ended the interpreter.
STOPS = """
import sys, threading, time
import requests
from monailabel_xnat.sandbox import Sandbox

def use(url, login):
    with requests.Session() as session:
        session.auth = login
        for number in range(1000):
            try:
                session.put(f"{url}/data/projects/P{threading.get_ident()}_{number}", timeout=30)
                session.get(f"{url}/data/projects", timeout=30)
            except requests.RequestException:
                return

for _ in range(int(sys.argv[1])):
    sandbox = Sandbox().start()
    login = sandbox.username, sandbox.password
    threads = [threading.Thread(target=use, args=(sandbox.url, login)) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(sandbox.requests) < 20:
        time.sleep(0.005)
    sandbox.stop()
    for thread in threads:
        thread.join()
print("all stopped")
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_sandbox_that_is_stopped_under_load_does_not_end_the_interpreter(times):
    """On Python 3.10 it ended with a bus error: ending threads closed a connection that the stop was closing."""
    run = subprocess.run([sys.executable, "-c", STOPS, str(times)], capture_output=True, text=True, timeout=800)
    assert (run.returncode, run.stdout) == (0, "all stopped\n"), run.stderr[-2000:]
