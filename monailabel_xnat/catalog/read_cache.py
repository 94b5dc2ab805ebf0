"""A cache on this disk of facts that were read from XNAT. They are valid while XNAT's listing shows no change.

MONAI Label trains and scores in separate processes, and each of them makes a new datastore. With this file, all
processes on this machine share what one of them has read. A fact is found only through a fresh listing: so no user
sees more than XNAT lists for them, and no old fact is taken for a new one. If the file cannot be used, everything is
read from XNAT.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from monailabel_xnat.background import Background
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import private_folder
from monailabel_xnat.errors import CacheError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# The name contains the version of the format; files of other versions are not touched. Version 1 kept answers of XNAT
# that had not been checked.
_FILE = "memory-2.sqlite"
# Seconds after which a fact is removed: it may belong to an image that no longer exists. Reading one again is cheap.
_KEPT_FOR = 180 * 86400
# Seconds to wait for another process that holds the file, normally for milliseconds. After that, XNAT is faster.
_PATIENCE = 0.5
# Seconds for which the file is not used after a failure.
_AWAY_FOR = 30.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS facts (kind TEXT, key TEXT, state TEXT, content TEXT, noted REAL,"
    " PRIMARY KEY (kind, key)) WITHOUT ROWID"
)

# Connections of the parent, as seen in a forked child. The child must neither use nor close them. This list keeps the
# garbage collector from closing them.
_of_parents: list[sqlite3.Connection] = []


class Fact(NamedTuple):
    """A fact that was read from XNAT.

    Parameters
    ----------
    state : str
        What the listing showed at that time.
    content : object
        The fact itself, as plain JSON.
    """

    state: str
    content: Any


class ReadCache:
    """Facts by kind and key. It may be used from any thread and by several processes at once, and survives a fork.

    Parameters
    ----------
    settings : Settings
        They name the cache folder of this server.
    """

    _lock: threading.Lock
    _process: int
    _database: sqlite3.Connection | None
    _away_until: float

    def __init__(self, settings: Settings) -> None:
        self._file = settings.server_folder / _FILE
        self._start()

    def open_soon(self) -> None:
        """Open the file in another thread. The first opening takes milliseconds, which are free while XNAT answers."""
        with self._own_lock():
            if self._database is None:
                self._opening.start()

    def get(self, kind: str, key: str, state: str) -> Any | None:
        """Return the content of a fact if it was noted with the same state; otherwise None."""
        rows = self._try(
            lambda db: db.execute("SELECT state, content FROM facts WHERE kind = ? AND key = ?", (kind, key)).fetchall()
        )
        return _decoded(rows[0][1]) if rows and rows[0][0] == state else None

    def all(self, kind: str) -> dict[str, Fact]:
        """Return all facts of a kind, by key, in one query."""
        rows = self._try(
            lambda db: db.execute("SELECT key, state, content FROM facts WHERE kind = ?", (kind,)).fetchall()
        )
        return {key: Fact(state, _decoded(content)) for key, state, content in rows or ()}

    def put(self, kind: str, key: str, state: str, content: Any) -> None:
        """Note a fact; it replaces an earlier one with the same kind and key."""
        self.put_all(kind, {key: Fact(state, content)})

    def put_all(self, kind: str, facts: dict[str, Fact]) -> None:
        """Note many facts of a kind in one transaction."""
        now = time.time()
        self._write(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)",
            [(kind, key, state, json.dumps(content), now) for key, (state, content) in facts.items()],
        )

    def forget(self, kind: str, keys: Iterable[str]) -> None:
        """Remove facts that have turned out to be wrong."""
        self._write("DELETE FROM facts WHERE kind = ? AND key = ?", [(kind, key) for key in keys])

    def close(self) -> None:
        """Close the file. A later use opens it again."""
        with self._own_lock():
            if self._database is not None:
                self._database.close()
            self._database = None

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._database = None
        self._away_until = 0.0
        self._opening = Background("xnat-read-cache", lambda: self._try(lambda database: None))

    def _own_lock(self) -> threading.Lock:
        """Return the lock. A forked child gets a new one, and no longer uses the connection of its parent."""
        if self._process != os.getpid():
            if self._database is not None:
                _of_parents.append(self._database)
            self._start()
        return self._lock

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        def write(database: sqlite3.Connection) -> None:
            with database:
                database.executemany(statement, rows)

        if rows:
            self._try(write)

    def _try(self, use: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Return the result of a function that uses the database; None if the database cannot be used now."""
        with self._own_lock():
            if time.monotonic() < self._away_until:
                return None
            try:
                if self._database is None:
                    self._database = _opened(self._file)
                return use(self._database)
            except (sqlite3.OperationalError, OSError, CacheError, ValueError) as error:  # locked, full, read-only
                logger.debug("the cache of what was read cannot be used now: %s", error)
                self._away_until = time.monotonic() + _AWAY_FOR
            except sqlite3.DatabaseError as error:
                logger.info("the cache of what was read is damaged and made anew: %s", error)
                self._remove()
            return None

    def _remove(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None
        for name in (self._file.name, f"{self._file.name}-wal", f"{self._file.name}-shm"):
            try:
                self._file.with_name(name).unlink(missing_ok=True)
            except OSError as error:
                logger.debug("a damaged cache of what was read could not be removed: %s", error)
                self._away_until = float("inf")


def _decoded(content: str) -> Any | None:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _opened(file: Path) -> sqlite3.Connection:
    private_folder(file.parent)
    # sqlite would make a file that others can read, so make it here. An existing file is not opened: closing any handle
    # of a file drops all locks of this process on it, also those of sqlite (https://www.sqlite.org/howtocorrupt.html).
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    database = sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False)
    try:
        with closing(database.execute("PRAGMA journal_mode = WAL")) as found:
            has_log = found.fetchone()[0] == "wal"
        # With a log, a crash loses only the last facts and damages nothing. On a network disk there is no log, and each
        # write would wait for that disk. There we do not wait: a crash may damage the file, which is then made anew.
        database.execute(f"PRAGMA synchronous = {'NORMAL' if has_log else 'OFF'}")
        with database:
            database.execute(_TABLE)
            database.execute("DELETE FROM facts WHERE noted < ?", (time.time() - _KEPT_FOR,))
    except BaseException:
        database.close()
        raise
    return database
