"""``monailabel-xnat demo``: the whole loop on one computer, from an empty archive to a trained model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from monailabel_xnat.cli.common import end_on_sigterm, with_debug
from monailabel_xnat.errors import SettingsError

_NEEDED = ("monailabel", "monai", "torch")


@click.command("demo")
@click.option("--check", is_flag=True, help="End when all is done; fail if anything did not work.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for predictions, numbers, the picture and the log of MONAI Label.",
)
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True, help="How many epochs to train.")
@with_debug
def command(check: bool, output: Path, epochs: int) -> None:
    """Run the whole loop on this computer: archive, draft, correction, training, better drafts.

    It starts an XNAT-compatible server with eight small CT sessions, and a MONAI Label server with a small app on it,
    saves labels, trains on them, and shows held-out cases before and after. It needs neither an XNAT nor a GPU, and
    takes a few minutes. Both servers then stay up to play with until Ctrl-C. Settings for another XNAT are ignored.

    Example: monailabel-xnat demo --check --output demo-output
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the demo trains a model, and {' and '.join(missing)} cannot be imported",
            hint="install all that this package requires: pip install monailabel-xnat",
        )
    from monailabel_xnat.cli.demo.loop import run_demo

    end_on_sigterm()
    try:
        run_demo(output, epochs, stays_up=not check)
    except RuntimeError as error:
        raise click.ClickException(f"the demo failed: {error}") from error
