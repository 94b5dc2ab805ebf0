"""The xnatpy session above the guard, the same for the life of the process, and the heartbeat of one that is given."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Container, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import requests
from xnat.session import XNATSession

from monailabel_xnat.background import Background
from monailabel_xnat.client.answers import failure, is_page, page_failure
from monailabel_xnat.client.guard import is_redirect_by_design
from monailabel_xnat.client.login import Login
from monailabel_xnat.client.transport import Transport
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import XNATDatastoreError

logger = logging.getLogger(__name__)

_SUCCESS = (200, 201)
# How many beats there are in the time after which XNAT ends an idle session, and how far apart they are at most.
_BEATS_IN_A_LIFE = 3
_SHORTEST, _LONGEST = 1.0, 300.0


class _XnatpyLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """What xnatpy expects of a logger; its messages carry URLs with ids, so they stay at DEBUG."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def verbose(self, message: str, *args: object) -> None:
        self.debug(message, *args)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


class Connection(XNATSession):  # type: ignore[misc]
    """An xnatpy session whose login is kept below it, so that it and all its objects are good for ever.

    It is made without any request and without XNAT's data model, and logs in at the first request. ``xnat.connect`` is
    not used: it sends its login before anything can be mounted, takes credentials from the environment behind the
    settings' back, and may prompt for a password.

    Parameters
    ----------
    settings : Settings
        Where, and how long to wait for an answer.
    transport : Transport
        Sends through the guard.
    login : Login
        Who asks.
    """

    def __init__(self, settings: Settings, transport: Transport, login: Login) -> None:
        self._login = login
        self._of_thread = threading.local()
        super().__init__(
            server=settings.server,
            logger=_XnatpyLogger(logger, {}),
            interface=transport,
            default_timeout=settings.timeout,
            keepalive=False,
        )
        # A page is told from a file by what it holds, below: HTML files can be read as any other.
        self.skip_response_content_check = True
        self.accepted_status_post = [*_SUCCESS, requests.codes.moved_permanently]

    def __del__(self) -> None:
        """Do nothing: the garbage collector must send no requests."""

    @property
    def logged_in_user(self) -> str:
        """The name that XNAT knows us by; logs in if need be."""
        return self._login.user

    @property
    def jsession(self) -> str:
        """The id of the session at XNAT."""
        return self._login.token

    def connect(self, server: Any = None, user: Any = None, password: Any = None) -> None:
        """Do nothing: the login is made at the first request, and kept without a thread that sends heartbeats."""

    def disconnect(self) -> None:
        """Log out; whatever is asked later logs in again."""
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


class Beating(Protocol):
    """What can be kept alive."""

    def beat(self) -> None:
        """Send a request of no consequence."""

    @property
    def idle_life(self) -> float | None:
        """Seconds after which XNAT ends the session if nothing is asked, None if that is not known."""


class Heartbeat:
    """Sends the heartbeat of a session from a background thread, until it is stopped or the session is gone.

    A beat that fails is followed by the next one: xnatpy's own heartbeat ends for good with the first failure.

    Parameters
    ----------
    session : Beating
        Whose; it is not kept alive by this.
    """

    def __init__(self, session: Beating) -> None:
        self._stopped = threading.Event()
        Background("xnat-heartbeat", partial(_beat_until, weakref.ref(session), self._stopped)).start()

    def stop(self) -> None:
        """Send no more."""
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
