"""The images on which drawn scans (DICOM SEG or RTSTRUCT) were drawn: each scan is read once, and kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from monailabel_xnat.catalog.background_reading import BackgroundReader
from monailabel_xnat.catalog.drawn_facts import (
    ScanFacts,
    Targets,
    find_images,
    is_drawing,
    key_of,
    read_facts,
    remembered,
)
from monailabel_xnat.catalog.read_cache import Fact, ReadCache
from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.catalog.selection import OWN_RESOURCES, is_drawn_scan, is_usable, may_be_drawn_label
from monailabel_xnat.client.drawn import DrawnScan, UnreadDrawing, content_of, find_drawn_file
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import NotInArchiveError, ServerError, TransferError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# Seconds to wait for new drawn scans. As with ROI collections, they must not delay the start.
_PATIENCE = 5.0
_KIND = "drawn scan"
_DICOM_RESOURCES = frozenset(("DICOM", "SECONDARY", "SEG", "RTSTRUCT"))
_NOWHERE = "the images that it was drawn on are not in its project"
_EMPTY = "its file has been deleted, or is just being overwritten"


class DrawnOn(NamedTuple):
    """The drawn scans, as far as they are known.

    Parameters
    ----------
    by_image : dict
        The drawn scans of each image, by its id.
    unread : dict
        By session ID, drawings that cannot be read: each may belong to any image of the session.
    lost : dict
        By image id, drawings on it that have no file at the moment.
    not_images : set
        Ids of the scans whose file is a drawing, even if type and modality do not say so.
    """

    by_image: dict[str, tuple[DrawnScan, ...]]
    unread: dict[str, tuple[UnreadDrawing, ...]]
    lost: dict[str, tuple[UnreadDrawing, ...]]
    not_images: set[str]


@dataclass
class _Found:
    """The parts of a `DrawnOn` while they are collected, and the reasons why drawings cannot be used."""

    by_image: dict[str, list[DrawnScan]] = field(default_factory=dict)
    unread: dict[str, list[UnreadDrawing]] = field(default_factory=dict)
    lost: dict[str, list[UnreadDrawing]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class _Wanted(NamedTuple):
    """A scan whose facts must be read. If its facts are known, only the images it was drawn on are searched."""

    scan: Scan
    state: str
    known: ScanFacts | None = None


class DrawnScans:
    """Finds the drawn scans, and the images on which they were drawn.

    Parameters
    ----------
    session : Session
        The connection. Its settings say which drawings count.
    read_cache : ReadCache
        Keeps the facts that were read about scans.
    on_late : callable
        :meth:`look` does not wait long for scans to be read. When the late ones have been read, this is called, from
        another thread.
    """

    def __init__(self, session: Session, read_cache: ReadCache, on_late: Callable[[], None]) -> None:
        self._session = session
        self._settings = session.settings
        self._read_cache = read_cache
        self._reader = BackgroundReader(session.settings.connections, self._read, self._keep, on_late)
        self._facts: dict[str, tuple[str, ScanFacts]] | None = None
        self._listed: dict[str, dict[str, Scan]] = {}
        self._everything: Mapping[str, Scan] = {}
        self._searched: set[str] = set()
        self._empty: set[str] = set()
        self._now: dict[str, DrawnScan] = {}
        self._not_compared: dict[str, ServerError] = {}
        self._unread_before: set[str] = set()
        self.unread: dict[str, str] = {}
        """Why drawn scans cannot be used, by session ID and name: ``XNAT_E00001/scan:3001``."""

    def ask_again(self) -> None:
        """At the next look, read again what could not be read, and look again for images that were not found."""
        self._searched.clear()
        self._reader.ask_again()

    def wait(self) -> bool:
        """Wait for the scans that are being read now, and return whether there were any."""
        return self._reader.wait()

    def look(self, listed: Mapping[str, Mapping[str, Scan]], everything: Mapping[str, Scan]) -> DrawnOn:
        """Return the drawn scans, by the images on which they were drawn.

        Parameters
        ----------
        listed : mapping
            The scans of the projects that could be listed now, by project and id. For all other projects the scans of
            an earlier call are used.
        everything : mapping
            All scans that are known, by id.

        Returns
        -------
        DrawnOn
            What is known now, even if scans are still being read.
        """
        for project, scans in listed.items():
            self._listed[project] = {image: scan for image, scan in scans.items() if self._may_hold_drawing(scan)}
        self._everything = everything
        candidates = {key_of(scan): scan for scans in self._listed.values() for scan in scans.values()}
        self._read_new(candidates)
        return self._grouped(candidates)

    def compare(self, drawings: Iterable[DrawnScan] | None = None) -> bool:
        """Compare drawn scans with XNAT's lists of their files: nothing else shows that one was overwritten.

        Parameters
        ----------
        drawings : iterable of DrawnScan or None
            The drawn scans to compare; None: all.

        Returns
        -------
        bool
            Whether a scan has changed. Then :meth:`look` must be called, which reads it again.
        """
        wanted = list(self._now.values() if drawings is None else drawings)
        if not wanted:
            return False
        with ThreadPoolExecutor(min(self._settings.connections, len(wanted))) as pool:
            return any(list(pool.map(self._compare_one, wanted)))

    def require_compared(self, scan: Scan) -> None:
        """Raise an error if :meth:`compare` could not compare a drawing on an image, or found that it has changed.

        Raises
        ------
        ServerError
            The reason.
        """
        for drawing in scan.drawn_scans:
            failure = self._not_compared.get(_key(drawing))
            if failure is not None:
                raise failure

    def _compare_one(self, drawing: DrawnScan) -> bool:
        """Compare one scan with what was read of it, note the outcome, and return whether it has changed."""
        key = _key(drawing)
        try:
            found = find_drawn_file(self._session, drawing.path)
            content = content_of(self._session, found.remote) if found and not found.problem else ""
        except NotInArchiveError:
            found, content = None, ""
        except ServerError as error:
            self._not_compared[key] = error
            return False
        self._not_compared.pop(key, None)
        now = (found.folder, found.remote.path, content) if found else ("", "", "")
        # Another thread may have read the new content since the caller got its drawing.
        read = self._now.get(key, drawing)
        if now == (read.folder, read.file, read.content):
            return False
        known = self._known()
        if key in known:
            # Keep the images on which it was drawn until it is read again: somebody may just be replacing the file.
            known[key] = ("", known[key][1])
        self._not_compared[key] = TransferError(
            f"the scan {drawing.id!r} was overwritten, and has not been read yet", hint="ask again in a moment"
        )
        return True

    def _may_hold_drawing(self, scan: Scan) -> bool:
        if is_drawn_scan(scan):
            return bool(self._settings.roi_tag) and is_usable(scan, self._settings)
        if not scan.is_untold:
            return False
        # A scan that says nothing of what it is may hold a drawing if it has one DICOM file and no more.
        counts = [found.file_count for found in scan.resources if found.label.upper() in _DICOM_RESOURCES]
        return any(count != 0 for count in counts) and all(count in (None, 0, 1) for count in counts)

    def _read_new(self, candidates: Mapping[str, Scan]) -> None:
        known = self._known()
        wanted: dict[str, _Wanted] = {}
        targets = self._targets(candidates)
        for key, scan in candidates.items():
            state = _state(scan)
            if not state:
                continue
            before, facts = known.get(key, ("", None))
            if facts is None or before != state:
                wanted[key] = _Wanted(scan, state)
            elif facts.kind and not facts.images and key not in self._searched and not targets.of(scan, facts):
                wanted[key] = _Wanted(scan, state, facts)
        if not self._reader.read(wanted, _PATIENCE):
            logger.info("reading what scans hold drawings of goes on in the background")

    def _grouped(self, candidates: Mapping[str, Scan]) -> DrawnOn:
        known = self._known()
        found = _Found()
        self._now = {}
        targets = self._targets(candidates)
        for key, scan in candidates.items():
            self._put(scan, known.get(key), targets, found)
        self._note_unread(found.reasons)
        not_images = {
            str(scan.image_id) for key, scan in candidates.items() if key in known and is_drawing(known[key][1])
        }
        return DrawnOn(_frozen(found.by_image), _frozen(found.unread), _frozen(found.lost), not_images)

    def _put(self, scan: Scan, known: tuple[str, ScanFacts] | None, targets: Targets, found: _Found) -> None:
        """Add to ``found`` what is known about a scan."""
        before, facts = known or ("", ScanFacts())
        drawing, state = _drawing(scan, facts), _state(scan)
        if not self._counts(scan, drawing):
            return
        experiment = scan.image_id.experiment
        name = f"{experiment}/{drawing.label}"
        if before == state != "":
            self._now[key_of(scan)] = drawing
            self._not_compared.pop(key_of(scan), None)
            images = targets.of(scan, facts)
            for image in images:
                found.by_image.setdefault(image, []).append(drawing)
            if facts.problem:
                found.reasons[name] = facts.problem
                found.unread.setdefault(experiment, []).append(UnreadDrawing(drawing.label, facts.problem, drawing))
            elif not images and not drawing.is_ours:
                found.reasons[name] = _NOWHERE
        elif state:
            found.reasons[name] = reason = self._reader.why(key_of(scan))
            # A scan in which nothing has been stored yet is not newer than a label, so it is not reported as unread.
            if key_of(scan) not in self._empty:
                found.unread.setdefault(experiment, []).append(UnreadDrawing(drawing.label, reason))
        elif is_drawing(facts) and not drawing.is_ours:
            found.reasons[name] = _EMPTY
            for image in targets.of(scan, facts):
                found.lost.setdefault(image, []).append(UnreadDrawing(drawing.label, _EMPTY))

    def _counts(self, scan: Scan, drawing: DrawnScan) -> bool:
        """Return whether a scan holds a drawing, as far as is known, that the settings do not exclude."""
        is_known = bool(drawing.kind) or not scan.is_untold
        return is_known and (drawing.is_ours or may_be_drawn_label(drawing, self._settings))

    def _note_unread(self, reasons: dict[str, str]) -> None:
        """Log each drawing that cannot be used, once."""
        self.unread = reasons
        failed = {name for name, reason in reasons.items() if self._reader.has_failed(reason)}
        new = failed - self._unread_before
        if new:
            logger.warning(
                "%d scans that hold drawings cannot be used: labels that may be older than they are not trained on",
                len(failed),
            )
            for name in sorted(new):
                logger.info("the drawing %s cannot be used: %s", name, reasons[name])
        self._unread_before = failed

    def _read(self, wanted: _Wanted) -> tuple[str, ScanFacts]:
        scan = wanted.scan
        key = key_of(scan)
        facts = wanted.known or read_facts(self._session, scan)
        if facts is None:
            if key not in self._known():
                self._empty.add(key)
            raise TransferError(
                f"the scan {scan.image_id.scan!r} holds no file now", hint="it is read again automatically"
            )
        self._empty.discard(key)
        if facts.kind and not facts.problem and not Targets(self._everything, [facts]).of(scan, facts):
            facts = facts._replace(images=find_images(self._session, scan, facts, self._everything.values()))
            self._searched.add(key)
        return wanted.state, facts

    def _targets(self, candidates: Iterable[str]) -> Targets:
        known = self._known()
        return Targets(self._everything, (known[key][1] for key in candidates if key in known))

    def _keep(self, found: dict[str, tuple[str, ScanFacts]]) -> None:
        self._facts = {**self._known(), **found}
        self._read_cache.put_all(_KIND, {key: Fact(state, facts) for key, (state, facts) in found.items()})

    def _known(self) -> dict[str, tuple[str, ScanFacts]]:
        if self._facts is None:
            facts = {key: (fact.state, remembered(fact.content)) for key, fact in self._read_cache.all(_KIND).items()}
            self._facts = {key: (state, content) for key, (state, content) in facts.items() if content}
        return self._facts


def _drawing(scan: Scan, facts: ScanFacts) -> DrawnScan:
    """Return a drawn scan made of the listing and of the facts that were read."""
    return DrawnScan(
        id=scan.image_id.scan,
        session_id=scan.image_id.experiment,
        kind=facts.kind,
        name=scan.series_description,
        path=scan.path,
        uid=facts.uid,
        inserted=facts.inserted,
        user=facts.user,
        stored=facts.stored,
        folder=facts.folder,
        file=facts.file,
        content=facts.content,
    )


def _state(scan: Scan) -> str:
    """Return a text with what the listing shows of the files of a scan; empty if there are no files."""
    return "; ".join(
        f"{resource.label}: {resource.file_count} files, {resource.file_size} bytes"
        for resource in sorted(scan.resources)
        if resource.file_count != 0 and not resource.label.upper().startswith(OWN_RESOURCES)
    )


def _key(drawing: DrawnScan) -> str:
    return f"{drawing.session_id}/{drawing.id}"


def _frozen(found: dict[str, list[Item]]) -> dict[str, tuple[Item, ...]]:
    return {name: tuple(items) for name, items in found.items()}
