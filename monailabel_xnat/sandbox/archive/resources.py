"""Resources and their files. Catalog entries are in the database, contents are plain files in folders like XNAT's.

A file is written beside the archive, flushed to disk, and then moved to its place. If the server is killed, the next
start finishes such a write or undoes it. So there is never half a file, and no entry without its file.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from monailabel_xnat.sandbox.archive.archive import Archive, timestamp
from monailabel_xnat.sandbox.archive.model import (
    Experiment,
    FileEntry,
    Item,
    Project,
    Resource,
    Scan,
    Subject,
    load_row,
)
from monailabel_xnat.sandbox.archive.staging import Staged, Staging, checked_path

ARCHIVE_FOLDER = "arc001"


@dataclass(frozen=True)
class Owner:
    """The object that a resource belongs to.

    `kind` is that of `Resource`. `parent` is the object's ID; for a scan, its number in the site. `folder` is the
    folder of its resources below the root of the files, such as ``P/arc001/s1/SCANS/1``.
    """

    kind: str
    parent: str
    folder: str


def owner_of(archive: Archive, item: Item, direction: str = "out") -> Owner:
    """Return the owner of an object's resources. Those of an assessor are inputs (``in``) or results (``out``)."""
    if isinstance(item, Project):
        return Owner("project", item.id, f"{segment(item.id)}/resources")
    if isinstance(item, Subject):
        return Owner("subject", item.id, f"{segment(item.project)}/subjects/{segment(item.label)}")
    if isinstance(item, Scan):
        session = _session(archive, item.experiment)
        return Owner("scan", str(item.pk), f"{session_folder(session)}/SCANS/{segment(item.id)}")
    if item.session_id is None:
        return Owner("experiment", item.id, f"{session_folder(item)}/RESOURCES")
    folder = f"{session_folder(_session(archive, item.session_id))}/ASSESSORS/{segment(item.label)}"
    return Owner(direction, item.id, f"{folder}/{direction.upper()}" if direction == "in" else folder)


def _session(archive: Archive, session_id: str) -> Experiment:
    session = archive.experiment(session_id)
    if session is None:
        raise LookupError(f"session {session_id} has been deleted")
    return session


def session_folder(session: Experiment) -> str:
    """Return the folder of a session below the root of the files."""
    return f"{segment(session.project)}/{ARCHIVE_FOLDER}/{segment(session.label)}"


def segment(name: str) -> str:
    """Return a name that is safe as one segment of a path."""
    safe = re.sub(r"[^\w. -]", "_", name)
    return safe if safe.strip(".") else f"_{safe}"


# A moment that is before all changes of catalogs.
BEFORE_ALL = -1
CATALOG_SUFFIX = "_catalog.xml"
_ENTRY_COLUMNS = ("format", "content", "description", "tags", "sop_uid", "instance_number")


class ConcurrentModificationError(Exception):
    """Another writer changed a catalog after it was read and before it was written, as in XNAT's CatalogUtils."""


@dataclass(frozen=True)
class Incoming:
    """A file that is being added to a resource: its path there, its content, and the other columns of its entry."""

    path: str
    staged: Staged
    values: dict[str, str] = field(default_factory=dict)


class Changes:
    """When catalogs were made and changed. Time is counted in changes since the start of the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._made: dict[int, int] = {}
        self._changed: dict[int, int] = {}

    @property
    def now(self) -> int:
        """The number of changes so far."""
        return self._count

    def note(self, resource: int, *, made: bool = False) -> None:
        """Record a change of a catalog."""
        with self._lock:
            self._count += 1
            (self._made if made else self._changed)[resource] = self._count

    def existed(self, resource: int, moment: int) -> bool:
        """Return whether a catalog existed at a moment."""
        return self._made.get(resource, 0) <= moment

    def changed_since(self, resource: int, moment: int) -> bool:
        """Return whether a catalog was changed after a moment."""
        return self._changed.get(resource, 0) > moment


class Resources:
    """The resources of an archive."""

    def __init__(self, archive: Archive) -> None:
        self._store = archive.store
        self.root = archive.folder / "files"
        self.root.mkdir(mode=0o700, exist_ok=True)
        self.staging = Staging(archive.folder / "staging")
        self.changes = Changes()
        self._recover()

    def clear(self) -> None:
        """Remove the files of all resources."""
        shutil.rmtree(self.root)
        self.root.mkdir(mode=0o700)
        self.staging.clear()

    # Resources

    def of(self, owner: Owner) -> list[Resource]:
        """List the resources of an object."""
        sql = "SELECT * FROM resources WHERE kind = ? AND parent = ? ORDER BY id"
        return self._store.objects(Resource, sql, (owner.kind, owner.parent))

    def find(self, owner: Owner, name: str) -> Resource | None:
        """Return a resource of an object by number or label, or None. As in XNAT, digits are a number."""
        found = self.of(owner)
        if name.isdigit():
            return next((resource for resource in found if resource.id == int(name)), None)
        return next((resource for resource in found if resource.label == name), None)

    def get(self, number: int) -> Resource:
        """Return a resource by its number."""
        resource: Resource = load_row(Resource, self._store.get("resources", number))
        return resource

    def create(self, owner: Owner, label: str, **values: str) -> Resource:
        """Make a resource. Its counts are unknown until a file is written.

        Parameters
        ----------
        owner
            The object that it belongs to.
        label
            Its label. As in XNAT, two resources may have the same label.
        **values
            ``format``, ``content``, ``description``, ``tags``, ``series_uid``.
        """
        row = {"kind": owner.kind, "parent": owner.parent, "label": label, **values}
        with self._store.write():
            row["folder"] = self._free_folder(f"{owner.folder}/{segment(label)}")
            number = self._store.insert("resources", row)
            self.changes.note(number, made=True)
        return self.get(number)

    def _free_folder(self, wanted: str) -> str:
        folder, number = wanted, 1
        # Some disks do not distinguish upper case from lower case.
        while self._store.one("SELECT 1 FROM resources WHERE folder = ? COLLATE NOCASE", (folder,)):
            number += 1
            folder = f"{wanted}_{number}"
        # A server that was killed while it deleted may have left this folder.
        shutil.rmtree(self.root / folder, ignore_errors=True)
        return folder

    def delete(self, resource: Resource) -> None:
        """Remove a resource and its files."""
        with self._store.write():
            self._store.delete("resources", resource.id)
            self.changes.note(resource.id)
        with self._store.write():
            folder = self.root / resource.folder
            shutil.rmtree(folder, ignore_errors=True)
            self._drop_empty(folder.parent)

    def delete_of(self, owner: Owner) -> None:
        """Remove every resource of an object."""
        for resource in self.of(owner):
            self.delete(resource)

    def move(self, old: str, new: str) -> None:
        """Move a folder of resources, as XNAT does when a session or a subject gets another label.

        Parameters
        ----------
        old, new
            Folders below the root, such as ``P/arc001/s1``. If the old folder does not exist, nothing happens.
        """
        with self._store.write() as db:
            db.execute(
                "UPDATE resources SET folder = :new || substr(folder, length(:old) + 1)"
                " WHERE substr(folder, 1, length(:old) + 1) = :old || '/'",
                {"old": old, "new": new},
            )
            if (self.root / old).is_dir():
                (self.root / new).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self.root / old).replace(self.root / new)

    # Files

    def files(self, resource: Resource) -> list[FileEntry]:
        """Return the entries of a resource's catalog."""
        sql = "SELECT * FROM files WHERE resource = ? ORDER BY path"
        return self._store.objects(FileEntry, sql, (resource.id,))

    def file(self, resource: Resource, path: str) -> FileEntry | None:
        """Return the entry of a catalog with this path, or None."""
        sql = "SELECT * FROM files WHERE resource = ? AND path = ?"
        return self._store.object(FileEntry, sql, (resource.id, path))

    def folder(self, resource: Resource) -> Path:
        """Return the folder with the files of a resource."""
        return self.root / resource.folder

    def path(self, entry: FileEntry) -> Path:
        """Return the path of a file's content."""
        return self.folder(self.get(entry.resource)) / entry.path

    def stage(self, source: BinaryIO) -> Staged:
        """Write a stream to the disk, beside the archive, and return the file that waits there."""
        return self.staging.take(source)

    def put(
        self,
        resource: Resource,
        files: Sequence[Incoming],
        user: str,
        *,
        since: int | None = None,
        overwrite: bool = True,
        update_stats: bool = True,
    ) -> list[str]:
        """Move staged files into a resource and add them to its catalog. Either all files are added, or none.

        Names that end with ``_catalog.xml`` are left out, because XNAT never adds them to a catalog.

        Parameters
        ----------
        resource
            The resource to write to.
        files
            The files. An entry with the same path is replaced.
        user
            The user who writes.
        since
            The moment (of :attr:`changes`) at which the writer read the catalog; None if it does not matter.
        overwrite
            Whether existing files are replaced. Otherwise they are not changed. A file exists if it is on the disk,
            even if it is not in the catalog because a writer failed.
        update_stats
            Whether to update the count and the size of the resource.

        Returns
        -------
        list of str
            The paths whose files exist already, and are not changed.

        Raises
        ------
        ValueError
            If a path leaves the resource.
        ConcurrentModificationError
            If the catalog was changed since. As in XNAT, the files are then in their places, but have no entries.
        """
        wanted = [(checked_path(item.path), item) for item in files if not item.path.endswith(CATALOG_SUFFIX)]
        with self._store.write() as db:
            folder = self.get(resource.id).folder
            for path, item in wanted:
                name, size, digest = item.staged.path.name, item.staged.size, item.staged.digest
                row = (name, f"{folder}/{path}", resource.id, path, size, digest, json.dumps(item.values), user)
                db.execute("INSERT INTO pending_files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        try:
            with self._store.write() as db:
                # This looks while nobody else writes. So if two clients send the same name, only one file is stored.
                there = [] if overwrite else [path for path, _ in wanted if (self.root / folder / path).exists()]
                stored = [(path, item) for path, item in wanted if path not in there]
                for path, item in stored:
                    self.staging.move(item.staged, self.root / folder / path)
                if stored:
                    if since is not None and self.changes.changed_since(resource.id, since):
                        raise ConcurrentModificationError(
                            f"the catalog of resource {resource.id} was changed by another writer"
                        )
                    self._enter(resource.id, stored, user)
                    self._count(db, resource.id, update_stats)
                return there
        finally:
            with self._store.write() as db:
                db.executemany(
                    "DELETE FROM pending_files WHERE staged = ?", [(item.staged.path.name,) for _, item in wanted]
                )

    def _enter(self, resource: int, files: Iterable[tuple[str, Incoming]], user: str) -> None:
        now = timestamp()
        for path, item in files:
            row = {"resource": resource, "path": path, "size": item.staged.size, "digest": item.staged.digest}
            row |= {"created": now, "created_by": user}
            row |= {name: item.values[name] for name in _ENTRY_COLUMNS if name in item.values}
            self._store.insert("files", row, replace=True)

    def remove(self, entries: Collection[FileEntry], *, keep_files: bool = False) -> None:
        """Remove entries from their catalogs and, unless `keep_files`, their files from disk."""
        paths = [self.path(entry) for entry in entries]
        with self._store.write() as db:
            db.executemany("DELETE FROM files WHERE id = ?", [(entry.id,) for entry in entries])
            for number in {entry.resource for entry in entries}:
                self._count(db, number)
        with self._store.write():
            for path in paths if not keep_files else ():
                path.unlink(missing_ok=True)
                self._drop_empty(path.parent)

    def _drop_empty(self, folder: Path) -> None:
        """Remove a folder and the folders above it, as far as they are empty. Nobody may write at the same time."""
        while folder != self.root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def count(self, resource: Resource) -> None:
        """Count the files and bytes of a resource again."""
        with self._store.write() as db:
            self._count(db, resource.id)

    def _count(self, db: Any, number: int, update_stats: bool = True) -> None:
        db.execute("UPDATE resources SET version = version + 1 WHERE id = ?", (number,))
        if update_stats:
            db.execute(
                "UPDATE resources SET file_count = (SELECT COUNT(*) FROM files WHERE resource = :id),"
                " file_size = (SELECT COALESCE(SUM(size), 0) FROM files WHERE resource = :id) WHERE id = :id",
                {"id": number},
            )
        self.changes.note(number)

    def _recover(self) -> None:
        """Finish the writes whose file was in its place when the server was killed, and undo the others."""
        rows = self._store.all("SELECT * FROM pending_files")
        with self._store.write() as db:
            for row in rows:
                target = self.root / row["target"]
                known = db.execute("SELECT 1 FROM resources WHERE id = ?", (row["resource"],)).fetchone()
                if known and not self.staging.holds(row["staged"]) and target.exists():
                    staged = Staged(target, row["size"], row["digest"])
                    item = Incoming(row["path"], staged, json.loads(row["entry"]))
                    self._enter(row["resource"], [(row["path"], item)], row["user"])
                    self._count(db, row["resource"])
            db.execute("DELETE FROM pending_files")
        self.staging.clear()
