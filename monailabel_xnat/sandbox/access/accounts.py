"""The users, their sessions on the server, and their alias tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from monailabel_xnat.sandbox.archive.store import Store

GUEST = "guest"
PROVIDER = "localdb"
MAX_SESSIONS = 1000
MAX_FAILED_LOGINS = 20
LOCKOUT_SECONDS = 3600.0
TOKEN_SECONDS = 2 * 24 * 3600.0

USER_SQL = "SELECT rowid AS number, * FROM users WHERE login = ?"
_SET_USER = (
    "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (login) DO UPDATE SET password = excluded.password,"
    " is_admin = excluded.is_admin, standing_role = excluded.standing_role"
)
_SCRYPT = {"n": 2**13, "r": 8, "p": 1, "dklen": 32}


@dataclass(frozen=True)
class User:
    """A user. `standing_role` is the group that the user gets in projects that the sandbox itself makes."""

    login: str
    is_admin: bool = False
    firstname: str = ""
    lastname: str = ""
    email: str = ""
    standing_role: str = ""
    number: int = 0

    @property
    def is_guest(self) -> bool:
        """Whether nobody is logged in."""
        return self.login == GUEST


ANONYMOUS = User(GUEST)


@dataclass
class Session:
    """One server session, named by the cookie ``JSESSIONID``; `opened_as` is the name that the user logged in with."""

    id: str
    user: User
    last_used: float
    csrf: str = field(default_factory=lambda: str(uuid.uuid4()))
    opened_as: str = ""


class Accounts:
    """The user table. Passwords that people have chosen are stored as salted scrypt hashes."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._verified: dict[str, bytes] = {}
        self._failures: dict[str, tuple[int, float]] = {}

    def add(
        self, login: str, password: str, is_admin: bool = False, standing_role: str = "", *, is_random: bool = False
    ) -> User:
        """Create a user, or set a new password for an existing one.

        For a random password, a plain hash is stored: scrypt for five users would take a quarter of the start's time.

        Raises
        ------
        ValueError
            If the login or the password cannot be used.
        """
        require_valid_user(login, password)
        values = (
            login,
            f"${secret_digest(password)}" if is_random else _hash(password),
            login.capitalize(),
            "Sandbox",
            f"{login}@sandbox.invalid",
            is_admin,
            standing_role,
        )
        with self._store.write() as db:
            db.execute(_SET_USER, values)
            row = db.execute(USER_SQL, (login,)).fetchone()
        self._verified.pop(login, None)
        return user_of(row)

    def get(self, login: str) -> User | None:
        """Return a user, or None."""
        row = self._store.one(USER_SQL, (login,))
        return user_of(row) if row else None

    def all(self) -> list[User]:
        """Return all users, by login."""
        return [user_of(row) for row in self._store.all("SELECT rowid AS number, * FROM users ORDER BY login")]

    def keep_only(self, logins: Collection[str]) -> None:
        """Remove all users except these, and forget failed logins."""
        self._failures.clear()
        with self._store.write() as db:
            for user in self.all():
                if user.login not in logins:
                    db.execute("DELETE FROM users WHERE login = ?", (user.login,))

    def check(self, login: str, password: str) -> User | None:
        """Return the user to whom a name and password (or an alias and secret) belong, or None."""
        provider, _, login = login.rpartition("/")
        if provider not in ("", PROVIDER) or self._is_locked(login):
            return None
        user = self._by_password(login, password) or self._by_token(login, password)
        if user is None:
            count, _ = self._failures.get(login, (0, 0.0))
            self._failures[login] = (count + 1, self._clock())
        else:
            self._failures.pop(login, None)
        return user

    def _is_locked(self, login: str) -> bool:
        count, since = self._failures.get(login, (0, 0.0))
        if count < MAX_FAILED_LOGINS:
            return False
        if self._clock() - since > LOCKOUT_SECONDS:
            del self._failures[login]
            return False
        return True

    def _by_password(self, login: str, password: str) -> User | None:
        row = self._store.one(USER_SQL, (login,))
        if row is None:
            return None
        # scrypt is slow on purpose. A login seen before is recognised by a keyed digest, which stays in memory.
        digest = hmac.new(self._key, f"{row['password']}\n{password}".encode(), "sha256").digest()
        if hmac.compare_digest(self._verified.get(login, b""), digest):
            return user_of(row)
        if not _matches(password, row["password"]):
            return None
        self._verified[login] = digest
        return user_of(row)

    def _by_token(self, alias: str, secret: str) -> User | None:
        token = self.token(alias)
        if token is None or not hmac.compare_digest(token["secret"], secret_digest(secret)):
            return None
        return self.get(token["login"])

    def issue_token(self, user: User) -> dict[str, Any]:
        """Make and return an alias token. Only this answer holds the secret."""
        alias, secret, now = str(uuid.uuid4()), secrets.token_hex(32), self._clock()
        row = {"alias": alias, "secret": secret_digest(secret), "login": user.login}
        number = self._store.insert("tokens", {**row, "created": now, "expires": now + TOKEN_SECONDS})
        return {**_token_json(number, alias, user.login, now, now + TOKEN_SECONDS), "secret": secret}

    def token(self, alias: str) -> dict[str, Any] | None:
        """Return a token that is still valid, or None."""
        row = self._store.one("SELECT * FROM tokens WHERE alias = ? AND expires > ?", (alias, self._clock()))
        return dict(row) if row else None

    def tokens(self, user: User) -> list[dict[str, Any]]:
        """Return the valid tokens of a user, without their secrets."""
        rows = self._store.all("SELECT * FROM tokens WHERE login = ? AND expires > ?", (user.login, self._clock()))
        return [_token_json(row["id"], row["alias"], row["login"], row["created"], row["expires"]) for row in rows]

    def drop_token(self, alias: str) -> None:
        """Invalidate a token."""
        with self._store.write() as db:
            db.execute("DELETE FROM tokens WHERE alias = ?", (alias,))


class Sessions:
    """The sessions of the server. They are in memory, and end after a time, by logout, or all at once.

    Parameters
    ----------
    timeout
        Seconds without a request after which a session ends.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self.timeout = timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def open(self, user: User, opened_as: str = "") -> Session | None:
        """Open and return a session, or None if the user has too many already. Guests have no such limit."""
        with self._lock:
            self._drop_expired()
            count = sum(item.user.login == user.login for item in self._sessions.values())
            if count >= MAX_SESSIONS and not user.is_guest:
                return None
            session = Session(secrets.token_hex(16).upper(), user, self._clock(), opened_as=opened_as or user.login)
            self._sessions[session.id] = session
            return session

    def touch(self, session_id: str) -> Session | None:
        """Return a live session and start its time again, or return None."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                return None
            now = self._clock()
            if now - session.last_used > self.timeout:
                del self._sessions[session_id]
                return None
            session.last_used = now
            return session

    def close_of(self, user: User, session_id: str = "") -> list[str]:
        """End the sessions of a user, or one of them, and return their IDs."""
        with self._lock:
            found = [
                item.id
                for item in self._sessions.values()
                if item.user.login == user.login and session_id in ("", item.id)
            ]
            for ended in found:
                del self._sessions[ended]
            return found

    def of(self, user: User) -> list[str]:
        """Return the IDs of the live sessions of a user."""
        with self._lock:
            self._drop_expired()
            return [item.id for item in self._sessions.values() if item.user.login == user.login]

    def close_all(self) -> None:
        """End every session, as a restart or an administrator does."""
        with self._lock:
            self._sessions.clear()

    def __len__(self) -> int:
        with self._lock:
            self._drop_expired()
            return len(self._sessions)

    def _drop_expired(self) -> None:
        oldest = self._clock() - self.timeout
        for expired in [key for key, item in self._sessions.items() if item.last_used < oldest]:
            del self._sessions[expired]


def require_valid_user(login: str, password: str) -> None:
    """Check that a login and a password can be used.

    Raises
    ------
    ValueError
        If the login or the password is empty, or the login is ``guest`` or has a colon or slash in it.
    """
    if not login or not password or login == GUEST or set(login) & set(":/"):
        raise ValueError(
            f"cannot make user {login!r}: a login without ':' and '/' (not 'guest') and a password are needed"
        )


def _hash(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def _matches(password: str, stored: str) -> bool:
    salt, _, digest = stored.partition("$")
    if not salt:
        return hmac.compare_digest(secret_digest(password), digest)
    found = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **_SCRYPT)
    return hmac.compare_digest(found.hex(), digest)


def secret_digest(secret: str) -> str:
    """Return the hash that is stored of a random secret or password, for which a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def user_of(row: Any) -> User:
    """Return the user that a row of `USER_SQL` describes."""
    names = ("firstname", "lastname", "email", "standing_role", "number")
    return User(row["login"], bool(row["is_admin"]), *(row[name] for name in names))


def _token_json(number: int, alias: str, login: str, created: float, expires: float) -> dict[str, Any]:
    return {
        "alias": alias,
        "singleUse": False,
        "estimatedExpirationTime": int(expires * 1000),
        "xdatUserId": login,
        "validIPAddresses": [],
        "id": number,
        "enabled": True,
        "created": int(created * 1000),
        "timestamp": int(created * 1000),
        "disabled": 0,
    }
