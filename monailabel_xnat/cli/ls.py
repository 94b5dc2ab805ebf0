"""``monailabel-xnat ls``: the images and their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from monailabel_xnat.cli.common import Opened, opened, print_json, print_table, with_json, with_settings
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import XNATDatastoreError

if TYPE_CHECKING:
    from monailabel_xnat.catalog import Scan

_TRAINING_TAG = "final"


@click.command("ls")
@click.option("--unlabeled", "--unlabelled", is_flag=True, help="Only images that have no label with the tag.")
@click.option(
    "--tag", help="Only images with a label of this tag; with --unlabeled, those without such a label. [default: final]"
)
@click.option("--all", "everything", is_flag=True, help="Also the scans that are no images here, and why.")
@with_json
@with_settings
def command(settings: Settings, unlabeled: bool, tag: str | None, everything: bool, as_json: bool) -> None:
    """List the images: what they show, their labels, who saved them and when, and what is wrong with them.

    The settings choose which scans are images, such as --conf xnat_modality MR. --all names for each other scan the
    settings that leave it out.

    Example: monailabel-xnat ls --project LIVER --unlabeled
    """
    if everything and (unlabeled or tag):
        raise click.UsageError("--all also lists what is no image, and goes with neither --unlabeled nor --tag")
    from monailabel_xnat.catalog.left_out import scans_left_out

    with opened(settings) as parts:
        scans = parts.catalog.scans()
        if unlabeled or tag:
            labelled = parts.labels.images(tag or _TRAINING_TAG)
            scans = [scan for scan in scans if (str(scan.image_id) in labelled) is not unlabeled]
        reasons = parts.images.no_volumes(parts.catalog.get)
        parts.labels.load_infos(scans)
        found = [_described(parts, scan, problem=reasons.get(str(scan.image_id), "")) for scan in scans]
        if everything:
            found += [
                _described(parts, scan, left_out=reason)
                for scan, reason in scans_left_out(parts.session, parts.catalog)
            ]
    if as_json:
        print_json(found)
        return
    print_table(("image", "series", "modality", "frames", "labels", "note"), [_row(item) for item in found])
    if not found:
        click.echo("No image fits.", err=True)


def _described(parts: Opened, scan: Scan, problem: str = "", left_out: str = "") -> dict[str, Any]:
    """Return what the list says of a scan; `left_out` is why it is no image here."""
    tags = [] if left_out else sorted(parts.labels.tags(scan))
    return {
        "image_id": str(scan.image_id),
        "subject": scan.subject_label,
        "session": scan.session_label,
        "series_description": scan.series_description,
        "modality": scan.modality,
        "frames": scan.frames,
        "labels": {tag: _label(parts, scan, tag) for tag in tags},
        "problem": problem,
        "left_out": left_out,
    }


def _label(parts: Opened, scan: Scan, tag: str) -> dict[str, Any]:
    """Return the version of a label, who saved it and when, or why this is not known."""
    from monailabel_xnat.labels.version import summary_of

    try:
        description = parts.labels.description(scan, tag)
        summary = summary_of(parts.labels.current(scan, tag).with_description(description))
    except XNATDatastoreError as error:
        return {"problem": str(error)}
    return {key: summary[key] for key in ("version", "saved_at", "saved_by", "in_xnat")}


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    labels = ", ".join(
        f"{tag} ({label.get('saved_by') or 'unknown'} {(label.get('saved_at') or '')[:10]})"
        if "problem" not in label
        else f"{tag} (cannot be read)"
        for tag, label in item["labels"].items()
    )
    frames = "" if item["frames"] is None else str(item["frames"])
    note = f"left out: {item['left_out']}" if item["left_out"] else item["problem"]
    return item["image_id"], item["series_description"], item["modality"], frames, labels, note
