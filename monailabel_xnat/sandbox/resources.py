"""Resources and their files: catalog entries in the database, contents as plain files on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from monailabel_xnat.sandbox.archive import Archive, timestamp
from monailabel_xnat.sandbox.model import FileEntry, Resource, load

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Owner:
    """What a resource belongs to: `kind` as in `Resource`, `parent` its id (of a scan: the site-wide number)."""

    kind: str
    parent: str
    folder: str


class Resources:
    """The resources of an archive."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._store = archive.store
        self.root = archive.folder / "files"
        self._staging = archive.folder / "staging"
        for folder in (self.root, self._staging):
            folder.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._staging.iterdir():
            leftover.unlink()

    def clear(self) -> None:
        """Remove the files of all resources."""
        for folder in (self.root, self._staging):
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)

    def of(self, owner: Owner) -> list[Resource]:
        """List the resources of an object."""
        rows = self._store.all(
            "SELECT * FROM resources WHERE kind = ? AND parent = ? ORDER BY id", (owner.kind, owner.parent)
        )
        return [load(Resource, row) for row in rows]

    def find(self, owner: Owner, name: str) -> Resource | None:
        """Find a resource of an object by number or label; digits are taken for a number, as XNAT does."""
        found = self.of(owner)
        if name.isdigit():
            return next((resource for resource in found if resource.id == int(name)), None)
        return next((resource for resource in found if resource.label == name), None)

    def create(self, owner: Owner, label: str, **values: str) -> Resource:
        """Make a resource."""
        with self._store.write() as db:
            cursor = db.execute(
                "INSERT INTO resources (kind, parent, label, format, content, description, tags, folder, series_uid,"
                " file_count, file_size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
                (
                    owner.kind,
                    owner.parent,
                    label,
                    *(values.get(name, "") for name in ("format", "content", "description", "tags")),
                    "",
                    values.get("series_uid", ""),
                ),
            )
            number = cursor.lastrowid
            folder = f"{owner.folder}/{number}_{_safe(label)}"
            db.execute("UPDATE resources SET folder = ? WHERE id = ?", (folder, number))
        return self.get(number or 0)

    def get(self, number: int) -> Resource:
        """Give a resource by its number."""
        resource: Resource = load(Resource, self._store.one("SELECT * FROM resources WHERE id = ?", (number,)))
        return resource

    def delete(self, resource: Resource) -> None:
        """Remove a resource and its files."""
        with self._store.write() as db:
            db.execute("DELETE FROM resources WHERE id = ?", (resource.id,))
        shutil.rmtree(self.root / resource.folder, ignore_errors=True)

    def delete_of(self, owner: Owner) -> None:
        """Remove every resource of an object."""
        for resource in self.of(owner):
            self.delete(resource)

    def files(self, resource: Resource) -> list[FileEntry]:
        """List the catalog of a resource."""
        rows = self._store.all("SELECT * FROM files WHERE resource = ? ORDER BY path", (resource.id,))
        return [load(FileEntry, row) for row in rows]

    def path(self, entry: FileEntry) -> Path:
        """Give where a file's content lies."""
        return self.root / self.get(entry.resource).folder / entry.path

    def stage(self, source: BinaryIO) -> tuple[Path, int, str]:
        """Copy a stream into the staging folder; give the file, its size and its MD5."""
        digest, size = hashlib.md5(usedforsecurity=False), 0
        with tempfile.NamedTemporaryFile(dir=self._staging, delete=False) as staged:
            for block in iter(lambda: source.read(_BLOCK), b""):
                staged.write(block)
                digest.update(block)
                size += len(block)
        return Path(staged.name), size, digest.hexdigest()

    def put(self, resource: Resource, path: str, staged: tuple[Path, int, str], user: str, **values: str) -> None:
        """Move a staged file into a resource and enter it into the catalog.

        Raises
        ------
        ValueError
            If the path leaves the resource.
        """
        name = checked(path)
        target = self.root / resource.folder / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, size, digest = staged
        os.replace(file, target)
        columns = ("format", "content", "description", "tags", "sop_uid", "instance_number")
        with self._store.write() as db:
            db.execute("DELETE FROM files WHERE resource = ? AND path = ?", (resource.id, name))
            db.execute(
                "INSERT INTO files (resource, path, size, digest, format, content, description, tags, sop_uid,"
                " instance_number, created, created_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (resource.id, name, size, digest, *(values.get(key, "") for key in columns), timestamp(), user),
            )
            self._count(db, resource.id)

    def add(self, resource: Resource, entries: Sequence[tuple[str, Path, dict[str, str]]], user: str) -> None:
        """Copy many local files into a resource in one transaction."""
        rows = []
        for path, source, values in entries:
            with source.open("rb") as stream:
                staged, size, digest = self.stage(stream)
            target = self.root / resource.folder / checked(path)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(staged, target)
            uid, number = values.get("sop_uid", ""), values.get("instance_number", "")
            rows.append((resource.id, path, size, digest, values.get("format", ""), uid, number, timestamp(), user))
        with self._store.write() as db:
            db.executemany(
                "INSERT OR REPLACE INTO files (resource, path, size, digest, format, sop_uid, instance_number, created,"
                " created_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._count(db, resource.id)

    def remove(self, entries: Sequence[FileEntry]) -> None:
        """Remove files from disk and catalog."""
        with self._store.write() as db:
            for entry in entries:
                db.execute("DELETE FROM files WHERE id = ?", (entry.id,))
                self._count(db, entry.resource)
        for entry in entries:
            self.path(entry).unlink(missing_ok=True)

    @staticmethod
    def _count(db: Any, number: int) -> None:
        db.execute(
            "UPDATE resources SET version = version + 1,"
            " file_count = (SELECT COUNT(*) FROM files WHERE resource = :id),"
            " file_size = (SELECT COALESCE(SUM(size), 0) FROM files WHERE resource = :id) WHERE id = :id",
            {"id": number},
        )


def checked(path: str) -> str:
    """Give a relative path in plain form.

    Raises
    ------
    ValueError
        If it is empty or leaves its folder.
    """
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is no path inside a resource")
    return "/".join(parts)


def _safe(label: str) -> str:
    return "".join(character if character.isalnum() or character in "._-" else "_" for character in label)
