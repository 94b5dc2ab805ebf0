"""``monailabel-xnat sandbox``: it runs an XNAT-compatible server in the foreground."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from monailabel_xnat.cli.common import with_debug
from monailabel_xnat.errors import SettingsError

if TYPE_CHECKING:
    from monailabel_xnat.sandbox import Sandbox

BANNER = "This is a sandbox for demos and tests. It is not an archive for patients."
PATH = click.Path(path_type=Path)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TO_PASTE = """
To try it, paste this into another terminal:

  export MONAI_LABEL_XNAT_SERVER={url}
  export MONAI_LABEL_XNAT_USERNAME={user} MONAI_LABEL_XNAT_PASSWORD='{password}'
  monailabel-xnat ls --project {project}

and this into Python:

  from monailabel_xnat import XNATDatastore
  datastore = XNATDatastore("{url}", "{user}", "{password}", project="{project}")
  print(datastore.get_image_uri(datastore.list_images()[0]))"""


@click.command("sandbox")
@click.option("--port", type=int, default=0, help="Where to listen; default: any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--data", type=PATH, help="Folder that keeps the archive; default: a temporary one.")
@click.option(
    "--import",
    "imports",
    type=PATH,
    multiple=True,
    metavar="DICOM_DIR",
    help="Import a folder of DICOM files first; may be given several times. Each study becomes a session of its own. "
    "If the headers name no session, it is named after Patient ID and modality. XNAT's own import uses the Patient ID "
    "alone, and refuses the second study of a patient.",
)
@click.option("--project", help="Project to import into; default: the name of the folder.")
@click.option("--demo", is_flag=True, help="Fill it with the generated demo project.")
@click.option("--schemas", type=PATH, help="Folder of XSD files to serve instead of the sandbox's own.")
@click.option(
    "--user", "users", multiple=True, metavar="NAME=PASSWORD", help="Set a user's password; default: one is made up."
)
@click.option("--open", "is_open", is_flag=True, help="Let guests in without a login; they see public projects.")
@click.option(
    "--anonymise",
    is_flag=True,
    help="Anonymise files in the archive, as XNAT does by default. They then differ from the files that were sent.",
)
@click.option("--context", default="", help="Path that the site is deployed under, such as /xnat.")
@click.option(
    "--session-timeout",
    type=float,
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Forget a login that was not used for this time.",
)
@with_debug
def command(
    port: int,
    host: str,
    data: Path | None,
    imports: tuple[Path, ...],
    project: str | None,
    demo: bool,
    schemas: Path | None,
    users: tuple[str, ...],
    is_open: bool,
    anonymise: bool,
    context: str,
    session_timeout: float,
) -> None:
    """Run an XNAT-compatible server on this computer until Ctrl-C, for demos and tests.

    Example: monailabel-xnat sandbox --demo
    """
    from monailabel_xnat.sandbox import Sandbox

    given = dict(_user(text) for text in users)
    missing = [folder for folder in imports if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"no such folder to import: {', '.join(map(str, missing))}")
    if host not in _LOOPBACK:
        click.echo(f"WARNING: {host} shows this archive, and its logins, to other computers", err=True)
    # Otherwise SIGTERM would end the process before a temporary archive is removed.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sandbox = Sandbox(
            data,
            port,
            host,
            given,
            require_login=not is_open,
            session_timeout=session_timeout,
            schemas=schemas,
            context=context,
            anonymise=anonymise,
        )
        try:
            sandbox.listen()
            for folder in imports:
                sessions = sandbox.import_dicom(folder, project)
                click.echo(f"imported {folder}: {len(sessions)} sessions")
            if demo:
                _make_demo(sandbox)
            sandbox.start()
            _announce(sandbox, given, with_demo=demo)
            threading.Event().wait()  # until Ctrl-C or SIGTERM
        finally:
            sandbox.stop()
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _make_demo(sandbox: Sandbox) -> None:
    from monailabel_xnat.sandbox.demo import write_demo

    with tempfile.TemporaryDirectory() as folder:
        demo = write_demo(Path(folder))
        sandbox.import_dicom(demo.dicom, demo.project)
    click.echo(f"made the demo project {demo.project}: {len(demo.cases)} sessions")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _user(text: str) -> tuple[str, str]:
    name, equals, password = text.partition("=")
    if not (name and equals and password):
        raise SettingsError("--user wants NAME=PASSWORD")
    return name, password


def _announce(sandbox: Sandbox, given: dict[str, str], *, with_demo: bool) -> None:
    click.echo(f"\n{BANNER}\n\nXNAT sandbox: {sandbox.url}")
    for login in sandbox.logins:
        made = sandbox.users.get(login, "(as before)")
        click.echo(f"  user {login:<13} password {'(as given)' if login in given else made}")
    if with_demo:
        from monailabel_xnat.sandbox.demo import PROJECT

        click.echo(_TO_PASTE.format(url=sandbox.url, user=sandbox.username, password=sandbox.password, project=PROJECT))
    click.echo("\nCtrl-C ends it.")
