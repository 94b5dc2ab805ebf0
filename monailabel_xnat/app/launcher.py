"""The start of an unmodified MONAI Label app on XNAT.

MONAI Label makes an app from the file ``main.py`` in the folder of the app: in the server, in each of its workers, and
in every process that it starts for training, batch inference and scoring. To reach all of them without a change to the
app, the server gets another folder, the *stand-in*. Its ``main.py`` loads the real one, and makes a class of the app's
class with :class:`~monailabel_xnat.app.mixin.XNATAppMixin` before it.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.main import Main
from platformdirs import user_data_path

from monailabel_xnat.app.mixin import DATASTORE_NAME, XNATAppMixin, chosen_datastore, server_environment
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import must_work, private_folder, text_digest, write_whole
from monailabel_xnat.errors import LoginError, ServerError, SettingsError

logger = logging.getLogger(__name__)

# The folders that MONAI Label makes in an app's folder when the server starts. The stand-in has links to those of the
# app, where the user looks for logs and models. ``lib`` is not linked: the app imports its own.
_FOLDERS = ("bin", "logs", "model")
# MONAI Label's REST API; and ours, which adds what clients need with XNAT, and in which slow requests do not delay
# quick ones.
_THEIR_API, _OUR_API = "monailabel.app:app", "monailabel_xnat.app.server:app"
# The module name of the app's main.py. Processes that Python spawns can import it by this name, because its folder is
# on the module search path.
_REAL_MODULE = "main"
_STAND_IN = '''\
"""Made by `monailabel-xnat start_server`: the app in the folder below, with its images and labels in XNAT."""

from monailabel_xnat.app.launcher import app_on_xnat

App = app_on_xnat({folder!r})
'''


def start_server(arguments: Sequence[str]) -> None:
    """Start the MONAI Label server, and return when the server ends.

    Parameters
    ----------
    arguments : sequence of str
        The options of ``monailabel start_server``. If no datastore is chosen (``--conf datastore`` or
        ``MONAI_LABEL_DATASTORE``), an address in ``--studies`` is taken for that of an XNAT.

    Raises
    ------
    SettingsError
        If there is no ``main.py`` in the app's folder.
    CacheError
        If the stand-in for the app's folder cannot be made.
    """
    program, sys.argv = sys.argv, ["monailabel-xnat", "start_server", *arguments]
    try:
        _Launcher(actions="start_server").run()
    finally:
        sys.argv = program


def app_on_xnat(folder: str) -> type[MONAILabelApp]:
    """Return a class for the app in a folder. If XNAT is chosen, the class opens an XNAT datastore.

    Parameters
    ----------
    folder : str
        The folder of the real app. The app is made with this folder, so its models and downloads stay there.

    Raises
    ------
    SettingsError
        If there is no app in the folder.
    """
    real = _app_class(_loaded(Path(folder)), folder)

    def start(self: Any, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        real.__init__(self, app_dir=folder, studies=studies, conf=conf)

    # MONAI Label uses the first class in main.py that has MONAILabelApp as a direct base class.
    bases = (real, MONAILabelApp) if issubclass(real, XNATAppMixin) else (XNATAppMixin, real, MONAILabelApp)
    return type(real.__name__, bases, {"__init__": start, "__module__": real.__module__, "__doc__": real.__doc__})


class _Launcher(Main):  # type: ignore[misc]
    """MONAI Label's own launcher, changed so that it starts the stand-in instead of the app's folder."""

    def start_server_validate_args(self, args: Any) -> None:
        super().start_server_validate_args(args)
        args.conf = args.conf or []
        if args.studies.startswith(("http://", "https://")) and not chosen_datastore(dict(args.conf)):
            args.conf.append(["datastore", DATASTORE_NAME])
            logger.info("no datastore was chosen: %s is taken for an XNAT (--conf datastore xnat)", args.studies)
        if chosen_datastore(dict(args.conf)) != DATASTORE_NAME:
            logger.info("another datastore than XNAT was chosen: the app is started as it is")
            return
        real = Path(args.app)
        args.app = str(_stand_in(real))
        if args.uvicorn_app == _THEIR_API:
            args.uvicorn_app = _OUR_API
        _require_login(args.studies, dict(args.conf))
        os.environ["PATH"] += os.pathsep + str(real / "bin")
        # Late imports and spawned workers find the app's own packages here.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(real))))


def _require_login(studies: str, conf: dict[str, str]) -> None:
    """Log in once before the server starts: the server would show a wrong address or password only in a traceback.

    Raises
    ------
    SettingsError, LoginError
        If the settings or the login are wrong.
    ServerError
        If XNAT cannot be reached, and the setting ``wait`` is off.
    """
    address = studies if studies.startswith(("http://", "https://")) else ""
    settings = Settings.load({"server": address}, conf, server_environment())
    session = Session(settings)
    try:
        logger.info("XNAT knows us as %s", session.user)
    except LoginError:
        raise
    except ServerError as error:
        if not settings.wait:
            raise
        logger.warning("XNAT does not answer yet: %s", error)
    finally:
        session.close()


def _stand_in(real: Path) -> Path:
    """Make the stand-in for an app's folder, and return it. There is one for each app of this user."""
    if not (real / "main.py").is_file():
        raise SettingsError(
            f"there is no MONAI Label app in {real}: it has no main.py", hint="give the folder of the app with --app"
        )
    name = f"{real.name}-{text_digest(str(real))[:12]}"
    folder = user_data_path("monailabel_xnat", appauthor=False) / "apps" / name
    with must_work(f"make the folder {folder}", "make it writable, or set XDG_DATA_HOME to a folder that is"):
        private_folder(folder)  # what is in it is executed
        for part in _FOLDERS:
            _link(folder / part, real / part)
        text = _STAND_IN.format(folder=str(real))
        program = folder / "main.py"
        # Another server of the same app may be reading the file, so it is written only if it differs.
        if not program.is_file() or program.read_text(encoding="utf-8") != text:
            write_whole(program, text.encode())
    return folder


def _link(link: Path, target: Path) -> None:
    """Make a link to a folder of the real app. If that fails, MONAI Label makes a folder in the stand-in."""
    if link.exists():
        return
    try:
        target.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        logger.info("%s is kept in %s: %s", link.name, link.parent, error.strerror)


def _loaded(folder: Path) -> ModuleType:
    """Execute the real ``main.py``, and return the module. Its folder stays on the module search path."""
    program = folder / "main.py"
    spec = importlib.util.spec_from_file_location(_REAL_MODULE, program)
    if spec is None or spec.loader is None or not program.is_file():
        raise SettingsError(
            f"there is no MONAI Label app in {folder}: it has no main.py", hint="give the folder of the app with --app"
        )
    # MONAI Label also puts the folder first while it loads an app. Here it stays on the path, because some apps import
    # parts of themselves later, and processes that Python spawns get the same path.
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    module = importlib.util.module_from_spec(spec)
    sys.modules[_REAL_MODULE] = module  # pickle finds the app's classes there
    spec.loader.exec_module(module)
    return module


def _app_class(module: ModuleType, folder: str) -> type[MONAILabelApp]:
    """Return the class of the app that MONAI Label would use: the first by name with the direct base MONAILabelApp."""
    for _, found in inspect.getmembers(module, inspect.isclass):
        if any(base.__name__ == MONAILabelApp.__name__ for base in found.__bases__):
            return found
    raise SettingsError(
        f"there is no MONAI Label app in {folder}: no class in its main.py is derived from MONAILabelApp",
        hint="give the folder of the app with --app",
    )
