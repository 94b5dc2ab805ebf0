"""One stored version of a label: its name, the names of its files, and its entry in a list of versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

from monailabel_xnat.client.files import RemoteFile

LABEL_MAP = ".nii.gz"
RESULT = ".result.json"
DESCRIPTION = ".json"
MARKS = (".hidden.json", ".hidden.odd.json")
"""The ends of the names of files that mark a version as hidden."""

WITHOUT_DESCRIPTION = (
    "the label was found without its description: its values are taken as they are, their names are not known"
)
"""The note for a label whose description is missing."""

_TIME = "%Y%m%dT%H%M%S%fZ"
_NAME = "[0-9]{8}T[0-9]{6}[0-9]*Z-[0-9a-f]{12}"
_FILE = re.compile(rf"(?P<name>{_NAME})(?P<suffix>\.nii\.gz|\.result\.json|(?:\.hidden(?:\.odd)?)?\.json)")
_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class LabelVersion:
    """One version of a label.

    Parameters
    ----------
    name : str
        ``<UTC>-<first 12 hexadecimal digits of the SHA-256 of its file>``. Later versions sort after earlier ones.
    suffix : str
        ``.nii.gz`` for a label map, ``.result.json`` for the result of a task that is not a segmentation.
    file : RemoteFile or None
        Its file in XNAT; None while it waits in the outbox.
    description_file : RemoteFile or None
        The file with its description; None if there is none.
    description : mapping
        The description; empty unless the caller asked for it.
    problem : str
        Why there is no description although the caller asked for it; empty if nothing is wrong.
    marks : tuple of RemoteFile
        The files that mark it as hidden; see :class:`~monailabel_xnat.labels.resources.Deletion`.
    """

    name: str
    suffix: str
    file: RemoteFile | None = None
    description_file: RemoteFile | None = None
    description: Mapping[str, Any] = field(default_factory=dict, compare=False)
    problem: str = field(default="", compare=False)
    marks: tuple[RemoteFile, ...] = ()

    @property
    def is_pending(self) -> bool:
        """Whether it waits in the outbox."""
        return self.file is None

    @property
    def is_hidden(self) -> bool:
        """Whether a user without the right to delete removed it. It is kept, but does not count as a label any more."""
        return bool(self.marks)

    @property
    def resource(self) -> str:
        """Label of the resource that holds it; "" while it waits."""
        return unquote(self.file.uri.rpartition("/resources/")[2].partition("/")[0]) if self.file else ""

    @property
    def extension(self) -> str:
        """Extension of its file on this machine: ``.nii.gz`` or ``.json``."""
        return LABEL_MAP if self.suffix == LABEL_MAP else ".json"

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its file."""
        return self.name.rpartition("-")[2]

    @property
    def saved_at(self) -> datetime | None:
        """When it was saved, UTC; None for a label of another program."""
        try:
            return datetime.strptime(self.name.partition("-")[0], _TIME).replace(tzinfo=timezone.utc)
        except ValueError:
            return None

    def with_description(self, description: Mapping[str, Any]) -> LabelVersion:
        """Return the same version with its description."""
        return replace(self, description=description)


def version_name(now: datetime, sha256: str, after: str = "") -> str:
    """Return the name of a new version.

    Parameters
    ----------
    now : datetime
        When it was saved, with a time zone.
    sha256 : str
        Hexadecimal digest of its file.
    after : str
        Name of the newest version so far. The clocks of two machines may differ, but a label that is saved later must
        be the newer one. So a name that would sort before this one gets the time of this one plus a microsecond.
    """
    now = now.astimezone(timezone.utc)
    earliest = _next_microsecond(after)
    return f"{max(now, earliest or now).strftime(_TIME)}-{sha256[:_DIGEST_LENGTH]}"


def renamed(name: str, sha256: str) -> str:
    """Return the name of a version with the same time and other content."""
    return f"{name.rpartition('-')[0]}-{sha256[:_DIGEST_LENGTH]}"


def versions_among(files: Iterable[RemoteFile]) -> list[LabelVersion]:
    """Return the versions among the files of a resource, newest first; other files are left out."""
    stored: dict[str, dict[str, RemoteFile]] = {}
    for file in files:
        found = _FILE.fullmatch(file.path)
        if found:
            stored.setdefault(found["name"], {})[found["suffix"]] = file
    versions = [
        LabelVersion(
            name,
            suffix,
            parts[suffix],
            parts.get(DESCRIPTION),
            marks=tuple(parts[mark] for mark in MARKS if mark in parts),
        )
        for name, parts in stored.items()
        for suffix in (LABEL_MAP, RESULT)
        if suffix in parts
    ]
    return sorted(versions, key=lambda version: version.name, reverse=True)


def _next_microsecond(name: str) -> datetime | None:
    try:
        time = datetime.strptime(name.partition("-")[0], _TIME)
    except ValueError:
        return None
    return time.replace(tzinfo=timezone.utc) + timedelta(microseconds=1)


def summary_of(version: LabelVersion) -> dict[str, Any]:
    """Return when and by whom a version was saved, and what it holds.

    Parameters
    ----------
    version : LabelVersion
        The version, with its description.

    Returns
    -------
    dict
        ``version`` (its name), ``saved_at`` (UTC, ISO 8601), ``saved_by``, ``model``, ``segments`` (list of ``value``,
        ``name``, ``colour``, ``voxels``), ``restored_from``, and ``in_xnat`` (False while it waits in the outbox).
        Unknown values are None, for example for a label of another program. ``problem`` is present only if the
        description is missing or cannot be used, and says why. ``hidden`` is present, and True, only if a user without
        the right to delete removed the version; it can be restored.
    """
    description, saved = version.description, version.saved_at
    return {
        "version": version.name,
        "saved_at": description.get("saved_at") or (saved.isoformat() if saved else None),
        "saved_by": description.get("saved_by"),
        "model": (description.get("source") or {}).get("model"),
        "segments": description.get("segments") or [],
        "restored_from": description.get("restored_from"),
        "in_xnat": not version.is_pending,
        **({"problem": version.problem} if version.problem else {}),
        **({"hidden": True} if version.is_hidden else {}),
    }
