"""``monailabel-xnat batch-infer``: a model labels all images that have no label yet."""

from __future__ import annotations

from pathlib import Path

import click

from monailabel_xnat.cli.common import CONF, print_json, progress, with_json, with_settings
from monailabel_xnat.config import CONF_PREFIX, Settings


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
@with_json
@with_settings
@click.pass_context
def command(
    ctx: click.Context, settings: Settings, folder: Path, model: str, device: str, limit: int | None, as_json: bool
) -> None:
    """Label the images that have no label yet with a model, and save the results as drafts (tag original).

    Images with a final label or a draft are left out. So a run that was interrupted goes on when it is started again.
    --conf also takes the app's own options, such as --conf models segmentation. The exit code is 1 if an image got no
    label.

    Example: monailabel-xnat batch-infer --app apps/radiology --model segmentation --project LIVER
    """
    from monailabel_xnat.app.batch import SAVED, WAITS, images_without_draft, infer_all, open_app

    conf = dict(ctx.meta[CONF])
    if settings.project:
        conf[f"{CONF_PREFIX}project"] = ",".join(settings.project)
    if settings.username:
        conf[f"{CONF_PREFIX}username"] = settings.username
    if settings.cache_path:
        conf[f"{CONF_PREFIX}cache_path"] = str(settings.cache_path)
    app = open_app(folder.resolve(), settings.server, conf)
    try:
        images = images_without_draft(app)[:limit]
        with progress("labelling images", len(images)) as step:
            outcomes = infer_all(app, model, images, device=device, done=lambda image, outcome: step())
    finally:
        app.datastore().close()
    if as_json:
        print_json(outcomes)
    else:
        for image, outcome in outcomes.items():
            click.echo(f"{image}  {outcome}")
        if not outcomes:
            click.echo("Every image has a label or a draft.")
    if any(outcome not in (SAVED, WAITS) for outcome in outcomes.values()):
        ctx.exit(1)
