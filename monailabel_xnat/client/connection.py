"""The xnatpy session of this process, which sends through the guard; a session that was given, and its heartbeat."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Container, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import requests
from xnat.session import BaseXNATSession, XNATSession

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.client.answers import failure, is_page, page_failure
from monailabel_xnat.client.guard import is_redirect_by_design
from monailabel_xnat.client.login import Login
from monailabel_xnat.client.transport import Transport
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import SettingsError, XNATDatastoreError

logger = logging.getLogger(__name__)

_SUCCESS = (200, 201)
# The number of heartbeats within the time after which XNAT ends an idle session.
_BEATS_IN_A_LIFE = 3
# Seconds between two heartbeats, at least and at most.
_SHORTEST, _LONGEST = 1.0, 300.0


class _XnatpyLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A logger with the methods that xnatpy needs. Its messages contain URLs with ids, so all are logged at DEBUG."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def verbose(self, message: str, *args: object) -> None:
        self.debug(message, *args)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


class Connection(XNATSession):  # type: ignore[misc]
    """An xnatpy session that stays usable, with all its objects, when the login expires.

    The transport below it keeps and renews the login. The session is made without any request and without XNAT's data
    model, and logs in at the first request. ``xnat.connect`` is not used, for three reasons: it sends its login before
    an adapter can be mounted, it takes credentials from the environment that the settings do not name, and it may
    prompt for a password.

    Parameters
    ----------
    settings : Settings
        The address of the site, and how long to wait for an answer.
    transport : Transport
        Sends all requests, through the guard.
    login : Login
        The login that the transport uses.
    """

    def __init__(self, settings: Settings, transport: Transport, login: Login) -> None:
        self._login = login
        self._of_thread = threading.local()
        self.lock = renewed_in_children(self, "lock", threading.Lock)
        super().__init__(
            server=settings.server,
            logger=_XnatpyLogger(logger, {}),
            interface=transport,
            default_timeout=settings.timeout,
            keepalive=False,
        )
        # xnatpy would refuse every HTML answer. The guard tells login pages by their form, so HTML files can be read.
        self.skip_response_content_check = True
        self.accepted_status_post = [*_SUCCESS, requests.codes.moved_permanently]

    def __del__(self) -> None:
        """Do nothing: the garbage collector must send no requests."""

    @property
    def logged_in_user(self) -> str:
        """The user name by which XNAT knows us. Reading it logs in if that has not happened yet."""
        return self._login.user

    @property
    def jsession(self) -> str:
        """The id of the session at XNAT."""
        return self._login.token

    def connect(self, server: Any = None, user: Any = None, password: Any = None) -> None:
        """Do nothing: the transport logs in at the first request, and keeps the login without a heartbeat thread."""

    def disconnect(self) -> None:
        """Log out. A later request logs in again."""
        self._login.close()

    @contextmanager
    def our_errors(self) -> Iterator[None]:
        """Raise our errors in place of xnatpy's for refused requests of this thread within the block."""
        before = getattr(self._of_thread, "ours", False)
        self._of_thread.ours = True
        try:
            yield
        finally:
            self._of_thread.ours = before

    def _check_response(
        self, response: requests.Response, accepted_status: Container[int] | None = None, uri: str | None = None
    ) -> None:
        if not getattr(self._of_thread, "ours", False):
            super()._check_response(response, accepted_status, uri)
            return
        if response.status_code not in _SUCCESS and not is_redirect_by_design(response):
            raise failure(response)
        if is_page(response):
            raise page_failure(response)


def server_of(owner: BaseXNATSession) -> str:
    """Return the address of the XNAT to which an open session of xnatpy is connected.

    Raises
    ------
    SettingsError
        If it is not an open session of xnatpy.
    """
    interface_of(owner)
    return str(owner.server)


def interface_of(owner: BaseXNATSession) -> requests.Session:
    """Return the requests session of an open session of xnatpy; raise a SettingsError if it is none."""
    interface: requests.Session | None = owner.interface if isinstance(owner, BaseXNATSession) else None
    if interface is None:
        raise SettingsError(
            "what was given as connection is no open session of xnatpy",
            hint="give what xnat.connect(...) returns, before it is disconnected",
        )
    return interface


class Beating(Protocol):
    """A session that a heartbeat can keep alive."""

    def beat(self) -> None:
        """Send a request that only shows XNAT that the session is in use."""

    @property
    def idle_life(self) -> float | None:
        """Seconds without a request after which XNAT ends the session; None if that is not known."""


class Heartbeat:
    """Sends heartbeats for a session from a background thread, until it is stopped or the session no longer exists.

    After a heartbeat that fails, the next one is still sent. xnatpy's own heartbeat ends with the first failure.

    Parameters
    ----------
    session : Beating
        The session. Only a weak reference to it is kept, so the garbage collector can remove it.
    """

    def __init__(self, session: Beating) -> None:
        self._stopped = threading.Event()
        Background("xnat-heartbeat", partial(_beat_until, weakref.ref(session), self._stopped)).start()

    def stop(self) -> None:
        """Stop sending heartbeats."""
        self._stopped.set()


def _beat_until(reference: weakref.ref[Beating], stopped: threading.Event) -> None:
    while not stopped.wait(_pause_of(reference())):
        session = reference()
        if session is None:
            return
        try:
            session.beat()
        except (XNATDatastoreError, requests.RequestException) as error:
            logger.debug("a heartbeat failed: %s", type(error).__name__)
        del session


def _pause_of(session: Beating | None) -> float:
    life = session.idle_life if session else None
    return _LONGEST if life is None else min(max(life / _BEATS_IN_A_LIFE, _SHORTEST), _LONGEST)
