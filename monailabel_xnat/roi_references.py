"""Which scans the ROI collections were drawn on: read once for each collection, and remembered on disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from monailabel_xnat.client.roi import CollectionFacts, RoiCollection, list_collections, read_facts
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import ServerError
from monailabel_xnat.memory import Fact, Memory

logger = logging.getLogger(__name__)

# Thousands of collections that nobody has read yet must not hold up the start; the rest comes in the background.
_PATIENCE = 5.0
_KIND = "ROI collection"
# The collections of a project that were listed before are gone only if XNAT says so.
_GONE = (403, 404)

BySeries = dict[tuple[str, str], tuple[RoiCollection, ...]]


class RoiReferences:
    """Finds the ROI collections of each scan.

    Parameters
    ----------
    session : Session
        The connection.
    memory : Memory
        Keeps what was read of collections.
    on_learned : callable
        Called, from another thread, when references were read that :meth:`by_series` did not wait for.
    """

    def __init__(self, session: Session, memory: Memory, on_learned: Callable[[], None]) -> None:
        self._session = session
        self._memory = memory
        self._on_learned = on_learned
        self._lock = threading.Lock()
        self._facts: dict[str, CollectionFacts] | None = None  # by fingerprint
        self._learning: set[str] = set()
        self._listed: dict[str, list[RoiCollection]] = {}
        self._absent: set[str] = set()
        self.problem = ""

    def ask_again(self) -> None:
        """Have sites asked again that did not know ROI collections."""
        self._absent.clear()

    def by_series(self, projects: Iterable[str]) -> BySeries:
        """List the ROI collections of projects, by session ID and Series Instance UID, oldest first.

        Those of a project that cannot be listed now are those known before; :attr:`problem` says so.
        """
        self.problem = ""
        asked = [project for project in dict.fromkeys(projects) if project not in self._absent]
        if not asked:
            return {}
        collections = [found for project in asked for found in self._list(project)]
        if not collections:
            return {}
        self._learn(collections)
        return self._grouped(collections)

    def _list(self, project: str) -> list[RoiCollection]:
        try:
            self._listed[project] = list_collections(self._session, project)
        except ServerError as error:
            known = self._listed.get(project)
            if error.is_passing or (known is not None and error.status not in _GONE):
                self.problem = f"the ROI collections could not be listed, those known before are used: {error}"
                logger.warning("%s", self.problem)
                return known or []
            if not self._absent:
                logger.info("XNAT lists no ROI collections (it answered %s); none are read", error.status)
            self._absent.add(project)
            self._listed.pop(project, None)
            return []
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
        self._memory.put_all(_KIND, {key: Fact("", facts) for key, facts in found.items()})

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
            self._facts = {
                key: CollectionFacts(fact.content[0], fact.content[1], tuple(fact.content[2]))
                for key, fact in self._memory.all(_KIND).items()
                if isinstance(fact.content, list)
            }
        return self._facts
