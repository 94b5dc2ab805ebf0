"""From the outbox to XNAT: at once after a save, and again in the background where that failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from monailabel_xnat.background import Background
from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.catalog.selection import chosen_by
from monailabel_xnat.client.files import list_whole
from monailabel_xnat.client.items import exists, resource_path, scan_path
from monailabel_xnat.client.pace import background_work
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files, writing
from monailabel_xnat.convert import Grid
from monailabel_xnat.disk import file_digest
from monailabel_xnat.errors import (
    AmbiguousNameError,
    CacheError,
    InvalidIdError,
    LabelFileError,
    LabelGeometryError,
    ServerError,
    UnknownImageError,
    UnknownLabelError,
    XNATDatastoreError,
)
from monailabel_xnat.images import Images
from monailabel_xnat.labels.description import describe, encode, info_of, placed
from monailabel_xnat.labels.entry import State, WaitingLabel
from monailabel_xnat.labels.files import LabelFiles
from monailabel_xnat.labels.incoming import IncomingLabel, read_incoming
from monailabel_xnat.labels.outbox import Outbox, is_away
from monailabel_xnat.labels.resources import StoredVersions
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.version import DESCRIPTION, LABEL_MAP, LabelVersion, renamed, version_name, versions_among

logger = logging.getLogger(__name__)


FIRST_PAUSE = 5.0
"""Seconds until a label that XNAT did not take is tried again; twice as long each time after."""

_LONGEST_PAUSE = 600.0
_LONGEST_GOODBYE = 10.0
_TO_BE_PLACED = (State.UNCHECKED, State.RAW)
# The lock of the labels in the outbox whose image is not known; it has the place of a path of XNAT.
_WITHOUT_IMAGE = "unassigned"


class Delivery:
    """The way of labels from the outbox to XNAT.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Tells where the images are.
    images : Images
        Tell the grids of images.
    outbox : Outbox
        Where the labels wait.
    versions : StoredVersions
        Is told of what has arrived.
    files : LabelFiles
        Keeps the files of what has arrived.
    on_arrival : callable
        Is told image, tag and version (with its description) of each label that is in XNAT now.
    """

    def __init__(
        self,
        session: Session,
        catalog: Catalog,
        images: Images,
        outbox: Outbox,
        versions: StoredVersions,
        files: LabelFiles,
        on_arrival: Callable[[Scan, str, LabelVersion], None],
    ) -> None:
        self._session = session
        self._images = images
        self._catalog = catalog
        self._outbox = outbox
        self._versions = versions
        self._files = files
        self._on_arrival = on_arrival
        self._start = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._pause = 0.0
        self._background = Background("xnat-outbox", self._replay_until_empty)

    def send(self, entry: WaitingLabel, scan: Scan, *, first: bool = False) -> LabelVersion:
        """Upload one label and take it out of the outbox; may be repeated, from several processes at once.

        Parameters
        ----------
        entry : WaitingLabel
            The label.
        scan : Scan
            Its image.
        first : bool
            Whether it was never tried, so that its version may still get another name.

        Returns
        -------
        LabelVersion
            As XNAT holds it.

        Raises
        ------
        ServerError
            If XNAT does not take it; it stays in the outbox.
        LabelGeometryError
            If it had not been compared with its image before, and does not lie on its grid; it stays, and is refused.
        UnknownLabelError
            If another process has taken it out, and it is not in XNAT.
        CacheError
            If its bytes are not those that were saved; it stays, and is refused.
        """
        self._require_unchanged(entry)
        # Before the lock, for the image may have to be fetched.
        grid = self._images.grid(scan) if entry.state in _TO_BE_PLACED else None
        label = resource_of(entry.tag)
        resource = resource_path(scan.path, label)
        with writing(self._session.settings, resource):
            current = self._outbox.current(entry)
            if current is not None and current.state in _TO_BE_PLACED:
                current = self._placed(current, scan, grid or self._images.grid(scan))
            if current is None:
                listing = list_whole(self._session, scan.path, label, scan.counts(label))
            else:
                entry = self._not_behind(current, scan) if first else current
                listing = upload_files(self._session, resource, _uploads(entry), overwrite=True)
            self._versions.note(scan, label, listing)
            version = next((found for found in versions_among(listing) if found.name == entry.version), None)
            if version is None:
                raise UnknownLabelError(f"the label {entry.tag!r} was removed from the outbox before it was sent")
            if current is not None:
                arrived = version.with_description(entry.description_if_any())
                self._keep(entry, scan, version)
                # Before it leaves the outbox: whatever ends this process, the next one makes up for what is missing.
                self._on_arrival(scan, entry.tag, arrived)
                self._outbox.remove(entry)
        return version

    def mine(self, *, as_me: bool = False) -> list[WaitingLabel]:
        """List what this session can try to send.

        Parameters
        ----------
        as_me : bool
            Whether what other users saved is listed as well. Otherwise it is sent under their own name only, and so is
            always what was saved under a name: this user may see other images of that name.
        """
        entries = [entry for entry in self._outbox.entries() if self._may_be_tried(entry)]
        users = {self._session.settings.username}
        if any(entry.user not in users for entry in entries):
            try:  # an alias token stands for a user of another name
                users.add(self._session.user)
            except ServerError as error:
                logger.debug("it is not known who we are: %s", error)
        return [entry for entry in entries if entry.user in users or (as_me and entry.state is not State.NAMED)]

    def _may_be_tried(self, entry: WaitingLabel) -> bool:
        if entry.state is State.NAMED:
            return entry.chosen_by == chosen_by(self._session.settings)
        if entry.state is State.UNASSIGNED:
            return bool(self._of_same_series(entry))
        return entry.state is not State.REFUSED

    def replay(self, *, as_me: bool = False) -> dict[str, str]:
        """Try to send what waits, each once.

        A label whose session was deleted and imported anew is sent to the image of the same series there.

        Parameters
        ----------
        as_me : bool
            Whether what other users saved is sent as well, under the account of this session; who saved it stays in
            its description.

        Returns
        -------
        dict
            Reason by folder of what still waits.
        """
        self._bring_home()
        failures: dict[str, str] = {}
        away = ""
        for entry in self.mine(as_me=as_me):
            if away or self._stop.is_set():
                failures[str(entry.folder)] = away or "the datastore was closed"
                continue
            try:
                self.send(*self._with_image(entry))
                logger.info("a label that waited in the outbox is in XNAT now")
            except (UnknownImageError, AmbiguousNameError, InvalidIdError) as error:
                # Of an image that was given by its id, another datastore with other projects may know it.
                failures[str(entry.folder)] = str(error)
            except XNATDatastoreError as error:
                if self._outbox.current(entry):
                    self._outbox.note_failure(entry, error)
                    failures[str(entry.folder)] = str(error)
                away = str(error) if is_away(error) else ""
        return failures

    def _with_image(self, entry: WaitingLabel) -> tuple[WaitingLabel, Scan]:
        """Return a label with its image; one whose session was imported anew is first made a label of the new one.

        Raises
        ------
        UnknownImageError
            If the catalog does not list its image. If XNAT has it no more, this is noted.
        UnknownImageError, AmbiguousNameError, InvalidIdError
            If only a name was given, and no image or several have it. The label is unassigned then.
        UnknownLabelError
            If it has left the outbox.
        ServerError
            If XNAT fails.
        """
        if entry.state is State.NAMED:
            entry = self._looked_up(entry)
        try:
            return entry, self._catalog.scan(entry.image)
        except UnknownImageError:
            image = entry.image_id
            # Another datastore, with other projects or filters, may list it.
            if image is None or exists(self._session, scan_path(image, is_shared=True)):
                raise
        found = self._of_same_series(entry)
        if len(found) == 1:
            logger.warning("a label that waits is sent to an image that was imported anew")
            return self._outbox.move_to(entry, found[0].image_id), found[0]
        others = f"; {len(found)} images are of the same series: {', '.join(str(scan.image_id) for scan in found)}"
        error = UnknownImageError(
            f"XNAT has no image {image} any more{others if found else ''}",
            hint="say which image the label belongs to with `monailabel-xnat outbox assign FOLDER IMAGE_ID`",
        )
        self._outbox.note_failure(entry, error)
        raise error

    def _looked_up(self, entry: WaitingLabel) -> WaitingLabel:
        """Look up the name that was given as the image of a label, and make the label one of that image."""
        found: Scan | UnknownImageError | AmbiguousNameError | InvalidIdError
        try:
            found = self._catalog.scan(entry.given, insist=True)
        except (UnknownImageError, AmbiguousNameError, InvalidIdError) as error:
            found = error
        with writing(self._session.settings, _WITHOUT_IMAGE):
            current = self._outbox.current(entry)
            if current is None:
                raise UnknownLabelError(f"the label {entry.tag!r} was removed from the outbox before it was sent")
            if current.image_id is not None:  # another process, or a person, was quicker
                return current
            if isinstance(found, Scan):
                return self._outbox.assign(current, found.image_id)
            self._outbox.note_failure(current, found)
            self._outbox.change(current, state=State.UNASSIGNED)
        logger.warning("a label is kept whose image could not be found; `monailabel-xnat outbox` shows it")
        raise found

    def _of_same_series(self, entry: WaitingLabel) -> list[Scan]:
        """Return the images in the project of a label whose series its description names, if its own is not listed.

        A session that was deleted and imported anew has other ids, and the same series.
        """
        image = entry.image_id
        if image is None or self._catalog.get(str(image)) is not None:
            return []
        series = entry.description_if_any().get("series_uid")
        if not series:
            return []
        try:
            scans = self._catalog.scans()
        except ServerError:  # XNAT has not answered since the start
            return []
        return [
            scan for scan in scans if scan.series_uid == series and image.project in (scan.image_id.project, scan.owner)
        ]

    def _bring_home(self) -> None:
        """Move what waits in earlier folders into the outbox, each label under the lock of its resource.

        An earlier version may be running on this machine, and be sending just this label.
        """
        for stray in self._outbox.strays():
            image = stray.image_id
            place = resource_path(scan_path(image, is_shared=True), resource_of(stray.tag)) if image else _WITHOUT_IMAGE
            try:
                with writing(self._session.settings, place):
                    if self._outbox.current(stray) is not None:
                        self._outbox.bring_home(stray)
            except (XNATDatastoreError, OSError) as error:  # it is served and sent from where it is
                logger.info("a label that waits could not be moved to %s: %s", self._outbox.folder, error)

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
            if self._stop.is_set() or self._background.is_running:
                return
            self._wake.clear()
            self._pause = pause
            self._background.start()

    def retry_soon(self) -> None:
        """Try again at once what waits, for XNAT has just taken a label."""
        self._wake.set()
        if self._outbox.entries():
            self.start()

    def close(self) -> None:
        """End the background thread; what waits stays in the outbox."""
        with self._start:
            self._stop.set()
            self._wake.set()
        self._background.join(_LONGEST_GOODBYE)

    def _replay_until_empty(self) -> None:
        self._wake.wait(self._pause)
        pause = max(self._pause, FIRST_PAUSE)
        while not self._stop.is_set():
            self._wake.clear()
            failures = {}
            try:
                with background_work():
                    failures = self.replay()
                with self._start:
                    if not self.mine():
                        self._background.leave()
                        return
            except Exception as error:  # whatever it is, what waits must be tried again
                logger.warning("what waits in the outbox could not be sent: %s", type(error).__name__)
                logger.info("why the outbox could not be sent", exc_info=True)
            if failures:  # what is just being sent by whoever saved it is none of ours
                logger.warning("%d labels still wait for XNAT; `monailabel-xnat outbox` shows why", len(failures))
            for folder, reason in failures.items():
                logger.debug("waits in %s: %s", folder, reason)
            self._wake.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _require_unchanged(self, entry: WaitingLabel) -> None:
        """Raise CacheError unless the bytes are those that were saved, by the digest in the name of the version."""
        try:
            is_unchanged = renamed(entry.version, file_digest(entry.file)) == entry.version
        except FileNotFoundError:  # another process has just taken it out
            return
        if not is_unchanged:
            self._outbox.change(entry, state=State.REFUSED)
            raise CacheError(
                f"the label in {entry.folder} changed while it waited, and is not sent",
                hint="look at it there, and save it again if it is what it should be",
            )

    def _placed(self, entry: WaitingLabel, scan: Scan, grid: Grid) -> WaitingLabel:
        """Put a label on the grid of its image, which could not be had when the label was saved."""
        try:
            incoming = read_incoming(entry.file, lambda: grid)
        except (LabelGeometryError, LabelFileError):
            self._outbox.change(entry, state=State.REFUSED)
            raise
        description = entry.description()
        if entry.state is State.RAW:
            description = self._described(entry, scan, incoming, description)
        with self._outbox.draft() as draft:
            file = draft / replace(entry, suffix=incoming.suffix).file.name
            incoming.write(file)
            sha256 = file_digest(file)
            ready = replace(entry, version=renamed(entry.version, sha256), suffix=incoming.suffix, state=State.READY)
            if (ready.version, ready.suffix) == (entry.version, entry.suffix):
                if entry.state is State.RAW:
                    self._outbox.describe(entry, {**description, "sha256": sha256})
                return self._outbox.change(entry, state=State.READY)
            if entry.state is State.RAW or incoming.label is None:
                description = {**description, "sha256": sha256}
            else:
                description = placed(description, incoming.label, sha256)
            ready = self._outbox.commit(draft, ready, description)
        self._outbox.remove(entry)
        return ready

    def _described(
        self, entry: WaitingLabel, scan: Scan, incoming: IncomingLabel, known: dict[str, Any]
    ) -> dict[str, Any]:
        """Describe a label that could not be read when it was saved."""
        source = known.get("source")
        described = describe(
            scan,
            entry.tag,
            info_of(known),
            label=incoming.label,
            file_type=str(source.get("file_type", "")) if isinstance(source, dict) else incoming.file_type,
            configured=self._session.settings.label_values,
        )
        return {**described, "saved_at": known.get("saved_at"), "saved_by": known.get("saved_by", entry.user)}

    def _keep(self, entry: WaitingLabel, scan: Scan, version: LabelVersion) -> None:
        """Keep the file, so that it need not be fetched; where the disk is full it will be."""
        try:
            self._files.keep(scan.image_id, entry.tag, version, entry.file)
        except CacheError as error:
            logger.debug("%s", error)

    def _not_behind(self, entry: WaitingLabel, scan: Scan) -> WaitingLabel:
        """Rename an entry that was never sent if XNAT holds a newer name, for then this clock is behind another."""
        label = resource_of(entry.tag)
        stored = self._versions.of(scan, label) if scan.resource(label) else []
        newest = stored[:1]
        # Another process may have brought it to XNAT and been ended before it took it out: then it is there already.
        if not newest or newest[0].name < entry.version or any(found.name == entry.version for found in stored):
            return entry
        logger.info("the clock of this machine is behind: XNAT has a version %s of the label", newest[0].name)
        sha256 = entry.version.rpartition("-")[2]
        return self._outbox.change(
            entry, version=version_name(datetime.now(timezone.utc), sha256, after=newest[0].name)
        )


def _uploads(entry: WaitingLabel) -> list[Upload]:
    """Return the files of an entry, to be stored with overwrite: no name stands for two contents."""
    form, content = ("NIFTI", "SEG") if entry.suffix == LABEL_MAP else ("JSON", "RESULT")
    # The label first: who finds it without its description can use it, but not the other way round.
    return [
        Upload(entry.version + entry.suffix, entry.file, form, content),
        Upload(entry.version + DESCRIPTION, encode(entry.description()), "JSON", "MONAILABEL"),
    ]
