"""Labels whose image is not known to XNAT, or not clearly: kept until a person says which image they belong to."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Union

from monailabel_xnat.errors import AmbiguousNameError, InvalidIdError, ServerError, UnknownImageError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.model import version_name
from monailabel_xnat.labels.outbox import Entry, Outbox, State, sha256_of
from monailabel_xnat.labels.sidecar import completed

logger = logging.getLogger(__name__)

UnknownError = Union[UnknownImageError, AmbiguousNameError, InvalidIdError]
"""Why it is not known which image is meant."""


def keep_unassigned(
    outbox: Outbox,
    image: ImageId | None,
    given: str,
    tag: str,
    file_type: str,
    source: Path,
    info: Mapping[str, Any],
    user: str,
    reason: UnknownError,
) -> UnknownError:
    """Put a label into the outbox, as it was sent.

    Parameters
    ----------
    outbox : Outbox
        Where it waits.
    image : ImageId or None
        The image that XNAT does not know any more.
    given : str
        What was given as the id of the image, where there is no ``image``.
    tag, source, info
        The label.
    file_type : str
        Extension of what was sent.
    user : str
        XNAT's name of the user who saved it.
    reason : UnknownImageError, AmbiguousNameError or InvalidIdError
        Why the image is not known.

    Returns
    -------
    UnknownImageError, AmbiguousNameError or InvalidIdError
        The reason, which says where the label is now.

    Raises
    ------
    CacheError
        If the outbox does not take it.
    """
    sidecar = {"image_id": given or str(image), "tag": tag, "source": {"file_type": file_type}, "info": dict(info)}
    now = datetime.now(timezone.utc)
    with outbox.draft() as draft:
        entry = Entry(draft, image, tag, "", file_type or source.suffix, user, State.UNASSIGNED, given)
        shutil.copyfile(source, entry.file)
        sha256 = sha256_of(entry.file)
        description = completed(sidecar, sha256=sha256, saved_at=now, saved_by=user)
        entry = outbox.commit(draft, replace(entry, version=version_name(now, sha256)), description)
    outbox.note_failure(entry, reason)
    logger.warning("a label is kept whose image is not known; `monailabel-xnat outbox` shows it")
    return said_where(reason, entry)


def unknown(image: ImageId, error: ServerError) -> UnknownImageError:
    """Return the error about an image that XNAT does not know any more."""
    return UnknownImageError(f"XNAT does not know the image {image}: {error.message}")


def said_where(reason: UnknownError, entry: Entry) -> UnknownError:
    """Return an error that says where the label is as well."""
    reason.message = f"{reason.message}. The label is not lost: it is safe in {entry.folder}"
    way_out = "say which image it belongs to with `monailabel-xnat outbox assign FOLDER IMAGE_ID`"
    reason.hint = f"{way_out}; {reason.hint}" if reason.hint else way_out
    return reason
