"""The connection to XNAT, one for the life of the process: xnatpy's verbs and transfers, with our errors."""

from __future__ import annotations

import io
import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, BinaryIO
from urllib.parse import quote

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from xnat.exceptions import XNATResponseError, XNATValueError
from xnat.session import BaseXNATSession

from monailabel_xnat.client.answers import (
    failure,
    failure_of_transfer,
    is_page,
    network_failure,
    page_failure,
    plain,
    whole_number,
)
from monailabel_xnat.client.connection import Connection, Heartbeat, interface_of
from monailabel_xnat.client.deadlines import TimedAdapter, Watch, is_timeout
from monailabel_xnat.client.guard import Guard
from monailabel_xnat.client.login import GUEST, LOGIN_HINT, Login, SharedLogin
from monailabel_xnat.client.pace import Backoff, Pace
from monailabel_xnat.client.patience import Limits, PatientAdapter
from monailabel_xnat.client.transport import own_cookies, own_transport, twin_of
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import (
    AccessDeniedError,
    DryRunError,
    LoginError,
    ReadOnlyError,
    TransferError,
    XNATDatastoreError,
)

logger = logging.getLogger(__name__)

# The body of a request: bytes, or a function that opens a stream.
Body = bytes | Callable[[], BinaryIO] | None
Query = Mapping[str, str]
# A stream to which bytes can be written.
Writable = BinaryIO | io.RawIOBase

_OCTETS = "application/octet-stream"

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A connection to an XNAT site. It may be used from any thread, and survives a fork.

    It logs in at the first request. If the login has expired, it logs in again and repeats the request once. After
    status 429, 502 or 503, or a dropped connection, it repeats the request after a pause. See
    :mod:`monailabel_xnat.client.guard`.

    Parameters
    ----------
    settings : Settings
        The address of the site, and the credentials.
    backoff : Backoff or None
        How often to repeat, and after which pauses; None: 4 attempts within a few seconds.
    owner : xnat session or None
        An open session of xnatpy whose login and network settings are used. Others may use it at the same time. It is
        neither changed nor closed, and a heartbeat keeps its login alive.

    Raises
    ------
    SettingsError
        If the owner is not an open session of xnatpy.
    """

    def __init__(
        self, settings: Settings, backoff: Backoff | None = None, owner: BaseXNATSession | None = None
    ) -> None:
        self._settings = settings
        self.backoff = backoff or Backoff()
        self.pace = Pace(settings.connections, settings.rate_limit, self.backoff.sleep, idle_limit=settings.timeout)
        self._dry_run: Counter[str] = Counter()
        self._sockets = self._new_sockets()
        self._watch = Watch()
        limits = Limits(min(settings.deadline, settings.timeout), settings.timeout, self._watch)
        self._patient = PatientAdapter(self._adapter_for, self.pace, self.backoff, limits)
        self._owner = owner
        self._beside = None if owner is None else interface_of(owner)
        if owner is None or self._beside is None:
            self._transport = own_transport(settings)
            self._login = Login(settings, self._transport, self._patient, self.pace)
        else:
            self._transport = twin_of(self._beside)
            user = str(owner.logged_in_user or "")
            self._login = SharedLogin(settings, self._transport, self._patient, self.pace, user)
        self._transport.mount_everywhere(Guard(self._patient, self.pace, self._login, self.require_writable))
        self._connection = Connection(settings, self._transport, self._login)
        self._heartbeat = Heartbeat(self) if owner is not None else None
        _open_sessions.add(self)
        register_after_fork(self, Session._end_with_process)

    @property
    def settings(self) -> Settings:
        """The settings with which the session was made."""
        return self._settings

    @property
    def user(self) -> str:
        """The user name by which XNAT knows us. Reading it logs in if that has not happened yet."""
        with self._our_errors(""):
            return self._login.user

    @property
    def known_user(self) -> str:
        """The user name, as far as it is known without a request."""
        return self._login.known_user or self._settings.username

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        """The state of the requests, and in a dry run how often something was not done."""
        return {"connection": self.pace.summary(), "dry_run": dict(self._dry_run)}

    def require_writable(self, what: str, detail: str = "") -> None:
        """Refuse to change XNAT where the settings say so.

        Parameters
        ----------
        what : str
            What is to be done, without ids: ``"save a label"``. It follows "would".
        detail : str
            More for the error, which may hold ids.

        Raises
        ------
        ReadOnlyError
            With the setting ``read_only``.
        DryRunError
            With the setting ``dry_run``; see :meth:`note_dry_run`.
        """
        if self._settings.read_only:
            raise ReadOnlyError(
                f"the datastore is read-only and does not {what}{detail}", hint="open it without the setting read_only"
            )
        if self._settings.dry_run:
            self.note_dry_run(what)
            raise DryRunError(
                f"this is a dry run: it would {what}{detail}. Nothing was sent, and nothing is kept",
                hint="open the datastore without the setting dry_run",
            )

    def note_dry_run(self, what: str) -> None:
        """Note in the log, and in :attr:`report`, what a dry run has not done."""
        self._dry_run[what] += 1
        logger.info("dry run: it would %s", what)

    @property
    def connection(self) -> Connection:
        """The xnatpy session through which we send requests, the same for the life of the process."""
        return self._connection

    @property
    def owner(self) -> BaseXNATSession | None:
        """The xnatpy session that was given as connection; None if there is none."""
        return self._owner

    @property
    def idle_life(self) -> float | None:
        """Seconds without a request after which XNAT ends the session; None if that is not known."""
        expiry = self._connection.session_expiration_time
        return float(expiry[1]) if expiry else None

    def beat(self) -> None:
        """Send a cheap request, so that XNAT does not end the session because it is idle."""
        self._connection.heartbeat()

    def json(self, path: str, query: Query | None = None) -> Any:
        """GET a path, and return its JSON.

        Parameters
        ----------
        path : str
            Path below the site's address, percent-encoded (see :func:`quoted`).
        query : mapping or None
            Query parameters; ``format=json`` is added, because XNAT otherwise answers items as HTML.

        Raises
        ------
        TransferError
            If the answer is not JSON, or only a part of it.
        ServerError
            If XNAT fails.
        """
        try:
            with self._our_errors(path):
                return self._connection.get_json(path, query=dict(query or {}))
        except XNATValueError:
            raise TransferError(
                f"XNAT answered GET {path} with something that is not JSON",
                hint="it may have broken off: try again",
                url=path,
            ) from None

    def rows(self, path: str, query: Query | None = None) -> list[dict[str, str]]:
        """GET a listing, and return one dictionary of texts for each row of XNAT's result set.

        Raises
        ------
        TransferError
            If the answer is not a result set, or has another number of rows than XNAT counted.
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
        if is_listing and not (counted.isdecimal() and whole_number(counted) != len(rows)):
            return rows
        found = (
            f"{len(rows)} rows and says that they are {counted}" if is_listing else "something that is not a listing"
        )
        raise TransferError(f"XNAT answered GET {path} with {found}", hint="try again: it may be cut off", url=path)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request and return the whole answer.

        Parameters
        ----------
        method : str
            ``GET``, ``HEAD``, ``PUT``, ``POST`` or ``DELETE``.
        path : str
            Path below the site's address, percent-encoded.
        query : mapping or None
            Query parameters.
        body : bytes, callable or None
            The body of a PUT or POST: bytes, or a function that opens a stream. The stream is read from its start and
            closed.
        headers : mapping or None
            HTTP headers to add. If there is a body, only ``Content-Type`` is used; its default is
            ``application/octet-stream``.

        Raises
        ------
        ReadOnlyError
            If the method changes XNAT and the settings do not allow that; see :meth:`require_writable`.
        LoginError, AccessDeniedError, NotInArchiveError, ServerTimeoutError, ServerError
            According to the status of the answer, or if there is no answer.
        """
        asked = dict(query or {})
        connection = self._connection
        with self._our_errors(path):
            if method == "HEAD":
                # xnatpy's head takes no query.
                answer = connection.head(path, headers=headers)
            elif body is None:
                answer = getattr(connection, method.lower())(path, query=asked, headers=headers)
            else:
                content_type = (headers or {}).get("Content-Type", _OCTETS)
                with io.BytesIO(body) if isinstance(body, bytes) else body() as stream:
                    answer = connection.upload_stream(
                        path, stream, query=asked, content_type=content_type, method=method.lower()
                    )
        response: requests.Response = answer
        return response

    @contextmanager
    def stream(
        self,
        path: str,
        query: Query | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        answers: Collection[int] = (requests.codes.ok,),
    ) -> Iterator[requests.Response]:
        """GET a path, and yield the answer while its body can still be read.

        This does not go through xnatpy, which reads each body as text before it returns it, or writes it into a file.

        Parameters
        ----------
        path, query
            As for :meth:`request`.
        headers : mapping or None
            HTTP headers to add.
        answers : collection of int
            The statuses that do not count as a failure.

        Raises
        ------
        TransferError
            If the body breaks off while it is read.
        ServerError
            As for :meth:`request`.
        """
        with self._our_errors(path):
            response = self._transport.get(
                self._settings.server + path, params=dict(query or {}), headers=dict(headers or {}), stream=True
            )
        with response:
            if response.status_code not in answers:
                raise failure(response)
            if is_page(response):
                raise page_failure(response)
            try:
                yield response
            except XNATDatastoreError as error:
                raise plain(error) from error.__cause__
            except requests.RequestException as error:
                raise self._broken_off(error, path) from error

    def download(self, path: str, target: Writable) -> None:
        """Download the file at a path into a stream.

        Raises
        ------
        TransferError
            If the body breaks off.
        ServerError
            As for :meth:`request`.
        """
        with self._our_errors(path):
            self._connection.download_stream(path, target)

    def verify_login(self) -> bool:
        """Ask XNAT who we are, and log in again if it has forgotten us.

        Returns
        -------
        bool
            False if the login had been lost. Then what was read before may be what a guest sees.
        """
        with self._our_errors(""), self.pace.slot():
            return self._login.verify()

    def require_owner(self) -> None:
        """Make sure that the session which was given as connection may be used now; if it has expired, renew its login.

        Raises
        ------
        LoginError
            If it is closed, belongs to another process, or has expired and no new login can be made.
        """
        if self._owner is not None and self._owner.interface is None:
            raise LoginError(
                "the xnatpy session that was given as connection is closed",
                hint="connect anew and open a new datastore",
                url=self._settings.server,
            )
        with self._our_errors(""), self.pace.slot():
            self._login.check()

    def wait(self, pause: float, reason: str) -> None:
        """Wait some seconds before a request is repeated, and log the reason."""
        self._patient.wait(pause, reason)

    def close(self) -> None:
        """Log out. A later request logs in again."""
        if self._heartbeat:
            self._heartbeat.stop()
        self._login.close()
        self._sockets.close()

    @contextmanager
    def _our_errors(self, path: str) -> Iterator[None]:
        """Turn errors of xnatpy and requests within the block into errors of ours."""
        try:
            with self._connection.our_errors():
                yield
        except XNATDatastoreError as error:
            if isinstance(error, AccessDeniedError) and self._login.known_user == GUEST:
                error.hint = LOGIN_HINT
            raise plain(error) from error.__cause__
        except XNATResponseError as error:
            raise failure_of_transfer(error, self._settings.server + path) from None
        except requests.RequestException as error:
            raise self._broken_off(error, path) from error

    def _broken_off(self, error: requests.RequestException, path: str) -> XNATDatastoreError:
        """Return our error for one that requests raised while a body was read."""
        if is_timeout(error):
            return network_failure(error, self._settings.server + path)
        return TransferError(f"the transfer of {path} broke off: {type(error).__name__}", hint="try again", url=path)

    def _new_sockets(self) -> HTTPAdapter:
        return TimedAdapter(pool_maxsize=2 * self._settings.connections + 4)

    def _adapter_for(self, url: str) -> BaseAdapter:
        """Return the adapter that sends to an address: one that the owner has mounted for it, or our own."""
        if self._beside is None:
            return self._sockets
        mounted: BaseAdapter = self._beside.get_adapter(url)
        is_usual = type(mounted) is HTTPAdapter and not mounted.max_retries.total
        return self._sockets if is_usual else mounted

    def _end_with_process(self) -> None:
        """Arrange that a child process of multiprocessing logs out when it ends, if it has logged in."""
        reference = weakref.ref(self)

        def close() -> None:
            session = reference()
            if session is not None:
                session.close()

        Finalize(None, close, exitpriority=10)

    def _after_fork(self) -> None:
        """Replace all that a forked child must not share with its parent: locks, sockets and the login."""
        self.pace.reset()
        self._watch.reset()
        self._login.reset()
        if self._beside is None:  # with somebody else's session nothing can be sent from here
            self._transport.cookies = own_cookies()
        self._sockets = self._new_sockets()


def quoted(*parts: str) -> str:
    """Return a path of its parts, each percent-encoded: ``quoted("data", "a b")`` is ``/data/a%20b``."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _after_fork() -> None:
    for session in list(_open_sessions):
        session._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
