"""The site's own calls: log in, who am I, schemas, search elements, access, tokens."""

from __future__ import annotations

from typing import Callable
from urllib.parse import parse_qsl, unquote

from monailabel_xnat.sandbox import tables
from monailabel_xnat.sandbox.accounts import Accounts, Session, Sessions
from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.replies import HTTPError, Reply, as_json, html, text
from monailabel_xnat.sandbox.request import Request

VERSION = "1.9.2"
GUEST_PAGE = '<html><body><span id="user_info">Logged in as: <span style="color:red;">Guest</span></span></body></html>'
LOGIN_PAGE = (
    '<!DOCTYPE html>\n<html><body><form name="form1" method="post" action="/login">Log in to XNAT</form></body></html>'
)


class Site:
    """The handlers, for one request's user."""

    def __init__(self, archive: Archive, accounts: Accounts, sessions: Sessions, may: Permissions) -> None:
        self._archive = archive
        self._accounts = accounts
        self._sessions = sessions
        self._may = may

    def data(self, request: Request, words: list[str]) -> Reply | None:
        """Answer what is not an object of the archive, below ``/data``; None if it is one."""
        head = words[0] if words else ""
        simple: dict[str, Callable[[Request, list[str]], Reply]] = {
            "JSESSION": self._jsession,
            "auth": self._auth,
            "version": self._version,
            "search": self._search,
            "users": self._users,
            "scanners": self._empty,
            "scan_types": self._scan_types,
            "prearchive": self._empty,
        }
        if head == "services" and words[1:2] == ["auth"]:
            return self._log_in(request)
        if head == "services" and words[1:2] == ["tokens"]:
            return self._tokens(request, words[2:])
        if head == "services" and words[1:3] == ["refresh", "catalog"]:
            return text()
        return simple[head](request, words) if head in simple else None

    def _csrf(self, request: Request, session: Session) -> str:
        return f"; XNAT_CSRF={session.csrf}" if request.flag("CSRF") else ""

    def _jsession(self, request: Request, words: list[str]) -> Reply:
        session = request.session
        if session is None:
            raise HTTPError(401)
        if request.method == "DELETE":
            self._sessions.close(session.id)
            return text()
        return text(session.id + self._csrf(request, session))

    def _auth(self, request: Request, words: list[str]) -> Reply:
        if request.user.is_guest:
            return text("guest")
        csrf = self._csrf(request, request.session) if request.session else ""
        return text(f"User '{request.user.login}' is logged in{csrf}")

    def _log_in(self, request: Request) -> Reply:
        if request.method not in ("PUT", "POST"):
            raise HTTPError(405)
        form = dict(parse_qsl(request.body.read(65536).decode(), keep_blank_values=True))
        user = self._accounts.check(form.get("username", ""), form.get("password", ""))
        session = self._sessions.open(user) if user else None
        if session is None:
            raise HTTPError(401, "Authentication failed.")
        request.session = session
        request.user = session.user
        return text(session.id)

    @staticmethod
    def _version(request: Request, words: list[str]) -> Reply:
        raise HTTPError(404)

    def _search(self, request: Request, words: list[str]) -> Reply:
        if words[1:2] != ["elements"]:
            raise HTTPError(404)
        if len(words) > 2:
            name = unquote(words[2])
            row = {
                "FIELD_ID": "ID",
                "HEADER": "ID",
                "SUMMARY": f"{name}/ID",
                "TYPE": "string",
                "REQUIRES_VALUE": "false",
            }
            return tables.answer(
                [{**row, "DESC": "", "ELEMENT_NAME": name, "SRC": "0"}], request.query, "Search Fields"
            )
        types = self._archive.types
        names = ["xnat:projectData", "xnat:subjectData", *types.sessions()[:6], "icr:roiCollectionData"]
        rows = [
            {"ELEMENT_NAME": name, "SINGULAR": name, "PLURAL": name, "SECURED": "true", "COUNT": "0"}
            for name in names
            if types.canonical(name)
        ]
        return tables.answer(rows, request.query, "Data-Types")

    def _users(self, request: Request, words: list[str]) -> Reply:
        if not request.user.is_admin:
            raise HTTPError(403)
        rows = [
            {
                "xdat_user_id": str(number),
                "login": user.login,
                "firstname": user.firstname,
                "lastname": user.lastname,
                "email": user.email,
            }
            for number, user in enumerate(self._accounts.all(), 1)
        ]
        return tables.answer(rows, request.query)

    @staticmethod
    def _empty(request: Request, words: list[str]) -> Reply:
        return tables.answer([], request.query)

    def _scan_types(self, request: Request, words: list[str]) -> Reply:
        return tables.answer([], request.query)

    def _tokens(self, request: Request, words: list[str]) -> Reply:
        action = words[0] if words else ""
        if action == "validate" and len(words) == 3:
            user = self._accounts.check(words[1], words[2])
            return as_json({"valid": user.login} if user else {})
        if request.user.is_guest:
            raise HTTPError(403)
        if action == "issue":
            return as_json(self._accounts.issue_token(request.user))
        if action == "show":
            return as_json(self._accounts.tokens(request.user))
        if action == "invalidate" and len(words) > 1:
            token = self._accounts.token(words[1])
            if token is None:
                raise HTTPError(404)
            if token["login"] != request.user.login and not request.user.is_admin:
                raise HTTPError(403)
            self._accounts.drop_token(words[1])
            return as_json({"result": "OK"})
        raise HTTPError(404)

    def xapi(self, request: Request, words: list[str]) -> Reply:
        """Answer what is below ``/xapi`` apart from ROI collections."""
        path = "/".join(unquote(word) for word in words)
        if path == "siteConfig/buildInfo":
            return as_json({"version": VERSION, "buildNumber": "0", "buildDate": "", "hostname": "sandbox"})
        if path == "siteConfig/uptime":
            return as_json({"Days": "0", "Hours": "0"})
        if path == "schemas":
            return as_json(self._archive.types.names())
        if path.startswith("schemas/"):
            document = self._archive.types.document(path[len("schemas/") :])
            if document is None:
                raise HTTPError(404)
            return Reply(document, media_type="application/xml")
        if path == "users/username":
            return text(request.user.login)
        if path == "access/projects":
            return as_json(self._access(request))
        raise HTTPError(404)

    def _access(self, request: Request) -> list[dict[str, str]]:
        names = {"owner": "Owners", "member": "Members", "collaborator": "Collaborators"}
        rows = []
        for project in self._archive.projects():
            role = self._archive.roles(request.user).get(project.id)
            if role:
                rows.append(
                    {
                        "ID": project.id,
                        "secondary_ID": str(project.fields.get("secondary_ID", "")),
                        "name": str(project.fields.get("name", "")),
                        "description": str(project.fields.get("description", "")),
                        "URI": f"/data/projects/{project.id}",
                        "role": names[role],
                        "group_id": f"{project.id}_{role}",
                    }
                )
        return rows


def front_page(request: Request) -> Reply:
    """Answer the site's root as a browser page, which xnatpy reads to find a guest."""
    if request.user.is_guest:
        return html(GUEST_PAGE)
    return html(
        f'<html><body><span id="user_info">Logged in as: &nbsp;<a href="/app/me">{request.user.login}</a></span></body></html>'
    )
