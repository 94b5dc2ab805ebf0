"""What tests of all parts share; the fixtures around XNAT come from monailabel_xnat.pytest_plugin."""

from __future__ import annotations

import signal

import pytest

from monailabel_xnat.sandbox.demo import write_demo

pytest_plugins = ["pytester"]


def pytest_configure():
    """Let Ctrl-C reach the programs that tests start: what a shell runs in the background is made deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_dicom(tmp_path_factory):
    """The demo project on disk (see DemoData), written once; not to be changed."""
    return write_demo(tmp_path_factory.mktemp("demo"))
