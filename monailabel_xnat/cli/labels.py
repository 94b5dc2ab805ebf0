"""``monailabel-xnat labels``: it shows labels and their versions, compares labels, and restores an earlier version."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from monailabel_xnat.cli.common import Opened, opened, print_json, print_table, with_json, with_settings
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import UnknownLabelError
from monailabel_xnat.ids import ImageId

if TYPE_CHECKING:
    from monailabel_xnat.catalog import Scan


@click.group("labels")
def command() -> None:
    """Show, compare and restore versions of labels.

    Example: monailabel-xnat labels history PROJECT/SUBJECT/EXPERIMENT/SCAN final
    """


@command.command(short_help="Show the current labels of an image.")
@click.argument("image_id", metavar="IMAGE_ID")
@with_json
@with_settings
def show(settings: Settings, image_id: str, as_json: bool) -> None:
    """Show the current label of each tag of an image: who saved it, when, and what it holds.

    Example: monailabel-xnat labels show PROJECT/SUBJECT/EXPERIMENT/SCAN
    """
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
    """List the versions of a label, newest first.

    Example: monailabel-xnat labels history PROJECT/SUBJECT/EXPERIMENT/SCAN final
    """
    image, settings = _of(settings, image_id)
    with opened(settings) as parts:
        versions = _history(parts, image, tag)
    if as_json:
        print_json(versions)
    else:
        _print_history(versions)


@command.command(short_help="Make an earlier version the current one.")
@click.argument("image_id", metavar="IMAGE_ID")
@click.argument("tag", metavar="TAG")
@click.argument("version", metavar="VERSION")
@with_json
@with_settings
def restore(settings: Settings, image_id: str, tag: str, version: str, as_json: bool) -> None:
    """Make an earlier version the current one; nothing is overwritten. VERSION is a name in the history.

    Example: monailabel-xnat labels restore PROJECT/SUBJECT/EXPERIMENT/SCAN final VERSION
    """
    image, settings = _of(settings, image_id)
    with opened(settings) as parts:
        name = parts.store.restore(parts.catalog.scan(image), tag, version).name
    if as_json:
        print_json({"image": str(image), "tag": tag, "version": name, "restored_from": version})
    else:
        click.echo(f"{image}  {tag}  {name}  has the content of {version}")


@command.command(short_help="Measure how well labels of an image agree.")
@click.argument("image_id", metavar="IMAGE_ID")
@click.argument("which", nargs=-1, metavar="[LABEL]...")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw the slice on which the first two labels differ most, as a PNG file. Orange is in the first label "
    "only, blue in the second only, green in both.",
)
@with_json
@with_settings
def compare(settings: Settings, image_id: str, which: tuple[str, ...], picture: Path | None, as_json: bool) -> None:
    """Measure how well labels of an image agree: Dice, volumes and surface distances of each structure.

    A LABEL is TAG, TAG@VERSION with a version from the history, or TAG:USER for the newest version that a user saved.
    Without a LABEL, the current labels of all tags are compared. If the image has labels of one tag only, the newest
    versions of all users are compared.

    Example: monailabel-xnat labels compare PROJECT/SUBJECT/EXPERIMENT/SCAN original final
    """
    from monailabel_xnat.convert.agreement import beside, draw_difference

    image, settings = _of(settings, image_id)
    with opened(settings) as parts:
        scan = parts.catalog.scan(image)
        chosen = [_chosen(parts, scan, text) for text in which] or _worth_comparing(parts, scan)
        if len(chosen) < 2:
            raise UnknownLabelError(
                f"{image} has fewer than two labels to compare", hint="name two, such as final final@VERSION"
            )
        pairs = list(combinations(chosen, 2))
        found = [_compared(*pair) for pair in pairs]
        if picture:
            first, second = pairs[0]
            values = beside(first.values, second.values)
            draw_difference(parts.images.path(scan), first.path, second.path, values, picture)
    if as_json:
        print_json(found)
        return
    columns = ("labels", "structure", "Dice", "volumes (ml)", "mean distance (mm)", "greatest distance (mm)")
    print_table(columns, [_row(pair, item) for pair in found for item in pair["structures"]])


class _Chosen(NamedTuple):
    """One label that is compared: its name in the output, its file, and its values by name."""

    name: str
    path: Path
    values: dict[str, tuple[int, ...]]


def _chosen(parts: Opened, scan: Scan, text: str) -> _Chosen:
    """Return the label that ``TAG``, ``TAG@VERSION`` or ``TAG:USER`` stands for."""
    tag, _, version = text.partition("@")
    tag, _, user = tag.partition(":")
    if user:
        versions = parts.labels.history(scan, tag)
        by_user = [found.name for found in versions if found.description.get("saved_by") == user]
        if not by_user:
            users = sorted({str(found.description.get("saved_by")) for found in versions})
            raise UnknownLabelError(
                f"{scan.image_id} has no label {tag!r} by {user!r}", hint=f"there are labels by {', '.join(users)}"
            )
        version = by_user[0]
    return _loaded(parts, scan, text, tag, version or None)


def _worth_comparing(parts: Opened, scan: Scan) -> list[_Chosen]:
    """Return the current labels of all tags; if there is only one tag, the newest label of each user."""
    tags = sorted(parts.labels.tags(scan))
    if len(tags) != 1:
        return [_loaded(parts, scan, tag, tag, None) for tag in tags]
    newest: dict[str, str] = {}
    for version in parts.labels.history(scan, tags[0]):
        newest.setdefault(str(version.description.get("saved_by")), version.name)
    return [_loaded(parts, scan, f"{tags[0]}:{user}", tags[0], name) for user, name in newest.items()]


def _loaded(parts: Opened, scan: Scan, name: str, tag: str, version: str | None) -> _Chosen:
    from monailabel_xnat.convert.agreement import values_by_name

    return _Chosen(
        name, parts.labels.path(scan, tag, version), values_by_name(parts.labels.description(scan, tag, version))
    )


def _compared(first: _Chosen, second: _Chosen) -> dict[str, Any]:
    from monailabel_xnat.convert.agreement import beside, compare_labels

    found = compare_labels(first.path, second.path, beside(first.values, second.values))
    return {"labels": [first.name, second.name], "structures": [asdict(item) for item in found]}


def _row(pair: dict[str, Any], item: dict[str, Any]) -> tuple[str, ...]:
    def millimetres(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    volumes = " / ".join(f"{volume:.2f}" for volume in item["volumes"])
    distances = (millimetres(item["mean_distance"]), millimetres(item["greatest_distance"]))
    return " and ".join(pair["labels"]), item["name"], f"{item['dice']:.4f}", volumes, *distances


def _of(settings: Settings, image_id: str) -> tuple[ImageId, Settings]:
    image = ImageId.parse(image_id)
    return image, replace(settings, project=(image.project,))


def _history(parts: Opened, image: ImageId, tag: str) -> list[dict[str, Any]]:
    from monailabel_xnat.labels.version import summary_of

    scan = parts.catalog.scan(image)
    versions = parts.labels.history(scan, tag)
    if not versions:
        parts.labels.current(scan, tag)  # raises an error that lists the tags, unless it is a drawing without versions
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
