"""Code that all commands share: options for the settings, the parts of the datastore, JSON, tables and progress."""

from __future__ import annotations

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from monailabel_xnat.config import CONF_PREFIX, Settings
from monailabel_xnat.errors import SettingsError

if TYPE_CHECKING:
    from monailabel_xnat.catalog import Catalog
    from monailabel_xnat.client.session import Session
    from monailabel_xnat.images import Images
    from monailabel_xnat.labels import Labels, LabelStore

Function = Callable[..., Any]

# The key in click's `meta` for the values of the options of :func:`with_settings`.
GIVEN = "monailabel_xnat.given"
# The key for the values of --conf, which a command passes on to apps with options of their own.
CONF = "monailabel_xnat.conf"
_SCHEDULER_SECONDS = 20
# So many characters each column of a table gets at least, its distance from the next one included.
_NARROWEST = 8


def with_settings(function: Function, *, takes_options_of_app: bool = False) -> Function:
    """Return a command with options that say which XNAT it works on; it gets them as the argument ``settings``.

    There is no option for a password, because other users of a computer can see the options of a process.

    Parameters
    ----------
    function : callable
        The command.
    takes_options_of_app : bool
        Whether ``--conf`` also takes options of a MONAI Label app, whose names do not begin with ``xnat_``. The command
        finds them in click's `meta` under `CONF`. Otherwise they are refused, because they would have no effect.
    """
    and_those_of_app = " Also any option of the app, such as models." if takes_options_of_app else ""

    @click.option("--studies", metavar="URL", help="Address of the XNAT site, as for MONAI Label.")
    @click.option("--username", metavar="NAME", help="User name.")
    @click.option("--project", metavar="IDS", help="Project IDs, comma-separated.")
    @click.option("--cache-path", metavar="FOLDER", help="Folder for images and labels.")
    @click.option(
        "--conf",
        nargs=2,
        multiple=True,
        metavar="xnat_NAME VALUE",
        help=f"Any other setting, as in MONAI Label's own --conf; may be given several times.{and_those_of_app}",
    )
    @with_debug
    @functools.wraps(function)
    def command(
        *args: Any,
        studies: str | None,
        username: str | None,
        project: str | None,
        cache_path: str | None,
        conf: tuple[tuple[str, str], ...],
        **options: Any,
    ) -> Any:
        given = {"server": studies, "username": username, "project": project, "cache_path": cache_path}
        # Users may also write "--conf datastore xnat" here, as MONAI Label needs it.
        others = [name for name, _ in conf if not name.startswith(CONF_PREFIX) and name != "datastore"]
        if others and not takes_options_of_app:
            raise click.BadParameter(
                f"{others[0]!r} is not a setting of the datastore: their names begin with {CONF_PREFIX}",
                param_hint="--conf",
            )
        settings = Settings.load(given, conf=dict(conf))
        click.get_current_context().meta.update({GIVEN: given, CONF: conf})
        return function(*args, settings=settings, **options)

    return command


def with_debug(function: Function) -> Function:
    """Return a command with the option ``--debug``, which may also be given before the command's name."""

    def start_to_log(ctx: click.Context, parameter: click.Parameter, is_given: bool) -> None:
        if is_given:
            logging.getLogger().setLevel(logging.DEBUG)

    option = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=start_to_log,
        help="Log everything, and show the traceback of an error.",
    )
    return option(function)


def with_json(function: Function) -> Function:
    """Return a command with the option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def with_scheduler(function: Function) -> Function:
    """Return a command with the option ``--scheduler``; see :func:`cluster_at`."""
    return click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Let the workers of a Dask cluster do the work. ADDRESS is that of its scheduler, such as "
        "tcp://head:8786. The workers need this package, the same cache folder, and user name and password in their "
        "own environment or ~/.netrc.",
    )(function)


@contextmanager
def cluster_at(address: str | None) -> Iterator[Any]:
    """Connect to a Dask cluster, and yield its client, which works as an executor; None without an address.

    Raises
    ------
    SettingsError
        If Dask is not installed, or no scheduler answers.
    """
    if address is None:
        yield None
        return
    try:
        client_of: Any = import_module("distributed").Client
    except ImportError:
        raise SettingsError(
            "--scheduler needs Dask, which is not installed", hint="pip install 'monailabel-xnat[dask]'"
        ) from None
    try:
        client = client_of(address, timeout=_SCHEDULER_SECONDS)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise SettingsError(f"no Dask scheduler answers at {address}", hint=str(error)) from None
    with client:
        yield client


@dataclass(frozen=True)
class Opened:
    """The parts of a datastore, without MONAI Label, which takes seconds to import.

    Attributes
    ----------
    session
        The connection.
    catalog
        Lists the images.
    images
        Returns the files of images.
    labels
        Reads labels.
    store
        Saves and changes labels.
    """

    session: Session
    catalog: Catalog
    images: Images
    labels: Labels
    store: LabelStore


@contextmanager
def opened(settings: Settings) -> Iterator[Opened]:
    """Open the parts of a datastore, and close them at the end.

    Parameters
    ----------
    settings : Settings
        The settings, which name the XNAT and its projects.
    """
    from monailabel_xnat.catalog import Catalog
    from monailabel_xnat.client.session import Session
    from monailabel_xnat.images import Images
    from monailabel_xnat.labels import Labels, LabelStore

    session = Session(settings)
    catalog = Catalog(session)
    images = Images(session, settings, catalog.read_cache)
    labels = Labels(session, catalog, images, settings)
    store = LabelStore(session, catalog, images, settings, labels)
    try:
        yield Opened(session, catalog, images, labels, store)
    finally:
        store.close()
        images.close()
        catalog.close()
        session.close()


def end_on_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does: it stops its servers and removes its temporary folders."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def print_json(value: Any) -> None:
    """Print a value as JSON that people can read, too."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. On a terminal it is fitted to the width; a pipe or a file gets whole cells, separated by tabs.

    The first column names what a row is about, such as an image. It is folded only if that leaves too little room for
    the others, because people copy from it.
    """
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    longest = max((len(row[0]) for row in rows), default=0)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # Folded, because a cell that is cut off cannot be copied.
        table.add_column(column, overflow="fold")
    table.columns[0].no_wrap = longest + _NARROWEST * (len(columns) - 1) <= console.width
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text, because strings from XNAT may look like markup
    console.print(table)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how far a command has come, on standard error, and only if that is a terminal.

    Parameters
    ----------
    title : str
        What the command does, such as ``"fetching images"``.
    total : int
        How many steps there are.

    Yields
    ------
    callable
        The caller calls it after each step.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
