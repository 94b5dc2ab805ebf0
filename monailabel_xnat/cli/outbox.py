"""``monailabel-xnat outbox``: the labels on this computer that are not in XNAT yet."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from monailabel_xnat.cli.connection import add_connection_arguments, opened_labels, settings_of
from monailabel_xnat.config import Settings

EXIT_WAITING = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    parser.add_argument(
        "action", nargs="?", choices=("list", "replay"), default="list", help="show them (default), or send them now"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """List the labels that wait, or send them; 1 if some still wait after that."""
    settings = settings_of(args)
    if args.action == "replay":
        _replay(settings)
    waiting = _waiting(settings)
    _show(waiting, as_json=args.json)
    return EXIT_WAITING if waiting and args.action == "replay" else 0


def _waiting(settings: Settings) -> list[dict[str, Any]]:
    from monailabel_xnat.labels.outbox import Outbox, folder_of

    return [
        {
            "image": str(entry.image_id),
            "tag": entry.tag,
            "version": entry.version,
            "saved_by": entry.user,
            "state": entry.state.value,
            **entry.failure(),
            "folder": str(entry.folder),
        }
        for entry in Outbox(folder_of(settings)).entries()
    ]


def _replay(settings: Settings) -> None:
    from monailabel_xnat.labels.outbox import Outbox, folder_of

    projects = {entry.image_id.project for entry in Outbox(folder_of(settings)).entries()}
    if not projects:
        return
    with opened_labels(replace(settings, project=settings.project or tuple(sorted(projects)))) as (_, labels):
        labels.replay()


def _show(waiting: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        json.dump(waiting, sys.stdout, indent=2)
        print()
        return
    for item in waiting:
        print(f"{item['image']}  {item['tag']}  {item['version']}  saved by {item['saved_by']}")
        print(f"  {item['folder']}")
        if "reason" in item:
            print(f"  {item['state']}, tried {item['attempts']} times: {item['reason']}")
    print(f"{len(waiting)} labels wait for XNAT" if waiting else "No label waits: all are in XNAT.")
