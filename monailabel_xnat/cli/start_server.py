"""``monailabel-xnat start_server``: MONAI Label's server, with any app, on XNAT."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the options are those of ``monailabel start_server``."""


def run(args: argparse.Namespace) -> int:
    """Run the server until it is stopped."""
    from monailabel_xnat.app.launcher import start_server

    start_server(args.arguments)
    return 0
