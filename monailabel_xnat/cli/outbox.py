"""``monailabel-xnat outbox``: the labels on this computer that are not in XNAT yet."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel_xnat.cli.connection import add_connection_arguments, opened_labels, settings_of
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import SettingsError
from monailabel_xnat.ids import ImageId

EXIT_WAITING = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "replay", "assign"),
        default="list",
        help="show them (default), send them now, or say which image one belongs to",
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="for assign: the label's folder, as listed")
    parser.add_argument("image_id", nargs="?", metavar="IMAGE_ID", help="for assign: project/subject/experiment/scan")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """List the labels that wait, send them, or assign one to an image; 1 if some still wait after sending."""
    settings = settings_of(args)
    if args.action == "replay":
        _replay(settings)
    if args.action == "assign":
        return _assign(settings, args.folder, args.image_id)
    waiting = _waiting(settings)
    _show(waiting, as_json=args.json)
    return EXIT_WAITING if waiting and args.action == "replay" else 0


def _waiting(settings: Settings) -> list[dict[str, Any]]:
    from monailabel_xnat.labels.outbox import Outbox, folder_of

    outbox = Outbox(folder_of(settings))
    damaged = [{"state": "damaged", "folder": str(folder)} for folder in outbox.damaged()]
    return damaged + [
        {
            "image": entry.image,
            "tag": entry.tag,
            "version": entry.version,
            "saved_by": entry.user,
            "state": entry.state.value,
            **entry.failure(),
            "folder": str(entry.folder),
        }
        for entry in outbox.entries()
    ]


def _replay(settings: Settings) -> None:
    from monailabel_xnat.labels.outbox import Outbox, folder_of

    projects = {entry.image_id.project for entry in Outbox(folder_of(settings)).entries() if entry.image_id}
    if not projects:
        return
    with opened_labels(replace(settings, project=settings.project or tuple(sorted(projects)))) as (_, labels):
        labels.replay()


def _assign(settings: Settings, folder: str | None, image_id: str | None) -> int:
    from monailabel_xnat.labels.outbox import Outbox, State, folder_of

    if not folder or not image_id:
        raise SettingsError("which label belongs to which image?", hint="outbox assign FOLDER IMAGE_ID")
    image = ImageId.parse(image_id)
    may_be_assigned = (State.UNASSIGNED, State.REFUSED)
    found = [entry for entry in Outbox(folder_of(settings)).entries() if entry.folder.name == Path(folder).name]
    if not found or found[0].state not in may_be_assigned:
        raise SettingsError(
            f"no label without an image waits in {folder}", hint="`monailabel-xnat outbox` lists the folders"
        )
    with opened_labels(replace(settings, project=settings.project or (image.project,))) as (catalog, labels):
        version = labels.assign(found[0], catalog.scan(image))
    print(f"{image}  {found[0].tag}  {version.name}  is in XNAT")
    return 0


def _show(waiting: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        json.dump(waiting, sys.stdout, indent=2)
        print()
        return
    for item in waiting:
        if item["state"] == "damaged":
            print(f"a label that cannot be read\n  {item['folder']}")
            continue
        print(f"{item['image']}  {item['tag']}  {item['version']}  saved by {item['saved_by']}")
        print(f"  {item['folder']}")
        if "reason" in item:
            print(f"  {item['state']}, tried {item['attempts']} times: {item['reason']}")
    print(f"{len(waiting)} labels wait for XNAT" if waiting else "No label waits: all are in XNAT.")
