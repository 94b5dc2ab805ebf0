"""Labels whose image is not known, or cannot be looked up now. They are put into the outbox as they were sent."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from monailabel_xnat.disk import file_digest
from monailabel_xnat.errors import (
    AmbiguousNameError,
    InvalidIdError,
    LabelError,
    LabelNotUploadedError,
    NotInArchiveError,
    ServerError,
    UnknownImageError,
)
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.description import completed, plain_info
from monailabel_xnat.labels.entry import State, WaitingLabel
from monailabel_xnat.labels.incoming import read_incoming
from monailabel_xnat.labels.outbox import Outbox
from monailabel_xnat.labels.tags import resource_of
from monailabel_xnat.labels.version import version_name

logger = logging.getLogger(__name__)

UnknownError = UnknownImageError | AmbiguousNameError | InvalidIdError
"""The errors that say why it is not known which image is meant."""


class UnplacedLabels:
    """Puts labels into the outbox as they were sent.

    Parameters
    ----------
    outbox : Outbox
        The outbox.
    user : callable
        Returns XNAT's name of the user who saves.
    chosen_by : str
        The settings that choose the images of this datastore; see
        :func:`~monailabel_xnat.catalog.selection.chosen_by`.
    """

    def __init__(self, outbox: Outbox, user: Callable[[], str], chosen_by: str) -> None:
        self._outbox = outbox
        self._user = user
        self._chosen_by = chosen_by

    def keep_unassigned(
        self, given: str, tag: str, source: Path, info: Mapping[str, Any] | None, reason: UnknownError
    ) -> NoReturn:
        """Keep a label whose image is not known, until a person says which image it belongs to.

        Parameters
        ----------
        given : str
            The text that was given as the id of the image.
        tag, source, info
            The label: its tag, its file and its info.
        reason : UnknownImageError, AmbiguousNameError or InvalidIdError
            Why the image is not known.

        Raises
        ------
        UnknownImageError, AmbiguousNameError, InvalidIdError
            Always: the ``reason``. It also says where the label is. A file that is not a label is not kept.
        CacheError
            If the label cannot be written to the outbox.
        """
        try:
            facts, file_type = _checked(tag, source, info)
        except LabelError:
            raise reason from None
        raise add_place(reason, self.keep(None, given, tag, file_type, source, facts, reason))

    def keep_until_found(
        self, given: str, tag: str, source: Path, info: Mapping[str, Any] | None, reason: ServerError
    ) -> NoReturn:
        """Keep a label while XNAT cannot say which image is meant. It is sent automatically once XNAT can say it.

        A name is then looked up among the same images as now. If no image has it, or several have it, the label becomes
        unassigned.

        Parameters
        ----------
        given, tag, source, info
            As for :meth:`keep_unassigned`.
        reason : ServerError
            Why XNAT cannot say it.

        Raises
        ------
        LabelNotUploadedError
            If the label is kept.
        LabelError
            If the file is not a label.
        CacheError
            If the label cannot be written to the outbox.
        """
        facts, file_type = _checked(tag, source, info)
        try:
            image = ImageId.parse(given)
        except InvalidIdError:
            entry = self.keep(None, given, tag, file_type, source, facts, reason, State.NAMED)
        else:
            entry = self.keep(image, "", tag, file_type, source, facts, reason, State.RAW)
        raise not_uploaded_error(entry, reason) from reason

    def keep(
        self,
        image: ImageId | None,
        given: str,
        tag: str,
        file_type: str,
        source: Path,
        info: Mapping[str, Any],
        reason: Exception,
        state: State = State.UNASSIGNED,
    ) -> WaitingLabel:
        """Put a label into the outbox, as it was sent, and return it.

        Parameters
        ----------
        image : ImageId or None
            The image; None if it is not known.
        given : str
            The text that was given as the id of the image, if there is no ``image``.
        tag, source, info
            The label: its tag, its file and its info.
        file_type : str
            Extension of the file that was sent.
        reason : Exception
            Why it is not stored like any other label.
        state : State
            ``UNASSIGNED`` if a person must say which image the label belongs to. If XNAT will say it: ``RAW`` for an
            id, ``NAMED`` for a name.

        Raises
        ------
        CacheError
            If the label cannot be written to the outbox.
        """
        user, now = self._user(), datetime.now(timezone.utc)
        origin = {"image_id": given or str(image), "tag": tag, "source": {"file_type": file_type}, "info": dict(info)}
        with self._outbox.draft() as draft:
            chosen_by = self._chosen_by if state is State.NAMED else ""
            entry = WaitingLabel(draft, image, tag, "", file_type or source.suffix, user, state, given, chosen_by)
            shutil.copyfile(source, entry.file)
            sha256 = file_digest(entry.file)
            description = completed(origin, sha256=sha256, saved_at=now, saved_by=user)
            entry = self._outbox.commit(draft, replace(entry, version=version_name(now, sha256)), description)
        self._outbox.note_failure(entry, reason)
        logger.warning("a label is kept whose image could not be found; `monailabel-xnat outbox` shows it")
        return entry


def _checked(tag: str, source: Path, info: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return the info of a label and the extension of its file; raise LabelError if the file is not a label."""
    resource_of(tag)
    return plain_info(info), read_incoming(source, _no_image).file_type


def unknown_error(image: ImageId, error: ServerError) -> UnknownImageError:
    """Return the error for an image that XNAT does not know any more."""
    return UnknownImageError(f"XNAT does not know the image {image}: {error.message}")


def add_place(reason: UnknownError, entry: WaitingLabel) -> UnknownError:
    """Add to an error where the label is and what to do with it, and return the error."""
    reason.message = f"{reason.message}. The label is not lost: it is safe in {entry.folder}"
    way_out = "say which image it belongs to with `monailabel-xnat outbox assign FOLDER IMAGE_ID`"
    reason.hint = f"{way_out}; {reason.hint}" if reason.hint else way_out
    return reason


def not_uploaded_error(entry: WaitingLabel, reason: Exception) -> LabelNotUploadedError:
    """Return the error for a label that waits in the outbox; it says where the label is."""
    return LabelNotUploadedError(
        f"the label is not in XNAT yet: {reason}. It is safe in {entry.folder}",
        hint="it is sent again by itself, do not clear this folder, it is no cache; `monailabel-xnat outbox` lists it",
    )


def _no_image() -> NoReturn:
    raise NotInArchiveError("the image is not known")
