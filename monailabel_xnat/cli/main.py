"""The command ``monailabel-xnat`` and the table of its sub-commands.

A sub-command is a module of this package with two functions, ``add_arguments(parser)`` and
``run(args) -> int``, and a row in `COMMANDS`. Its module is imported only when it is the one asked for.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from monailabel_xnat import __version__
from monailabel_xnat.errors import InvalidIdError, SettingsError, XNATDatastoreError

EXIT_FAILURE = 1
EXIT_USAGE = 2  # what argparse exits with, too
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


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
    takes_everything
        Whether all that follows on the command line, ``--help`` included, is left to another program's parser.
    """

    name: str
    module: str
    summary: str
    takes_everything: bool = False


COMMANDS: tuple[Command, ...] = (
    Command("start_server", "monailabel_xnat.cli.start_server", "start MONAI Label with any app on XNAT", True),
    Command("sandbox", "monailabel_xnat.cli.sandbox", "run an XNAT-compatible server on this computer"),
    Command("outbox", "monailabel_xnat.cli.outbox", "list or send the labels that are not in XNAT yet"),
    Command("labels", "monailabel_xnat.cli.labels", "list the versions of a label, or restore one"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Words after the program's name; default: those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 wrong arguments or settings, 130 interrupted.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "arguments"):
        _log_to_stderr(args.debug)
    if args.debug:
        return int(args.run(args))
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except (XNATDatastoreError, OSError) as error:
        print(_one_line(parser.prog, error), file=sys.stderr)
        return _exit_status(error)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line, with the arguments of a sub-command still to be loaded."""
    parser = argparse.ArgumentParser(
        prog="monailabel-xnat",
        description="MONAI Label on XNAT.",
        epilog="Help on one command: monailabel-xnat COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_debug(parser, default=False)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=_CommandParser
    )
    for command in COMMANDS:
        commands.add_parser(
            command.name,
            help=command.summary,
            description=_sentence(command.summary),
            module=command.module,
            takes_everything=command.takes_everything,
        )
    return parser


class _CommandParser(argparse.ArgumentParser):
    """Parser of one sub-command, which imports that sub-command's module when it is about to parse."""

    def __init__(self, *, module: str, takes_everything: bool, **options: Any) -> None:
        super().__init__(**options)
        self._module = module
        self._takes_everything = takes_everything
        self._loaded = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._load()
        if not self._takes_everything:
            return super().parse_known_args(args, namespace)
        namespace, _ = super().parse_known_args([], namespace)
        namespace.arguments = list(args)
        return namespace, []

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        implementation = importlib.import_module(self._module)
        implementation.add_arguments(self)
        # SUPPRESS: the default of the sub-command must not undo `monailabel-xnat --debug COMMAND`.
        _add_debug(self, default=argparse.SUPPRESS)
        self.set_defaults(run=implementation.run)


def _add_debug(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "--debug",
        action="store_true",
        default=default,
        help="log everything, and show the traceback of an error",
    )


def _log_to_stderr(debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s",
    )


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _one_line(program: str, error: Exception) -> str:
    return f"{program}: error: {' '.join(str(error).split())}"


def _exit_status(error: Exception) -> int:
    return EXIT_USAGE if isinstance(error, (SettingsError, InvalidIdError)) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
