"""``monailabel-xnat outbox``: the labels on this computer that are not in XNAT yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from monailabel_xnat.cli.common import opened, print_json, with_json, with_settings
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import SettingsError
from monailabel_xnat.ids import ImageId

EXIT_WAITING = 1


class _ListsByDefault(click.Group):
    """A group that runs its command ``list`` if no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("outbox", cls=_ListsByDefault)
def command() -> None:
    """List or send the labels on this computer that are not in XNAT yet.

    Example: monailabel-xnat outbox replay
    """


@command.command("list", short_help="List the labels that wait (the default).")
@with_json
@with_settings
def list_waiting(settings: Settings, as_json: bool) -> None:
    """List the labels that wait, with their folders and why they could not be sent (the default).

    Example: monailabel-xnat outbox list --json
    """
    _show(_waiting(settings), as_json=as_json)
    if not as_json:
        click.echo(f"New ones are put into {_folder(settings)}. This is no cache: do not clear it.")


@command.command(short_help="Send the labels that wait, now.")
@click.option(
    "--as-me", is_flag=True, help="Also send labels of other accounts; their descriptions still say who saved them."
)
@click.option("--dry-run", is_flag=True, help="Show which labels would be sent, and send none.")
@with_json
@with_settings
@click.pass_context
def replay(ctx: click.Context, settings: Settings, as_json: bool, as_me: bool, dry_run: bool) -> None:
    """Send the labels that wait, now. The exit code is 1 if labels still wait afterwards.

    Labels that another account saved wait for that account. If it was renamed or removed, send them with --as-me.

    Example: monailabel-xnat outbox replay --dry-run
    """
    from monailabel_xnat.catalog.selection import chosen_by
    from monailabel_xnat.labels.entry import State
    from monailabel_xnat.labels.outbox import outbox_of

    entries = outbox_of(settings).entries()
    projects = settings.project or tuple(sorted({entry.image_id.project for entry in entries if entry.image_id}))
    is_name_ours = any(entry.state is State.NAMED and entry.chosen_by == chosen_by(settings) for entry in entries)
    # A name of an image is looked up only with the settings that it was saved with, so they are not changed then.
    asking = settings if is_name_ours else replace(settings, project=projects)
    if dry_run:
        _show_what_would_be_sent(replace(asking, read_only=True), as_me, as_json)
        return
    if projects or is_name_ours:
        with opened(asking) as parts:
            parts.store.replay(as_me=as_me)
    waiting = _waiting(settings)
    _show(waiting, as_json=as_json)
    if waiting:
        ctx.exit(EXIT_WAITING)


@command.command(short_help="Assign a label to its image, and send it.")
@click.argument("folder", metavar="FOLDER")
@click.argument("image_id", metavar="IMAGE_ID")
@with_json
@with_settings
def assign(settings: Settings, folder: str, image_id: str, as_json: bool) -> None:
    """Assign a label to the image that it belongs to, and send it.

    FOLDER is the label's folder, as listed; IMAGE_ID is project/subject/experiment/scan.

    Example: monailabel-xnat outbox assign FOLDER PROJECT/SUBJECT/EXPERIMENT/SCAN
    """
    from monailabel_xnat.labels.entry import State
    from monailabel_xnat.labels.outbox import outbox_of

    image = ImageId.parse(image_id)
    may_be_assigned = (State.NAMED, State.UNASSIGNED, State.REFUSED)
    found = [entry for entry in outbox_of(settings).entries() if entry.folder.name == Path(folder).name]
    if not found or found[0].state not in may_be_assigned:
        raise SettingsError(
            f"no label without an image waits in {folder}", hint="`monailabel-xnat outbox` lists the folders"
        )
    with opened(replace(settings, project=settings.project or (image.project,))) as parts:
        version = parts.store.assign(found[0], parts.catalog.scan(image))
    if as_json:
        print_json({"image": str(image), "tag": found[0].tag, "version": version.name})
    else:
        click.echo(f"{image}  {found[0].tag}  {version.name}  is in XNAT")


def _show_what_would_be_sent(settings: Settings, as_me: bool, as_json: bool) -> None:
    with opened(settings) as parts:
        found = parts.store.would_send(as_me=as_me)
    if as_json:
        print_json(found)
        return
    for item in found:
        click.echo(f"{item['image']}  {item['tag']}  {item['version']}  saved by {item['saved_by']}")
        click.echo(f"  {item['bytes']} bytes to the resource {item['resource']}")
    click.echo(f"{len(found)} labels would be sent to {settings.server}; nothing was sent")


def _waiting(settings: Settings) -> list[dict[str, Any]]:
    from monailabel_xnat.labels.outbox import outbox_of

    return outbox_of(settings).report(settings.username)


def _folder(settings: Settings) -> Path:
    from monailabel_xnat.labels.outbox import outbox_of

    return outbox_of(settings).folder


def _show(waiting: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(waiting)
        return
    for item in waiting:
        if item["state"] == "damaged":
            click.echo(f"a label that cannot be read\n  {item['folder']}")
            continue
        click.echo(f"{item['image']}  {item['tag']}  {item['version']}  saved by {item['saved_by']}")
        click.echo(f"  {item['folder']}")
        tried = f", tried {item['attempts']} times" if "attempts" in item else ""
        click.echo(f"  {item['state']}{tried}, waits for {item['waits_for']}")
    click.echo(f"{len(waiting)} labels wait for XNAT" if waiting else "No label waits: all are in XNAT.")
