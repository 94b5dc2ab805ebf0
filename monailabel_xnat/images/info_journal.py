"""The journal of image infos: changes that XNAT does not have yet are kept on this disk until XNAT has them.

::

    <folder>/<name>.lock           the lock of the process that owns the folder with the same name
    <folder>/<name>/<image>.json   the changes to the info of one image

If a process leaves changes behind, even after a crash, the next process that opens the journal takes them over. They
are on the disk itself (fsync) when :meth:`InfoJournal.put` returns, as labels are in the outbox.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from monailabel_xnat.disk import ProcessLock, flush, locked, private_folder, write_whole
from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.ids import ImageId

logger = logging.getLogger(__name__)

_LOCK_SUFFIX = ".lock"


class InfoJournal:
    """The changes that one process must still write to XNAT. The caller lets only one thread at a time use it.

    Parameters
    ----------
    folder : Path
        The folder for the journals of all processes on this machine for a server; it is made at the first change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: Path | None = None
        self._lock: ProcessLock | None = None

    def put(self, image: ImageId, changes: Mapping[str, Any]) -> None:
        """Keep the changes to an info, in place of those kept before. An empty mapping removes them.

        If the disk cannot be written, a warning is logged, and the changes are in memory only.
        """
        try:
            if changes:
                file = self._own_folder() / f"{image.file_stem}.json"
                content = json.dumps({"image": str(image), "changes": changes}).encode()
                write_whole(file, content, durable=True)
            elif self._own is not None:
                (self._own / f"{image.file_stem}.json").unlink(missing_ok=True)
                flush(self._own)  # what came back after a power cut would be written over what is newer
        except OSError as error:
            logger.warning("changes to an image info are kept in memory only: %s", error.strerror or error)

    def take_over(self) -> dict[ImageId, dict[str, Any]]:
        """Return the changes that ended processes left behind. They belong to this journal now."""
        found: dict[ImageId, dict[str, Any]] = {}
        with suppress(OSError):
            for lock in sorted(self._folder.glob(f"*{_LOCK_SUFFIX}")):
                left = lock.with_suffix("")
                if left == self._own:
                    continue
                with locked(lock, timeout=0) as has_ended:
                    if not has_ended:
                        continue
                    for file in sorted(left.glob("*.json"), key=lambda file: file.stat().st_mtime):
                        image, changes = _read(file)
                        if image is not None:
                            found[image] = with_changes(found.get(image, {}), changes)
                            self.put(image, found[image])
                    shutil.rmtree(left, ignore_errors=True)
                    lock.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """Release the journal. Changes in it are taken over by the next process that opens it."""
        if self._lock is not None and self._own is not None and self._lock.release():
            with suppress(OSError):
                self._own.rmdir()  # it succeeds only if it is empty, because XNAT has all changes
                self._own.with_suffix(_LOCK_SUFFIX).unlink(missing_ok=True)
        self._own = self._lock = None

    def _own_folder(self) -> Path:
        if self._own is None or self._lock is None or not self._lock.is_held:  # a forked child needs its own folder
            name = uuid.uuid4().hex
            private_folder(self._folder)
            self._lock = ProcessLock(self._folder / (name + _LOCK_SUFFIX))
            self._own = private_folder(self._folder / name)
        return self._own


def with_changes(info: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an info with changes merged in by top-level keys; under ``strategy``, the later entry of each name counts.

    MONAI Label writes all strategies that it has read for an image, together with the one that it changed. In the
    meantime another server may have handed out the image with another strategy, or with the same one.
    """
    ours, theirs = changes.get("strategy"), info.get("strategy")
    merged = {**info, **changes}
    if isinstance(ours, dict) and isinstance(theirs, dict):
        later = {name: entry for name, entry in ours.items() if time_of(entry) >= time_of(theirs.get(name))}
        merged["strategy"] = {**theirs, **later}
    return merged


def time_of(entry: Any) -> float:
    """Return the time in the entry of a strategy (``ts``, seconds since 1970); 0.0 if there is none."""
    time = entry.get("ts") if isinstance(entry, dict) else None
    return float(time) if isinstance(time, (int, float)) else 0.0


def _read(file: Path) -> tuple[ImageId | None, dict[str, Any]]:
    try:
        kept = json.loads(file.read_bytes())
        return ImageId.parse(kept["image"]), dict(kept["changes"])
    except (OSError, ValueError, LookupError, TypeError, InvalidIdError) as error:
        logger.warning("changes to an image info that an earlier process left cannot be read: %s", type(error).__name__)
        return None, {}
