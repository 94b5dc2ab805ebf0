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
    help="The page to write; an existing file is replaced. [default: report.html, or none with --json]",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(min=0),
    default=12,
    show_default=True,
    help="Draw at most this many labels on their images. Images that are not on this computer are fetched.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Compare at most this many pairs of labels that two users saved, the newest first.",
)
@with_json
@with_settings
def command(settings: Settings, output: Path | None, thumbnails: int, pairs: int, as_json: bool) -> None:
    """Write a page about the projects: progress over time, who labelled what, agreement, volumes, outliers, pictures.

    The page also shows what was left out and why, which labels wait in the outbox, and the state of the cache and of
    the connection. It is one file that loads nothing from the network when it is opened. Nothing is changed in XNAT.

    The page holds the ids of subjects, sessions and scans and the descriptions of series, but not the names and labels
    that XNAT has for patients. The pictures show patients: give the page only to people who may see the images.

    Example: monailabel-xnat report -o report.html --project LIVER
    """
    from monailabel_xnat.cli.report.gather import cache_of, connection_of, gather
    from monailabel_xnat.cli.report.page import write_page
    from monailabel_xnat.cli.report.pictures import draw_pictures
    from monailabel_xnat.disk import must_work, write_whole

    target = output or (None if as_json else _USUAL_OUTPUT)
    # Pictures are drawn from image files, not from folders of DICOM files.
    with opened(replace(settings, read_only=True, image_format="nifti")) as parts:
        facts = gather(parts, most_pairs=pairs)
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
