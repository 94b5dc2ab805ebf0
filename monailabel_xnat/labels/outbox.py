"""Labels that were accepted but are not in XNAT yet. They are on disk, so no crash and no failure of XNAT loses one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import flush, must_work, private_folder, write_whole
from monailabel_xnat.errors import (
    CacheError,
    LoginError,
    ServerError,
    XNATDatastoreError,
)
from monailabel_xnat.ids import ImageId, safe_name
from monailabel_xnat.labels.description import encode
from monailabel_xnat.labels.entry import (
    DESCRIPTION_FILE,
    ENTRY_FILE,
    FAILURE_FILE,
    State,
    WaitingLabel,
    as_json,
    read_entry,
)

logger = logging.getLogger(__name__)

_DRAFT, _GONE = ".draft-", ".gone-"
# Drafts, and folders that are being removed, exist only for a moment. Older ones were left behind by a crash.
_STALE_SECONDS = 3600.0
# If a label has waited in an earlier folder for so long, no process is sending it right now.
_SETTLED_SECONDS = 60.0
_NAME = "outbox"
_NO_ROOM = "make room on the disk or set data_path to a folder on another one"
# The folder is read again only after this time, so that asking for each of 10000 images in a row is cheap.
_LOOK_AGAIN_SECONDS = 0.05


class Outbox:
    """The folder with the labels that wait; several processes may share it.

    Parameters
    ----------
    folder : Path
        The folder for new labels; it is made when the first one comes.
    on_departure : callable or None
        Called with each label that another process has taken out.
    earlier : sequence of Path
        Other folders with labels that wait: an earlier release, or a datastore with other settings, put them there.
    """

    def __init__(
        self, folder: Path, on_departure: Callable[[WaitingLabel], None] | None = None, earlier: Sequence[Path] = ()
    ) -> None:
        self._folder = folder
        self._earlier = tuple(earlier)
        self._on_departure = on_departure
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._seen: dict[Path, WaitingLabel | None] = {}  # None for a label that cannot be read
        self._entries: list[WaitingLabel] = []
        self._by_image: dict[tuple[str, str], list[WaitingLabel]] = {}
        self._looked: float | None = None

    @property
    def folder(self) -> Path:
        """The folder for new labels. It is not a cache and must not be cleared."""
        return self._folder

    def entries(self) -> list[WaitingLabel]:
        """Return all labels that wait, oldest first."""
        self._look()
        return list(reversed(self._entries))

    def damaged(self) -> list[Path]:
        """Return the folders of labels that cannot be read; nothing changes them."""
        self._look()
        return [folder for folder, entry in self._seen.items() if entry is None]

    def of(self, image: ImageId, tag: str | None = None, *, raw: bool = False) -> list[WaitingLabel]:
        """Return the labels of one image that wait and are served, newest first.

        Parameters
        ----------
        image : ImageId
            The image.
        tag : str or None
            Only labels with this tag; None for all tags.
        raw : bool
            Whether to include labels in the state ``RAW``, which are not served.
        """
        self._look()
        entries = self._by_image.get((image.experiment, image.scan), [])
        return [entry for entry in entries if tag in (None, entry.tag) and (raw or entry.state is not State.RAW)]

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Yield a folder to write a label's file ``label<suffix>`` into. It is removed unless it is committed.

        Raises
        ------
        CacheError
            If the label cannot be written to the disk.
        """
        with must_work(f"save the label in {self._folder}", f"{_NO_ROOM}, and save again"):
            private_folder(self._folder)
            self._sweep()
            folder = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._folder))
            try:
                yield folder
            finally:
                if folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def commit(self, draft: Path, entry: WaitingLabel, description: Mapping[str, Any]) -> WaitingLabel:
        """Accept a draft. After this call the label is safe on the disk.

        Parameters
        ----------
        draft : Path
            The folder from :meth:`draft`, with the label's file in it.
        entry : WaitingLabel
            The label; its ``folder`` is ignored.
        description : mapping
            Its description.

        Returns
        -------
        WaitingLabel
            The label in its final folder.
        """
        (draft / DESCRIPTION_FILE).write_bytes(encode(description))
        (draft / ENTRY_FILE).write_text(json.dumps(as_json(entry)))
        for file in draft.iterdir():
            flush(file)
        flush(draft)
        stem = entry.image_id.file_stem if entry.image_id else entry.given
        name = safe_name(f"{stem}_{entry.tag}", f"{entry.image} {entry.tag} {entry.version}")
        committed = replace(entry, folder=self._folder / name)
        # If it exists already, an earlier process wrote it, but ended before it removed the entry that it replaces.
        if not (committed.folder / ENTRY_FILE).exists():
            draft.rename(committed.folder)
        flush(self._folder)
        self._look_again()
        return committed

    def change(self, entry: WaitingLabel, *, version: str = "", state: State = State.READY) -> WaitingLabel:
        """Store another version name or another state for an entry that was never sent, and return the entry."""
        return self._put(entry, replace(entry, version=version or entry.version, state=state))

    def assign(self, entry: WaitingLabel, image: ImageId) -> WaitingLabel:
        """Store the image of a label whose image was not known, and return the entry."""
        return self._put(entry, replace(entry, image_id=image, given="", chosen_by="", state=State.RAW))

    def move_to(self, entry: WaitingLabel, image: ImageId) -> WaitingLabel:
        """Store the new id of a label's image, and return the entry. They are compared before the label is sent."""
        description = entry.description()
        is_described = "format_version" in description
        note = f"the image was deleted and imported anew; before, its id was {entry.image}"
        notes = [*description.get("notes", ()), note]
        self.describe(entry, {**description, "image_id": str(image), **({"notes": notes} if is_described else {})})
        is_raw = entry.state is State.RAW or not is_described
        return self._put(entry, replace(entry, image_id=image, state=State.RAW if is_raw else State.UNCHECKED))

    def describe(self, entry: WaitingLabel, description: Mapping[str, Any]) -> None:
        """Replace the description of an entry."""
        with must_work(f"write to the outbox entry {entry.folder}", _NO_ROOM):
            write_whole(entry.folder / DESCRIPTION_FILE, encode(description), durable=True)

    def note_failure(self, entry: WaitingLabel, error: Exception) -> None:
        """Store that an attempt failed, and why. If that cannot be written, nothing else happens."""
        attempts = int(entry.failure().get("attempts", 0)) + 1
        failure = {"attempts": attempts, "reason": str(error), "tried_at": time.time()}
        try:
            write_whole(entry.folder / FAILURE_FILE, json.dumps(failure).encode(), durable=True)
        except OSError as problem:
            logger.debug("outbox: %s", problem)

    def remove(self, entry: WaitingLabel) -> None:
        """Take an entry out of the outbox. It is no error if another process has taken it out."""
        above = entry.folder.parent
        gone = above / f"{_GONE}{entry.folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        with must_work(f"take the label out of the outbox {above}", "let this user write to that folder"):
            try:
                entry.folder.rename(gone)
            except FileNotFoundError:
                gone = entry.folder
            if above.exists():
                flush(above)
        shutil.rmtree(gone, ignore_errors=True)
        self._look_again(entry)

    def strays(self) -> list[WaitingLabel]:
        """Return the labels that wait in one of the earlier folders, except for those that were just put there.

        An earlier release may be running. It gets time to send the labels that it has just accepted.
        """
        return [
            entry
            for entry in self.entries()
            if entry.folder.parent != self._folder and _age(entry.folder) > _SETTLED_SECONDS
        ]

    def bring_home(self, entry: WaitingLabel) -> WaitingLabel:
        """Move a label from an earlier folder into this one. At every moment it is in one of the two folders.

        The caller holds the lock of its resource, so no process sends it at the same time.

        Raises
        ------
        CacheError
            If it cannot be written. The label stays where it is.
        """
        home = replace(entry, folder=self._folder / entry.folder.name)
        with self.draft() as draft:
            for file in entry.folder.iterdir():
                if not file.name.startswith("."):
                    flush(Path(shutil.copy2(file, draft)))
            flush(draft)
            if not (home.folder / ENTRY_FILE).exists():
                draft.rename(home.folder)
            flush(self._folder)
        self.remove(entry)
        logger.info("a label that waits for XNAT was moved from %s to %s", entry.folder.parent, self._folder)
        return home

    def moved(self, entry: WaitingLabel) -> WaitingLabel | None:
        """Return a label in the folder where it is now; None if it has left the outbox."""
        self._look_again()
        waiting = self.of(entry.image_id, entry.tag) if entry.image_id else []
        return next((other for other in waiting if other.version == entry.version and other.file.exists()), None)

    def look_again(self) -> None:
        """Read the folder again before the next answer, because another process may have changed it."""
        self._look_again()

    def current(self, entry: WaitingLabel) -> WaitingLabel | None:
        """Return an entry as it is on the disk now; None if it has left the outbox."""
        return read_entry(entry.folder) if (entry.folder / ENTRY_FILE).exists() else None

    def report(self, user: str) -> list[dict[str, Any]]:
        """Return the labels that wait, and what each waits for. Unreadable ones come first, then the oldest.

        Parameters
        ----------
        user : str
            XNAT's name of the user who asks.

        Returns
        -------
        list of dict
            ``image``, ``tag``, ``version``, ``saved_by``, ``state``, ``waits_for`` and ``folder``. After a failure also
            ``attempts``, ``reason`` and ``tried_at`` (seconds since 1970). A label that cannot be read has only
            ``state`` (``damaged``), ``waits_for`` and ``folder``.
        """
        damaged = [
            {"state": "damaged", "waits_for": "a person who looks at it: it cannot be read", "folder": str(folder)}
            for folder in self.damaged()
        ]
        return damaged + [
            {
                "image": entry.image,
                "tag": entry.tag,
                "version": entry.version,
                "saved_by": entry.user,
                "state": entry.state.value,
                "waits_for": entry.waits_for(user),
                **entry.failure(),
                "folder": str(entry.folder),
            }
            for entry in self.entries()
        ]

    def _put(self, entry: WaitingLabel, changed: WaitingLabel) -> WaitingLabel:
        """Store the changed facts of an entry, and return them."""
        with must_work(f"write to the outbox entry {entry.folder}", _NO_ROOM):
            write_whole(entry.folder / ENTRY_FILE, json.dumps(as_json(changed)).encode(), durable=True)
        self._look_again(entry)
        return changed

    def _look(self) -> None:
        """Read the changes in the folders into memory."""
        with self._lock:
            if self._looked is not None and time.monotonic() - self._looked < _LOOK_AGAIN_SECONDS:
                return
            changed, self._looked = self._looked is None, time.monotonic()
            folders = set(_visible_folders(self._folder))
            for earlier in self._earlier:
                folders.update(_folders_if_readable(earlier))
            if folders == self._seen.keys() and not changed:
                return
            departed = [entry for folder, entry in self._seen.items() if folder not in folders and entry]
            names = {folder.name for folder in folders}  # a label that only moved to another folder has not left
            departed = [entry for entry in departed if entry.folder.name not in names]
            self._seen = {
                folder: self._seen[folder] if folder in self._seen else read_entry(folder) for folder in sorted(folders)
            }
            entries = [entry for entry in self._seen.values() if entry is not None]
            self._entries = sorted(entries, key=lambda entry: entry.version, reverse=True)
            self._by_image = {}
            for entry in self._entries:
                if entry.image_id and entry.state not in (State.REFUSED, State.UNASSIGNED):
                    self._by_image.setdefault((entry.image_id.experiment, entry.image_id.scan), []).append(entry)
        if self._on_departure is not None:
            for entry in departed:
                self._on_departure(entry)

    def _look_again(self, changed: WaitingLabel | None = None) -> None:
        with self._lock:
            self._looked = None
            if changed is not None:
                self._seen.pop(changed.folder, None)

    def _sweep(self) -> None:
        """Remove old drafts and half removed entries, which a crash left behind."""
        for folder in self._folder.iterdir():
            if folder.name.startswith((_DRAFT, _GONE)) and _age(folder) > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def outbox_of(settings: Settings, on_departure: Callable[[WaitingLabel], None] | None = None) -> Outbox:
    """Return the outbox for a server, together with the folders that earlier releases used.

    Parameters
    ----------
    settings : Settings
        The settings, which name the server and the folders on this machine.
    on_departure : callable or None
        As for :class:`Outbox`.
    """
    earlier = [folder / _NAME for folder in settings.earlier_data_folders]
    return Outbox(settings.data_folder / _NAME, on_departure, earlier)


def is_away(error: XNATDatastoreError) -> bool:
    """Return whether an error comes from XNAT's state and not from the request itself, so that waiting may help."""
    return isinstance(error, LoginError) or (isinstance(error, ServerError) and error.may_pass_later)


def _visible_folders(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            for item in found:
                if not item.name.startswith("."):
                    yield folder / item.name
    except FileNotFoundError:
        return
    except OSError as error:
        raise CacheError(
            f"cannot look into the outbox {folder}: {error.strerror}", hint="set data_path to another folder"
        ) from error


def _folders_if_readable(folder: Path) -> Iterator[Path]:
    """Yield the folders in an earlier outbox. One that cannot be read is skipped."""
    try:
        yield from _visible_folders(folder)
    except CacheError as error:
        logger.debug("%s", error)


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
