"""The command ``monailabel-xnat`` and the table of its sub-commands.

A sub-command is a module of this package with a click command or group named ``command``, and a row in `COMMANDS`. A
module is imported only when its command is used, so that the help comes at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from monailabel_xnat import __version__
from monailabel_xnat.errors import InvalidIdError, SettingsError, XNATDatastoreError

EXIT_FAILURE = 1
EXIT_USAGE = 2  # the same as click's own
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells

EXIT_CODES = (
    "Exit codes: 0 everything succeeded; 1 something failed, or a check found a problem; "
    "2 wrong options or settings; 130 interrupted by Ctrl-C."
)
# Each option may be given in the environment, such as MONAILABEL_XNAT_PULL_LAYOUT for `pull --layout`.
ENVIRONMENT_PREFIX = "MONAILABEL_XNAT"


class Command(NamedTuple):
    """One sub-command.

    Attributes
    ----------
    name
        The word on the command line.
    module
        The module that implements it.
    summary
        One line for ``monailabel-xnat --help``.
    """

    name: str
    module: str
    summary: str


COMMANDS: tuple[Command, ...] = (
    Command("start_server", "monailabel_xnat.cli.start_server", "Start MONAI Label with any app on XNAT."),
    Command("check", "monailabel_xnat.cli.check", "Check the whole setup, and show how to solve problems."),
    Command("settings", "monailabel_xnat.cli.settings", "Show all settings and where each value comes from."),
    Command("ls", "monailabel_xnat.cli.ls", "List the images and their labels."),
    Command("report", "monailabel_xnat.cli.report.command", "Write a page about the work on the projects."),
    Command("prefetch", "monailabel_xnat.cli.prefetch", "Fetch images before anybody waits for them."),
    Command("pull", "monailabel_xnat.cli.pull", "Copy images and labels to a folder, for other tools to train on."),
    Command("push", "monailabel_xnat.cli.push", "Save label files to the scans that they belong to."),
    Command("batch-infer", "monailabel_xnat.cli.batch_infer", "Label images that have no label yet with a model."),
    Command("labels", "monailabel_xnat.cli.labels", "Show, compare and restore versions of labels."),
    Command("outbox", "monailabel_xnat.cli.outbox", "List or send the labels that are not in XNAT yet."),
    Command("cache", "monailabel_xnat.cli.cache", "Look after the images that are kept on this computer."),
    Command("demo", "monailabel_xnat.cli.demo.command", "Run the whole loop on this computer, without an XNAT."),
    Command("sandbox", "monailabel_xnat.cli.sandbox", "Run an XNAT-compatible server on this computer."),
)


class CommandTable(click.Group):
    """The group of all commands, which imports the module of a command when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return [command.name for command in COMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command, after importing its module; None if there is no command with that name."""
        found = [command for command in COMMANDS if command.name == name]
        if not found:
            return None
        command = importlib.import_module(found[0].module).command
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.summary) for command in COMMANDS])


@click.command(
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": ENVIRONMENT_PREFIX},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="monailabel-xnat", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Log everything, and show the traceback of an error.")
@click.pass_context
def program(ctx: click.Context, debug: bool) -> None:
    """MONAI Label on XNAT: annotate the images in an XNAT archive, save the labels there, and train on them.

    The address of the XNAT and the login come from the options of a command, from the environment
    (MONAI_LABEL_XNAT_SERVER, _USERNAME, _PASSWORD, _PROJECT and so on) or from ~/.netrc.
    See `monailabel-xnat settings`.
    """
    ctx.obj = {"debug": debug}
    if ctx.invoked_subcommand != "start_server":  # MONAI Label sets up logging itself
        _log_to_stderr(debug)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Words after the program's name; by default the arguments of this process.

    Returns
    -------
    int
        Exit status: 0 succeeded, 1 failed, 2 wrong options or settings, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = program.main(words, prog_name="monailabel-xnat", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has ended (`| head`). Otherwise Python would report it once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except (XNATDatastoreError, OSError) as error:
        if "--debug" in words:
            raise
        click.echo(f"monailabel-xnat: error: {_in_one_line(error)}", err=True)
        return EXIT_USAGE if isinstance(error, (SettingsError, InvalidIdError)) else EXIT_FAILURE


def _in_one_line(error: Exception) -> str:
    """Return the text of an error. One of the system is told without its number and without quotation marks."""
    if isinstance(error, OSError) and not isinstance(error, XNATDatastoreError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _log_to_stderr(debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s",
    )


if __name__ == "__main__":
    sys.exit(main())
