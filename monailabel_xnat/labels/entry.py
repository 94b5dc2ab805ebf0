"""One label that waits for XNAT: its folder on the disk, and the files in it.

Each label waits in a folder of its own below the outbox. The folder appears in one step (a rename) after all its files
are on the disk, and it disappears in one step. It holds:

``label.nii.gz`` or ``label.result.json``
    The label's file. The name ends otherwise (``label.dcm``) if the label is kept as it was sent.
``sidecar.json``
    Its description, as it will be stored in XNAT.
``entry.json``
    Its image, tag and version, the user who saved it, and its state.
``failure.json``
    How many attempts to send it failed, and why the last one failed. It exists only after a failure.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from monailabel_xnat.errors import CacheError, XNATDatastoreError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.description import decode

logger = logging.getLogger(__name__)


_FILE, DESCRIPTION_FILE, ENTRY_FILE, FAILURE_FILE = "label", "sidecar.json", "entry.json", "failure.json"

_PERSON = "a person who says which image it belongs to: `monailabel-xnat outbox assign FOLDER IMAGE_ID`"


class State(str, Enum):
    """How far a label that waits has been checked."""

    READY = "ready"
    """It was checked: it lies on the grid of its image."""

    UNCHECKED = "unchecked"
    """The image was not available when it was saved, so the grids must still be compared."""

    RAW = "raw"
    """It is kept as it was sent, because its image was not available and it was not checked. It is not served."""

    NAMED = "named"
    """Only a name of the image was given, and XNAT could not say which image has it. It is looked up later."""

    UNASSIGNED = "unassigned"
    """XNAT does not know the image that was given, or several images have that name. A person must say which it is."""

    REFUSED = "refused"
    """It does not fit its image, or its content changed. It is kept for a person to look at, and not served."""


@dataclass(frozen=True)
class WaitingLabel:
    """A label that waits.

    Parameters
    ----------
    folder : Path
        The folder with its files.
    image_id : ImageId or None
        The image; None if only a name was given and it is not known which image has it.
    tag : str
        The label's tag.
    version : str
        The name that the version has, or will have, in XNAT. It is the same at each attempt, so repeats are harmless.
    suffix : str
        The end of its file's name.
    user : str
        XNAT's name of the user who saved it.
    state : State
        How far it has been checked.
    given : str
        The text that was given as the image, if there is no ``image_id``.
    chosen_by : str
        For a label that is ``NAMED``: the settings that chose the images where it was saved; see
        :func:`~monailabel_xnat.catalog.selection.chosen_by`. With other settings, the name may mean another image.
    """

    folder: Path
    image_id: ImageId | None
    tag: str
    version: str
    suffix: str
    user: str
    state: State = State.READY
    given: str = ""
    chosen_by: str = ""

    @property
    def image(self) -> str:
        """The id of the image, or the text that was given as such."""
        return str(self.image_id) if self.image_id else self.given

    @property
    def file(self) -> Path:
        """The file of the label."""
        return self.folder / f"{_FILE}{self.suffix}"

    def description(self) -> dict[str, Any]:
        """Read its description.

        Raises
        ------
        CacheError
            If it cannot be read, or has left the outbox.
        """
        try:
            return decode((self.folder / DESCRIPTION_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise CacheError(f"cannot read the outbox entry {self.folder}: {error}") from error

    def description_if_any(self) -> dict[str, Any]:
        """Read its description; {} if it cannot be read."""
        try:
            return self.description()
        except CacheError as error:
            logger.debug("%s", error)
            return {}

    def waits_for(self, user: str) -> str:
        """Return a text that says what the label waits for, as far as this machine knows.

        Parameters
        ----------
        user : str
            XNAT's name of the user who asks. A label of another user waits for that user.
        """
        reason = str(self.failure().get("reason", ""))
        if self.state is State.UNASSIGNED:
            return f"{_PERSON} ({reason})" if reason else _PERSON
        if self.state is State.NAMED:
            return (
                f"XNAT to say which image {self.given!r} is, asked by a server with the settings {self.chosen_by}, or "
                f"{_PERSON} ({reason})"
            )
        if self.state is State.REFUSED:
            return f"a person who looks at it: {reason or 'it does not fit its image, or changed while it waited'}"
        if user and self.user != user:
            return (
                f"user {self.user}, who saved it; `monailabel-xnat outbox replay --as-me` sends it under your account"
            )
        return f"XNAT: {reason}" if reason else "its turn: nobody has tried to send it yet"

    def failure(self) -> dict[str, Any]:
        """Return ``attempts``, ``reason`` and ``tried_at`` (seconds since 1970) of the last failure; {} without one."""
        try:
            return decode((self.folder / FAILURE_FILE).read_bytes())
        except (OSError, ValueError):
            return {}


def read_entry(folder: Path) -> WaitingLabel | None:
    """Return the label that waits in a folder; None if its files cannot be read."""
    try:
        content = decode((folder / ENTRY_FILE).read_bytes())
        given = content.get("given", "")
        image = None if given else ImageId.parse(content["image_id"])
        texts = (content["tag"], content["version"], content["suffix"], content["user"])
        return WaitingLabel(folder, image, *texts, State(content["state"]), given, content.get("chosen_by", ""))
    except (OSError, ValueError, KeyError, TypeError, XNATDatastoreError) as error:
        logger.warning("the outbox %s holds something that cannot be read; it is left alone", folder.parent)
        logger.debug("cannot be read: %s: %s", folder, error)
        return None


def as_json(entry: WaitingLabel) -> dict[str, str]:
    """Return the content of ``entry.json`` for a label."""
    return {
        **({} if entry.image_id else {"given": entry.given}),
        **({"chosen_by": entry.chosen_by} if entry.chosen_by else {}),
        "image_id": entry.image,
        "tag": entry.tag,
        "version": entry.version,
        "suffix": entry.suffix,
        "user": entry.user,
        "state": entry.state.value,
    }
