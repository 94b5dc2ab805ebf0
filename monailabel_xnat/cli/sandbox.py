"""``monailabel-xnat sandbox``: it runs an XNAT-compatible server in the foreground."""

from __future__ import annotations

import errno
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from monailabel_xnat.cli.common import end_on_sigterm, opened, with_debug
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import SettingsError

if TYPE_CHECKING:
    from monailabel_xnat.sandbox import Sandbox
    from monailabel_xnat.sandbox.demo import DemoData

BANNER = "This is a sandbox for demos and tests. It is not an archive for patients."
PATH = click.Path(path_type=Path)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The second project of the demo: some of the sessions of the first one, with labels of several users.
LABELLED = "LABELLED"
# The port of an archive that is kept stands in its folder, so that addresses and caches of clients stay right.
_PORT_FILE = "port"
# Caches of clients that are told so lie with the archive, and go with it: each start may have an address of its own.
_CACHE = "client-cache"
# Who saves labels in the demo.
_AUTHORS = ("admin", "owner", "member")
_TO_PASTE = """
To try it, paste this into another terminal:

  export MONAI_LABEL_XNAT_SERVER={url} MONAI_LABEL_XNAT_CACHE_PATH='{cache}'
  export MONAI_LABEL_XNAT_USERNAME={user} MONAI_LABEL_XNAT_PASSWORD='{password}'
  monailabel-xnat ls --project {project}

and this into Python, there:

  from monailabel_xnat import XNATDatastore
  datastore = XNATDatastore("{url}", "{user}", "{password}", "{project}", cache_path="{cache}")
  print(datastore.training_set()[0])

Project {project} has labels of several users, and {unlabelled} has none yet."""


@click.command("sandbox")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Where to listen; default: where the archive in --data was before, or any free port.",
)
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
@click.option("--demo", is_flag=True, help="Fill it with two generated projects, one of them with labels.")
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
    type=click.FloatRange(0, min_open=True),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Forget a login that was not used for this time.",
)
@with_debug
def command(
    port: int | None,
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

    With --data the archive, its users and its port are kept. With --demo it prints what to paste to try it.

    Example: monailabel-xnat sandbox --demo
    """
    from monailabel_xnat.sandbox import Sandbox

    given = dict(_user(text) for text in users)
    missing = [folder for folder in imports if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"no such folder to import: {', '.join(map(str, missing))}")
    if host not in _LOOPBACK:
        click.echo(f"WARNING: {host} shows this archive, and its logins, to other computers", err=True)
    end_on_sigterm()
    try:
        sandbox = Sandbox(
            data,
            _port_before(data) if port is None else port,
            host,
            given,
            require_login=not is_open,
            session_timeout=session_timeout,
            schemas=schemas,
            context=context,
            anonymise=anonymise,
        )
        try:
            _listen(sandbox)
            for folder in imports:
                sessions = sandbox.import_dicom(folder, project)
                click.echo(f"imported {folder}: {len(sessions)} sessions")
            sandbox.start()
            if demo:
                _make_demo(sandbox)
            _announce(sandbox, given, with_demo=demo)
            threading.Event().wait()  # until Ctrl-C or SIGTERM
        finally:
            sandbox.stop()
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _port_before(data: Path | None) -> int:
    """Return the port at which the archive in a folder was served last; 0, which is any, where it has none."""
    try:
        return int((data / _PORT_FILE).read_text(encoding="ascii")) if data else 0
    except (FileNotFoundError, ValueError):
        return 0


def _listen(sandbox: Sandbox) -> None:
    """Take the port, and note it in the folder of the archive."""
    try:
        sandbox.listen()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise SettingsError(
            f"another program listens at {sandbox.url}", hint="give another --port, or --port 0 for any that is free"
        ) from error
    port = urlsplit(sandbox.url).port
    (sandbox.folder / _PORT_FILE).write_text(f"{port}\n", encoding="ascii")


def _make_demo(sandbox: Sandbox) -> None:
    """Make the project without labels and the one with labels; what is there from an earlier start stays."""
    from monailabel_xnat.sandbox.demo import write_demo

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = write_demo(folder)
        sandbox.import_dicom(demo.dicom, demo.project)
        click.echo(f"made the demo project {demo.project}: {len(demo.cases)} sessions")
        cases = demo.cases[:4]
        for case in cases:
            sandbox.import_dicom(case.dicom, LABELLED)
        labels = _save_labels(sandbox, demo, folder)
        click.echo(f"made the demo project {LABELLED}: {len(cases)} sessions, {labels} labels were saved")


def _save_labels(sandbox: Sandbox, demo: DemoData, folder: Path) -> int:
    """Save labels of several users in the project for them, over HTTP, as those users would; return how many.

    The first session gets the truth as final label, the second one a draft before it, the third one the label of
    another user before it, and the fourth one stays as it is. None is saved where there are labels, and none of a
    user whose password was set at an earlier start.
    """
    import nibabel
    import numpy as np

    def drawn_off(truth: Path) -> Path:
        library: Any = nibabel
        image = library.load(truth)
        target = folder / f"off_{truth.name}"
        library.save(library.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, axis=0), image.affine), target)
        return target

    first, second, third, _ = demo.cases[:4]
    planned = (
        ("admin", second, "original", drawn_off(second.truth)),
        ("owner", third, "final", drawn_off(third.truth)),
        *(("member", case, "final", case.truth) for case in (first, second, third)),
    )
    info = {"label_info": [{"name": name, "idx": value} for name, value in demo.labels.items()]}
    saved = 0
    for user in [user for user in _AUTHORS if user in sandbox.users]:
        login = {"server": sandbox.url, "username": user, "password": sandbox.users[user], "project": LABELLED}
        with opened(Settings.load({**login, "cache_path": folder / "cache"}, environ={})) as parts:
            scans = {scan.session_label: scan for scan in parts.catalog.scans()}
            if not saved and parts.labels.images("final"):
                return 0
            for author, case, tag, label in planned:
                if author == user:
                    parts.store.save(scans[case.session], tag, label, info)
                    saved += 1
    return saved


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

        # A password that was set at an earlier start is not known any more.
        user = next((user for user in _AUTHORS if user in sandbox.users), sandbox.username)
        password = sandbox.users.get(user, "...")
        names = {"project": LABELLED, "unlabelled": PROJECT, "cache": sandbox.folder.resolve() / _CACHE}
        click.echo(_TO_PASTE.format(url=sandbox.url, user=user, password=password, **names))
    click.echo("\nCtrl-C ends it.")
