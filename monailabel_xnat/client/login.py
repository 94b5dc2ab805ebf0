"""The login at XNAT: how it is made, how its loss is noticed, and how it is renewed without the user's help."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from ipaddress import ip_address
from urllib.parse import urljoin, urlsplit

import requests
from requests.cookies import RequestsCookieJar

from monailabel_xnat.client.answers import failure, is_page, network_failure, page_failure
from monailabel_xnat.client.pace import Pace
from monailabel_xnat.client.patience import PatientAdapter
from monailabel_xnat.client.transport import (
    SESSION_COOKIE,
    Transport,
    adopt,
    drop_session_id,
    session_id,
    twin_of,
    without_credentials,
)
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import LoginError, ServerError

logger = logging.getLogger(__name__)

GUEST = "guest"
LOGIN_HINT = "log in: set MONAI_LABEL_XNAT_USERNAME and MONAI_LABEL_XNAT_PASSWORD, or add the server to ~/.netrc"
"""The hint for a guest who may not do something."""
# By default XNAT ends sessions after 15 idle minutes, some sites after 5. After this many idle seconds we ask XNAT
# whether it still knows us.
IDLE_SECONDS_TRUSTED = 240.0

_ALIAS_TOKEN = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LOGGED_IN = re.compile(r"User '([^']*)' is logged in")


class Login:
    """The login of this process at an XNAT site; it is made at the first request.

    Its own requests go through ``adapter`` and not through the guard, because the guard calls this class.

    Parameters
    ----------
    settings : Settings
        The address of the site, and the credentials.
    transport : Transport
        The requests session that holds the cookies of the login.
    adapter : PatientAdapter
        Sends the requests of the login itself.
    pace : Pace
        Limits how many requests are under way.
    """

    def __init__(self, settings: Settings, transport: Transport, adapter: PatientAdapter, pace: Pace) -> None:
        self._settings = settings
        self._transport = transport
        self._adapter = adapter
        self._pace = pace
        self._user = ""
        self._token = ""
        self.reset()

    def reset(self) -> None:
        """Forget the login without a request. A forked child does this, because the login belongs to its parent."""
        self._lock = threading.RLock()
        self._user = self._token = ""
        self._last_use = time.monotonic()

    @property
    def cookies(self) -> RequestsCookieJar:
        """The cookies that go with each request."""
        return self._transport.cookies

    @property
    def token(self) -> str:
        """The id of the session at XNAT; empty if there is none."""
        return self._token

    @property
    def user(self) -> str:
        """The user name by which XNAT knows us. Reading it logs in if that has not happened yet."""
        if not self._token:
            with self._pace.slot():
                self.check()
        return self._user

    @property
    def known_user(self) -> str:
        """The user name by which XNAT knew us last; empty if we have not asked yet."""
        return self._user

    def check(self) -> None:
        """Make sure that there is a login, and after a long pause, that XNAT still knows it.

        The second check is needed because an open site does not refuse an expired login, but treats us as a guest.

        Raises
        ------
        LoginError, ServerError
            If no login can be made.
        """
        if not self._token:
            with self._lock:
                if not self._token:
                    self._log_in()
        elif self._settings.username and self._was_idle():
            self.verify()

    def was_used(self) -> None:
        """Note that XNAT has just answered."""
        self._last_use = time.monotonic()

    def is_lost(self, response: requests.Response, token: str) -> bool:
        """Return whether an answer shows that XNAT no longer knows who asks."""
        if not self._settings.username:
            return False
        return self._shows_loss(response, token)

    def verify(self) -> bool:
        """Ask XNAT who we are, and log in again if it has forgotten us; return False in that case."""
        token = self._token
        if token and self._is_known():
            return True
        self.renew(token)
        return False

    def renew(self, token: str) -> None:
        """Log in again, unless another thread has already replaced the login that was lost."""
        with self._lock:
            if self._token == token:
                logger.info("the login at %s had expired; logging in again", self._settings.server)
                self._log_in()

    def close(self) -> None:
        """Log out. A later request logs in again."""
        with self._lock:
            token, self._token = self._token, ""
            if not token:
                return
            try:
                # Try only once and do not wait for a slot: closing must not wait for others or for a dead server.
                calls = self._calls(adapter=self._adapter.once())
                calls.delete(f"{self._settings.server}/data/JSESSION", timeout=5)
            except (requests.RequestException, ServerError) as error:
                logger.debug("no logout: %s", type(error).__name__)
            drop_session_id(self.cookies)

    def _log_in(self) -> None:
        user, token, found = self._opened()
        adopt(self.cookies, found, token, self._settings.server)
        self._user, self._token = user, token
        self.was_used()
        logger.info("logged in to %s", self._settings.server)

    def _opened(self) -> tuple[str, str, RequestsCookieJar]:
        """Open a session at XNAT; return its user, its id, and the cookies that came with it."""
        settings = self._settings
        calls = self._calls(RequestsCookieJar())
        calls.auth = without_credentials
        try:
            self._look_where_it_is()
            token = _open_session(calls, settings)
            if not session_id(calls.cookies):
                calls.cookies.set(SESSION_COOKIE, token)
            user = who_am_i(calls, settings.server)
        except requests.RequestException as error:
            raise network_failure(error, settings.server) from error
        if settings.username and user == GUEST:
            raise LoginError(
                f"{settings.server} took user {settings.username!r} for a guest",
                hint="check user name and password",
                url=settings.server,
            )
        return user, token, calls.cookies

    def _look_where_it_is(self) -> None:
        """Look whether a site at ``http://`` redirects, before the credentials are sent there without encryption.

        This request has no credentials.
        """
        server = urlsplit(self._settings.server)
        if server.scheme != "http" or is_this_machine(server.hostname or ""):
            return
        calls = self._calls(RequestsCookieJar())
        calls.auth, calls.headers = without_credentials, {}
        # If the whole site has moved to https, the adapter has learned that now, and sends the login there.
        _require_here(calls.get(f"{self._settings.server}/data/auth", allow_redirects=False), self._settings.server)

    def _was_idle(self) -> bool:
        idle = time.monotonic() - self._last_use > IDLE_SECONDS_TRUSTED
        if idle:
            self.was_used()
        return idle

    def _shows_loss(self, response: requests.Response, token: str) -> bool:
        if response.status_code == requests.codes.unauthorized:
            return True
        # A server that does not know our session starts a new one; on an open site that is a session of a guest. Only
        # its cookie shows that.
        return session_id(response.cookies) not in ("", token) and not self._is_known()

    def _is_known(self) -> bool:
        """Return whether XNAT still knows the session as that of the user who logged in. This takes a request."""
        try:
            return who_am_i(self._calls(), self._settings.server) == self._user
        except LoginError:
            return False
        except requests.RequestException as error:
            raise network_failure(error, self._settings.server) from error

    def _calls(self, cookies: RequestsCookieJar | None = None, adapter: PatientAdapter | None = None) -> Transport:
        """Return a requests session for the calls of the login itself."""
        calls = twin_of(self._transport, cookies)
        calls.mount_everywhere(adapter or self._adapter)
        return calls


class SharedLogin(Login):
    """The login of an xnatpy session that somebody else has opened and may still use.

    It is never ended here. If XNAT forgets it, a new one is opened only with a user name and a password that were given
    for this purpose, and only if it belongs to the same user as before.

    Parameters
    ----------
    settings, transport, adapter, pace
        As for :class:`Login`; the transport shares its cookies with the session.
    user : str
        The user of the session; empty if that is not known.
    """

    def __init__(
        self, settings: Settings, transport: Transport, adapter: PatientAdapter, pace: Pace, user: str = ""
    ) -> None:
        self._process = os.getpid()
        super().__init__(settings, transport, adapter, pace)
        self._user = user

    def reset(self) -> None:
        """Reset the locks in a forked child; there :meth:`check` refuses each request."""
        user = self._user
        super().reset()
        self._user = user

    @property
    def token(self) -> str:
        """The id of the session at XNAT, read from the shared cookies: its owner may have changed it."""
        return session_id(self.cookies)

    @property
    def user(self) -> str:
        """The name of the user to whom the session belongs."""
        if not self._user:
            with self._pace.slot():
                self.check()
        return self._user

    def check(self) -> None:
        """Make sure that the session may be used in this process, and that it still belongs to its user.

        Raises
        ------
        LoginError
            If it belongs to another process, or if it has expired and no new login can be made.
        """
        self._require_own_process()
        # The owner shares the cookies: through an answer to the owner, a guest's session may have come into them.
        if self.token != self._token or self._was_idle():
            self.verify()

    def is_lost(self, response: requests.Response, token: str) -> bool:
        """Return whether an answer shows that XNAT no longer knows who asks."""
        return self._user != GUEST and self._shows_loss(response, token)

    def verify(self) -> bool:
        """Ask XNAT who we are; see :meth:`Login.verify`."""
        self._require_own_process()
        with self._lock:
            if not self._user:
                self._user = who_am_i(self._calls(), self._settings.server)
            elif not self._is_known():
                self._log_in()
                return False
            self._token = self.token
        return True

    def renew(self, token: str) -> None:
        """Log in again, unless the session belongs to its user again, for example because its owner has logged in."""
        self.verify()

    def close(self) -> None:
        """Do nothing: the session is not ours."""

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise LoginError(
                "an xnatpy session that was given as connection cannot be used in another process",
                hint="open the datastore with server, username and password there",
                url=self._settings.server,
            )

    def _log_in(self) -> None:
        settings = self._settings
        if not settings.username:
            raise LoginError(
                f"the login of the xnatpy session that was given as connection has expired at {settings.server}",
                hint="give username and password beside connection, or connect anew and open a new datastore",
                url=settings.server,
            )
        user, token, found = self._opened()
        if user != self._user:
            raise LoginError(
                f"the xnatpy session belonged to {self._user!r} at {settings.server}, and the new login to {user!r}",
                hint="give the user name and password of the user who opened the session",
                url=settings.server,
            )
        adopt(self.cookies, found, token, settings.server)
        self._token = self.token
        self.was_used()
        logger.info("the login of the xnatpy session at %s had expired; it was renewed", settings.server)


def who_am_i(transport: requests.Session, server: str) -> str:
    """Return the name of the user whose session XNAT takes ours for; ``guest`` for one without a login.

    Raises
    ------
    LoginError
        If XNAT wants a login.
    ServerError
        If the answer is not XNAT's.
    """
    response = transport.get(f"{server}/data/auth", allow_redirects=False)
    _require_here(response, server)
    if response.status_code != requests.codes.ok:
        raise failure(response)
    match = _LOGGED_IN.search(response.text)
    if match:
        return match.group(1)
    if response.text.strip().lower().startswith(GUEST):
        return GUEST
    raise page_failure(response)


def is_this_machine(host: str) -> bool:
    """Return whether a host name or address means this machine: then nobody can listen on the way."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _require_here(response: requests.Response, server: str) -> None:
    """Raise an error if the answer is a redirect: a login is not sent to another host or another place of the site."""
    if response.is_redirect:
        target = urljoin(response.url, response.headers["Location"]).partition("?")[0]
        raise ServerError(
            f"{server} sends its visitors on to {target} (status {response.status_code})",
            hint="if that is your XNAT, give its address; nothing was sent there, least of all the password",
            url=server,
            status=response.status_code,
        )


def _open_session(transport: requests.Session, settings: Settings) -> str:
    """Open a session at XNAT with user name and password, with an alias token, or as guest; return its id."""
    server, timeout = settings.server, settings.deadline
    if not settings.username:
        response = transport.get(f"{server}/data/JSESSION", timeout=timeout, allow_redirects=False)
    elif _ALIAS_TOKEN.fullmatch(settings.username):
        login = (settings.username, settings.password.reveal())
        response = transport.get(f"{server}/data/JSESSION", timeout=timeout, auth=login, allow_redirects=False)
    else:
        form = {"username": settings.username, "password": settings.password.reveal()}
        if settings.auth_provider:
            form["provider"] = settings.auth_provider
        response = transport.put(f"{server}/data/services/auth", data=form, timeout=timeout)
    return _session_id(response, settings)


def _session_id(response: requests.Response, settings: Settings) -> str:
    _require_here(response, settings.server)
    if response.status_code in (401, 403):
        refusal, hint = f"{settings.server} does not let guests in", LOGIN_HINT
        if settings.username:
            refusal = f"{settings.server} refused the login of user {settings.username!r}"
            hint = "check user name and password (MONAI_LABEL_XNAT_USERNAME and MONAI_LABEL_XNAT_PASSWORD, or ~/.netrc)"
        raise LoginError(refusal, hint=hint, url=settings.server, status=response.status_code)
    if response.status_code == requests.codes.not_found:
        raise ServerError(
            f"there is no XNAT at {settings.server}: it answered 404 to the login",
            hint="check the address; if the site lives below a path, the path belongs to it",
            url=settings.server,
            status=404,
        )
    if response.status_code != requests.codes.ok:
        raise failure(response)
    if is_page(response) or "<" in response.text:
        raise page_failure(response)
    return response.text.partition(";")[0].strip()
