"""The sandbox's SQLite database: tables, one connection per thread, short transactions; and large made-up archives.

With write-ahead logging, readers and the one writer do not block each other, and commits survive a ``kill -9``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from monailabel_xnat.sandbox.archive.model import load_row

T = TypeVar("T")

FORMAT = 1

Arguments = Sequence[Any] | Mapping[str, Any]

_TABLES = """
CREATE TABLE IF NOT EXISTS sequences (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS users (
    login TEXT PRIMARY KEY, password TEXT NOT NULL, firstname TEXT NOT NULL, lastname TEXT NOT NULL,
    email TEXT NOT NULL, is_admin INTEGER NOT NULL, standing_role TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT, alias TEXT UNIQUE NOT NULL, secret TEXT NOT NULL, login TEXT NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS projects (
    id TEXT PRIMARY KEY, accessibility TEXT NOT NULL, prearchive_code INTEGER NOT NULL DEFAULT 4,
    quarantine_code INTEGER NOT NULL DEFAULT 0,
    fields TEXT NOT NULL, custom_fields TEXT NOT NULL DEFAULT '{}',
    insert_date TEXT NOT NULL, insert_user TEXT NOT NULL, last_modified TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS retired_projects (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS memberships (
    project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, login TEXT NOT NULL, role TEXT NOT NULL,
    PRIMARY KEY (project, login)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subjects (
    id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, label TEXT NOT NULL,
    fields TEXT NOT NULL, custom_fields TEXT NOT NULL DEFAULT '{}',
    insert_date TEXT NOT NULL, insert_user TEXT NOT NULL, last_modified TEXT NOT NULL, UNIQUE (project, label));
CREATE TABLE IF NOT EXISTS experiments (
    id TEXT PRIMARY KEY, project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, label TEXT NOT NULL,
    xsi_type TEXT NOT NULL, subject_id TEXT REFERENCES subjects ON DELETE CASCADE,
    session_id TEXT REFERENCES experiments ON DELETE CASCADE, status TEXT NOT NULL DEFAULT 'active',
    fields TEXT NOT NULL, custom_fields TEXT NOT NULL DEFAULT '{}',
    insert_date TEXT NOT NULL, insert_user TEXT NOT NULL, last_modified TEXT NOT NULL, UNIQUE (project, label));
CREATE INDEX IF NOT EXISTS experiments_subject ON experiments (subject_id);
CREATE INDEX IF NOT EXISTS experiments_session ON experiments (session_id);
CREATE TABLE IF NOT EXISTS scans (
    pk INTEGER PRIMARY KEY AUTOINCREMENT, experiment TEXT NOT NULL REFERENCES experiments ON DELETE CASCADE,
    id TEXT NOT NULL, xsi_type TEXT NOT NULL, fields TEXT NOT NULL, custom_fields TEXT NOT NULL DEFAULT '{}',
    insert_date TEXT NOT NULL, insert_user TEXT NOT NULL, last_modified TEXT NOT NULL, UNIQUE (experiment, id));
CREATE TABLE IF NOT EXISTS shares (
    item TEXT NOT NULL, project TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, label TEXT NOT NULL,
    PRIMARY KEY (item, project)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS shares_project ON shares (project);
CREATE TABLE IF NOT EXISTS resources (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, parent TEXT NOT NULL, label TEXT NOT NULL,
    format TEXT NOT NULL DEFAULT '', content TEXT NOT NULL DEFAULT '', description TEXT NOT NULL DEFAULT '',
    tags TEXT NOT NULL DEFAULT '', folder TEXT NOT NULL, series_uid TEXT NOT NULL DEFAULT '',
    file_count INTEGER, file_size INTEGER, version INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS resources_parent ON resources (kind, parent);
CREATE INDEX IF NOT EXISTS resources_folder ON resources (folder COLLATE NOCASE);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, resource INTEGER NOT NULL REFERENCES resources ON DELETE CASCADE,
    path TEXT NOT NULL, size INTEGER NOT NULL, digest TEXT NOT NULL, format TEXT NOT NULL DEFAULT '',
    content TEXT NOT NULL DEFAULT '', description TEXT NOT NULL DEFAULT '', tags TEXT NOT NULL DEFAULT '',
    sop_uid TEXT NOT NULL DEFAULT '', instance_number TEXT NOT NULL DEFAULT '',
    created TEXT NOT NULL, created_by TEXT NOT NULL, UNIQUE (resource, path));
CREATE TABLE IF NOT EXISTS pending_files (
    staged TEXT PRIMARY KEY, target TEXT NOT NULL, resource INTEGER NOT NULL, path TEXT NOT NULL,
    size INTEGER NOT NULL, digest TEXT NOT NULL, entry TEXT NOT NULL, user TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prearchive (
    id INTEGER PRIMARY KEY AUTOINCREMENT, project TEXT NOT NULL, timestamp TEXT NOT NULL, folder TEXT NOT NULL,
    subject TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL, study_uid TEXT NOT NULL,
    scan_date TEXT NOT NULL, scan_time TEXT NOT NULL, uploaded TEXT NOT NULL, last_modified TEXT NOT NULL,
    directory TEXT NOT NULL);
"""


# Columns that older archives of this format do not have.
_ADDED = (("projects", "quarantine_code", "INTEGER NOT NULL DEFAULT 0"),)


class ArchiveError(ValueError):
    """The values to write do not fit what is in the archive."""


def _refusal(error: sqlite3.IntegrityError) -> ArchiveError:
    _, _, columns = str(error).partition("UNIQUE constraint failed: ")
    if columns:
        table = columns.partition(".")[0]
        names = " and ".join(column.partition(".")[2] for column in columns.split(", "))
        return ArchiveError(f"the archive already has one in {table} with the same {names}")
    return ArchiveError("its project, subject or session is not in the archive: make that first")


class Store:
    """The database file of an archive.

    Parameters
    ----------
    path
        The path of the SQLite file, which is created if it is absent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._guard = threading.Lock()
        self._writer = threading.RLock()
        self._is_closed = False
        with self._own_connection() as db:
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                self.close()
                raise ValueError(
                    f"{path} has archive format {found}, this sandbox reads format {FORMAT}; use another data folder"
                )
            db.executescript(_TABLES)
            for table, column, kind in _ADDED:
                if column not in {row["name"] for row in db.execute(f"PRAGMA table_info({table})")}:
                    db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            db.execute(f"PRAGMA user_version = {FORMAT}")

    def _own_connection(self) -> _Held:
        """Return the connection of this thread. Use it in a ``with`` statement."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is not None:
            return held
        db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA cache_size = -32000")
        held = _Held(db)
        with self._guard:
            if self._is_closed:
                held.close()
            self._held.add(held)
        self._local.held = held
        self._local.depth = 0
        return held

    def all(self, sql: str, arguments: Arguments = ()) -> list[sqlite3.Row]:
        """Return every row of a query."""
        with self._own_connection() as db:
            return db.execute(sql, arguments).fetchall()

    def one(self, sql: str, arguments: Arguments = ()) -> sqlite3.Row | None:
        """Return the first row of a query, or None."""
        with self._own_connection() as db:
            row: sqlite3.Row | None = db.execute(sql, arguments).fetchone()
            return row

    def get(self, table: str, key: Any) -> sqlite3.Row | None:
        """Return the row of a table with this key, which is ``pk`` for scans and else ``id``, or None."""
        return self.one(f"SELECT * FROM {table} WHERE {_key(table)} = ?", (key,))  # noqa: S608 - a name of ours

    def objects(self, kind: type[T], sql: str, arguments: Arguments = ()) -> list[T]:
        """Return the objects of a type that the rows of a query describe."""
        return [load_row(kind, row) for row in self.all(sql, arguments)]

    def object(self, kind: type[T], sql: str, arguments: Arguments = ()) -> T | None:
        """Return the object of a type that the first row of a query describes, or None."""
        row = self.one(sql, arguments)
        return load_row(kind, row) if row else None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Hold one transaction. A nested call takes part in the outer one.

        Raises
        ------
        ArchiveError
            If the values do not fit what is in the archive. Then nothing is written.
        """
        with self._writer, self._own_connection() as db:
            if self._local.depth:
                yield db
                return
            db.execute("BEGIN IMMEDIATE")
            self._local.depth = 1
            try:
                yield db
            except sqlite3.IntegrityError as error:
                db.execute("ROLLBACK")
                raise _refusal(error) from error
            except BaseException:
                db.execute("ROLLBACK")
                raise
            else:
                db.execute("COMMIT")
            finally:
                self._local.depth = 0

    def insert(self, table: str, values: Mapping[str, Any], *, replace: bool = False) -> int:
        """Insert a row, by column names, and return its number. With `replace`, it replaces a row with the same key."""
        names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
        word = "INSERT OR REPLACE" if replace else "INSERT"
        with self.write() as db:
            # The names of tables and columns come from the sandbox itself, so they cannot inject SQL.
            return db.execute(f"{word} INTO {table} ({names}) VALUES ({places})", values).lastrowid or 0

    def insert_many(self, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows that have values for the same columns."""
        with self.write() as db:
            sql = f"INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            db.executemany(f"INSERT {sql}", rows)

    def update(self, table: str, key: Any, **values: Any) -> None:
        """Set columns of the row with this key."""
        changes = ", ".join(f"{name} = :{name}" for name in values)
        with self.write() as db:
            sql = f"UPDATE {table} SET {changes} WHERE {_key(table)} = :key"  # noqa: S608 - names of ours
            db.execute(sql, {**values, "key": key})

    def delete(self, table: str, key: Any) -> None:
        """Delete the row with this key."""
        with self.write() as db:
            db.execute(f"DELETE FROM {table} WHERE {_key(table)} = ?", (key,))  # noqa: S608 - a name of ours

    def next_value(self, sequence: str, count: int = 1) -> int:
        """Return the first of the next `count` numbers of a sequence. No number is returned twice."""
        with self.write() as db:
            db.execute(
                "INSERT INTO sequences VALUES (:name, :count) ON CONFLICT (name) DO UPDATE SET value = value + :count",
                {"name": sequence, "count": count},
            )
            last = int(db.execute("SELECT value FROM sequences WHERE name = ?", (sequence,)).fetchone()[0])
            return last - count + 1

    def clear(self, keep: Sequence[str] = ()) -> None:
        """Empty all tables except those named."""
        with self.write() as db:
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in tables:
                if name not in keep:
                    db.execute(f"DELETE FROM {name}")  # noqa: S608 - a name out of the database itself

    def close(self) -> None:
        """Close the connections of all threads, each one when the thread has finished its query."""
        with self._guard:
            self._is_closed = True
            connections = list(self._held)
        for held in connections:
            held.close()


def _key(table: str) -> str:
    return "pk" if table == "scans" else "id"


class _Held:
    """The connection of a thread. It is closed when the thread ends or the store is closed, whichever is first.

    Python 3.10 crashes if two threads close a connection, or if one closes a connection that another uses.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._is_closed = False

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        if self._is_closed:
            self._lock.release()
            raise sqlite3.ProgrammingError("the archive is closed")
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self) -> None:
        """Wait until nobody uses the connection, and close it once."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._connection.close()

    def __del__(self) -> None:
        self.close()


SITE_ID = "XNAT"
# The sequences never reach these numbers, so seeded objects never have the number of another object.
_FIRST = 900_000_000
_SCANS_OF_SESSION = 1000
_FILES, _BYTES = 200, 105_000_000


def seed_sessions(
    store: Store, project: str, sessions: int, scans: int, resources: Sequence[str], timestamp: str
) -> None:
    """Make many CT sessions in one transaction. Each session has a subject of its own.

    Parameters
    ----------
    store
        The store to write to.
    project
        The ID of a project that exists.
    sessions, scans
        The number of sessions, and of scans in each session.
    resources
        The labels of the resources of each scan. The resources have counts, but no files.
    timestamp
        The date and time at which they are said to be made.
    """
    made, stamp = ("fields", "insert_date", "insert_user", "last_modified"), (timestamp, "admin", timestamp)
    with store.write():
        first = store.next_value("seeded", sessions) + _FIRST
        numbers = range(first, first + sessions)
        store.insert_many(
            "subjects",
            ("id", "project", "label", *made),
            ((_id("S", item), project, f"seed{item}", "{}", *stamp) for item in numbers),
        )
        store.insert_many(
            "experiments",
            ("id", "project", "label", "xsi_type", "subject_id", *made),
            (
                (_id("E", item), project, f"seed{item}_CT1", "xnat:ctSessionData", _id("S", item), _study(item), *stamp)
                for item in numbers
            ),
        )
        rows = list(_scan_rows(numbers, scans))
        store.insert_many("scans", ("pk", "experiment", "id", "xsi_type", *made), (row + stamp for row in rows))
        store.insert_many(
            "resources",
            ("kind", "parent", "label", "folder", "format", "content", "file_count", "file_size"),
            (
                ("scan", str(pk), name, f"seeded/{pk}/{name}", "DICOM", "RAW", _FILES, _BYTES)
                for pk, *_ in rows
                for name in resources
            ),
        )


def _id(kind: str, number: int) -> str:
    return f"{SITE_ID}_{kind}{number}"


def _study(number: int) -> str:
    return json.dumps({"UID": f"1.2.826.0.1.{number}", "date": "2026-01-31", "modality": "CT"})


def _scan_rows(sessions: range, scans: int) -> Iterator[tuple[Any, ...]]:
    for session in sessions:
        for scan in range(1, scans + 1):
            fields = {
                "type": "AXIAL",
                "UID": f"1.2.826.0.1.{session}.{scan}",
                "quality": "usable",
                "frames": str(_FILES),
                "series_description": f"axial {scan}",
                "modality": "CT",
            }
            yield (
                session * _SCANS_OF_SESSION + scan,
                _id("E", session),
                str(scan),
                "xnat:ctScanData",
                json.dumps(fields),
            )
