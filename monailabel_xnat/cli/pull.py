"""``monailabel-xnat pull``: it copies images and labels into a folder, in the layouts of other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from monailabel_xnat.errors import UnknownLabelError

if TYPE_CHECKING:
    from monailabel_xnat.catalog import Scan
    from monailabel_xnat.labels import Labels


@click.command("pull")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--layout",
    type=click.Choice(("decathlon", "nnunet", "bids")),
    default="decathlon",
    show_default=True,
    help="How the files are named and described: MONAI's and the Decathlon's dataset.json, nnU-Net's raw data, or BIDS "
    "with the labels as derivatives.",
)
@click.option(
    "--validation",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="FRACTION",
    help="Share of the subjects whose cases are for validation. All cases of a subject are on one side, also when the "
    "pull is repeated.",
)
@click.option("--unlabeled", "--unlabelled", is_flag=True, help="Also copy the images without a label, to predict on.")
@click.option("--name", help="Name of the data set; default: the project.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="How many images at a time.")
@with_scheduler
@with_json
@with_settings
@click.pass_context
def command(
    ctx: click.Context,
    settings: Settings,
    folder: Path,
    layout: str,
    validation: float,
    unlabeled: bool,
    name: str | None,
    workers: int,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Copy the images that have a final label, and their labels, to FOLDER, as compressed NIfTI.

    A repeated pull writes only new files, and removes files that do not belong to the data set any more. The file
    monailabel_xnat.json in FOLDER says from which image and label version each file comes. The exit code is 1 if a case
    had to be left out.

    Example: monailabel-xnat pull raw/Dataset101_Liver --layout nnunet --project LIVER --validation 0.2
    """
    from monailabel_xnat.training.dataset import TRAINING_TAG, TrainingCases, labels_of_model
    from monailabel_xnat.training.export import NNUNET, common_values, export
    from monailabel_xnat.training.nnunet import why_unfit

    # The images must be NIfTI files, whatever form the settings name.
    with opened(replace(settings, image_format="nifti")) as parts:
        dataset = TrainingCases(parts.session, parts.catalog, parts.images, parts.labels)
        everything = parts.catalog.scans()
        scans = dataset.labelled()
        labelled = {scan.image_id for scan in scans}
        no_volumes = parts.images.no_volumes(parts.catalog.get)
        others = [
            scan
            for scan in everything
            if unlabeled and scan.image_id not in labelled and str(scan.image_id) not in no_volumes
        ]
        with cluster_at(scheduler) as executor, progress("fetching images", len(scans) + len(others)) as step:
            report = parts.images.prefetch(
                [*scans, *others], workers=workers, progress=lambda _: step(), executor=executor
            )
        failed = report.failed
        parts.labels.load_infos(scans)
        segments = _segments(parts.labels, scans, TRAINING_TAG)
        values = settings.label_values or common_values(segments, consecutive=layout == NNUNET)
        with labels_of_model(values):
            cases = dataset.training_set()
        images = {str(scan.image_id): parts.images.path(scan) for scan in others if str(scan.image_id) not in failed}
        files = {case["image_id"]: Path(case["image"]) for case in cases}
        # An image that could not be fetched at first may have been fetched for the training set.
        left_out = {image: reason for image, reason in failed.items() if image not in files} | cases.left_out
        if layout == NNUNET:
            left_out.update(
                (image, reason) for image, path in {**files, **images}.items() if (reason := why_unfit(path))
            )
        fitting = [case for case in cases if case["image_id"] not in left_out]
        images = {image: path for image, path in images.items() if image not in left_out}
        if not fitting and not images:
            raise UnknownLabelError(
                f"there is nothing to pull: no image has a label with tag {TRAINING_TAG!r} that can be read",
                hint=next(iter(left_out.values()), "save a label first, or give --unlabeled"),
            )
        wanted = {case["image_id"] for case in fitting} | images.keys()
        with progress("writing files", 2 * len(fitting) + len(images)) as step:
            made = export(
                folder,
                layout,
                fitting,
                unlabelled=images,
                labels=values,
                modalities=[scan.modality for scan in (*scans, *others) if str(scan.image_id) in wanted],
                validation=validation,
                name=name or "+".join(settings.project) or "XNAT",
                origin={"server": settings.server, "left_out": left_out},
                step=step,
                workers=workers,
            )
    if validation and not (made.training and made.validation) and not as_json:
        side = "validation" if made.training else "training"
        click.echo(f"no labelled subject is for {side}: there are few, so choose another --validation", err=True)
    _show({**made.__dict__, "folder": str(made.folder), "labels": values, "left_out": left_out}, as_json=as_json)
    if left_out:
        ctx.exit(1)


def _segments(labels: Labels, scans: list[Scan], tag: str) -> list[Any]:
    """Return the segments in the description of each label. A label that cannot be read is left out."""
    from monailabel_xnat.errors import XNATDatastoreError

    found = []
    for scan in scans:
        try:
            found.append(labels.description(scan, tag).get("segments") or [])
        except XNATDatastoreError:  # the training set says why it is left out
            continue
    return found


def _show(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    click.echo(
        f"{made['folder']}: {made['training']} cases for training, {made['validation']} for validation, "
        f"{made['unlabelled']} without a label; {made['written']} files were written, {made['kept']} were there, "
        f"{made['removed']} were removed"
    )
    click.echo("labels: " + ", ".join(f"{name}={value}" for name, value in made["labels"].items()))
    for image, reason in made["left_out"].items():
        click.echo(f"left out: {image}: {reason}", err=True)
    for place in made["changed"]:
        click.echo(f"stays, for somebody has changed it: {place}", err=True)
