"""``monailabel-xnat start_server``: it starts MONAI Label's server on XNAT, with any app."""

from __future__ import annotations

import click


@click.command(
    "start_server",
    # MONAI Label's own parser reads all arguments, also --help.
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Start MONAI Label's server until it is stopped, with the options of ``monailabel start_server``."""
    from monailabel_xnat.app.launcher import start_server

    start_server(list(arguments))
