"""The xnatpy session that stands above the guard for the life of the process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import requests
from xnat.session import XNATSession

from monailabel_xnat.client.answers import failure, is_page, page_failure
from monailabel_xnat.client.guard import is_redirect_by_design
from monailabel_xnat.client.login import Login
from monailabel_xnat.client.transport import Transport
from monailabel_xnat.config import Settings

logger = logging.getLogger(__name__)

_SUCCESS = (200, 201)


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
        """Have this thread's refused requests raise our errors within the block, in place of xnatpy's."""
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
