"""``monailabel-xnat report``: how far the work on the projects has come, as one page."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from monailabel_xnat.cli.common import opened, print_json, progress, with_json, with_settings
from monailabel_xnat.config import Settings

_USUAL_OUTPUT = Path("report.html")


@click.command("report")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page to write; one that is there is replaced. [default: report.html, or none with --json]",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="How many labels to draw on their images at most. Images that are not on this computer are fetched.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many pairs of labels of two users to compare at most, the newest first.",
)
@with_json
@with_settings
def command(settings: Settings, output: Path | None, thumbnails: int, pairs: int, as_json: bool) -> None:
    """Write a page about the projects: progress over time, who labelled what, agreement, volumes, outliers, pictures.

    It also says what was left out and why, what waits in the outbox, and how the cache and the connection are. The page
    is one file that asks nobody for anything when it is opened. Nothing is changed in XNAT.

    The ids of subjects, sessions and scans and the descriptions of series are in it, the names and labels that XNAT has
    for patients are not. Pictures are of patients: give the page only to those who may see the images.

    Example: monailabel-xnat report -o report.html --project LIVER
    """
    from monailabel_xnat.disk import must_work, write_whole
    from monailabel_xnat.report.gather import cache_of, connection_of, gather
    from monailabel_xnat.report.page import write_page
    from monailabel_xnat.report.pictures import draw_pictures

    target = output or (None if as_json else _USUAL_OUTPUT)
    # A folder of DICOM files is no file to draw.
    with opened(replace(settings, read_only=True, image_format="nifti")) as parts:
        facts = gather(parts, most_pairs=pairs, watch=progress)
        if target:
            with progress("drawing labels", thumbnails) as step:
                pictures, failures = draw_pictures(parts, facts, thumbnails, step)
            left_out = (*facts.left_out, *failures)
            facts = replace(facts, left_out=left_out, cache=cache_of(parts), connection=connection_of(parts))
    if target:
        with must_work(f"write {target}", "choose another file with -o"):
            write_whole(target, write_page(facts, pictures).encode())
    if as_json:
        print_json(asdict(facts))
    elif target:
        click.echo(f"{target}: {len(facts.images)} images, {len(facts.labels)} versions of labels")
