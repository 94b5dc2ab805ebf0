"""The sandbox as a server. It runs on a thread for tests, and in the foreground for the command line."""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import uvicorn
from filelock import FileLock, Timeout

from monailabel_xnat.sandbox.access.accounts import Accounts, Sessions, require_valid_user
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.datatypes import DataTypes
from monailabel_xnat.sandbox.http.application import Application, Faults, RequestLog

ADMIN = "admin"
STANDING_USERS = {"owner": "owner", "member": "member", "collaborator": "collaborator", "none": ""}

_SCHEMAS = Path(__file__).with_name("schemas")
_START_SECONDS = 20.0


class Sandbox:
    """A server on this computer that behaves like XNAT.

    Use it as a context manager, or with :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    data
        Folder of the archive, made if absent and kept. None makes a private temporary folder, removed at the end.
    port
        The port to listen on; 0 for any free port.
    host
        The address to listen on. Use another address than loopback only if others may reach the sandbox.
    users
        Passwords by login, for ``admin``, ``owner``, ``member``, ``collaborator``, ``none`` and any others. A user of
        those five who has no password yet gets a made-up one. A user who has one from an earlier start on the same
        `data` keeps it.
    require_login
        False makes an open site: a user who is not logged in is a guest.
    session_timeout
        Seconds without a request after which a login ends.
    schemas
        Folder of XSD files to serve instead of those of the sandbox.
    roi_plugin
        Whether the OHIF viewer's plugin is installed.
    context
        The path below which the site is deployed, such as ``/xnat``.
    anonymise
        Whether the site's anonymisation script is on, as it is on an XNAT with default settings. Then archived files
        differ from the files that were sent: Study Description, Patient's Name and Patient ID are set to the ID of the
        project and the labels of subject and session.

    Raises
    ------
    PermissionError
        If other users can read the folder.
    BlockingIOError
        If another sandbox is using the folder.
    ValueError
        If another version wrote the folder, or a login or password cannot be used.

    Examples
    --------
    >>> from monailabel_xnat.sandbox import Sandbox
    >>> with Sandbox() as sandbox:
    ...     sandbox.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(
        self,
        data: str | Path | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        users: Mapping[str, str] | None = None,
        require_login: bool = True,
        session_timeout: float = 900.0,
        schemas: str | Path | None = None,
        roi_plugin: bool = True,
        context: str = "",
        anonymise: bool = False,
    ) -> None:
        types = DataTypes(Path(schemas) if schemas else _SCHEMAS)
        for login, password in (users or {}).items():
            require_valid_user(login, password)
        self._temporary = data is None
        self._anonymise = anonymise
        self.folder = Path(tempfile.mkdtemp(prefix="xnat-sandbox-")) if data is None else Path(data)
        _require_private(self.folder)
        self._lock = _locked(self.folder)
        try:
            self.archive = Archive(self.folder, types, anonymise=anonymise)
        except ValueError:
            self._lock.release()
            raise
        self._accounts = Accounts(self.archive.store)
        self.users = self._make_users(users or {})
        self._logins_at_start = self.logins
        self._sessions = Sessions(session_timeout)
        self._context = f"/{context.strip('/')}" if context.strip("/") else ""
        self._application = Application(
            self.archive,
            self._accounts,
            self._sessions,
            require_login=require_login,
            roi_plugin=roi_plugin,
            context=self._context,
        )
        self._host, self._port = host, port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    username = ADMIN

    @property
    def password(self) -> str:
        """The password of the user ``admin``.

        Raises
        ------
        LookupError
            If it was set at an earlier start; only its hash was kept.
        """
        if ADMIN not in self.users:
            raise LookupError(
                f"the password of {ADMIN!r} was set when {self.folder} was first used, and only its hash is kept;"
                f" give a new one: Sandbox(..., users={{{ADMIN!r}: ...}})"
            )
        return self.users[ADMIN]

    @property
    def logins(self) -> list[str]:
        """The logins of all users, also of those whose password was set at an earlier start."""
        return [user.login for user in self._accounts.all()]

    @property
    def url(self) -> str:
        """The address of the server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{self._context}"

    @property
    def requests(self) -> RequestLog:
        """The requests served so far."""
        return self._application.requests

    @property
    def faults(self) -> Faults:
        """The failures that tests have asked for."""
        return self._application.faults

    def reset(self) -> None:
        """Empty the archive, log everybody out and remove all faults. The users of the start stay."""
        from monailabel_xnat.sandbox.dicom.prearchive import Prearchive

        self.expire_sessions()
        self.faults.clear()
        self.archive.store.clear(keep=("users",))
        self._accounts.keep_only(self._logins_at_start)
        self._application.resources.clear()
        Prearchive(self.archive).clear()
        self._application.preferences.reset()
        self.archive.is_anonymising = self._anonymise
        self.requests.clear()

    def expire_sessions(self) -> None:
        """End every login, as a restart does."""
        self._sessions.close_all()

    def import_dicom(self, folder: str | Path, project: str | None = None) -> list[str]:
        """File a folder of DICOM.

        Parameters
        ----------
        folder
            Any folder of DICOM files.
        project
            The project to file it in. Default: a project with the name of the folder.

        Returns
        -------
        list of str
            The address of each session, ``/data/experiments/XNAT_E00001``.

        Raises
        ------
        ValueError
            If the folder holds no DICOM.
        """
        from monailabel_xnat.sandbox.dicom.filing import Filing, project_id

        target = project_id(Path(folder), project)
        made = Filing(self.archive, self._application.resources).file(Path(folder), target)
        return [f"/data/experiments/{session.id}" for session in made]

    def start(self) -> Sandbox:
        """Start to serve on a thread. The method returns when the server answers.

        Raises
        ------
        RuntimeError
            If the sandbox serves already, was stopped before, or does not start.
        OSError
            If the sandbox cannot listen on the port. Then a temporary archive is removed, as :meth:`stop` does.
        """
        if self._server is not None:
            raise RuntimeError(f"the sandbox serves already, on {self.url}")
        if not self._lock.is_locked:
            raise RuntimeError("the sandbox was stopped and its archive is closed; make another one: Sandbox(...)")
        try:
            self.listen()
        except OSError:
            self.stop()
            raise
        self._server = uvicorn.Server(self._config())
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="xnat-sandbox", daemon=True
        )
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            if self._server.started:
                return self
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        raise RuntimeError(f"the sandbox did not start on {self.url}")

    def serve(self) -> None:
        """Serve in the foreground until SIGINT or SIGTERM."""
        self.listen()
        self._server = uvicorn.Server(self._config())
        try:
            self._server.run(sockets=[self._socket] if self._socket else None)
        finally:
            self.stop()

    def stop(self) -> None:
        """End the server and close the archive. A temporary archive is removed."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._server = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.archive.close()
        self._lock.release()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def listen(self) -> None:
        """Open the port, so that :attr:`url` is known before :meth:`serve`."""
        if self._socket is None:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            # The protocol is named so that asyncio switches Nagle's algorithm off. Then small answers are sent at once.
            self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._socket.bind((self._host, self._port))
            except OSError as error:
                self._socket.close()
                self._socket = None
                reason = f"cannot listen on {self._host}, port {self._port}: {error.strerror or error}"
                raise OSError(error.errno, f"{reason}; choose another port, or 0 for any free one") from None
            # A client that connects before the server runs waits for it.
            self._socket.listen()
            self._port = self._socket.getsockname()[1]

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self._application,
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            server_header=False,
        )

    def _make_users(self, given: Mapping[str, str]) -> dict[str, str]:
        """Set the passwords given, make up the missing ones, and return all of them."""
        passwords = dict(given)
        for login in (ADMIN, *STANDING_USERS):
            if login not in passwords and self._accounts.get(login) is None:
                passwords[login] = secrets.token_urlsafe(12)
        for login, password in passwords.items():
            role = STANDING_USERS.get(login, "")
            self._accounts.add(login, password, login == ADMIN, role, is_random=login not in given)
        return passwords


def _require_private(folder: Path) -> None:
    """Make the folder, or refuse one that others can read.

    Raises
    ------
    PermissionError
        If others have access.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise PermissionError(
            f"{folder} can be read by others; give it mode 0700 (chmod 700 {folder}) or use another folder"
        )


def _locked(folder: Path) -> FileLock:
    """Lock a folder against other sandboxes. If the process is killed, the system releases the lock.

    Raises
    ------
    BlockingIOError
        If another sandbox uses the folder.
    """
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"another sandbox is using {folder}; end it, or use another folder") from None
    return lock
