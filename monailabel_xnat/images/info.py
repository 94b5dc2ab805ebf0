"""The infos that MONAI Label keeps for images: when strategies chose an image, and scores.

They are stored in XNAT and served from memory. The info of an image is the file ``image.json`` in the resource
``MONAILABEL_info`` of its scan. Two servers on one project, or a server and its scoring process, merge their changes:
before writing, the info in XNAT is read again, and only our keys are replaced. Writers on one machine take turns. A
writer on another machine may still write between our reading and our writing. So a moment later the info is read once
more, and our change is written again if it has gone. A file that differs in size or MD5 from XNAT's list is not used
and not written back: changes wait, and what was known before stays. If the file has not changed for a minute, XNAT was
interrupted between storing and listing it: then it is merged and written anew, which makes the list right. Waiting
changes are also on disk (:mod:`~monailabel_xnat.images.info_journal`), because they must not be lost when this process
ends.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monailabel_xnat.background import Background, renewed_in_children
from monailabel_xnat.catalog import Catalog, Resource, Scan
from monailabel_xnat.client.documents import find_object, plain, read_settled, resized
from monailabel_xnat.client.files import RemoteFile, list_files
from monailabel_xnat.client.items import resource_path
from monailabel_xnat.client.pace import background_work, is_background
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files, writing
from monailabel_xnat.errors import AccessDeniedError, ServerError, TransferError, UnknownImageError, XNATDatastoreError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.images.claims import INFO_RESOURCE, Claims
from monailabel_xnat.images.info_journal import InfoJournal, time_of, with_changes

logger = logging.getLogger(__name__)

INFO_FILE = "image.json"

_KIND = "image info"

# Changes wait this long for other changes to the same images, so that scoring a project writes each info only once.
_GATHER_SECONDS = 0.25
_RETRY_SECONDS = 30.0
# After a refusal it makes no sense to try again soon: somebody must first change rights in XNAT.
_REFUSED_SECONDS = 600.0
# Closing a datastore takes at most this long; the remaining changes are written at the next start.
_CLOSE_SECONDS = 10.0
# Longer than another server takes to read and write: after this time, nobody overwrites our change any more.
_CONFIRM_SECONDS = 2.0
# A file that has not changed for so long is not being written; XNAT writes a file of this size within a second.
_SETTLED_SECONDS = 60.0


class ImageInfos:
    """The info dictionary of each image.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Knows which scans have an info resource, and shows by its size whether it has changed.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._session = session
        self._catalog = catalog
        self._read_cache = catalog.read_cache
        self._is_recalled = False
        self._lock = renewed_in_children(self, "_lock", threading.RLock)
        self._loading = renewed_in_children(self, "_loading", threading.Lock)
        # The info of each image by its id as text, and the resource as the listing showed it when the info was read
        # (None: it changed).
        self._stored: dict[str, tuple[Resource | None, dict[str, Any]]] = {}
        self._unread: dict[ImageId, tuple[Resource, float]] = {}
        # Ids of images that the listing may show as changed. To look at all images would take too long.
        self._changed: set[str] = set()
        self._pending: dict[ImageId, dict[str, Any]] = {}
        self._written: dict[ImageId, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._wake = renewed_in_children(self, "_wake", threading.Event)
        self._closed = False
        # Until when nothing is written to a project without write permission, or to an image that does not exist.
        self._refused: dict[str, float] = {}
        self._journal = InfoJournal(session.settings.data_folder / "infos")
        self._writing = renewed_in_children(self, "_writing", threading.Lock)
        self._writer = Background("xnat-info", background_work()(self._write_in_background))
        self.claims = Claims(session, catalog)
        catalog.subscribe(self._note_changed)
        self.problem = ""
        """Why changes wait; empty if no changes wait."""
        if not session.settings.sends_nothing:
            self._pending = self._journal.take_over()
            if self._pending:
                logger.info("changes to %d image infos wait since an earlier process ended", len(self._pending))
                self._wake.set()
                self._writer.start()

    def get(self, scan: Scan) -> dict[str, Any]:
        """Return a copy of the info of an image; XNAT is asked only for infos that the listing shows as changed."""
        if self._is_stale(scan):
            self._note_changed([str(scan.image_id)])
            self._load_changed()
        with self._lock:
            return copy.deepcopy(self._merged(str(scan.image_id), self._pending.get(scan.image_id)))

    def values(self, images: Collection[str], keys: Sequence[str]) -> dict[str, Any]:
        """Return one value of the infos of many images, as :meth:`get` would, by the ids of those that have it.

        Parameters
        ----------
        images : collection of str
            Canonical ids of the images.
        keys : sequence of str
            Where the value stands: a top-level key, then that of what stands there, and so on.
        """
        self.load()
        found = {}
        with self._lock:
            pending = {str(image): changes for image, changes in self._pending.items()}
            for image in (self._stored.keys() | pending.keys()).intersection(images):
                value: Any = self._merged(image, pending.get(image))
                for key in keys:
                    value = value.get(key) if isinstance(value, dict) else None
                if value is not None:
                    found[image] = copy.deepcopy(value) if isinstance(value, (dict, list)) else value
        return found

    @property
    def unread(self) -> int:
        """How many infos in XNAT could not be read; what was known of them before is used."""
        return len(self._unread)

    @property
    def report(self) -> dict[str, int | str]:
        """How many infos are unread, how many wait for XNAT, and why they wait."""
        return {"infos_unread": self.unread, "infos_waiting": self.waiting, "infos_problem": self.problem}

    @property
    def waiting(self) -> int:
        """How many infos have changes that XNAT does not have yet."""
        return len(self._pending)

    def claim(self, scan: Scan, owner: str) -> bool:
        """Claim an image for an annotator, and return whether nobody else has claimed it; see :meth:`Claims.take`."""
        before = scan.resource(INFO_RESOURCE)
        claimed = self.claims.take(scan, owner)
        with self._lock:
            stored = self._stored.get(str(scan.image_id))
            is_known = before is None or (stored is not None and stored[0] == before)
            if claimed and is_known and self.claims.is_all_that_is_new(before, claimed):
                self._stored[str(scan.image_id)] = (claimed, stored[1] if stored else {})
        return claimed is not None

    def load(self) -> None:
        """Read every info that the listing shows as changed, and the claims beside it."""
        if len(self._catalog) and self._changed:
            self._load_changed()

    def handed_out(self) -> dict[str, float]:
        """Return when a strategy last handed out each image (seconds since 1970), by id; makes no request."""
        with self._lock:
            strategies = {image: info.get("strategy") for image, (_, info) in self._stored.items()}
            waiting = [(str(image), info["strategy"]) for image, info in self._pending.items() if "strategy" in info]
        strategies.update(waiting)
        times = {
            image: max(map(time_of, entries.values()), default=0.0)
            for image, entries in strategies.items()
            if isinstance(entries, dict)
        }
        return {image: time for image, time in times.items() if time}

    def update(self, scan: Scan, info: Mapping[str, Any]) -> None:
        """Merge top-level keys into the info of an image; a background thread writes them to XNAT.

        Raises
        ------
        TypeError
            If a value cannot be stored as JSON.
        """
        changes = plain(info)
        with self._lock:
            pending = self._pending[scan.image_id] = with_changes(self._pending.get(scan.image_id, {}), changes)
            if self._session.settings.sends_nothing:
                if self._session.settings.dry_run:
                    self._session.note_dry_run("write the info of an image")
                return
            self._journal.put(scan.image_id, pending)
            self._writer.start()
        self._wake.set()

    def forget(self, image: ImageId) -> None:
        """Forget all that is known about an image that was removed, waiting changes included."""
        with self._lock:
            self._stored.pop(str(image), None)
            self._pending.pop(image, None)
            self._unread.pop(image, None)
            self._journal.put(image, {})

    def flush(self) -> None:
        """Write the waiting changes to XNAT. Changes that cannot be written still wait, and the log says why."""
        if self._session.settings.sends_nothing:
            return
        with self._writing:
            waiting = deque(self._writable())

            def write() -> None:
                while True:
                    try:
                        image = waiting.popleft()
                    except IndexError:
                        return
                    if self._write(image):
                        waiting.clear()  # the server does not answer, so the others would only wait for it, too

            # Not a thread pool: a process that is ending can start no threads, but this thread can still write.
            helpers_wanted = min(len(waiting), self._session.settings.connections) - 1
            work = background_work()(write) if is_background() else write
            helpers = [Background("xnat-info-write", work) for _ in range(helpers_wanted)]
            for helper in helpers:
                helper.start()
            write()
            for helper in helpers:
                helper.join()
            if not self._pending:
                self.problem = ""

    def close(self) -> None:
        """Write the waiting changes, within ten seconds; the remaining changes are written at the next start."""
        self._closed = True
        self._wake.set()
        if self._pending and not self._session.settings.sends_nothing:
            if self._writer.start():
                self._writer.join(_CLOSE_SECONDS)
            else:  # Python is ending
                self.flush()
        if self._pending and not self._session.settings.sends_nothing:
            logger.warning("changes to %d image infos wait on this disk: %s", len(self._pending), self.problem)
        with self._lock:  # a thread may still write
            self._journal.close()

    def _write_in_background(self) -> None:
        while True:
            self._wake.wait()
            if not self._closed:
                self._wake.clear()
                threading.Event().wait(_GATHER_SECONDS)
            self.flush()
            if self._closed:
                if not self.problem:  # write changes that came while the others were written
                    self.flush()
                return
            if self._written and not self._wake.wait(_CONFIRM_SECONDS):
                self._confirm()
            if self._pending and not self._wake.wait(_RETRY_SECONDS):
                self._wake.set()

    def _writable(self) -> list[ImageId]:
        """Return the images with waiting changes, except for those that were refused a short time ago."""
        now = time.monotonic()
        with self._lock:
            self._refused = {name: until for name, until in self._refused.items() if until > now}
            refused = self._refused
            return [image for image in self._pending if not {image.project, str(image)} & refused.keys()]

    def _write(self, image: ImageId) -> bool:
        """Write the info of one image, and return whether XNAT does not answer, so that others need not be tried."""
        with self._lock:
            changes = dict(self._pending.get(image, {}))
        if not changes:
            return False
        try:
            scan = self._catalog.scan(image)
            with writing(self._session.settings, _resource(scan)):
                file, merged = self._read_to_change(scan)
                before = {key: merged.get(key) for key in changes}
                merged = with_changes(merged, changes)
                written = self._store(scan, merged, (file.size or 0) if file else 0, overwrite=file is not None)
        except (AccessDeniedError, UnknownImageError) as error:
            self.problem = str(error)
            refused = image.project if isinstance(error, AccessDeniedError) else str(image)
            self._refused[refused] = time.monotonic() + _REFUSED_SECONDS
            logger.warning("image info was refused and waits: %s", type(error).__name__)
            logger.info("why image info was refused: %s", error)
            return False
        except XNATDatastoreError as error:
            self.problem = str(error)
            logger.warning("image info could not be written and waits: %s", type(error).__name__)
            logger.info("why image info waits: %s", error)
            return isinstance(error, ServerError) and error.may_pass_later
        with self._lock:
            self._stored[str(image)] = (written, merged)
            self._unread.pop(image, None)
            self._written[image] = (before, {key: merged[key] for key in changes})
            waiting = self._pending.get(image, {})
            left = {key: value for key, value in waiting.items() if key not in changes or value != changes[key]}
            if left:
                self._pending[image] = left
            else:
                self._pending.pop(image, None)
            self._journal.put(image, left)
        self._read_cache.put(_KIND, str(image), written.state, merged)
        self._catalog.put_resource(image, written)
        return False

    def _confirm(self) -> None:
        """Write our changes again if a server on another machine has overwritten them with what it read before."""
        with self._lock:
            written, self._written = self._written, {}
        for image, (before, changes) in written.items():
            try:
                _, info = self._read_again(self._catalog.scan(image))
            except XNATDatastoreError as error:
                logger.debug("an image info could not be confirmed: %s", type(error).__name__)
                continue
            kept = with_changes(info, changes)
            lost = {key: value for key, value in changes.items() if info.get(key) == before[key] != value}
            if "strategy" in changes and kept["strategy"] != info.get("strategy"):
                lost["strategy"] = kept["strategy"]
            if lost:
                with self._lock:
                    pending = self._pending[image] = with_changes(lost, self._pending.get(image, {}))
                    self._journal.put(image, pending)
                self._wake.set()

    def _store(self, scan: Scan, info: dict[str, Any], previous_size: int, *, overwrite: bool = True) -> Resource:
        content = resized(json.dumps(info, indent=1, sort_keys=True).encode(), previous_size)
        stored = Upload(INFO_FILE, content, "JSON", "MONAILABEL")
        files = upload_files(self._session, _resource(scan), [stored], overwrite=overwrite)
        self.claims.note(scan.image_id, files)
        return Resource(INFO_RESOURCE, len(files), sum(file.size or 0 for file in files))

    def _read_again(self, scan: Scan) -> tuple[RemoteFile | None, dict[str, Any]]:
        """Return the file and the info that XNAT holds now; (None, {}) if there is none."""
        found = find_object(self._session, scan.path, INFO_RESOURCE, INFO_FILE, scan.counts(INFO_RESOURCE), dict)
        return found or (None, {})

    def _read_to_change(self, scan: Scan) -> tuple[RemoteFile | None, dict[str, Any]]:
        """Return the file and the info that XNAT holds now, also if XNAT's list has not fitted the file for a while.

        Otherwise nothing could ever be written to that image again. Writing the info anew makes the list right.
        """
        try:
            return self._read_again(scan)
        except TransferError:
            settled = read_settled(self._session, _resource(scan), INFO_FILE, _SETTLED_SECONDS)
            if settled is None:
                raise
        file, content = settled
        try:
            info = dict(json.loads(content))
        except (ValueError, TypeError, RecursionError):
            with self._lock:
                _, info = self._stored.get(str(scan.image_id), (None, {}))
        logger.warning("XNAT's list of files did not fit an image info, or the info was damaged; it is written anew")
        return file, dict(info)

    def _is_stale(self, scan: Scan) -> bool:
        """Return whether an info must be read from XNAT, because the listing shows another one than was read."""
        resource = scan.resource(INFO_RESOURCE)
        if resource is None or resource.file_count == 0:
            return False
        with self._lock:
            stored, unread = self._stored.get(str(scan.image_id)), self._unread.get(scan.image_id)
        if stored is not None and stored[0] == resource:
            return False
        return unread is None or unread[0] != resource or time.monotonic() - unread[1] > _RETRY_SECONDS

    def _merged(self, image: str, changes: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return an info with the changes to it that wait, not to be changed itself; the caller holds the lock."""
        stored = self._stored.get(image)
        known = stored[1] if stored else {}
        return with_changes(known, changes) if changes else known

    def _note_changed(self, images: Collection[str]) -> None:
        with self._lock:
            self._changed.update(images)

    def _load_changed(self) -> None:
        """Read, in parallel, every info that the listing shows as changed."""
        with self._loading:
            if not self._is_recalled:
                self._recall()
                self._is_recalled = True
            with self._lock:
                candidates, self._changed = self._changed, set()
            try:
                failures = self._load_stale(candidates)
            except BaseException:
                self._note_changed(candidates)
                raise
            with self._lock:  # what could not be read is read again after a while
                self._changed.update(map(str, self._unread))
        if failures:
            logger.warning("%d image infos could not be read, what was known of them before is used", len(failures))
        for scan, error in failures:
            logger.info("the info of %s could not be read: %s", scan.image_id, error)

    def _load_stale(self, images: Collection[str]) -> list[tuple[Scan, XNATDatastoreError]]:
        """Read those of the infos that the listing shows as changed, and return which failed, and why."""
        scans = [scan for scan in map(self._catalog.get, images) if scan and self._is_stale(scan)]
        if not scans:
            return []
        with ThreadPoolExecutor(min(self._session.settings.connections, len(scans))) as pool:
            return [(scan, error) for scan, error in zip(scans, pool.map(self._load, scans), strict=True) if error]

    def _recall(self) -> None:
        """Take the infos that this machine has read before. They are read again if the listing shows a change."""
        remembered = self._read_cache.all(_KIND)
        for scan in self._catalog.scans() if remembered else ():
            image = str(scan.image_id)
            resource, fact = scan.resource(INFO_RESOURCE), remembered.get(image)
            if resource and fact and isinstance(fact.content, dict):
                state = resource if resource.state == fact.state else None
                with self._lock:
                    self._stored.setdefault(image, (state, fact.content))

    def _load(self, scan: Scan) -> XNATDatastoreError | None:
        """Read one info; return the error if that fails. Then the old info stays, and it is read again later."""
        resource = scan.resource(INFO_RESOURCE)
        if resource is None:
            return None
        try:
            file, info = self._read_again(scan)
            size = file.size if file else 0
            if file is None or resource.file_count != 1:  # the other files are claims
                files = list_files(self._session, _resource(scan))
                self.claims.note(scan.image_id, files)
                size = sum(item.size or 0 for item in files)
        except XNATDatastoreError as error:
            with self._lock:
                self._unread[scan.image_id] = (resource, time.monotonic())
            return error
        if size == resource.file_size:  # otherwise it was written later than the listing was made
            self._read_cache.put(_KIND, str(scan.image_id), resource.state, info)
        with self._lock:
            self._stored[str(scan.image_id)] = (resource, info)
            self._unread.pop(scan.image_id, None)
        return None


def _resource(scan: Scan) -> str:
    return resource_path(scan.path, INFO_RESOURCE)
