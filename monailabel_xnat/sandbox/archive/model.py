"""The objects of an archive, as plain values that are read from the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Fields = dict[str, Any]
"""Values by schema path. A list of objects (``fields/field``, ``references/seriesUID``) is a list of dictionaries."""

# The key of an element as it was written, in an object of a list that came inside a document.
WRITTEN = "<xml>"

# How open a project is, and the names of the groups of its users.
LEVELS = ("private", "protected", "public")
ROLE_NAMES = {"owner": "Owners", "member": "Members", "collaborator": "Collaborators"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What every object has: its fields, its custom fields (one JSON object), who made it and when it changed.

    `table` is the table of its row, and `key` the key of the row there. `shared_as` is its name in the table of shares.
    """

    table: ClassVar[str]

    id: str
    fields: Fields
    custom_fields: Fields
    insert_date: str
    insert_user: str
    last_modified: str

    @property
    def key(self) -> Any:
        """The key of the object's row."""
        return self.id

    @property
    def shared_as(self) -> str:
        """The name of the object in the table of shares."""
        return str(self.key)


@dataclass(frozen=True, kw_only=True)
class Project(Stored):
    """A project; `accessibility` is ``private``, ``protected`` or ``public``."""

    table = "projects"

    accessibility: str
    prearchive_code: int
    quarantine_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Subject(Stored):
    """A subject; `project` is its primary project."""

    table = "subjects"

    project: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Experiment(Stored):
    """An experiment: an image session or another subject assessor, or an image assessor (then with `session_id`)."""

    table = "experiments"

    project: str
    label: str
    xsi_type: str
    subject_id: str | None
    session_id: str | None
    status: str


@dataclass(frozen=True, kw_only=True)
class Scan(Stored):
    """A scan; `pk` is its site-wide number, `id` its name inside the session."""

    table = "scans"

    pk: int
    experiment: str
    xsi_type: str

    @property
    def key(self) -> Any:
        """The key of the object's row."""
        return self.pk

    @property
    def shared_as(self) -> str:
        """The name of the object in the table of shares."""
        return f"scan:{self.pk}"


Item = Project | Subject | Experiment | Scan


@dataclass(frozen=True)
class Resource:
    """A resource catalog of `parent`.

    `kind` is ``project``, ``subject``, ``experiment``, ``scan``, ``in`` or ``out``. `folder` is relative to the folder
    of the archive, `version` counts changes of the catalog, and `series_uid` is set for catalogs of DICOM.
    """

    id: int
    kind: str
    parent: str
    label: str
    format: str
    content: str
    description: str
    tags: str
    folder: str
    series_uid: str
    file_count: int | None
    file_size: int | None
    version: int

    @property
    def is_dicom(self) -> bool:
        """Whether it is one of those in which XNAT keeps DICOM files of a scan."""
        return self.label in ("DICOM", "secondary") or self.format == "DICOM"


@dataclass(frozen=True)
class FileEntry:
    """An entry of a catalog. `path` is relative to the resource, and `digest` is the MD5 in hex."""

    id: int
    resource: int
    path: str
    size: int
    digest: str
    format: str
    content: str
    description: str
    tags: str
    sop_uid: str
    instance_number: str
    created: str
    created_by: str

    @property
    def name(self) -> str:
        """The last segment of the path."""
        return self.path.rpartition("/")[2]


def load_row(kind: Any, row: Any) -> Any:
    """Return the object of type `kind` that a row of its table describes."""
    values = dict(row)
    for name in ("fields", "custom_fields"):
        if name in values:
            values[name] = json.loads(values[name])
    return kind(**values)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> Fields:
    """Return stored fields with changes. None removes a field; entries of a list replace those of the same name."""
    found = dict(old)
    for key, value in new.items():
        if isinstance(value, list) and any("name" in entry for entry in value):
            entries = {entry["name"]: entry for entry in [*found.get(key, []), *value]}
            found[key] = [entry for entry in entries.values() if None not in entry.values()]
        else:
            found[key] = value
    return {key: value for key, value in found.items() if value is not None and value != []}
