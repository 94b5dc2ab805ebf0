"""From the outbox to XNAT: at once after a save, and again in the background where that failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.client.locks import writing
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files
from monailabel_xnat.errors import LoginError, ServerError, UnknownImageError, XNATDatastoreError
from monailabel_xnat.labels.files import LabelFiles
from monailabel_xnat.labels.model import LABEL_MAP, SIDECAR, LabelVersion, versions_among
from monailabel_xnat.labels.outbox import Entry, Outbox
from monailabel_xnat.labels.sidecar import encode
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.versions import Versions, resource_path

logger = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
"""Seconds until a label that XNAT did not take is tried again; twice as long each time after."""

_LONGEST_PAUSE = 600.0
_LONGEST_GOODBYE = 10.0


class Delivery:
    """Brings labels from the outbox to XNAT.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Tells where the images are.
    outbox : Outbox
        Where the labels wait.
    versions : Versions
        Is told of what has arrived.
    files : LabelFiles
        Keeps the files of what has arrived.
    """

    def __init__(
        self, session: Session, catalog: Catalog, outbox: Outbox, versions: Versions, files: LabelFiles
    ) -> None:
        self._session = session
        self._catalog = catalog
        self._outbox = outbox
        self._versions = versions
        self._files = files
        self._start = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, entry: Entry, scan: Scan) -> LabelVersion | None:
        """Bring one label to XNAT and take it out of the outbox; may be repeated, from several processes at once.

        Returns
        -------
        LabelVersion or None
            As XNAT holds it; None if another process has brought it.

        Raises
        ------
        ServerError
            If XNAT does not take it; it stays in the outbox.
        """
        label = resource_of(entry.tag)
        resource = resource_path(scan, label)
        with writing(self._session.settings, resource):
            if not self._outbox.holds(entry):
                return None
            # The label first: who finds it without its description can use it, but not the other way round.
            uploads = [
                Upload(entry.version + entry.suffix, entry.file, *_format_of(entry)),
                Upload(entry.version + SIDECAR, encode(entry.sidecar()), "JSON", "MONAILABEL"),
            ]
            # A name is never used for two contents, so that what lies there under it is our own broken attempt.
            listing = upload_files(self._session, resource, uploads, overwrite=True)
            version = next(version for version in versions_among(listing) if version.name == entry.version)
            self._files.keep(scan.image_id, entry.tag, version, entry.file)
            self._versions.note(scan, label, listing)
            self._outbox.remove(entry)
        return version

    def mine(self) -> list[Entry]:
        """List what waits under the login of this session; other people's labels are sent under their own name."""
        login = self._session.settings.username
        return [entry for entry in self._outbox.entries() if entry.login == login]

    def replay(self, entries: Iterable[Entry] | None = None) -> dict[str, str]:
        """Try to send what waits, each once.

        Parameters
        ----------
        entries : iterable of Entry or None
            What to send; None: all of this login.

        Returns
        -------
        dict
            Reason by folder of what still waits.
        """
        failures: dict[str, str] = {}
        away = ""
        for entry in self.mine() if entries is None else entries:
            if away or self._stop.is_set():
                failures[str(entry.folder)] = away or "the datastore was closed"
                continue
            try:
                self.send(entry, self._catalog.scan(entry.image_id))
                logger.info("a label that waited in the outbox is in XNAT now")
            except UnknownImageError as error:  # another datastore, with other projects, may know it
                failures[str(entry.folder)] = str(error)
            except XNATDatastoreError as error:
                if self._outbox.holds(entry):
                    self._outbox.note_failure(entry, error)
                    failures[str(entry.folder)] = str(error)
                away = str(error) if _is_away(error) else ""
        return failures

    def start(self, pause: float = 0.0) -> None:
        """Replay in the background until nothing waits, with growing pauses.

        Parameters
        ----------
        pause : float
            Seconds before the first try; it counts only where no replay is under way.
        """
        if self._session.settings.read_only:
            return
        with self._start:
            if self._stop.is_set() or self._thread is not None:
                return
            self._thread = threading.Thread(
                target=self._replay_until_empty, args=(pause,), name="xnat-outbox", daemon=True
            )
            self._thread.start()

    def retry_soon(self) -> None:
        """Tell that XNAT takes labels again."""
        self._wake.set()

    def close(self) -> None:
        """End the background thread; what waits stays in the outbox."""
        with self._start:
            self._stop.set()
            self._wake.set()
            thread = self._thread
        if thread is not None:
            thread.join(_LONGEST_GOODBYE)

    def _replay_until_empty(self, pause: float) -> None:
        self._wake.wait(pause)
        pause = max(pause, FIRST_PAUSE)
        while not self._stop.is_set():
            self._wake.clear()
            failures = self.replay()
            with self._start:
                if not self.mine():
                    self._thread = None
                    return
            for folder, reason in failures.items():
                logger.warning("a label still waits for XNAT in %s: %s", folder, reason)
            self._wake.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_away(error: XNATDatastoreError) -> bool:
    """Tell whether XNAT, not this label, is the trouble."""
    return isinstance(error, LoginError) or (isinstance(error, ServerError) and error.status is None)


def _format_of(entry: Entry) -> tuple[str, str]:
    """Give XNAT's format and content of a label's file."""
    return ("NIFTI", "SEG") if entry.suffix == LABEL_MAP else ("JSON", "RESULT")
