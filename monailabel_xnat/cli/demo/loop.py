"""The loop of the demo: annotate, train, segment again, and find it all in XNAT after a restart."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click

from monailabel_xnat.cli.demo.client import MODEL, Client
from monailabel_xnat.cli.demo.scores import dice_by_organ, mean_dice, picture, table
from monailabel_xnat.cli.demo.servers import (
    USER,
    MonaiLabelServer,
    archive,
    case_of,
    free_port,
    image_ids,
    label_info,
)
from monailabel_xnat.sandbox import Sandbox
from monailabel_xnat.sandbox.demo import DemoData

# "Clearly above": an untrained network is near 0.05 and a trained one near 0.9.
LEAST_GAIN = 0.3

_STARTED = time.monotonic()


def run_demo(output: Path, epochs: int, *, stays_up: bool) -> None:
    """Run the whole loop on servers that end with it, and write what came of it to a folder.

    Parameters
    ----------
    output : Path
        Folder for the predictions (NIfTI), ``summary.json``, ``demo.png`` and the log of MONAI Label; made if missing.
    epochs : int
        How many epochs to train.
    stays_up : bool
        Whether both servers stay up at the end, until KeyboardInterrupt, which then means that all is done.

    Raises
    ------
    RuntimeError
        If anything did not work, or training did not help.
    KeyboardInterrupt
        If it was interrupted before the end.
    """
    output.mkdir(parents=True, exist_ok=True)
    leave_the_user_out()
    work = Path(tempfile.mkdtemp(prefix="monailabel-xnat-demo-"))
    is_done = False
    try:
        with archive(work) as (sandbox, demo):
            say(f"XNAT sandbox at {sandbox.url}: project {demo.project} with {len(demo.cases)} CT sessions")
            say("starting MONAI Label with --conf datastore xnat (some 20 s)")
            port = free_port()
            with MonaiLabelServer(sandbox, demo.project, work, port) as server:
                invite(sandbox, demo, server, with_password=stays_up)
                summary = loop(Client(server.url), demo, work, output, epochs)
            say("starting MONAI Label anew: it should know the labels and the samples handed out")
            # A cache of its own shows that this comes from XNAT, not from a file of the first server.
            shutil.rmtree(work / "cache", ignore_errors=True)
            with MonaiLabelServer(sandbox, demo.project, work, port) as server:
                check_restart(Client(server.url), summary)
                is_done = True
                if stays_up:
                    say("both servers stay up until Ctrl-C")
                    threading.Event().wait()
    except KeyboardInterrupt:
        if not is_done:
            raise
    finally:
        if (work / "monailabel.log").exists():
            shutil.copy(work / "monailabel.log", output)
        shutil.rmtree(work, ignore_errors=True)


def leave_the_user_out() -> None:
    """Forget settings of this computer's user that would send the demo to another XNAT, or through a proxy."""
    for name in [name for name in os.environ if name.startswith(("MONAI_LABEL_", "XNAT"))]:
        del os.environ[name]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    click.echo(f"[{time.monotonic() - _STARTED:5.0f} s] {text}")


def loop(client: Client, demo: DemoData, work: Path, output: Path, epochs: int) -> dict[str, Any]:
    """List, infer, annotate, train and infer again; return what came of it."""
    say(f"{client.info()['name']}: {client.counts()}")
    images = image_ids(client.everything())
    held_out = [case for case in demo.cases if case.held_out]
    say(f"segmenting {len(held_out)} held-out cases with the untrained network")
    before = predict(client, demo, images, output, "before")
    sample = annotate(client, demo, images, work)
    say(f"training {epochs} epochs on {client.counts()['completed']} labelled images from XNAT")
    for line in client.train(epochs):
        if "Metrics" in line:
            say(f"  {line.partition('- INFO - ')[2] or line}")
    say("segmenting the held-out cases again")
    after = predict(client, demo, images, output, "after")
    case = held_out[0]
    image = Path(client.image_info(images[case.subject])["path"])
    maps = {
        "truth": case.truth,
        "before training": output / f"before_{case.subject}.nii.gz",
        "after training": output / f"after_{case.subject}.nii.gz",
    }
    drawn = picture(output / "demo.png", image, maps, demo.labels, f"{case.subject}, held out from training")
    click.echo(f"\nDice on held-out cases, before -> after training:\n{table(before, after)}\n")
    summary: dict[str, Any] = {
        "dice_before": before,
        "dice_after": after,
        "mean_before": mean_dice(before),
        "mean_after": mean_dice(after),
        "epochs": epochs,
        "seconds": round(time.monotonic() - _STARTED),
        "sample": sample,
        "counts": client.counts(),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    say(f"numbers: {output / 'summary.json'}; picture: {drawn or 'none, because matplotlib is not installed'}")
    if summary["mean_after"] < summary["mean_before"] + LEAST_GAIN:
        gain = f"mean Dice {mean_dice(before):.3f} before, {mean_dice(after):.3f} after"
        raise RuntimeError(f"training did not help: {gain}")
    return summary


def predict(
    client: Client, demo: DemoData, images: dict[str, str], output: Path, name: str
) -> dict[str, dict[str, float]]:
    """Segment the held-out cases over the REST API and compare with the known truth."""
    scores = {}
    for case in demo.cases:
        if case.held_out:
            label = client.infer(images[case.subject], output / f"{name}_{case.subject}.nii.gz")
            scores[case.subject] = dice_by_organ(case.truth, label, demo.labels)
    return scores


def annotate(client: Client, demo: DemoData, images: dict[str, str], work: Path) -> str:
    """Take the next samples as an annotator would, and submit corrected labels; return the last sample's id."""
    sample = ""
    wanted = sum(not case.labelled and not case.held_out for case in demo.cases)
    for _ in range(len(demo.cases) * 4):
        if not wanted:
            break
        offered = client.next_sample()
        sample = offered["id"]
        case = case_of(demo, images, sample)
        if case.held_out or case.labelled:
            continue
        say(f"next sample: {sample} ({case.subject}); draft by {MODEL}, corrected by hand, saved as final")
        client.infer(sample, work / "draft.nii.gz")
        client.save_label(sample, case.truth, label_info(demo))
        wanted -= 1
    return sample


def check_restart(client: Client, summary: dict[str, Any]) -> None:
    """See that a second server knows the labels and what was handed out, which are in XNAT.

    Raises
    ------
    RuntimeError
        If it does not.
    """
    counts = client.counts()
    handed_out = client.image_info(summary["sample"]).get("strategy", {})
    if counts["label_tags"] != summary["counts"]["label_tags"] or "random" not in handed_out:
        raise RuntimeError(f"the second server does not see what the first one left: {counts}, {handed_out}")
    say(f"it does: {counts['label_tags']}, last sample handed out to {handed_out['random']['client_id']!r}")


def invite(sandbox: Sandbox, demo: DemoData, server: MonaiLabelServer, *, with_password: bool) -> None:
    """Print where the servers are and what to try."""
    password = sandbox.users[USER] if with_password else "..."
    click.echo(
        f"""
  XNAT sandbox    {sandbox.url}   project {demo.project}, user {USER}
  MONAI Label     {server.url}   its API: {server.url}/docs

To look at it while it runs, paste this into another terminal:

  export MONAI_LABEL_XNAT_SERVER={sandbox.url} MONAI_LABEL_XNAT_PROJECT={demo.project}
  export MONAI_LABEL_XNAT_USERNAME={USER} MONAI_LABEL_XNAT_PASSWORD='{password}'
  export MONAI_LABEL_XNAT_CACHE_PATH='{server.log.parent}/client-cache'
  monailabel-xnat ls
  curl {server.url}/info/
  curl '{server.url}/datastore/?output=all'
  curl -X POST {server.url}/activelearning/random

or open {server.url} in the module MONAI Label of 3D Slicer, and ask for the next sample.
"""
    )
