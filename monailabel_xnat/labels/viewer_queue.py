"""The queue of copies for viewers that must still be made, kept on disk so that the next process can make them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monailabel_xnat.disk import private_folder, text_digest, write_whole

logger = logging.getLogger(__name__)


_MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class WantedCopy:
    """A label that must be stored for a viewer.

    Parameters
    ----------
    image, tag, version : str
        Which label: id of the image, tag, and name of the version.
    kind : str
        ``collection`` or ``scan``.
    user : str
        XNAT's name of the user who saved the label.
    description : dict
        The label's description.
    attempts : int
        How many attempts to store it have failed.
    """

    image: str
    tag: str
    version: str
    kind: str
    user: str
    description: dict[str, Any] = field(default_factory=dict, compare=False)
    attempts: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """Name of its file. It does not contain the version, so a later version of a label replaces an earlier one."""
        identity = "\n".join((self.image, self.tag, self.kind))
        return text_digest(identity)[:24]


class CopyQueue:
    """A folder with the copies that must still be made.

    A copy that cannot be written to the disk is lost when the process ends.

    Parameters
    ----------
    folder : Path
        The folder; it is made when the first copy is added.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, copy: WantedCopy) -> bool:
        """Keep a copy on the disk, in place of a copy of an earlier version.

        Returns
        -------
        bool
            Whether this copy, or a copy of a later version, is on the disk.
        """
        known = _read(self._file(copy))
        if known is not None and known.version > copy.version:  # an earlier label waited, and arrived only now
            return True
        try:
            private_folder(self._folder)
            write_whole(self._file(copy), json.dumps(_content(copy)).encode())
        except OSError as error:
            logger.debug("a copy for a viewer is not kept on disk: %s", error)
            return False
        return True

    def remove(self, copy: WantedCopy) -> None:
        """Remove a copy, unless a copy of a later version has replaced it."""
        if self.holds(copy):
            self._file(copy).unlink(missing_ok=True)

    def note_failure(self, copy: WantedCopy) -> None:
        """Note that a copy could not be made; after five attempts it is given up."""
        attempts = copy.attempts + 1
        if attempts >= _MOST_ATTEMPTS:
            self.remove(copy)
        elif self.holds(copy):
            self.add(replace(copy, attempts=attempts))

    def holds(self, copy: WantedCopy) -> bool:
        """Return whether a copy must still be made: no process has made it, and there is no later label."""
        return _read(self._file(copy)) == copy

    def all(self) -> list[WantedCopy]:
        """Return the copies that must still be made; [] if the folder cannot be read."""
        try:
            files = sorted(self._folder.glob("[!.]*.json"))
        except OSError:
            return []
        return [copy for copy in map(_read, files) if copy is not None]

    def _file(self, copy: WantedCopy) -> Path:
        return self._folder / f"{copy.name}.json"


def _content(copy: WantedCopy) -> dict[str, Any]:
    """Return a copy as it is stored on disk. There the description has the name that earlier releases gave it."""
    content = dict(copy.__dict__)
    content["sidecar"] = content.pop("description")
    return content


def _read(file: Path) -> WantedCopy | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return WantedCopy(description=content.pop("sidecar"), **content)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None
