"""``monailabel-xnat labels``: what labels hold, their versions, and an earlier one brought back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from monailabel_xnat.cli.common import Opened, opened, print_json, with_json, with_settings
from monailabel_xnat.config import Settings
from monailabel_xnat.ids import ImageId


@click.group("labels")
def command() -> None:
    """Show, compare and restore versions of labels.

    Example: monailabel-xnat labels history PROJECT/SUBJECT/EXPERIMENT/SCAN final
    """


@command.command()
@click.argument("image_id", metavar="IMAGE_ID")
@with_json
@with_settings
def show(settings: Settings, image_id: str, as_json: bool) -> None:
    """Show the current label of each tag of an image: who saved it, when, and what it holds."""
    image, settings = _of(settings, image_id)
    with opened(settings) as parts:
        scan = parts.catalog.scan(image)
        found = {tag: _history(parts, image, tag)[:1] for tag in parts.labels.tags(scan)}
    if as_json:
        print_json({tag: versions[0] if versions else None for tag, versions in found.items()})
        return
    for tag, versions in sorted(found.items()):
        click.echo(f"{tag}:")
        _print_history(versions)
    if not found:
        click.echo("The image has no labels.")


@command.command()
@click.argument("image_id", metavar="IMAGE_ID")
@click.argument("tag", metavar="TAG")
@with_json
@with_settings
def history(settings: Settings, image_id: str, tag: str, as_json: bool) -> None:
    """List the versions of a label, newest first."""
    image, settings = _of(settings, image_id)
    with opened(settings) as parts:
        versions = _history(parts, image, tag)
    if as_json:
        print_json(versions)
    else:
        _print_history(versions)


@command.command()
@click.argument("image_id", metavar="IMAGE_ID")
@click.argument("tag", metavar="TAG")
@click.argument("version", metavar="VERSION")
@with_settings
def restore(settings: Settings, image_id: str, tag: str, version: str) -> None:
    """Make an earlier version the current one; nothing is overwritten. VERSION is a name in the history."""
    image, settings = _of(settings, image_id)
    with opened(settings) as parts:
        name = parts.store.restore(parts.catalog.scan(image), tag, version).name
    click.echo(f"{image}  {tag}  {name}  has the content of {version}")


def _of(settings: Settings, image_id: str) -> tuple[ImageId, Settings]:
    image = ImageId.parse(image_id)
    return image, replace(settings, project=(image.project,))


def _history(parts: Opened, image: ImageId, tag: str) -> list[dict[str, Any]]:
    from monailabel_xnat.labels.version import summary_of

    scan = parts.catalog.scan(image)
    versions = parts.labels.history(scan, tag)
    if not versions:
        parts.labels.current(scan, tag)  # says which tags there are, unless it is a drawing, which has no versions
    return [summary_of(version) for version in versions]


def _print_history(history: list[dict[str, Any]]) -> None:
    for item in history:
        model = f" with {item['model']}" if item["model"] else ""
        click.echo(
            f"{item['version']}  saved {item['saved_at'] or 'at some time'} by {item['saved_by'] or 'others'}{model}"
        )
        for segment in item["segments"]:
            click.echo(f"  {segment['value']}  {segment['name']}  {segment['voxels']} voxels")
        if item["restored_from"]:
            click.echo(f"  restored from {item['restored_from']}")
        if not item["in_xnat"]:
            click.echo("  waits in the outbox")
        if item.get("hidden"):
            click.echo("  hidden: removed by somebody who may not delete; restore makes it the label again")
        if item.get("problem"):
            click.echo(f"  {item['problem']}")
    if not history:
        click.echo("No versions: the label is a ROI collection of XNAT, which keeps the newest only.")
