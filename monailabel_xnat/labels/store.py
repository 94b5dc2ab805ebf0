"""Saving, changing, restoring and removing labels of images.

``docs/labels.md`` describes what is stored in XNAT for a label. :mod:`~monailabel_xnat.labels.version` makes the names
of its files, and :mod:`~monailabel_xnat.labels.description` makes its description.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_xnat.background import begun
from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.catalog.selection import chosen_by
from monailabel_xnat.client.drawn import DrawnScan
from monailabel_xnat.client.items import exists, resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import writing
from monailabel_xnat.config import Settings
from monailabel_xnat.convert import read_label
from monailabel_xnat.disk import file_digest
from monailabel_xnat.errors import (
    AmbiguousNameError,
    CacheError,
    InvalidIdError,
    LabelError,
    LabelFileError,
    LabelGeometryError,
    MalformedFileError,
    NotInArchiveError,
    ServerError,
    UnknownImageError,
)
from monailabel_xnat.images import Images
from monailabel_xnat.labels.delivery import FIRST_PAUSE, Delivery
from monailabel_xnat.labels.description import completed, describe, info_of, plain_info
from monailabel_xnat.labels.entry import State, WaitingLabel
from monailabel_xnat.labels.incoming import read_incoming
from monailabel_xnat.labels.labels import Labels
from monailabel_xnat.labels.resources import BUILT_IN_RESOURCE, Deletion
from monailabel_xnat.labels.tags import is_tag, resource_of, text_of
from monailabel_xnat.labels.unplaced import UnplacedLabels, add_place, not_uploaded_error, unknown_error
from monailabel_xnat.labels.version import LABEL_MAP, WITHOUT_DESCRIPTION, LabelVersion, version_name
from monailabel_xnat.labels.viewer_copies import ViewerCopies

logger = logging.getLogger(__name__)


# Seconds. The requests that a datastore was opened for come first.
_START_PAUSE = 1.0


class LabelStore:
    """Saves, changes and removes labels of images.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Finds the images, and gets what our own writes change.
    images : Images
        Returns the grids of images.
    settings : Settings
        The settings: folders, label values, what may be written.
    labels : Labels
        Finds and reads the labels that exist.
    """

    def __init__(self, session: Session, catalog: Catalog, images: Images, settings: Settings, labels: Labels) -> None:
        self._session = session
        self._catalog = catalog
        self._images = images
        self._settings = settings
        self._labels = labels
        self._outbox = labels.outbox
        self._files = labels.files
        self._versions = labels.versions
        self._index = labels.index
        self._unplaced = UnplacedLabels(labels.outbox, self._user, chosen_by(settings))
        self._deletion = Deletion(session, self._versions, self._files)
        self._viewer = ViewerCopies(session, catalog, images, self._files, self._index.find)
        self._delivery = Delivery(
            session, catalog, images, self._outbox, self._versions, self._files, self._viewer.offer
        )
        if self._outbox.entries():
            self._delivery.start(_START_PAUSE)
        self._viewer.resume()

    def waiting(self) -> int:
        """Return how many labels are not in XNAT yet, including those that cannot be read any more."""
        return len(self._outbox.entries()) + len(self._outbox.damaged())

    def unassigned(self) -> int:
        """Return how many waiting labels are unassigned: a person must say which image they belong to."""
        return sum(entry.state is State.UNASSIGNED for entry in self._outbox.entries())

    @property
    def counts(self) -> dict[str, int | str]:
        """The counts of labels that wait and of copies for viewers that failed; see :attr:`ViewerCopies.report`."""
        return {"outbox": self.waiting(), "unassigned": self.unassigned(), **self._viewer.report}

    def report(self) -> list[dict[str, Any]]:
        """Return the labels that wait and what they wait for, as far as this machine knows; see `Outbox.report`."""
        return self._outbox.report(self._session.known_user)

    def replay(self, *, as_me: bool = False) -> dict[str, str]:
        """Send the labels that wait, now; see :meth:`~monailabel_xnat.labels.delivery.Delivery.replay`.

        Raises
        ------
        ReadOnlyError
            If the datastore was opened read-only.
        """
        self._session.require_writable("send labels")
        return self._delivery.replay(as_me=as_me)

    def would_send(self, *, as_me: bool = False) -> list[dict[str, Any]]:
        """Return the labels that :meth:`replay` would try to send, without sending them.

        Parameters
        ----------
        as_me : bool
            As for :meth:`replay`.

        Returns
        -------
        list of dict
            ``image``, ``tag``, ``version``, ``saved_by``, ``resource`` (label of the scan resource), ``bytes`` (of the
            label's file) and ``folder``.
        """
        return [
            {
                "image": entry.image,
                "tag": entry.tag,
                "version": entry.version,
                "saved_by": entry.user,
                "resource": resource_of(entry.tag),
                "bytes": entry.file.stat().st_size,
                "folder": str(entry.folder),
            }
            for entry in self._delivery.mine(as_me=as_me)
            if entry.file.exists()
        ]

    def close(self) -> None:
        """End the background work; labels in the outbox stay there."""
        self._delivery.close()
        self._viewer.close()

    def save(self, scan: Scan, tag: str, source: Path, info: Mapping[str, Any] | None) -> LabelVersion:
        """Store a label as a new version.

        Parameters
        ----------
        scan : Scan
            The image.
        tag : str
            Any text.
        source : Path
            The label's file, which is only read; see :func:`~monailabel_xnat.labels.incoming.read_incoming`.
        info : mapping or None
            Label info, which is stored unchanged as plain JSON.

        Returns
        -------
        LabelVersion
            The version as XNAT holds it.

        Raises
        ------
        ReadOnlyError, LabelError, LabelFileError, LabelGeometryError
            If the label is refused; nothing has been written then.
        LabelNotUploadedError
            If XNAT does not accept it. The label is safe in the outbox, is served from there, and is sent later.
        UnknownImageError
            If XNAT does not know the image any more. The label is safe in the outbox; a person must assign it.
        CacheError
            If it cannot even be written to the outbox.
        """
        if not self._settings.dry_run:
            self._session.require_writable("save labels")
        tag = text_of(tag)
        resource = resource_of(tag)
        facts = plain_info(info)
        incoming = read_incoming(source, lambda: self._images.grid(scan))
        if isinstance(incoming.problem, NotInArchiveError):
            reason = unknown_error(scan.image_id, incoming.problem)
            if self._settings.dry_run:
                raise reason
            entry = self._unplaced.keep(scan.image_id, "", tag, incoming.file_type, source, facts, reason)
            raise add_place(reason, entry)

        def described() -> dict[str, Any]:
            label, values = incoming.label, self._settings.label_values
            description = describe(scan, tag, facts, label=label, file_type=incoming.file_type, configured=values)
            for note in description["notes"]:
                logger.warning("a label is stored with a difference: %s", note)
            return description

        if self._settings.dry_run:
            described()
        size = source.stat().st_size
        self._session.require_writable("save labels", f": {size} bytes in resource {resource} of {scan.image_id}")
        with self._outbox.draft() as draft:
            # The voxels are counted for the description while this thread packs them into the file.
            description = begun(described)
            state = State.RAW if incoming.raw else State.UNCHECKED if incoming.problem else State.READY
            entry = WaitingLabel(draft, scan.image_id, tag, "", incoming.suffix, self._user(), state)
            incoming.write(entry.file)
            entry = self._accept(entry, description())
        return self._send(entry, scan)

    def save_as_given(
        self, given: str, find: Callable[[], Scan], tag: str, source: Path, info: Mapping[str, Any]
    ) -> Scan:
        """Find an image, store a label of it, and return the image; see :meth:`save`.

        Parameters
        ----------
        given : str
            The text that was given as the id of the image.
        find : callable
            Returns the image. If no image is found, or several are, the label is kept; see
            :meth:`UnplacedLabels.keep_unassigned`.
        tag, source, info
            As for :meth:`save`.

        Raises
        ------
        LabelNotUploadedError
            Also if XNAT cannot say which image is meant; the label is sent once XNAT can say it.
        """
        try:
            scan = find()
        except (UnknownImageError, AmbiguousNameError, InvalidIdError) as error:
            if self._settings.sends_nothing:
                raise
            self._unplaced.keep_unassigned(given, tag, source, info, error)
        except ServerError as error:
            self._session.require_writable("save labels")
            try:
                self._unplaced.keep_until_found(given, tag, source, info, error)
            finally:
                self._delivery.start(FIRST_PAUSE)
        self.save(scan, tag, source, info)
        return scan

    def assign(self, entry: WaitingLabel, scan: Scan) -> LabelVersion:
        """Upload a label that was kept as unassigned as a label of an image.

        Raises
        ------
        ReadOnlyError, LabelError, LabelNotUploadedError, CacheError
            As for :meth:`save`. The label then stays in the outbox, even if it does not fit the image.
        """
        self._session.require_writable("assign labels")
        return self._send(self._outbox.assign(entry, scan.image_id), scan, is_kept=True)

    def update_info(self, scan: Scan, tag: str, info: Mapping[str, Any]) -> None:
        """Merge top-level keys into the info of a label; nothing else changes.

        A label of another program, and a drawing, is first stored as a label of ours, which can have an info.

        Raises
        ------
        ReadOnlyError
            If the datastore was opened read-only.
        UnknownLabelError
            If there is no such label.
        ServerError
            If XNAT fails.
        """
        self._session.require_writable("change label infos")
        tag = text_of(tag)
        changes = plain_info(info)
        scan = self._labels.compared(scan) if tag == self._settings.roi_tag else scan
        drawn = self._labels.drawing(scan, tag)
        if drawn is not None:
            path = self._labels.drawings.path(scan, drawn)
            info = info_of(self._labels.drawings.description(scan, drawn))
            self.save(scan, tag, path, {**info, **changes})
            return
        found = self._index.find(scan, tag)
        if found.saved_at is None:
            found = self.save(scan, tag, self._files.path(scan.image_id, tag, found), {})
            scan = self._catalog.scan(scan.image_id)
        resource = resource_path(scan.path, resource_of(tag))
        with writing(self._settings, resource):
            entry = self._index.entry(scan, tag, found.name)
            if entry is not None and self._outbox.current(entry) is None:
                entry = self._outbox.moved(entry)
            if entry is None and found.is_pending:
                scan, found = self._labels.arrived(scan, tag, found)
            if entry is not None:
                description = entry.description()
                self._outbox.describe(entry, {**description, "info": {**info_of(description), **changes}})
                return
            files = self._labels.descriptions.merge(
                scan,
                resource_of(tag),
                found,
                changes,
                missing=lambda: self._described_anew(scan, tag, found, self._labels.path(scan, tag, found.name)),
            )
            self._versions.note(scan, resource_of(tag), files)

    def restore(self, scan: Scan, tag: str, version: str) -> LabelVersion:
        """Store the content of an earlier version again, with its info, so that it is the current version.

        If its description is missing or malformed, a new one is made from its file.

        Raises
        ------
        UnknownLabelError
            If there is no such version.
        ReadOnlyError, LabelNotUploadedError, CacheError, ServerError
            As for :meth:`save` and :meth:`~monailabel_xnat.labels.labels.Labels.path`.
        """
        self._session.require_writable("restore labels")
        tag = text_of(tag)
        found = self._index.find(scan, tag, version)
        file = self._labels.path(scan, tag, found.name)
        try:
            description = self._labels.description(scan, tag, found.name)
        except MalformedFileError as error:
            logger.warning("a label is restored without its description, which cannot be used: %s", error.message)
            description = {}
        description = description or self._described_anew(scan, tag, found, file)
        with self._outbox.draft() as draft:
            entry = WaitingLabel(draft, scan.image_id, tag, "", found.suffix, self._user())
            entry.file.write_bytes(file.read_bytes())
            entry = self._accept(entry, {**description, "restored_from": found.name})
        return self._send(entry, scan)

    def remove(self, scan: Scan, tag: str) -> None:
        """Remove all versions of a label, in XNAT and in the outbox. It is no error if there are none.

        In XNAT they are deleted. If the user may write but not delete (a member of a project), they are hidden.

        Raises
        ------
        ReadOnlyError
            If the datastore was opened read-only.
        AccessDeniedError
            If the user may neither delete nor write. The label stays.
        LabelError
            If another program stored it, or it was drawn in the viewer. Only labels of this package are deleted.
        ServerError
            If XNAT fails.
        """
        self._session.require_writable("remove labels")
        tag = text_of(tag)
        if not is_tag(tag):
            return
        label = resource_of(tag)
        with writing(self._settings, resource_path(scan.path, label)):
            removed = self._deletion.delete_or_hide(scan, tag) if scan.resource(label) else []
            waiting = self._outbox.of(scan.image_id, tag, raw=True)
            for entry in waiting:
                self._outbox.remove(entry)
        self._viewer.withdraw(scan, tag, [version.name for version in removed])
        left = self._index.foreign(scan, tag) if not removed and not waiting else []
        if left:
            by_whom = "MONAI Label's built-in datastore" if left[0].resource == BUILT_IN_RESOURCE else "another program"
            raise LabelError(
                f"the label {tag!r} was left in resource {left[0].resource} by {by_whom}",
                hint="delete it in XNAT; this datastore deletes only what it wrote",
            )
        drawn = self._labels.drawing(scan, tag) if not removed and not waiting else None
        if drawn:
            is_scan = isinstance(drawn, DrawnScan)
            raise LabelError(
                f"the label {tag!r} is a {'scan' if is_scan else 'ROI collection'} that was saved in the viewer",
                hint="delete it there; this datastore deletes only what it wrote",
            )

    def forget(self, scan: Scan) -> None:
        """Drop the labels in the outbox that belong to a removed image."""
        for entry in self._outbox.of(scan.image_id, raw=True):
            self._outbox.remove(entry)

    def _accept(self, draft: WaitingLabel, description: Mapping[str, Any]) -> WaitingLabel:
        """Name the version in a draft, commit the draft, and return the entry."""
        now, sha256 = datetime.now(timezone.utc), file_digest(draft.file)
        newest = self._outbox.of(draft.image_id, draft.tag)[:1] if draft.image_id else []
        name = version_name(now, sha256, after=newest[0].version if newest else "")
        description = completed(description, sha256=sha256, saved_at=now, saved_by=draft.user)
        return self._outbox.commit(draft.folder, replace(draft, version=name), description)

    def _user(self) -> str:
        """Return XNAT's name of the user; while XNAT does not answer, the name in the settings."""
        try:
            return self._session.user
        except ServerError:
            return self._settings.username or "guest"

    def _send(self, entry: WaitingLabel, scan: Scan, *, is_kept: bool = False) -> LabelVersion:
        """Upload an accepted label. One that does not fit its image leaves the outbox, unless ``is_kept``."""
        try:
            version = self._delivery.send(entry, scan, first=True)
        except (LabelGeometryError, LabelFileError):  # it was checked only now, because XNAT did not answer before
            if not is_kept:
                self._outbox.remove(entry)
            raise
        except (ServerError, CacheError) as error:
            self._outbox.note_failure(entry, error)
            if isinstance(error, NotInArchiveError) and self._is_gone(scan):
                self._outbox.change(entry, state=State.UNASSIGNED)
                raise add_place(unknown_error(scan.image_id, error), entry) from error
            self._delivery.start(FIRST_PAUSE)
            raise not_uploaded_error(entry, error) from error
        self._delivery.retry_soon()
        if self._settings.keep_versions:
            self._deletion.prune(scan, entry.tag, self._settings.keep_versions)
        return version

    def _is_gone(self, scan: Scan) -> bool:
        """Return whether XNAT certainly does not know a scan any more."""
        try:
            return not exists(self._session, scan.path)
        except ServerError as error:
            logger.debug("it is not known whether a scan is gone: %s", error)
            return False

    def _described_anew(self, scan: Scan, tag: str, version: LabelVersion, file: Path) -> dict[str, Any]:
        """Return a description, made from the file, for a label without one; who made it is not known."""
        label = read_label(file) if version.suffix == LABEL_MAP else None
        # The names in the settings are not used, because the values of this label may mean something else.
        description = describe(scan, tag, {}, label=label, file_type=version.suffix, configured={})
        description["notes"] = [*description["notes"], WITHOUT_DESCRIPTION]
        saved_at = version.saved_at or datetime.now(timezone.utc)
        return completed(description, sha256=file_digest(file), saved_at=saved_at, saved_by="")
