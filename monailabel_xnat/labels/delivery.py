"""Sending labels from the outbox to XNAT: at once after a save, and again in the background if that failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from monailabel_xnat.background import Background, renewed_in_children
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
"""Seconds until a label that XNAT did not accept is sent again. The pause doubles after each attempt."""

_LONGEST_PAUSE = 600.0
_LONGEST_GOODBYE = 10.0
_TO_BE_PLACED = (State.UNCHECKED, State.RAW)
# The name of the lock for labels whose image is not known; other locks are named after a path in XNAT.
_WITHOUT_IMAGE = "unassigned"


class Delivery:
    """Sends labels from the outbox to XNAT.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Finds the images.
    images : Images
        Returns the grids of images.
    outbox : Outbox
        Holds the labels that wait.
    versions : StoredVersions
        Gets the list of files after an upload.
    files : LabelFiles
        Keeps the files of labels that were sent.
    on_arrival : callable
        Called with image, tag and version (with its description) of each label after it was sent.
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
        self._start = renewed_in_children(self, "_start", threading.Lock)
        self._stop = renewed_in_children(self, "_stop", threading.Event)
        self._wake = renewed_in_children(self, "_wake", threading.Event)
        self._pause = 0.0
        self._background = Background("xnat-outbox", self._replay_until_empty)

    def send(self, entry: WaitingLabel, scan: Scan, *, first: bool = False) -> LabelVersion:
        """Upload one label and take it out of the outbox. Several processes may do this at once, and repeat it.

        Parameters
        ----------
        entry : WaitingLabel
            The label.
        scan : Scan
            Its image.
        first : bool
            Whether nobody has tried to send it before, so that its version may still get another name.

        Returns
        -------
        LabelVersion
            The version as XNAT holds it.

        Raises
        ------
        ServerError
            If XNAT does not accept it. It stays in the outbox.
        LabelGeometryError
            If it is compared with its image only now, and does not lie on its grid. It stays, as refused.
        UnknownLabelError
            If another process has taken it out of the outbox, and it is not in XNAT.
        CacheError
            If its content is not what was saved. It stays, as refused.
        """
        self._require_unchanged(entry)
        # This comes before the lock, because the image may have to be downloaded.
        grid = self._images.grid(scan) if entry.state in _TO_BE_PLACED else None
        label = resource_of(entry.tag)
        resource = resource_path(scan.path, label)
        with writing(self._session.settings, resource):
            current = self._outbox.current(entry)
            if current is not None and current.state in _TO_BE_PLACED:
                current = self._placed(current, scan, grid or self._images.grid(scan))
            if current is None:
                files = list_whole(self._session, scan.path, label, scan.counts(label))
            else:
                entry = self._not_behind(current, scan) if first else current
                files = upload_files(self._session, resource, _uploads(entry), overwrite=True)
            self._versions.note(scan, label, files)
            version = next((found for found in versions_among(files) if found.name == entry.version), None)
            if version is None:
                raise UnknownLabelError(f"the label {entry.tag!r} was removed from the outbox before it was sent")
            if current is not None:
                arrived = version.with_description(entry.description_if_any())
                self._keep(entry, scan, version)
                # This comes before it leaves the outbox: if this process ends in between, the next one does it again.
                self._on_arrival(scan, entry.tag, arrived)
                self._outbox.remove(entry)
        return version

    def mine(self, *, as_me: bool = False) -> list[WaitingLabel]:
        """Return the labels that this session can try to send.

        Parameters
        ----------
        as_me : bool
            Whether labels of other users are included. Those with only a name of the image never are, because this user
            may see another image with that name.
        """
        entries = [entry for entry in self._outbox.entries() if self._may_be_tried(entry)]
        users = {self._session.settings.username}
        if any(entry.user not in users for entry in entries):
            try:  # the user name in the settings may be an alias token, which stands for another name
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
        """Try once to send each label that waits.

        If the session of an image was deleted and imported anew, the label is sent to the new image of the same series.

        Parameters
        ----------
        as_me : bool
            Whether labels of other users are sent as well, under the account of this session. Their descriptions keep
            the name of the user who saved them.

        Returns
        -------
        dict
            For the folder of each label that still waits, the reason.
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
                # If the image was given by its id, a datastore with other projects may know it.
                failures[str(entry.folder)] = str(error)
            except XNATDatastoreError as error:
                if self._outbox.current(entry):
                    self._outbox.note_failure(entry, error)
                    failures[str(entry.folder)] = str(error)
                away = str(error) if is_away(error) else ""
        return failures

    def _with_image(self, entry: WaitingLabel) -> tuple[WaitingLabel, Scan]:
        """Return a label with its image. If the session was imported anew, the label first gets the new image.

        Raises
        ------
        UnknownImageError
            If the catalog does not list its image. If XNAT does not have it any more, this is noted.
        UnknownImageError, AmbiguousNameError, InvalidIdError
            If only a name was given, and no image or several images have it. The label is unassigned then.
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
        """Look up the image by the name that was given for a label, and assign the label to that image."""
        found: Scan | UnknownImageError | AmbiguousNameError | InvalidIdError
        try:
            found = self._catalog.scan(entry.given, insist=True)
        except (UnknownImageError, AmbiguousNameError, InvalidIdError) as error:
            found = error
        with writing(self._session.settings, _WITHOUT_IMAGE):
            current = self._outbox.current(entry)
            if current is None:
                raise UnknownLabelError(f"the label {entry.tag!r} was removed from the outbox before it was sent")
            if current.image_id is not None:  # another process or a person has assigned it in the meantime
                return current
            if isinstance(found, Scan):
                return self._outbox.assign(current, found.image_id)
            self._outbox.note_failure(current, found)
            self._outbox.change(current, state=State.UNASSIGNED)
        logger.warning("a label is kept whose image could not be found; `monailabel-xnat outbox` shows it")
        raise found

    def _of_same_series(self, entry: WaitingLabel) -> list[Scan]:
        """Return the images in the label's project that have the series of its image, if its own image is not listed.

        A session that was deleted and imported anew has other ids, but the same series.
        """
        image = entry.image_id
        if image is None or self._catalog.get(str(image)) is not None:
            return []
        series = entry.description_if_any().get("series_uid")
        if not series:
            return []
        try:
            self._catalog.require_answer()
            scans = self._catalog.scans()
        except ServerError:  # XNAT has not answered since the start
            return []
        return [
            scan for scan in scans if scan.series_uid == series and image.project in (scan.image_id.project, scan.owner)
        ]

    def _bring_home(self) -> None:
        """Move labels that wait in earlier folders into the outbox, each under the lock of its resource.

        An earlier release may be running on this machine and may be sending the same label.
        """
        for stray in self._outbox.strays():
            image = stray.image_id
            place = resource_path(scan_path(image, is_shared=True), resource_of(stray.tag)) if image else _WITHOUT_IMAGE
            try:
                with writing(self._session.settings, place):
                    if self._outbox.current(stray) is not None:
                        self._outbox.bring_home(stray)
            except (XNATDatastoreError, OSError) as error:  # it stays there, and is served and sent from there
                logger.info("a label that waits could not be moved to %s: %s", self._outbox.folder, error)

    def start(self, pause: float = 0.0) -> None:
        """Start a thread that sends labels until none waits, with growing pauses. A read-only datastore sends none.

        Parameters
        ----------
        pause : float
            Seconds before the first attempt. It is ignored if the thread is already running.
        """
        if self._session.settings.sends_nothing:
            return
        with self._start:
            if self._stop.is_set() or self._background.is_running:
                return
            self._wake.clear()
            self._pause = pause
            self._background.start()

    def retry_soon(self) -> None:
        """Try again at once to send the labels that wait, because XNAT has just accepted one."""
        self._wake.set()
        if self._outbox.entries():
            self.start()

    def close(self) -> None:
        """End the background thread; labels that wait stay in the outbox."""
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
            except Exception as error:  # after any error, the labels must be tried again
                logger.warning("what waits in the outbox could not be sent: %s", type(error).__name__)
                logger.info("why the outbox could not be sent", exc_info=True)
            if failures:  # a label that the saving thread is sending at this moment does not count
                logger.warning("%d labels still wait for XNAT; `monailabel-xnat outbox` shows why", len(failures))
            for folder, reason in failures.items():
                logger.debug("waits in %s: %s", folder, reason)
            self._wake.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _require_unchanged(self, entry: WaitingLabel) -> None:
        """Raise CacheError if the content differs from what was saved, by the digest in the version's name."""
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
        """Put a label on the grid of its image, because the image was not available when the label was saved."""
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
        """Return the description of a label that could not be read when it was saved."""
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
        """Keep the file on this machine, so that it need not be downloaded later; on a full disk nothing is kept."""
        try:
            self._files.keep(scan.image_id, entry.tag, version, entry.file)
        except CacheError as error:
            logger.debug("%s", error)

    def _not_behind(self, entry: WaitingLabel, scan: Scan) -> WaitingLabel:
        """Rename an entry that was never sent if XNAT holds a newer name: then this machine's clock is behind."""
        label = resource_of(entry.tag)
        stored = self._versions.of(scan, label) if scan.resource(label) else []
        newest = stored[:1]
        # It may be in XNAT already, if another process sent it and ended before it took it out of the outbox.
        if not newest or newest[0].name < entry.version or any(found.name == entry.version for found in stored):
            return entry
        logger.info("the clock of this machine is behind: XNAT has a version %s of the label", newest[0].name)
        sha256 = entry.version.rpartition("-")[2]
        return self._outbox.change(
            entry, version=version_name(datetime.now(timezone.utc), sha256, after=newest[0].name)
        )


def _uploads(entry: WaitingLabel) -> list[Upload]:
    """Return the files of an entry. Overwriting them is safe, because each name stands for only one content."""
    form, content = ("NIFTI", "SEG") if entry.suffix == LABEL_MAP else ("JSON", "RESULT")
    # The label comes first: a label without its description can be used, but not a description without its label.
    return [
        Upload(entry.version + entry.suffix, entry.file, form, content),
        Upload(entry.version + DESCRIPTION, encode(entry.description()), "JSON", "MONAILABEL"),
    ]
