"""Handlers for the prearchive: the sessions that wait, their files, and archiving them (PrearcSessionListResource)."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from monailabel_xnat.sandbox.archive.staging import zip_blocks
from monailabel_xnat.sandbox.archive.transfers import file_reply
from monailabel_xnat.sandbox.dicom.filing import ConflictError, LockedError, merge_of
from monailabel_xnat.sandbox.dicom.headers import Place
from monailabel_xnat.sandbox.dicom.prearchive import CONFLICT, READY, UNASSIGNED, Waiting, WaitingScan
from monailabel_xnat.sandbox.dicom.services import Filers
from monailabel_xnat.sandbox.http import tables
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, text


class PrearchiveCalls(Filers):
    """The handlers, for the user of one request."""

    # What waits

    def handle(self, request: Request, words: list[str]) -> Reply:
        """Answer calls below ``/data/prearchive``. Users see the sessions of projects that they may edit.

        Raises
        ------
        HTTPError
            404 if the session does not exist or the user may not see it.
        """
        names = [unquote(word) for word in words]
        if names[:1] not in ([], ["projects"]):
            raise HTTPError(404)
        if len(names) < 3:
            return self._list(request, names[1] if len(names) == 2 else "")
        if len(names) < 4:
            raise HTTPError(404)
        waiting = self._find(names[1], names[2], names[3])
        if request.method == "DELETE" and len(names) == 4:
            self._prearchive.delete(waiting)
            return text()
        if request.method == "POST" and len(names) == 4:
            return self._act(request, waiting)
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        return self._inside(request, waiting, names[4:])

    def _list(self, request: Request, project: str) -> Reply:
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        rows = [
            self._row(waiting)
            for waiting in self._prearchive.all()
            if self._is_for_user(waiting) and project in ("", "ALL", waiting.project or UNASSIGNED)
        ]
        return tables.answer(rows, request.query)

    def _is_for_user(self, waiting: Waiting) -> bool:
        return self._may.may_edit(waiting.project) if waiting.project else self._may.user.is_admin

    def _find(self, project: str, moment: str, folder: str) -> Waiting:
        waiting = self._prearchive.find(project, moment, folder)
        if waiting is None or not self._is_for_user(waiting):
            raise HTTPError(404, "Unable to find the prearchive session.")
        return waiting

    def _row(self, waiting: Waiting) -> dict[str, str]:
        project = self._archive.project(waiting.project) if waiting.project else None
        return {
            "project": waiting.project or UNASSIGNED,
            "timestamp": waiting.timestamp,
            "lastmod": waiting.last_modified,
            "uploaded": waiting.uploaded,
            "scan_date": waiting.scan_date,
            "scan_time": waiting.scan_time,
            "subject": waiting.subject,
            "folderName": waiting.folder,
            "name": waiting.name,
            "tag": waiting.study_uid,
            "status": waiting.status,
            "url": waiting.path,
            "autoarchive": "AutoArchive" if project and project.prearchive_code else "Manual",
            "prevent_anon": "false",
            "prevent_auto_commit": "false",
        }

    # One session

    def _inside(self, request: Request, waiting: Waiting, names: list[str]) -> Reply:
        scans = self._prearchive.scans(waiting)
        if not names:
            if request.query.get("format") == "zip":
                return _zip(waiting, scans)
            return tables.answer([self._row(waiting)], request.query)
        if names[0] != "scans":
            raise HTTPError(404)
        if len(names) == 1:
            rows = [
                {"ID": scan.id, "xsiType": scan.xsi_type, "series_description": scan.series.series_description}
                for scan in scans
            ]
            return tables.answer(rows, request.query)
        chosen = [scan for scan in scans if scan.id == names[1]]
        if not chosen:
            raise HTTPError(404)
        return self._scan(request, waiting, chosen[0], names[2:])

    def _scan(self, request: Request, waiting: Waiting, scan: WaitingScan, names: list[str]) -> Reply:
        files = {file.path.name: file.path for file in scan.series.files}
        if not names and request.query.get("format") == "zip":
            return _zip(waiting, [scan])
        if names == ["resources"]:
            size = sum(path.stat().st_size for path in files.values())
            counts = {"file_count": str(len(files)), "file_size": str(size)}
            row = {"category": "scans", "cat_id": scan.id, "cat_desc": "", "label": scan.label, **counts}
            return tables.answer([row], request.query)
        if names[:1] != ["resources"] or names[1:2] != [scan.label] or names[2:3] not in ([], ["files"]):
            raise HTTPError(404)
        if len(names) == 4 and names[3] in files:
            return file_reply(request, files[names[3]])
        if len(names) > 3:
            raise HTTPError(404)
        base = f"/data{waiting.path}/scans/{scan.id}/resources/{scan.label}/files"
        rows = [
            {"Name": name, "Size": str(path.stat().st_size), "URI": f"{base}/{name}"} for name, path in files.items()
        ]
        return tables.answer(rows, request.query)

    def _act(self, request: Request, waiting: Waiting) -> Reply:
        """Do what ``action=`` says with a session. If that moves it, the answer is 301 with the new address."""
        action = request.query.get("action", "")
        if action == "commit" and not (request.flag("AA") or request.flag("auto-archive")):
            action = "build"
        actions: dict[str, tuple[int, Callable[[Request, Waiting], str]]] = {
            "build": (200, self._rebuild),
            "commit": (301, self._to_archive),
            "move": (301, self._move),
            "delete": (200, self._delete),
        }
        if action not in actions:
            raise HTTPError(400, f"Unknown action; there are {', '.join(actions)}")
        status, act = actions[action]
        address = act(request, waiting)
        headers = [("Location", request.context + address)] if status == 301 else []
        return Reply(address.encode(), status, headers=headers)

    # Services

    def archive(self, request: Request, words: list[str]) -> Reply:
        """Answer ``POST /data/services/archive``."""
        return self.service(request, ["archive"])

    def service(self, request: Request, words: list[str]) -> Reply:
        """Answer ``POST /data/services/prearchive/{delete|rebuild|move}``.

        Raises
        ------
        HTTPError
            400 without ``src``, 404 for an unknown session, 409 if the archive has the session already.
        """
        actions: dict[str, Callable[[Request, Waiting], str]] = {
            "archive": self._to_archive,
            "delete": self._delete,
            "rebuild": self._rebuild,
            "move": self._move,
        }
        action = "/".join(words)
        if action not in actions:
            raise HTTPError(404)
        sources = request.values("src")
        if not sources:
            raise HTTPError(400, "The parameter src is missing.")
        found = [self._source(source) for source in sources]
        lines = [actions[action](request, waiting) for waiting in found]
        return Reply("".join(f"{line}\r\n" for line in lines if line).encode())

    def _source(self, source: str) -> Waiting:
        names = [unquote(word) for word in source.strip("/").split("/")]
        names = names[1:] if names[:1] == ["data"] else names
        if names[:2] != ["prearchive", "projects"] or len(names) != 5:
            raise HTTPError(400, f"{source} is not a session of the prearchive")
        return self._find(*names[2:])

    def _to_archive(self, request: Request, waiting: Waiting) -> str:
        query = request.query
        paths = {
            name.rpartition("/")[2].lower(): value for name, value in query.items() if "sessiondata/" in name.lower()
        }
        asked = Place(
            query.get("project", "") or paths.get("project", "") or waiting.project,
            query.get("subject", "") or paths.get("subject_id", "") or waiting.subject,
            query.get("session", "") or paths.get("label", "") or query.get("label", "") or waiting.name,
        )
        series = self._prearchive.series(waiting)
        place = self._filing.place(series, asked)
        if not place.project:
            raise HTTPError(400, "It is not known which project the session belongs to.")
        if not self._may.may_edit(place.project):
            raise HTTPError(403)
        try:
            merge = merge_of(query.get("overwrite", ""), overwrite_files=request.flag("overwrite_files"))
            address = self._filed(request, series, place, merge)
        except ConflictError as error:
            self._prearchive.set_status(waiting, CONFLICT)
            raise HTTPError(409, str(error)) from error
        except LockedError as error:
            raise HTTPError(423, str(error)) from error
        self._prearchive.delete(waiting)
        return address

    def _delete(self, request: Request, waiting: Waiting) -> str:
        self._prearchive.delete(waiting)
        return ""

    def _rebuild(self, request: Request, waiting: Waiting) -> str:
        self._prearchive.set_status(waiting, READY)
        return f"/data{waiting.path}"

    def _move(self, request: Request, waiting: Waiting) -> str:
        project = self._archive.project(request.query.get("newProject", ""))
        if project is None:
            raise HTTPError(404, "Unknown project")
        if not self._may.may_edit(project.id):
            raise HTTPError(403)
        return f"/data{self._prearchive.move(waiting, project.id).path}"


def _zip(waiting: Waiting, scans: list[WaitingScan]) -> Reply:
    members = [
        (f"{waiting.folder}/scans/{scan.id}/{scan.label}/{file.path.name}", file.path)
        for scan in scans
        for file in scan.series.files
    ]
    return Reply(zip_blocks(members), media_type="application/zip")
