"""The scans on which ROI collections were drawn. This is read once for each collection, and kept on disk."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple

from monailabel_xnat.catalog.background_reading import BackgroundReader
from monailabel_xnat.catalog.drawn_scans import DrawnOn
from monailabel_xnat.catalog.read_cache import Fact, ReadCache
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.catalog.selection import is_of_unread_kind, may_be_drawn_label
from monailabel_xnat.client.drawn import Drawing, UnreadDrawing
from monailabel_xnat.client.roi import (
    CollectionFacts,
    RoiCollection,
    list_collections,
    read_facts,
)
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import ServerError

logger = logging.getLogger(__name__)

# Seconds to wait for new collections. Thousands of them must not delay the start: the rest is read in the background.
_PATIENCE = 5.0
_KIND = "ROI collection"
# If a project listed collections before, they count as gone only if XNAT answers with one of these.
_GONE = (403, 404)
# The answers of a site that does not know ROI collections, or does not show them to this user.
_ABSENT = (400, 403, 404, 500)
_FAILED = 500


class Drawn(NamedTuple):
    """The ROI collections, as far as they are known.

    Parameters
    ----------
    by_series : dict
        The ROI collections by session ID and Series Instance UID, oldest first.
    unread : dict
        By session ID, the collections whose items cannot be read: each may belong to any scan of the session.
    unlisted : dict
        By project, the reason why its ROI collections cannot be listed.
    """

    by_series: dict[tuple[str, str], tuple[RoiCollection, ...]]
    unread: dict[str, tuple[UnreadDrawing, ...]]
    unlisted: dict[str, UnreadDrawing]


class DrawnCollections:
    """Finds the ROI collections of each scan.

    Parameters
    ----------
    session : Session
        The connection.
    read_cache : ReadCache
        Keeps the facts that were read about collections.
    on_late : callable
        Called from another thread when collections have been read for which :meth:`look` did not wait.
    """

    def __init__(self, session: Session, read_cache: ReadCache, on_late: Callable[[], None]) -> None:
        self._session = session
        self._read_cache = read_cache
        self._facts: dict[str, CollectionFacts] | None = None  # by fingerprint
        self._reader = BackgroundReader(session.settings.connections, partial(read_facts, session), self._keep, on_late)
        self._listed: dict[str, list[RoiCollection]] = {}
        self._absent: set[str] = set()
        self._unread_before: set[str] = set()
        self._is_warned_of_kinds = False
        self.problem = ""
        self.unread: dict[str, str] = {}
        """Why collections cannot be read, by session ID and label: ``XNAT_E00001/SEG_2``. For a list: by project."""
        self.unread_kinds: dict[str, int] = {}
        """The number of ROI collections of each kind that this package does not read."""

    def ask_again(self) -> None:
        """At the next look, ask again for projects without ROI collections, and for items that could not be read."""
        self._absent.clear()
        self._reader.ask_again()

    def wait(self) -> bool:
        """Wait for the items that are being read now, and return whether there were any."""
        return self._reader.wait()

    def look(self, projects: Iterable[str]) -> Drawn:
        """Return the ROI collections of projects, with the scans on which they were drawn.

        If a project cannot be listed now, the collections that are known from before are used, and :attr:`problem` says
        so.
        """
        self.problem = ""
        unlisted: dict[str, UnreadDrawing] = {}
        asked = [project for project in dict.fromkeys(projects) if project not in self._absent]
        collections = [found for project in asked for found in self._list(project, unlisted)]
        if collections:
            self._read_new(collections)
        drawn = self._grouped(collections, unlisted)
        self._note_unread(drawn)
        return drawn

    def join(self, images: dict[str, Scan], projects: Collection[str], drawn: DrawnOn) -> None:
        """Put the drawings into the images. XNAT lists the ROI collections of a shared session in its owner project."""
        owners = {scan.owner for scan in images.values()}
        found = self.look([*projects, *sorted(owners.difference(projects))])
        told = found.by_series, found.unread, found.unlisted, drawn.by_image, drawn.unread, drawn.lost
        is_anything = any(told)
        for image, scan in images.items():
            if not (is_anything or scan.drawings or scan.unread):
                continue  # nobody has drawn anything: skip the rest, which is slow for large projects
            session = scan.image_id.experiment
            drawings: tuple[Drawing, ...] = (
                *found.by_series.get((session, scan.series_uid), ()),
                *drawn.by_image.get(image, ()),
            )
            unread = *found.unread.get(session, ()), *drawn.unread.get(session, ()), *drawn.lost.get(image, ())
            for project in found.unlisted.keys() & {scan.owner, scan.image_id.project}:
                unread = (*unread, found.unlisted[project])
            # Scans of a project that could not be listed now come from the old index, with their old drawings.
            if drawings != scan.drawings or unread != scan.unread:
                images[image] = scan._replace(drawings=drawings, unread=unread)

    def _list(self, project: str, unlisted: dict[str, UnreadDrawing]) -> list[RoiCollection]:
        try:
            self._listed[project] = list_collections(self._session, project)
        except ServerError as error:
            known = self._listed.get(project)
            # If a site has shown ROI collections before, a failure now does not mean that it does not know them.
            is_known = known is not None or bool(self._known())
            if error.may_pass_later or error.status not in _ABSENT or (is_known and error.status not in _GONE):
                self.problem = f"the ROI collections could not be listed, those known before are used: {error}"
                logger.warning("%s", self.problem)
                if known is None:
                    reason = f"the ROI collections of project {project} cannot be listed: {error}"
                    unlisted[project] = UnreadDrawing("", reason)
                return known or []
            if not self._absent:
                # Status 500 has two meanings: some sites do not know ROI collections, and others have failed.
                level = logging.WARNING if error.status == _FAILED else logging.INFO
                logger.log(level, "XNAT lists no ROI collections (it answered %s); none are read", error.status)
            self._absent.add(project)
            self._listed.pop(project, None)
            return []
        return self._listed[project]

    def _grouped(self, collections: Iterable[RoiCollection], unlisted: dict[str, UnreadDrawing]) -> Drawn:
        grouped: dict[tuple[str, str], list[RoiCollection]] = {}
        unread: dict[str, list[UnreadDrawing]] = {}
        kinds: Counter[str] = Counter()
        known = self._known()
        for listed in sorted(collections, key=lambda found: (found.inserted, found.id)):
            facts = known.get(listed.fingerprint)
            # The listing of some sites lacks UID or kind. Without the UID our own copies would count as drawings.
            collection = (
                listed._replace(uid=facts.uid or listed.uid, kind=facts.kind or listed.kind) if facts else listed
            )
            if facts and facts.series:
                kinds.update([collection.kind] if is_of_unread_kind(collection) else [])
                for uid in facts.series:
                    grouped.setdefault((collection.session_id, uid), []).append(collection)
            elif may_be_drawn_label(collection, self._session.settings):
                why = self._reader.why(collection.fingerprint)
                reason = "it does not say which series it was drawn on" if facts else why
                unread.setdefault(collection.session_id, []).append(UnreadDrawing(collection.label, reason, collection))
        self.unread_kinds = dict(kinds)
        by_series = {key: tuple(found) for key, found in grouped.items()}
        return Drawn(by_series, {session: tuple(found) for session, found in unread.items()}, unlisted)

    def _note_unread(self, drawn: Drawn) -> None:
        """Log each collection that cannot be read, once."""
        self.unread = {
            f"{session}/{item.name}": item.reason for session, found in drawn.unread.items() for item in found
        }
        self.unread.update((project, item.reason) for project, item in drawn.unlisted.items())
        failed = {name for name, reason in self.unread.items() if self._reader.has_failed(reason)}
        if failed - self._unread_before:
            logger.warning(
                "%d ROI collections cannot be read: labels that may be older than they are not trained on", len(failed)
            )
            for name in sorted(failed - self._unread_before):
                logger.info("the ROI collection %s cannot be read: %s", name, self.unread[name])
        self._unread_before = failed
        if self.unread_kinds and not self._is_warned_of_kinds:
            self._is_warned_of_kinds = True
            logger.warning(
                "ROI collections of kinds that are not read (%s): labels older than they are not trained on",
                ", ".join(f"{count} {kind}" for kind, count in sorted(self.unread_kinds.items())),
            )

    def _read_new(self, collections: Iterable[RoiCollection]) -> None:
        """Read the items of new collections, and wait some seconds for them."""
        known = self._known()
        new = {found.fingerprint: found for found in collections if found.fingerprint not in known}
        if not self._reader.read(new, _PATIENCE):
            logger.info("reading what ROI collections were drawn on goes on in the background")

    def _keep(self, found: dict[str, CollectionFacts]) -> None:
        self._facts = {**self._known(), **found}
        self._read_cache.put_all(_KIND, {key: Fact("", facts) for key, facts in found.items()})

    def _known(self) -> dict[str, CollectionFacts]:
        if self._facts is None:
            self._facts = {
                key: CollectionFacts(fact.content[0], fact.content[1], tuple(fact.content[2]))
                for key, fact in self._read_cache.all(_KIND).items()
                if isinstance(fact.content, list)
            }
        return self._facts
