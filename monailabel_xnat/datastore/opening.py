"""How a datastore is opened: its keyword arguments, the login that it uses, and how it opens in another process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import TypedDict

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.config import CONF_PREFIX, Secret, Settings
from monailabel_xnat.errors import LoginError, SettingsError

Several = str | Sequence[str]
"""A comma-separated text, or a list of texts; texts in a list are not split at commas."""

Folder = str | os.PathLike[str]


class SettingArguments(TypedDict, total=False):
    """Keyword arguments of :class:`~monailabel_xnat.datastore.datastore.XNATDatastore` that are settings.

    :class:`~monailabel_xnat.config.Settings` has the same fields and explains each of them.
    """

    auth_provider: str | None
    data_path: Folder | None
    cache_budget: float | None
    image_format: str | None
    gantry_tilt: str | None
    image_resource: Several | None
    compress: bool | None
    prefetch: int | None
    scan_type: Several | None
    series_description: Several | None
    modality: Several | None
    quality: Several | None
    subject: Several | None
    session: Several | None
    min_frames: int | None
    labels: str | Mapping[str, int] | Sequence[str] | None
    label_resource: str | Sequence[str | Sequence[str]] | None
    roi_tag: str | None
    roi_label: Several | None
    roi_write: Several | None
    label_scan: Several | None
    read_only: bool | None
    dry_run: bool | None
    allow_delete: bool | None
    keep_versions: int | None
    connections: int | None
    rate_limit: float | None
    timeout: float | None
    deadline: float | None
    wait: bool | None
    max_age: float | None
    claim_time: float | None
    verify_age: float | None
    verify_tls: bool | None
    ca_bundle: Folder | None
    client_certificate: Folder | None


ARGUMENTS = (
    *("api_url", "username", "password", "project", "asset_path", "cache_path", "conf", "environ", "connection"),
    *SettingArguments.__annotations__,
)
"""The names of all arguments of the constructor."""

# The endings of the environment variables from which Settings reads credentials.
_CREDENTIALS = ("_USERNAME", "_USER", "_PASSWORD", "_PASS")


def settings_beside(
    server: str, arguments: Mapping[str, Any], conf: Mapping[str, Any] | None, environ: Mapping[str, str] | None
) -> Settings:
    """Return the settings of a datastore that uses an xnatpy session which was given as connection.

    User name and password are taken only from the arguments. Those in the environment or ``~/.netrc`` are not used,
    because they may belong to another user.

    Parameters
    ----------
    server : str
        Address of the XNAT to which the session belongs.
    arguments, conf, environ
        As for :meth:`Settings.load`.

    Raises
    ------
    SettingsError
        As for :meth:`Settings.load`; also if only one of user name and password is given, or an address that is not
        that of the session.
    """
    environ = os.environ if environ is None else environ
    elsewhere = {name: value for name, value in environ.items() if not name.upper().endswith(_CREDENTIALS)}
    kept = {name: value for name, value in (conf or {}).items() if name != f"{CONF_PREFIX}username"}
    for name, other in (("username", "password"), ("password", "username")):
        if arguments.get(name) and not arguments.get(other):
            raise SettingsError(
                f"there is a {name} beside connection, but no {other}",
                hint="give both, for a new login when that of the connection has expired, or none of them",
            )
    settings = Settings.load({**arguments, "server": server}, kept, {**elsewhere, "NETRC": os.devnull})
    if arguments.get("server"):
        given = Settings.load({"server": arguments["server"]}, environ={"NETRC": os.devnull}).server
        if given != settings.server:
            raise SettingsError(
                f"the session that was given as connection is one at {settings.server}, but api_url is {given}",
                hint="leave api_url out",
            )
    return settings


if TYPE_CHECKING:
    from typing_extensions import Self

_reopening = renewed_in_children(sys.modules[__name__], "_reopening", threading.RLock)
Kind = TypeVar("Kind", bound="Reopening")


class Reopening(ABC):
    """Base class of a datastore, which holds connections, locks and threads, and can be sent to another process.

    It is pickled as its settings, without secrets. In the other process it opens at its first use, and logs in with
    the environment of that process or ``~/.netrc``. All that it holds is in slots: MONAI's data loader searches
    everything in the ``__dict__`` of a dataset, and would never finish with these objects.
    """

    __slots__ = (
        "_catalog",
        "_close_at_exit",
        "_dataset",
        "_facts",
        "_first_listing",
        "_graph",
        "_images",
        "_infos",
        "_is_borrowed",
        "_labels",
        "_next",
        "_scan_writer",
        "_session",
        "_settings",
        "_store",
        "_texts",
    )

    _settings: Settings
    _is_borrowed: bool

    @abstractmethod
    def _open(self, settings: Settings) -> None:
        """Make all objects that the datastore holds."""

    @abstractmethod
    def close(self) -> None:
        """Send what waits for XNAT, and log out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Open the datastore at its first use in another process. Python calls this only for missing attributes."""
        if name not in Reopening.__slots__ or name in ("_settings", "_is_borrowed", "_close_at_exit"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _reopening:
            if not self._is_open:
                self._require_own_login()
                self._open(self._settings.with_login(os.environ))
        return object.__getattribute__(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        settings = replace(self._settings, password=Secret(""))
        return _handed_over, (type(self), settings, self._is_borrowed), self.__dict__ or None

    @property
    def _is_open(self) -> bool:
        try:
            object.__getattribute__(self, "_session")
        except AttributeError:
            return False
        return True

    def _require_own_login(self) -> None:
        if self._is_borrowed:
            raise LoginError(
                "a datastore over an xnatpy session that was given as connection cannot be used in another process",
                hint="open it with server, username and password there",
                url=self._settings.server,
            )

    def _end_with_process(self) -> None:
        """Arrange that the datastore is closed when the process ends.

        MONAI Label never closes a datastore, and what waits for XNAT must be sent. Processes that multiprocessing
        starts do not run the functions of atexit, so there the datastore is closed by multiprocessing itself.
        """
        close = _closing(weakref.ref(self))
        if parent_process() is not None:
            self._close_at_exit = Finalize(None, close, exitpriority=10).cancel
        else:
            atexit.register(close)
            self._close_at_exit = lambda: atexit.unregister(close)


def _closing(reference: weakref.ref[Reopening]) -> Callable[[], None]:
    def close() -> None:
        datastore = reference()
        if datastore is not None:
            datastore.close()

    return close


def _handed_over(kind: type[Kind], settings: Settings, is_borrowed: bool) -> Kind:
    """Return a datastore that opens itself at its first use."""
    made = kind.__new__(kind)
    made._settings = settings
    made._is_borrowed = is_borrowed
    return made
