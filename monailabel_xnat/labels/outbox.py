"""Labels that were accepted but are not in XNAT yet: on disk, so that no crash and no failure of XNAT loses one.

Each waits in a folder of its own below the outbox, which appears in one step (rename) once everything in it is on the
disk, and goes in one step:

``label.nii.gz`` or ``label.result.json``
    The file.
``sidecar.json``
    Its description, as it will be stored in XNAT.
``entry.json``
    Which image, tag and version it is, which user saved it, and its state.
``failure.json``
    How often it was tried and what was wrong; only where it was tried.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from monailabel_xnat.client.upload import private_folder
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import CacheError, LoginError, ServerError, XNATDatastoreError
from monailabel_xnat.ids import ImageId, safe_name
from monailabel_xnat.labels.sidecar import decode, encode

logger = logging.getLogger(__name__)

_FILE, _SIDECAR, _ENTRY, _FAILURE = "label", "sidecar.json", "entry.json", "failure.json"
_DRAFT, _GONE = ".draft-", ".gone-"
_CHUNK = 1 << 20
# A draft or a folder on its way out is the work of a moment; what is older was left by a crash.
_STALE_SECONDS = 3600.0
# The outbox folder is looked at again after this long, so that asking for each of 10000 images costs nothing.
_LOOK_AGAIN_SECONDS = 0.05


class State(str, Enum):
    """How far a label that waits has been looked at."""

    READY = "ready"
    """It lies on the grid of its image."""

    UNCHECKED = "unchecked"
    """The image could not be had when it was saved, so that the grids are yet to be compared."""

    RAW = "raw"
    """It is as it was sent, for it can be read only with its image, which could not be had. It is not served."""

    UNASSIGNED = "unassigned"
    """XNAT does not know the image that was named, or several bear the name. A person has to say which one it is."""

    REFUSED = "refused"
    """It does not fit its image, or is not what was saved. It is kept, for a person to look at, and not served."""


@dataclass(frozen=True)
class Entry:
    """A label that waits.

    Parameters
    ----------
    folder : Path
        Where its files are.
    image_id : ImageId or None
        The image; None where only a name was given that stands for no image.
    tag : str
        The label's tag.
    version : str
        The name that the version has, or will have, in XNAT; the same at each attempt, so that repeating is harmless.
    suffix : str
        What the name of its file ends in.
    user : str
        XNAT's name of the user who saved it.
    state : State
        How far it has been looked at.
    given : str
        What was given as the image, where there is no ``image_id``.
    """

    folder: Path
    image_id: ImageId | None
    tag: str
    version: str
    suffix: str
    user: str
    state: State = State.READY
    given: str = ""

    @property
    def image(self) -> str:
        """The id of the image, or what was given as such."""
        return str(self.image_id) if self.image_id else self.given

    @property
    def file(self) -> Path:
        """The label map, or the result."""
        return self.folder / f"{_FILE}{self.suffix}"

    def sidecar(self) -> dict[str, Any]:
        """Read its description.

        Raises
        ------
        CacheError
            If it cannot be read, or has left the outbox.
        """
        try:
            return decode((self.folder / _SIDECAR).read_bytes())
        except (OSError, ValueError) as error:
            raise CacheError(f"cannot read the outbox entry {self.folder}: {error}") from error

    def failure(self) -> dict[str, Any]:
        """Give ``attempts``, ``reason`` and ``tried_at`` (seconds since 1970) of what went wrong; {} if nothing."""
        try:
            return decode((self.folder / _FAILURE).read_bytes())
        except (OSError, ValueError):
            return {}


class Outbox:
    """The folder with the labels that wait; several processes may share it.

    Parameters
    ----------
    folder : Path
        Made when the first label comes.
    on_departure : callable or None
        Is told of each label that another process has taken out.
    """

    def __init__(self, folder: Path, on_departure: Callable[[Entry], None] | None = None) -> None:
        self._folder = folder
        self._on_departure = on_departure
        self._lock = threading.Lock()
        self._seen: dict[Path, Entry | None] = {}  # None: cannot be read
        self._entries: list[Entry] = []
        self._by_image: dict[tuple[str, str], list[Entry]] = {}
        self._looked: float | None = None

    def entries(self) -> list[Entry]:
        """List all labels that wait, oldest first."""
        self._look()
        return list(reversed(self._entries))

    def damaged(self) -> list[Path]:
        """List the folders of labels that cannot be read; they are left alone."""
        self._look()
        return [folder for folder, entry in self._seen.items() if entry is None]

    def of(self, image: ImageId, tag: str | None = None, *, raw: bool = False) -> list[Entry]:
        """List the labels of one image that wait and are served, newest first; those with one tag, if given.

        Those that are as they were sent are not served, and are listed only with ``raw``.
        """
        self._look()
        entries = self._by_image.get((image.experiment, image.scan), [])
        return [entry for entry in entries if tag in (None, entry.tag) and (raw or entry.state is not State.RAW)]

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Give a folder to write a label's file ``label<suffix>`` into; it goes away unless committed.

        Raises
        ------
        CacheError
            If the disk does not take it.
        """
        private_folder(self._folder)
        self._sweep()
        try:
            folder = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._folder))
            try:
                yield folder
            finally:
                if folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)
        except XNATDatastoreError:
            raise
        except OSError as error:
            raise CacheError(
                f"the label could not be saved, {self._folder} does not take it: {error.strerror or error}",
                hint="make room on the disk or set cache_path to another one, and save again",
            ) from error

    def commit(self, draft: Path, entry: Entry, sidecar: Mapping[str, Any]) -> Entry:
        """Accept a draft: from here on the label is safe.

        Parameters
        ----------
        draft : Path
            The folder from :meth:`draft`, with the label's file in it.
        entry : Entry
            What it is; its ``folder`` does not count.
        sidecar : mapping
            Its description.
        """
        (draft / _SIDECAR).write_bytes(encode(sidecar))
        (draft / _ENTRY).write_text(json.dumps(_as_json(entry)))
        for file in draft.iterdir():
            _flush(file)
        _flush(draft)
        stem = entry.image_id.file_stem if entry.image_id else entry.given
        name = safe_name(f"{stem}_{entry.tag}", f"{entry.image} {entry.tag} {entry.version}")
        committed = replace(entry, folder=self._folder / name)
        if not (committed.folder / _ENTRY).exists():  # else a process was ended before it took out what this replaces
            draft.rename(committed.folder)
        _flush(self._folder)
        self._look_again()
        return committed

    def change(self, entry: Entry, *, version: str = "", state: State = State.READY) -> Entry:
        """Give an entry that was never sent another version name, or another state."""
        changed = replace(entry, version=version or entry.version, state=state)
        _replace_durably(entry.folder / _ENTRY, json.dumps(_as_json(changed)).encode())
        self._look_again(entry)
        return changed

    def assign(self, entry: Entry, image: ImageId) -> Entry:
        """Say which image an unassigned label belongs to."""
        assigned = replace(entry, image_id=image, given="", state=State.RAW)
        _replace_durably(entry.folder / _ENTRY, json.dumps(_as_json(assigned)).encode())
        self._look_again(entry)
        return assigned

    def describe(self, entry: Entry, sidecar: Mapping[str, Any]) -> None:
        """Replace the description of an entry."""
        _replace_durably(entry.folder / _SIDECAR, encode(sidecar))

    def note_failure(self, entry: Entry, error: Exception) -> None:
        """Remember that an attempt failed; not being able to is no harm."""
        attempts = int(entry.failure().get("attempts", 0)) + 1
        failure = {"attempts": attempts, "reason": str(error), "tried_at": time.time()}
        try:
            _replace_durably(entry.folder / _FAILURE, json.dumps(failure).encode())
        except OSError as problem:
            logger.debug("outbox: %s", problem)

    def remove(self, entry: Entry) -> None:
        """Take out an entry; one that another process has taken out is no error."""
        gone = self._folder / f"{_GONE}{entry.folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            entry.folder.rename(gone)
        except FileNotFoundError:
            gone = entry.folder
        _flush(self._folder)
        shutil.rmtree(gone, ignore_errors=True)
        self._look_again(entry)

    def look_again(self) -> None:
        """Look at the folder before the next answer, for another process may have changed it."""
        self._look_again()

    def current(self, entry: Entry) -> Entry | None:
        """Give an entry as it is on the disk now; None if it has left."""
        return _read(entry.folder) if (entry.folder / _ENTRY).exists() else None

    def _look(self) -> None:
        """Bring the memory of what waits in line with the folder."""
        with self._lock:
            if self._looked is not None and time.monotonic() - self._looked < _LOOK_AGAIN_SECONDS:
                return
            changed, self._looked = self._looked is None, time.monotonic()
            folders = set(_visible_folders(self._folder))
            if folders == self._seen.keys() and not changed:
                return
            departed = [entry for folder, entry in self._seen.items() if folder not in folders and entry]
            self._seen = {
                folder: self._seen[folder] if folder in self._seen else _read(folder) for folder in sorted(folders)
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

    def _look_again(self, changed: Entry | None = None) -> None:
        with self._lock:
            self._looked = None
            if changed is not None:
                self._seen.pop(changed.folder, None)

    def _sweep(self) -> None:
        """Remove what a crash left of drafts that were never accepted and of entries that were done."""
        for folder in self._folder.iterdir():
            if folder.name.startswith((_DRAFT, _GONE)) and _age(folder) > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def folder_of(settings: Settings) -> Path:
    """Give the folder of the outbox for a server."""
    return settings.server_folder / "outbox"


def is_away(error: XNATDatastoreError) -> bool:
    """Tell whether XNAT, not what was asked of it, is the trouble, so that waiting may help."""
    return isinstance(error, LoginError) or (isinstance(error, ServerError) and error.is_passing)


def sha256_of(path: Path) -> str:
    """Give the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
            f"cannot look into the outbox {folder}: {error.strerror}", hint="set cache_path to another folder"
        ) from error


def _read(folder: Path) -> Entry | None:
    try:
        content = decode((folder / _ENTRY).read_bytes())
        given = content.get("given", "")
        image = None if given else ImageId.parse(content["image_id"])
        texts = (content["tag"], content["version"], content["suffix"], content["user"])
        return Entry(folder, image, *texts, State(content["state"]), given)
    except (OSError, ValueError, KeyError, TypeError, XNATDatastoreError) as error:
        logger.warning("the outbox %s holds something that cannot be read; it is left alone", folder.parent)
        logger.debug("cannot be read: %s: %s", folder, error)
        return None


def _as_json(entry: Entry) -> dict[str, str]:
    return {
        **({} if entry.image_id else {"given": entry.given}),
        "image_id": entry.image,
        "tag": entry.tag,
        "version": entry.version,
        "suffix": entry.suffix,
        "user": entry.user,
        "state": entry.state.value,
    }


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _replace_durably(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have a file or folder written to the disk itself."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows does it by itself, and has no call for it
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
