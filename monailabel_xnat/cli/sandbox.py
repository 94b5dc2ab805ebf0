"""``monailabel-xnat sandbox``: an XNAT-compatible server in the foreground."""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from monailabel_xnat.errors import SettingsError

if TYPE_CHECKING:
    from monailabel_xnat.sandbox import Sandbox

BANNER = "This is a sandbox for demos and tests. It is not an archive for patients."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--port", type=int, default=0, help="where to listen; default: any free port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    parser.add_argument("--data", type=Path, help="folder that keeps the archive; default: a temporary one")
    parser.add_argument(
        "--import", dest="imports", type=Path, action="append", default=[], metavar="DICOM_DIR",
        help="file a folder of DICOM first; may be given several times. Each study becomes a session of its own, named "
        "by Patient ID and modality where the headers name none: XNAT's own import names sessions by Patient ID alone, "
        "and refuses the second study of a patient",
    )  # fmt: skip
    parser.add_argument("--project", help="project to import into; default: named like the folder")
    parser.add_argument("--demo", action="store_true", help="fill it with the generated demo project")
    parser.add_argument("--schemas", type=Path, help="folder of XSD files to serve instead of the sandbox's own")
    parser.add_argument(
        "--user", action="append", default=[], metavar="NAME=PASSWORD", help="set a password instead of making one up"
    )
    parser.add_argument("--open", action="store_true", help="let guests in, who see public projects")
    parser.add_argument(
        "--anonymise", action="store_true",
        help="anonymise what is archived, as an XNAT that nobody has changed does: archived files are not those sent",
    )  # fmt: skip
    parser.add_argument("--context", default="", help="path that the site is deployed under, such as /xnat")
    parser.add_argument(
        "--session-timeout", type=float, default=900.0, metavar="SECONDS",
        help="forget a login that was not used for so long; default: %(default)s",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises
    ------
    SettingsError
        If an argument makes no sense, such as a folder of XSD files without XNAT's.
    """
    try:
        _run(args)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return 0


def _run(args: argparse.Namespace) -> None:
    from monailabel_xnat.sandbox import Sandbox

    users = dict(_user(text) for text in args.user)
    missing = [folder for folder in args.imports if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"no such folder to import: {', '.join(map(str, missing))}")
    # Without this, SIGTERM would end the process before a temporary archive is removed.
    signal.signal(signal.SIGTERM, _interrupt)
    sandbox = Sandbox(
        args.data,
        args.port,
        args.host,
        users,
        require_login=not args.open,
        session_timeout=args.session_timeout,
        schemas=args.schemas,
        context=args.context,
        anonymise=args.anonymise,
    )
    try:
        sandbox.listen()
        _fill(sandbox, args)
        _announce(sandbox, users)
        sandbox.serve()
    finally:
        sandbox.stop()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _user(text: str) -> tuple[str, str]:
    name, equals, password = text.partition("=")
    if not (name and equals and password):
        raise SettingsError("--user wants NAME=PASSWORD")
    return name, password


def _fill(sandbox: Sandbox, args: argparse.Namespace) -> None:
    for folder in args.imports:
        sessions = sandbox.import_dicom(folder, args.project)
        print(f"imported {folder}: {len(sessions)} sessions", flush=True)
    if args.demo:
        from monailabel_xnat.sandbox.demo import write_demo

        with tempfile.TemporaryDirectory() as folder:
            demo = write_demo(Path(folder))
            sandbox.import_dicom(demo.dicom, demo.project)
        print(f"made the demo project {demo.project}: {len(demo.cases)} sessions", flush=True)


def _announce(sandbox: Sandbox, given: dict[str, str]) -> None:
    print(f"\n{BANNER}\n\nXNAT sandbox: {sandbox.url}")
    for login in sandbox.logins:
        made = sandbox.users.get(login, "(as before)")
        print(f"  user {login:<13} password {'(as given)' if login in given else made}")
    print("\nCtrl-C ends it.", flush=True)
