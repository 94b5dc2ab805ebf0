"""Sending a request until it is answered: at the allowed pace, repeated after failures that may pass, with an end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from requests.adapters import BaseAdapter
from requests.exceptions import UnrewindableBodyError
from requests.utils import rewind_body

from monailabel_xnat.client.deadlines import LONGEST_CONNECT, Deadline, TimedBody, Watch, is_timeout
from monailabel_xnat.client.pace import (
    LONGEST_PAUSE,
    MAY_BE_REPEATED_NOW,
    REPEATABLE_METHODS,
    Backoff,
    Pace,
    requested_pause,
)

logger = logging.getLogger(__name__)

# A connection that is dropped after more seconds than this may have been ended by the time limit of a proxy. XNAT may
# still work on the request then.
_AT_WORK = 5.0
# Seconds that a request gets at least, even if its waits before it was sent have used up its time.
_SHORTEST = 0.1

REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Limits(NamedTuple):
    """How long requests may make no progress.

    Parameters
    ----------
    light : float
        Seconds for requests that only read.
    hard : float
        Seconds for requests that write, and for those that are hard work for XNAT.
    watch : Watch
        Ends requests that take longer.
    """

    light: float
    hard: float
    watch: Watch


class PatientAdapter(BaseAdapter):
    """A requests transport adapter that repeats requests after failures that may pass, and ends those that hang.

    After status 429, 502 or 503, or a dropped connection, the request is sent again after a pause. A pause that XNAT
    asks for with ``Retry-After`` holds for all threads. A request is sent again only if that does no harm and its body
    can be rewound. Nothing is left to send of a body that was already read to its end, and XNAT would wait for it. A
    request that ran out of time is never repeated, and neither is hard work whose connection was dropped after a while:
    XNAT may still be working on it.

    Parameters
    ----------
    inner : callable
        Returns the adapter that sends to an address.
    pace : Pace
        Says when each request may be started.
    backoff : Backoff
        How often to repeat, and after which pauses.
    limits : Limits
        How long to wait.
    """

    def __init__(self, inner: Callable[[str], BaseAdapter], pace: Pace, backoff: Backoff, limits: Limits) -> None:
        super().__init__()
        self._inner = inner
        self._pace = pace
        self._backoff = backoff
        self._limits = limits
        self._moved: dict[tuple[str, str], tuple[str, str]] = {}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request, and return the answer; its body has been read, unless ``stream`` is True.

        Raises
        ------
        requests.RequestException
            If there was no answer.
        ServerError
            If XNAT asked for a long pause, or did not answer a moment ago; see :meth:`Pace.admit`.
        """
        options = {"verify": verify, "cert": cert, "proxies": proxies}
        longest = self._longest(request, timeout)
        pauses = self._backoff.pauses()
        progress = self._pace.now()
        self._go_where_it_moved(request)
        while True:
            self._pace.admit()
            started = self._pace.now()
            left = self._pace.patience(longest) - (started - progress)
            try:
                response = self._sent(request, max(left, _SHORTEST), stream, options)
            except requests.RequestException as error:
                if is_timeout(error):
                    self._pace.was_silent(started)
                    raise
                pause = next(pauses, None) if may_repeat(request) and may_pass(error) else None
                waited = self._pace.now() - started
                is_at_work = self._pace.is_hard and waited > _AT_WORK
                if pause is None or is_at_work or waited + pause > left or not rewound(request):
                    raise
                self.wait(pause, type(error).__name__)
                continue
            progress = self._pace.now()
            if response.status_code in MAY_BE_REPEATED_NOW and self._repeats(request, response, pauses):
                continue
            moved_to = _moved_to(request, response)
            if not moved_to or not rewound(request):
                return response
            # The redirect is followed here: requests would send it without its body or as a GET, as browsers do.
            response.close()
            self._moved[_site(request.url)] = _site(moved_to)
            self._go_where_it_moved(request)

    def _sent(
        self, request: requests.PreparedRequest, seconds: float, stream: bool, options: Mapping[str, Any]
    ) -> requests.Response:
        """Send a request once, and return the answer; its body has been read, unless ``stream`` is True."""
        deadline = Deadline(seconds, self._limits.watch, self._pace.answered)
        response: requests.Response | None = None
        try:
            with deadline.running():
                limits = min(seconds, LONGEST_CONNECT), seconds
                response = self._inner(request.url or "").send(request, stream=stream, timeout=limits, **options)
                deadline.answered()
            if response.raw is not None:
                response.raw = TimedBody(response.raw, deadline)
            if not stream:
                _ = response.content  # read it here, so that a body that breaks off is asked for again
                deadline.let_go()
        except BaseException:
            deadline.let_go()
            if response is not None:
                response.close()
            raise
        return response

    def _longest(self, request: requests.PreparedRequest, timeout: Any) -> float:
        """Return how many seconds a request may make no progress: more if it writes or is hard work for XNAT."""
        is_light = request.method in ("GET", "HEAD") and not self._pace.is_hard
        longest = self._limits.light if is_light else self._limits.hard
        named: tuple[float | None, ...] = timeout if isinstance(timeout, tuple) else (timeout,)
        return min([longest, *(seconds for seconds in named if seconds is not None)])

    def _go_where_it_moved(self, request: requests.PreparedRequest) -> None:
        """Change the address of a request if it is known that the whole site has moved to another scheme or port."""
        new = self._moved.get(_site(request.url))
        if new is not None:
            request.url = urlunsplit((*new, *urlsplit(request.url or "")[2:]))
            _set_cookies(request)

    def once(self) -> PatientAdapter:
        """Return an adapter that sends as this one does, but repeats nothing."""
        adapter = PatientAdapter(self._inner, self._pace, replace(self._backoff, attempts=1), self._limits)
        adapter._moved = self._moved
        return adapter

    def wait(self, pause: float, reason: str) -> None:
        """Wait some seconds before a request is repeated, and log the reason."""
        self._pace.repeat()
        if pause:
            logger.info("XNAT is asked again in %.1f s: %s", pause, reason)
            self._backoff.sleep(pause)

    def close(self) -> None:
        """Do nothing: the owner of the inner adapter closes it."""

    def _repeats(self, request: requests.PreparedRequest, response: requests.Response, pauses: Iterator[float]) -> bool:
        """Wait and return True if a request that XNAT could not take now is to be sent again; otherwise return False.

        A pause that XNAT asks for holds for all threads, also if this request is not repeated.
        """
        asked = requested_pause(response.headers.get("Retry-After"), response.headers.get("Date"))
        if asked is not None:
            logger.info("XNAT asked for %.0f s of rest: status %d", asked, response.status_code)
            self._pace.rest(asked, response.status_code)
        pause = next(pauses, None) if may_repeat(request) else None
        if pause is None or (asked or 0.0) > LONGEST_PAUSE or not rewound(request):
            return False
        response.close()
        self.wait(pause if asked is None else 0.0, f"status {response.status_code}")
        return True


def may_repeat(request: requests.PreparedRequest) -> bool:
    """Return whether it does no harm to send a request twice."""
    return request.method in REPEATABLE_METHODS


def rewound(request: requests.PreparedRequest) -> bool:
    """Set the body of a request back to its start, and return whether that was possible."""
    if request.body is None or isinstance(request.body, (bytes, str)):
        return True
    try:
        rewind_body(request)
    except (UnrewindableBodyError, ValueError):  # ValueError: the file is closed
        return False
    return True


def _moved_to(request: requests.PreparedRequest, response: requests.Response) -> str:
    """Return the target of a redirect that changes only scheme or port; empty for any other answer.

    Such a redirect means that the whole site has moved. One from https to http is not followed.
    """
    if response.status_code not in REDIRECTS or "Location" not in response.headers:
        return ""
    target = urljoin(request.url or "", response.headers["Location"])
    old, new = urlsplit(request.url or ""), urlsplit(target)
    same_place = (old.hostname, old.path, old.query) == (new.hostname, new.path, new.query)
    is_elsewhere = (old.scheme, old.netloc) != (new.scheme, new.netloc)
    is_as_secure = new.scheme == "https" or old.scheme == "http"
    return target if same_place and is_elsewhere and is_as_secure else ""


def _site(url: str | None) -> tuple[str, str]:
    """Return scheme, host and port of an address."""
    return urlsplit(url or "")[:2]


def _set_cookies(request: requests.PreparedRequest) -> None:
    """Choose the cookies of a request again, because some are meant for https only."""
    request.headers.pop("Cookie", None)
    request.prepare_cookies(getattr(request, "_cookies", None) or {})


def may_pass(error: requests.RequestException) -> bool:
    """Return whether a failure without an answer may pass; a refused certificate, for example, does not."""
    lasting = (requests.exceptions.SSLError, requests.exceptions.InvalidURL)
    passing = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, lasting)
