"""``monailabel-xnat settings``: all settings, their values, and where each value comes from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from monailabel_xnat.cli.common import CONF, GIVEN, print_json, print_table, with_json, with_settings
from monailabel_xnat.config import Settings, origins


@click.command("settings")
@with_json
@with_settings
@click.pass_context
def command(ctx: click.Context, settings: Settings, as_json: bool) -> None:
    """Show all settings, what they mean, and where each value comes from. Secrets are not shown.

    Example: monailabel-xnat settings --studies https://xnat.example.org
    """
    found = origins(ctx.meta[GIVEN], dict(ctx.meta[CONF]))
    rows = [
        {
            "setting": item.name,
            "value": _plain(getattr(settings, item.name)),
            "from": found.get(item.name, "default"),
            "meaning": item.metadata["meaning"],
        }
        for item in fields(Settings)
        if "meaning" in item.metadata
    ]
    if as_json:
        print_json(rows)
        return
    shown = [(row["setting"], _shown(row["value"]), row["from"], row["meaning"]) for row in rows]
    print_table(("setting", "value", "from", "meaning"), shown)


def _plain(value: object) -> Any:
    """Return the value of a setting as a JSON value; a secret is returned as stars."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return "***" if value else ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join("=".join(map(str, part)) if isinstance(part, list) else str(part) for part in value)
    return "" if value is None else str(value)
