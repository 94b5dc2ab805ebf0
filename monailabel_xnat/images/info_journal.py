"""The journal of image infos: changes that XNAT does not have yet, kept on this disk until it has them.

::

    <folder>/<name>.lock           held by the process that the folder beside it belongs to
    <folder>/<name>/<image>.json   the changes to the info of one image

What a process leaves behind, in whatever way it ended, is taken over by the next one that opens the journal.
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

from monailabel_xnat.disk import ProcessLock, locked, private_folder, write_whole
from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.ids import ImageId

logger = logging.getLogger(__name__)

_LOCK_SUFFIX = ".lock"


class InfoJournal:
    """What one process has still to write to XNAT; the caller lets one thread at a time use it.

    Parameters
    ----------
    folder : Path
        Where the processes of this machine keep their journals for a server; made at the first change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: Path | None = None
        self._lock: ProcessLock | None = None

    def put(self, image: ImageId, changes: Mapping[str, Any]) -> None:
        """Keep the changes to an info, instead of those kept before; none: forget them.

        A disk that cannot be written is said in the log: the changes are then in memory only.
        """
        try:
            if changes:
                file = self._own_folder() / f"{image.file_stem}.json"
                write_whole(file, json.dumps({"image": str(image), "changes": changes}).encode())
            elif self._own is not None:
                (self._own / f"{image.file_stem}.json").unlink(missing_ok=True)
        except OSError as error:
            logger.warning("changes to an image info are kept in memory only: %s", error.strerror or error)

    def take_over(self) -> dict[ImageId, dict[str, Any]]:
        """Return the changes that processes left behind which have ended; they are of this journal now."""
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
        """Leave what is in it to the next process that opens the journal."""
        if self._lock is not None and self._own is not None and self._lock.release():
            with suppress(OSError):
                self._own.rmdir()  # only where XNAT has everything
                self._own.with_suffix(_LOCK_SUFFIX).unlink(missing_ok=True)
        self._own = self._lock = None

    def _own_folder(self) -> Path:
        if self._own is None or self._lock is None or not self._lock.is_held:  # a forked child has its own
            name = uuid.uuid4().hex
            private_folder(self._folder)
            self._lock = ProcessLock(self._folder / (name + _LOCK_SUFFIX))
            self._own = private_folder(self._folder / name)
        return self._own


def with_changes(info: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an info with changes merged in by top-level keys; of each strategy that MONAI Label has, the later entry.

    MONAI Label writes all strategies that it has read of an image together with the one that it changed. Another server
    may have handed the image out since, by another strategy or by the same one.
    """
    ours, theirs = changes.get("strategy"), info.get("strategy")
    merged = {**info, **changes}
    if isinstance(ours, dict) and isinstance(theirs, dict):
        later = {name: entry for name, entry in ours.items() if time_of(entry) >= time_of(theirs.get(name))}
        merged["strategy"] = {**theirs, **later}
    return merged


def time_of(entry: Any) -> float:
    """Return the time in the entry of a strategy (``ts``, seconds since 1970); 0.0 where there is none."""
    time = entry.get("ts") if isinstance(entry, dict) else None
    return float(time) if isinstance(time, (int, float)) else 0.0


def _read(file: Path) -> tuple[ImageId | None, dict[str, Any]]:
    try:
        kept = json.loads(file.read_bytes())
        return ImageId.parse(kept["image"]), dict(kept["changes"])
    except (OSError, ValueError, LookupError, TypeError, InvalidIdError) as error:
        logger.warning("changes to an image info that an earlier process left cannot be read: %s", type(error).__name__)
        return None, {}
