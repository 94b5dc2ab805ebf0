"""``monailabel-xnat batch-infer``: a model labels all images that have no label yet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from monailabel_xnat.cli.common import (
    CONF,
    GIVEN,
    cluster_at,
    opened,
    print_json,
    progress,
    with_json,
    with_scheduler,
    with_settings,
)
from monailabel_xnat.config import CONF_PREFIX, Settings, as_conf

if TYPE_CHECKING:
    from monailabel_xnat.app.jobs import Job


@click.command("batch-infer")
@click.option(
    "--app",
    "folder",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the MONAI Label app.",
)
@click.option("--model", required=True, help="Name of one of its models.")
@click.option("--device", default="", help="Where the model runs, such as cuda:0 or cpu; default: the app chooses.")
@click.option("--limit", type=click.IntRange(1), help="Label at most this many images.")
@with_scheduler
@with_json
@partial(with_settings, takes_options_of_app=True)
@click.pass_context
def command(
    ctx: click.Context,
    settings: Settings,
    folder: Path,
    model: str,
    device: str,
    limit: int | None,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Label the images that have no label yet with a model, and save the results as drafts (tag original).

    Images with a final label or a draft are left out. So a run that was interrupted goes on when it is started again.
    --conf also takes the app's own options, such as --conf models segmentation. The exit code is 1 if an image got no
    label.

    With --scheduler each worker loads the app from the same folder as here, which must be on a disk that all of them
    see, runs the model on its own device, and saves what it finds itself. This computer needs no GPU then.

    Example: monailabel-xnat batch-infer --app apps/radiology --model segmentation --project LIVER
    """
    from monailabel_xnat.app.jobs import SAVED, WAITS, Job

    conf = dict(ctx.meta[CONF])
    for_the_app = {name: value for name, value in conf.items() if not name.startswith(CONF_PREFIX)}
    # What is set here in whatever way, but the password, holds for the app, and for workers elsewhere.
    everything = {**for_the_app, **as_conf(ctx.meta[GIVEN], conf)}
    job = Job(str(folder.resolve()), settings.server, tuple(everything.items()), model, device)
    outcomes = _infer_here(job, limit) if scheduler is None else _infer_elsewhere(job, settings, limit, scheduler)
    if as_json:
        print_json(outcomes)
    else:
        for image, outcome in outcomes.items():
            click.echo(f"{image}  {outcome}")
        if not outcomes:
            click.echo("Every image has a label or a draft.")
    if any(not outcome.startswith((SAVED, WAITS)) for outcome in outcomes.values()):
        ctx.exit(1)


def _infer_here(job: Job, limit: int | None) -> dict[str, str]:
    from monailabel_xnat.app.batch import images_without_draft, infer_all, open_app

    app = open_app(Path(job.folder), job.studies, dict(job.conf))
    try:
        images = images_without_draft(app)[:limit]
        with progress("labelling images", len(images)) as step:
            return infer_all(app, job.model, images, device=job.device, done=lambda image, outcome: step())
    finally:
        app.datastore().close()


def _infer_elsewhere(job: Job, settings: Settings, limit: int | None, scheduler: str) -> dict[str, str]:
    from monailabel_xnat.app.jobs import infer_elsewhere
    from monailabel_xnat.labels.index import DRAFT_TAG
    from monailabel_xnat.training.dataset import TRAINING_TAG

    with opened(settings) as parts:
        scans = parts.catalog.scans()
        left_out = set(parts.images.no_volumes(parts.catalog.get))
        left_out |= parts.labels.images(TRAINING_TAG) | parts.labels.images(DRAFT_TAG)
        images = [image for image in map(str, (scan.image_id for scan in scans)) if image not in left_out][:limit]
    with cluster_at(scheduler) as executor, progress("labelling images", len(images)) as step:
        return infer_elsewhere(executor, job, images, done=lambda image, outcome: step())
