"""The site's own calls below ``/data``: log in, who am I, tokens, users, data types."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.accounts import PROVIDER, Accounts, Session, Sessions, User
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, as_json, text
from monailabel_xnat.sandbox.http.request import Request
from monailabel_xnat.sandbox.http.tables import Row, Table

_TABLE_FORMATS = ("json", "html", "xml", "csv")
_LARGEST_FORM = 65536


class Site:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, accounts: Accounts, sessions: Sessions, may: Permissions) -> None:
        self._archive = archive
        self._accounts = accounts
        self._sessions = sessions
        self._may = may

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer what is not an object of the archive, below ``/data``.

        Raises
        ------
        HTTPError
            405 for another method, and what the handlers raise.
        """
        path = [word for word in request.words[1:] if word != "archive"]
        name = "/".join(path[:2]) if path[0] == "services" else path[0]
        methods, handler = {
            "JSESSION": ("GET HEAD POST DELETE", self._jsession),
            "auth": ("GET HEAD", self._auth),
            "users": ("GET HEAD", self._users),
            "scanners": ("GET HEAD", self._scanners),
            "scan_types": ("GET HEAD", self._scan_types),
            "services/auth": ("PUT POST", self._log_in),
            "services/tokens": ("GET HEAD", self._tokens),
        }[name]
        if request.method not in methods.split():
            raise HTTPError(405, headers=[("Allow", methods.replace(" ", ", "))])
        return handler(request, [unquote(word) for word in path])

    # Sessions

    def _jsession(self, request: Request, words: list[str]) -> Reply:
        session = request.session
        if session is None:
            raise HTTPError(401)
        if request.method == "DELETE":
            self._sessions.close_of(session.user, words[1] if len(words) > 1 else session.id)
            return text()
        return text(session.id + _csrf(request, session))

    def _auth(self, request: Request, words: list[str]) -> Reply:
        if request.session is None:
            raise HTTPError(401)
        if request.user.is_guest:
            return text("guest")
        return text(f"User '{request.user.login}' is logged in{_csrf(request, request.session)}")

    def _log_in(self, request: Request, words: list[str]) -> Reply:
        pairs = parse_qsl(request.body.read(_LARGEST_FORM).decode("utf-8", "replace"), keep_blank_values=True)
        providers = [value for name, value in pairs if name == "provider"]
        if len(providers) > 1 or providers not in ([], [PROVIDER]):
            raise HTTPError(400, "Unknown or repeated authentication provider.")
        form = dict(pairs)
        user = self._accounts.check(form.get("username", ""), form.get("password", ""))
        session = self._sessions.open(user) if user else None
        if session is None:
            raise HTTPError(401, "Authentication failed.")
        request.session, request.user = session, session.user
        return text(session.id)

    # Tokens

    def _tokens(self, request: Request, words: list[str]) -> Reply:
        if request.user.is_guest:
            raise HTTPError(403)
        action, *names = words[2:] or [""]
        if action == "issue":
            return as_json(self._accounts.issue_token(self._token_user(request, names)))
        if action == "show":
            return as_json(self._accounts.tokens(self._token_user(request, names)))
        if action == "validate" and len(names) == 2:
            self._own_token(request, names[0], must_be_own=False)
            user = self._accounts.check(names[0], names[1])
            return as_json({"valid": user.login} if user else {})
        if action == "invalidate" and names:
            self._own_token(request, names[0])
            self._accounts.drop_token(names[0])
            return as_json({"result": "OK"})
        raise HTTPError(404)

    def _token_user(self, request: Request, names: list[str]) -> User:
        """Return whose tokens are meant: one's own or, for administrators, those of ``user/NAME``."""
        if not names:
            return request.user
        if not request.user.is_admin:
            raise HTTPError(403, "Only an admin may ask for the tokens of another user.")
        found = self._accounts.get(names[1]) if names[0] == "user" and len(names) == 2 else None
        if found is None:
            raise HTTPError(404)
        return found

    def _own_token(self, request: Request, alias: str, *, must_be_own: bool = True) -> None:
        token = self._accounts.token(alias)
        if token is None:
            raise HTTPError(404, f"Unknown alias: {alias}")
        if must_be_own and token["login"] != request.user.login and not request.user.is_admin:
            raise HTTPError(403)

    # Tables

    def _users(self, request: Request, words: list[str]) -> Reply:
        if not request.user.is_admin:
            raise HTTPError(403)
        names = ("login", "firstname", "lastname", "email")
        rows = [
            {"xdat_user_id": str(user.number), **{name: getattr(user, name) for name in names}}
            for user in self._accounts.all()
        ]
        return Table(("xdat_user_id", *names), rows).reply(request.format(_TABLE_FORMATS), request.query)

    def _scanners(self, request: Request, words: list[str]) -> Reply:
        return self._distinct(request, "scanner")

    def _scan_types(self, request: Request, words: list[str]) -> Reply:
        return self._distinct(request, "type")

    def _distinct(self, request: Request, field: str) -> Reply:
        """List the values that a field of the scans has in readable projects."""
        rows: list[Row] = [{field: value} for value in self._archive.scan_values(field, self._may.readable())]
        return Table((field,), rows).reply(request.format(_TABLE_FORMATS), request.query)


def _csrf(request: Request, session: Session) -> str:
    return f"; XNAT_CSRF={session.csrf}" if request.flag("CSRF") else ""
