"""``monailabel-xnat prefetch``: it fetches and converts images before anybody waits for them."""

from __future__ import annotations

import click

from monailabel_xnat.cli.common import (
    cluster_at,
    opened,
    print_json,
    progress,
    with_json,
    with_scheduler,
    with_settings,
)
from monailabel_xnat.config import Settings


@click.command("prefetch")
@click.option("--unlabeled", "--unlabelled", is_flag=True, help="Only images that have no final label.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="How many images at a time.")
@with_scheduler
@with_json
@with_settings
@click.pass_context
def command(
    ctx: click.Context, settings: Settings, unlabeled: bool, workers: int, scheduler: str | None, as_json: bool
) -> None:
    """Fetch images into the cache, so that nobody waits for them later. The exit code is 1 if an image failed.

    Example: monailabel-xnat prefetch --project LIVER --unlabeled
    """
    with opened(settings) as parts, cluster_at(scheduler) as executor:
        scans = parts.catalog.scans()
        left_out = set(parts.images.no_volumes(parts.catalog.get))
        if unlabeled:
            left_out |= parts.labels.images("final")
        wanted = [scan for scan in scans if str(scan.image_id) not in left_out]
        with progress("fetching images", len(wanted)) as step:
            report = parts.images.prefetch(wanted, workers=workers, progress=lambda _: step(), executor=executor)
    if as_json:
        print_json({"already_here": report.already_here, "fetched": report.fetched, "failed": report.failed})
    else:
        click.echo(f"{len(report.fetched)} images were fetched, {len(report.already_here)} were in the cache already.")
        for image, reason in report.failed.items():
            click.echo(f"failed: {image}: {reason}", err=True)
    if report.failed:
        ctx.exit(1)
