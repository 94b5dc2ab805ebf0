"""Keeping a login that could not be had again: a request now and then, so that XNAT does not end it for idleness."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

import requests

from monailabel_xnat.errors import XNATDatastoreError

logger = logging.getLogger(__name__)

# How many beats there are in the time after which XNAT ends an idle session, and how far apart they are at most.
_BEATS_IN_A_LIFE = 3
_SHORTEST, _LONGEST = 1.0, 300.0


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
        thread = threading.Thread(
            target=_beat_until, args=(weakref.ref(session), self._stopped), name="xnat-heartbeat", daemon=True
        )
        thread.start()

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
