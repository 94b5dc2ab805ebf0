"""A cache on this disk: what was read from XNAT, and need not be read again while its listing shows no change.

MONAI Label trains and scores in processes of their own, each of which builds the datastore anew: what one of them has
read, all others on this machine know. Everything is looked up by what a fresh listing shows, so that nobody sees more
than XNAT lists for them, and nothing old is taken for new. It is a help and no more: where the file cannot be used,
XNAT is read as if there were none.
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

from monailabel_xnat.config import Settings
from monailabel_xnat.disk import private_folder
from monailabel_xnat.errors import CacheError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Part of the file's name: what another version of this library wrote is left alone. The first one believed answers
# of XNAT that nothing proved.
_FILE = "memory-2.sqlite"
# What belongs to images that are gone is not asked for again; read once more after this, the rest is none the worse.
_KEPT_FOR = 180 * 86400
# Another process holds the file for milliseconds; XNAT answers faster than anybody who holds it for longer.
_PATIENCE = 0.5
_AWAY_FOR = 30.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS facts (kind TEXT, key TEXT, state TEXT, content TEXT, noted REAL,"
    " PRIMARY KEY (kind, key)) WITHOUT ROWID"
)

# A forked child must neither use nor close the connections of its parent, not even by collecting them as garbage.
_of_parents: list[sqlite3.Connection] = []


class Fact(NamedTuple):
    """Something that was read.

    Parameters
    ----------
    state : str
        What the listing showed then.
    content : object
        What was read, plain JSON.
    """

    state: str
    content: Any


class ReadCache:
    """Facts by kind and key; may be used from any thread, by several processes at once, and survives a fork.

    Parameters
    ----------
    settings : Settings
        Tell the folder for this server.
    """

    _lock: threading.Lock
    _process: int
    _database: sqlite3.Connection | None
    _away_until: float

    def __init__(self, settings: Settings) -> None:
        self._file = settings.server_folder / _FILE
        self._start()

    def get(self, kind: str, key: str, state: str) -> Any | None:
        """Return the content of a fact if it was read when the listing looked as it does now; None if not."""
        rows = self._try(
            lambda db: db.execute("SELECT state, content FROM facts WHERE kind = ? AND key = ?", (kind, key)).fetchall()
        )
        return _decoded(rows[0][1]) if rows and rows[0][0] == state else None

    def all(self, kind: str) -> dict[str, Fact]:
        """Return all facts of a kind, by key: thousands in one go."""
        rows = self._try(
            lambda db: db.execute("SELECT key, state, content FROM facts WHERE kind = ?", (kind,)).fetchall()
        )
        return {key: Fact(state, _decoded(content)) for key, state, content in rows or ()}

    def put(self, kind: str, key: str, state: str, content: Any) -> None:
        """Note a fact, instead of what was known of it before."""
        self.put_all(kind, {key: Fact(state, content)})

    def put_all(self, kind: str, facts: dict[str, Fact]) -> None:
        """Note many facts of a kind in one go."""
        now = time.time()
        self._write(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)",
            [(kind, key, state, json.dumps(content), now) for key, (state, content) in facts.items()],
        )

    def forget(self, kind: str, keys: Iterable[str]) -> None:
        """Forget facts that have turned out to be wrong."""
        self._write("DELETE FROM facts WHERE kind = ? AND key = ?", [(kind, key) for key in keys])

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        with self._own_lock():
            if self._database is not None:
                self._database.close()
            self._database = None

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._database = None
        self._away_until = 0.0

    def _own_lock(self) -> threading.Lock:
        """Return the lock; in a forked child a new one, with nothing of the parent's behind it."""
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
        """Use the database; None where that is not possible now."""
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
    # sqlite would make a file that others can read. One that is there is not touched: closing any handle of a file
    # drops all locks that this process holds on it, those of sqlite too (https://www.sqlite.org/howtocorrupt.html).
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    database = sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False)
    try:
        with closing(database.execute("PRAGMA journal_mode = WAL")) as found:
            has_log = found.fetchone()[0] == "wal"
        # With a log, a crash loses the last moments and damages nothing. Without, on a network's disk, each write would
        # wait for that disk: sooner a file that is damaged by a crash, found to be, and made anew.
        database.execute(f"PRAGMA synchronous = {'NORMAL' if has_log else 'OFF'}")
        with database:
            database.execute(_TABLE)
            database.execute("DELETE FROM facts WHERE noted < ?", (time.time() - _KEPT_FOR,))
    except BaseException:
        database.close()
        raise
    return database
