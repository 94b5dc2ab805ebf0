"""Which scans the ROI collections were drawn on: read once for each collection, and remembered on disk."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

from monailabel_xnat.client.locks import private_folder
from monailabel_xnat.client.roi import CollectionFacts, RoiCollection, list_collections, read_facts
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import CacheError, ServerError

logger = logging.getLogger(__name__)

# Thousands of collections that nobody has read yet must not hold up the start; the rest comes in the background.
_PATIENCE = 5.0

BySeries = dict[tuple[str, str], tuple[RoiCollection, ...]]


class RoiReferences:
    """Finds the ROI collections of each scan.

    Parameters
    ----------
    session : Session
        The connection.
    on_learned : callable
        Called, from another thread, when references were read that :meth:`by_series` did not wait for.
    """

    def __init__(self, session: Session, on_learned: Callable[[], None]) -> None:
        self._session = session
        self._file = session.settings.server_folder / "roi" / "references.json"
        self._on_learned = on_learned
        self._lock = threading.Lock()
        self._facts: dict[str, CollectionFacts] | None = None  # by fingerprint
        self._learning: set[str] = set()
        self._listed: dict[str, list[RoiCollection]] = {}
        self._absent: set[str] = set()

    def ask_again(self) -> None:
        """Have sites asked again that did not know ROI collections."""
        self._absent.clear()

    def by_series(self, projects: Iterable[str]) -> BySeries:
        """List the ROI collections of projects, by session ID and Series Instance UID, oldest first."""
        asked = [project for project in dict.fromkeys(projects) if project not in self._absent]
        if not asked:
            return {}
        with ThreadPoolExecutor(min(self._session.settings.connections, len(asked))) as pool:
            collections = [found for listed in pool.map(self._list, asked) for found in listed]
        self._learn(collections)
        return self._grouped(collections)

    def _list(self, project: str) -> list[RoiCollection]:
        try:
            self._listed[project] = list_collections(self._session, project)
        except ServerError as error:
            if error.is_passing:
                logger.warning("the ROI collections could not be listed, those known before are used: %s", error)
                return self._listed.get(project, [])
            if not self._absent:
                logger.info("XNAT lists no ROI collections (it answered %s); none are read", error.status)
            self._absent.add(project)
            self._listed[project] = []
        return self._listed[project]

    def _grouped(self, collections: Iterable[RoiCollection]) -> BySeries:
        grouped: dict[tuple[str, str], list[RoiCollection]] = {}
        known = self._known()
        for listed in sorted(collections, key=lambda found: (found.inserted, found.id)):
            facts = known.get(listed.fingerprint)
            if facts is None:
                continue
            # Whatever the listing of a site leaves out: without the UID our own drafts would count as drawn.
            collection = listed._replace(uid=facts.uid or listed.uid, kind=facts.kind or listed.kind)
            for uid in facts.series:
                grouped.setdefault((collection.session_id, uid), []).append(collection)
        return {key: tuple(found) for key, found in grouped.items()}

    def _learn(self, collections: Iterable[RoiCollection]) -> None:
        """Read the references of the collections that are new, and wait a while for them."""
        with self._lock:
            unknown = self._known().keys() | self._learning
            new = {found.fingerprint: found for found in collections if found.fingerprint not in unknown}
            self._learning |= new.keys()
        if not new:
            return
        learner = threading.Thread(target=self._read_all, args=(new,), name="xnat-roi", daemon=True)
        learner.start()
        learner.join(_PATIENCE)
        if learner.is_alive():
            logger.info("reading what %d ROI collections were drawn on goes on in the background", len(new))
            threading.Thread(target=self._tell_when_done, args=(learner,), name="xnat-roi-wait", daemon=True).start()

    def _tell_when_done(self, learner: threading.Thread) -> None:
        learner.join()
        self._on_learned()

    def _read_all(self, new: dict[str, RoiCollection]) -> None:
        queue: SimpleQueue[tuple[str, RoiCollection]] = SimpleQueue()
        for item in new.items():
            queue.put(item)
        found: dict[str, CollectionFacts] = {}
        count = min(self._session.settings.connections, len(new))
        readers = [threading.Thread(target=self._read, args=(queue, found), daemon=True) for _ in range(count)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        with self._lock:
            self._facts = {**self._known(), **found}
            self._learning -= new.keys()
        self._keep()

    def _read(self, queue: SimpleQueue[tuple[str, RoiCollection]], found: dict[str, CollectionFacts]) -> None:
        while True:
            try:
                key, collection = queue.get_nowait()
            except Empty:
                return
            try:
                found[key] = read_facts(self._session, collection)
            except ServerError as error:  # it is asked again at the next renewal
                logger.debug("a ROI collection could not be read: %s", error)

    def _known(self) -> dict[str, CollectionFacts]:
        if self._facts is None:
            self._facts = _load(self._file)
        return self._facts

    def _keep(self) -> None:
        """Write what is known to the disk; another process may have written, and what it lost is read again."""
        with self._lock:
            content = json.dumps({**_load(self._file), **self._known()})
        try:
            folder = private_folder(self._file.parent)
            handle, name = tempfile.mkstemp(prefix=".references-", dir=folder)
            with os.fdopen(handle, "w") as stream:
                stream.write(content)
            Path(name).replace(self._file)
        except (OSError, CacheError) as error:
            logger.debug("what ROI collections refer to could not be remembered: %s", error)


def _load(file: Path) -> dict[str, CollectionFacts]:
    try:
        content = json.loads(file.read_bytes())
        return {str(key): CollectionFacts(uid, kind, tuple(series)) for key, (uid, kind, series) in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
