"""``monailabel-xnat labels``: the versions of a label, and an earlier one brought back."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from monailabel_xnat.cli.connection import add_connection_arguments, opened_labels, settings_of
from monailabel_xnat.config import Settings
from monailabel_xnat.ids import ImageId


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", dest="action", required=True, parser_class=argparse.ArgumentParser
    )
    history = actions.add_parser("history", help="list the versions of a label, newest first")
    restore = actions.add_parser("restore", help="make an earlier version the current one; nothing is overwritten")
    for action in (history, restore):
        action.add_argument("image_id", metavar="IMAGE_ID", help="project/subject/experiment/scan")
        action.add_argument("tag", metavar="TAG", help="tag of the label, such as final or original")
        add_connection_arguments(action)
    history.add_argument("--json", action="store_true", help="print JSON")
    restore.add_argument("version", metavar="VERSION", help="name of the version, as in the history")


def run(args: argparse.Namespace) -> int:
    """Show the history of a label, or restore a version of it."""
    image = ImageId.parse(args.image_id)
    settings = replace(settings_of(args), project=(image.project,))
    if args.action == "restore":
        name = _restore(settings, image, args.tag, args.version)
        print(f"{image}  {args.tag}  {name}  has the content of {args.version}")
        return 0
    _show(_history(settings, image, args.tag), as_json=args.json)
    return 0


def _history(settings: Settings, image: ImageId, tag: str) -> list[dict[str, Any]]:
    from monailabel_xnat.labels.history import summary_of

    with opened_labels(settings) as (catalog, labels):
        scan = catalog.scan(image)
        versions = labels.history(scan, tag)
        if not versions:
            labels.current(scan, tag)  # says which tags there are, unless it is a ROI collection, which has no versions
        return [summary_of(version) for version in versions]


def _restore(settings: Settings, image: ImageId, tag: str, version: str) -> str:
    with opened_labels(settings) as (catalog, labels):
        return labels.restore(catalog.scan(image), tag, version).name


def _show(history: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        json.dump(history, sys.stdout, indent=2)
        print()
        return
    for item in history:
        model = f" with {item['model']}" if item["model"] else ""
        print(f"{item['version']}  saved {item['saved_at'] or 'at some time'} by {item['saved_by'] or 'others'}{model}")
        for segment in item["segments"]:
            print(f"  {segment['value']}  {segment['name']}  {segment['voxels']} voxels")
        if item["restored_from"]:
            print(f"  restored from {item['restored_from']}")
        if not item["in_xnat"]:
            print("  waits in the outbox")
        if item.get("problem"):
            print(f"  {item['problem']}")
    if not history:
        print("No versions: the label is a ROI collection of XNAT, which keeps the newest only.")
