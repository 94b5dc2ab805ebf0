"""The first listing of a catalog. While XNAT cannot be reached, it is tried again in the background until it works."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timezone

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.catalog.catalog import Catalog
from monailabel_xnat.catalog.kept_listing import told
from monailabel_xnat.errors import LoginError, ServerError

logger = logging.getLogger(__name__)

# Seconds until XNAT is asked again. The pause doubles each time, up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0


class FirstListing:
    """Lists the images for the first time.

    Parameters
    ----------
    catalog : Catalog
        The catalog to fill. Until XNAT has answered, it serves what an earlier run kept, or else raises the reason.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._closed = renewed_in_children(self, "_closed", threading.Event)
        self._started = told(datetime.now(timezone.utc))
        self._background = Background("xnat-start", self._list_at_last)

    def take(self, *, wait: bool) -> None:
        """List the images.

        Parameters
        ----------
        wait : bool
            Whether to return if XNAT cannot be reached. Then it is asked again in the background. Each listing is kept
            for such a start.

        Raises
        ------
        LoginError, NotInArchiveError, AccessDeniedError
            If XNAT refuses the user, or a project.
        ServerError
            If XNAT fails and ``wait`` is False, or if the failure will not pass by itself.
        """
        if wait:
            self._catalog.keep_listings()
        try:
            self._catalog.scans()
        except ServerError as error:
            if not wait or not error.may_pass_later or isinstance(error, LoginError):
                raise
            self._note(error)
            self._background.start()

    def close(self) -> None:
        """Stop asking XNAT."""
        self._closed.set()

    def _list_at_last(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed.wait(pause):
            try:
                self._catalog.renew()
            except ServerError as error:
                self._note(error)
                if isinstance(error, LoginError):  # after several wrong logins XNAT would lock the account
                    return
            else:
                logger.warning("XNAT answers now")
                return
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _note(self, error: ServerError) -> None:
        before = self._catalog.problem
        self._catalog.wait_for(error, self._started)
        if self._catalog.problem != before:
            logger.warning("XNAT cannot be used yet: %s", self._catalog.problem)
