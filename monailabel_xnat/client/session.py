"""One connection to XNAT for the life of the process, which renews its login and asks again where that helps."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Union
from urllib.parse import quote

import requests
from xnat.session import BaseXNATSession

from monailabel_xnat.client.answers import failure, is_page, network_failure, page_failure
from monailabel_xnat.client.login import SESSION_COOKIE, log_in, who_am_i
from monailabel_xnat.client.pace import Pace
from monailabel_xnat.client.retry import (
    LONGEST_PAUSE,
    REPEATABLE_METHODS,
    TRANSIENT_STATUSES,
    Backoff,
    requested_pause,
)
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LoginError, ServerError, TransferError

logger = logging.getLogger(__name__)

# Bytes, or what opens a fresh stream for each attempt.
Body = Union[bytes, Callable[[], BinaryIO], None]
Query = Mapping[str, str]

# XNAT ends sessions after 15 minutes by default, some sites after 5: past this many idle seconds ask who we are.
IDLE_SECONDS_TRUSTED = 240.0

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A login at an XNAT site; may be used from any thread and survives a fork.

    It connects at the first request. A request whose login had expired is repeated once after a new login;
    429, 502, 503, 504 and dropped connections are repeated after a pause.

    Parameters
    ----------
    settings : Settings
        Where to connect, and as whom.
    backoff : Backoff or None
        How often and after which pauses to repeat; default: 4 attempts within a few seconds.
    """

    backoff: Backoff
    _lock: threading.RLock
    _connection: BaseXNATSession | None
    _last_use: float
    pace: Pace

    def __init__(self, settings: Settings, backoff: Backoff | None = None) -> None:
        self._settings = settings
        self.backoff = backoff or Backoff()
        self._forget()
        _open_sessions.add(self)

    @property
    def settings(self) -> Settings:
        """What the session was made with."""
        return self._settings

    @property
    def user(self) -> str:
        """The login name XNAT knows us by; logs in if need be."""
        return str(self.connection.logged_in_user)

    @property
    def connection(self) -> BaseXNATSession:
        """The xnatpy session (without XNAT's schema model); logs in if need be."""
        with self._lock:
            if self._connection is None:
                self._connection = log_in(self._settings, self.pace)
                self._last_use = time.monotonic()
                logger.info("logged in to %s", self._settings.server)
            return self._connection

    def json(self, path: str, query: Query | None = None) -> Any:
        """GET a path and read its JSON.

        Parameters
        ----------
        path : str
            Below the site's address, already percent-encoded (see :func:`quoted`).
        query : mapping or None
            Query parameters; ``format=json`` is added, for XNAT answers items as HTML without it.

        Raises
        ------
        TransferError
            If the answer is no JSON, or half of one.
        ServerError
            If XNAT fails.
        """
        response = self.request("GET", path, query={"format": "json", **(query or {})})
        try:
            return response.json()
        except ValueError:
            raise TransferError(
                f"XNAT answered GET {path} with something that is not JSON",
                hint="it may have broken off: try again",
                url=path,
            ) from None

    def rows(self, path: str, query: Query | None = None) -> list[dict[str, str]]:
        """GET a listing: one dictionary of texts per row of XNAT's result set.

        Raises
        ------
        TransferError
            If the answer is no result set, or has other rows than XNAT counted.
        ServerError
            If XNAT fails.
        """
        answer = self.json(path, query)
        try:
            rows: list[dict[str, str]] = answer["ResultSet"]["Result"]
            counted = str(answer["ResultSet"].get("totalRecords", ""))
            is_listing = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        except (KeyError, TypeError, AttributeError):
            is_listing = False
        if not is_listing:
            raise TransferError(
                f"XNAT answered GET {path} with something that is not a listing", hint="try again", url=path
            )
        if counted.isdigit() and int(counted) != len(rows):
            raise TransferError(
                f"XNAT answered GET {path} with {len(rows)} rows and says that they are {counted}",
                hint="it may have broken off: try again",
                url=path,
            )
        return rows

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request and give the whole answer.

        Raises
        ------
        LoginError, AccessDeniedError, NotInArchiveError, ServerTimeoutError, ServerError
            By the status of the answer, or if there is none.
        """
        with self.pace.slot():
            return self._send(method, path, query=query, body=body, headers=headers, stream=False)

    @contextmanager
    def stream(self, path: str, query: Query | None = None) -> Iterator[requests.Response]:
        """GET a path and give the answer with its body still to be read.

        Raises
        ------
        TransferError
            If the body breaks off while it is read.
        ServerError
            As for :meth:`request`.
        """
        with self.pace.slot(), self._send("GET", path, query=query, stream=True) as response:
            try:
                yield response
            except requests.RequestException as error:
                raise TransferError(
                    f"the transfer of {path} broke off: {type(error).__name__}", hint="try again", url=path
                ) from error

    def verify_login(self) -> bool:
        """Ask XNAT who we are and log in again if it has forgotten us.

        Returns
        -------
        bool
            False if the login had been lost, so that what was read before cannot be relied on.
        """
        connection = self.connection
        if self._is_known(connection):
            return True
        self._renew(connection)
        return False

    def wait(self, pause: float, reason: str) -> None:
        """Let some seconds pass before a request is repeated, and say why in the log."""
        self.pace.repeat()
        if pause:
            logger.info("XNAT is asked again in %.1f s: %s", pause, reason)
            self.backoff.sleep(pause)

    def close(self) -> None:
        """Log out; a later request logs in again."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.interface.delete(f"{self._settings.server}/data/JSESSION", timeout=5)
        except (requests.RequestException, ServerError) as error:
            logger.debug("no logout: %s", type(error).__name__)
        connection.disconnect()

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        stream: bool,
    ) -> requests.Response:
        pauses = self.backoff.pauses()
        may_log_in = True
        while True:
            connection = self._checked_connection()
            transport = connection.interface
            if transport is None:  # another thread has just replaced this connection
                continue
            try:
                response = self._send_once(transport, method, path, query, body, headers, stream)
            except requests.RequestException as error:
                pause = next(pauses, None) if method in REPEATABLE_METHODS and _may_pass(error) else None
                if pause is None:
                    raise network_failure(error, self._settings.server + path) from error
                self.wait(pause, type(error).__name__)
                continue
            self._last_use = time.monotonic()
            if may_log_in and self._login_was_lost(connection, response):
                may_log_in = False
                response.close()
                self._renew(connection)
                continue
            if response.status_code in TRANSIENT_STATUSES and self._may_repeat(method, response, pauses):
                continue
            return _accepted(response)

    def _send_once(
        self,
        transport: requests.Session,
        method: str,
        path: str,
        query: Query | None,
        body: Body,
        headers: Mapping[str, str] | None,
        stream: bool,
    ) -> requests.Response:
        url = self._settings.server + path
        data = body() if callable(body) else body
        try:
            return transport.request(
                method,
                url,
                params=query,
                data=data,
                headers=headers,
                stream=stream,
                timeout=self._settings.timeout,
            )
        finally:
            if callable(body):
                data.close()  # type: ignore[union-attr]

    def _checked_connection(self) -> BaseXNATSession:
        """Give the connection; after a long pause only if XNAT still knows us, for open sites turn us into a guest."""
        connection = self.connection
        if self._settings.username and time.monotonic() - self._last_use > IDLE_SECONDS_TRUSTED:
            self._last_use = time.monotonic()
            self.verify_login()
            connection = self.connection
        return connection

    def _login_was_lost(self, connection: BaseXNATSession, response: requests.Response) -> bool:
        if not self._settings.username:
            return False
        if response.status_code == requests.codes.unauthorized:
            return True
        if response.status_code == requests.codes.ok and is_page(response):
            return True
        # A server that does not know our session starts a new one, as guest on an open site, and says so only here.
        session_id = response.cookies.get(SESSION_COOKIE)
        return session_id not in (None, connection.jsession) and not self._is_known(connection)

    def _is_known(self, connection: BaseXNATSession) -> bool:
        """Ask XNAT whether the connection still stands for the user who logged in."""
        transport = connection.interface
        if transport is None:
            return False
        try:
            user = who_am_i(transport, self._settings.server, self._settings.timeout)
        except LoginError:
            return False
        except requests.RequestException as error:
            raise network_failure(error, self._settings.server) from error
        return bool(user == connection.logged_in_user)

    def _renew(self, lost: BaseXNATSession) -> None:
        """Log in anew, unless another thread has already replaced the lost connection."""
        with self._lock:
            if self._connection is lost:
                self._connection = None
                logger.info("the login at %s had expired; logging in again", self._settings.server)
            _ = self.connection
        lost.disconnect()

    def _may_repeat(self, method: str, response: requests.Response, pauses: Iterator[float]) -> bool:
        """Tell whether to send a request again that XNAT could not take now, after the pause that it asks for, or ours.

        What it asks for holds for all threads, and also where this request is not repeated.
        """
        asked = requested_pause(response.headers.get("Retry-After"), response.headers.get("Date"))
        if asked is not None:
            logger.info("XNAT asked for %.0f s of rest: status %d", asked, response.status_code)
            self.pace.rest(asked, response.status_code)
        pause = next(pauses, None) if method in REPEATABLE_METHODS else None
        if pause is None or (asked or 0.0) > LONGEST_PAUSE:
            return False
        response.close()
        self.wait(pause if asked is None else 0.0, f"status {response.status_code}")
        return True

    def _forget(self) -> None:
        """Start without connection or locks, in a new object or in a forked child, which must not share either."""
        self._lock = threading.RLock()
        self._connection = None
        self._last_use = time.monotonic()
        self.pace = Pace(self._settings.connections, self._settings.rate_limit, self.backoff.sleep)


def quoted(*parts: str) -> str:
    """Make a path of its parts, each percent-encoded: ``quoted("data", "projects", "a b")``."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _accepted(response: requests.Response) -> requests.Response:
    if response.status_code not in (200, 201):
        raise failure(response)
    if is_page(response):
        raise page_failure(response)
    return response


def _may_pass(error: requests.RequestException) -> bool:
    """Tell whether a failure without answer may go away; a refused certificate will not."""
    lasting = (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.exceptions.ReadTimeout)
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, lasting)


def _forget_after_fork() -> None:
    for session in list(_open_sessions):
        session._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
