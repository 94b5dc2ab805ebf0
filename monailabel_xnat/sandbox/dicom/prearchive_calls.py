"""Handlers for the prearchive: the sessions that wait, their files, and archiving them (PrearcSessionListResource)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from monailabel_xnat.sandbox.archive.staging import zip_blocks
from monailabel_xnat.sandbox.archive.transfers import file_reply
from monailabel_xnat.sandbox.dicom.filing import ConflictError, LockedError, merge_of
from monailabel_xnat.sandbox.dicom.headers import Place
from monailabel_xnat.sandbox.dicom.prearchive import CONFLICT, READY, UNASSIGNED, Waiting, WaitingScan
from monailabel_xnat.sandbox.dicom.services import Filers
from monailabel_xnat.sandbox.http import tables
from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, text
from monailabel_xnat.sandbox.http.paths import words_of


class PrearchiveCalls(Filers):
    """The handlers, for the user of one request."""

    # What waits

    def answer(self, method: str, request: Request, names: dict[str, str]) -> Reply:
        """Answer a request. Methods for a path below a session get the session and the scan that it names.

        Raises
        ------
        HTTPError
            404 if there is no such session or scan, or the session is not for the user.
        """
        if "folder" not in names:
            return super().answer(method, request, names)
        found: dict[str, Any] = {"waiting": self._find(names["project"], names["moment"], names["folder"])}
        if "scan_id" in names:
            found["scan"] = self._scan(found["waiting"], names["scan_id"], names.get("label"))
        if "name" in names:
            found["name"] = names["name"]
        return super().answer(method, request, found)

    def _scan(self, waiting: Waiting, scan_id: str, label: str | None) -> WaitingScan:
        for scan in self._prearchive.scans(waiting):
            if scan.id == scan_id and label in (None, scan.label):
                return scan
        raise HTTPError(404)

    def sessions(self, request: Request, project: str) -> Reply:
        """Answer ``GET /data/prearchive/projects[/P]``. Users see the sessions of projects that they may edit."""
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

    def session(self, request: Request, waiting: Waiting) -> Reply:
        """Answer with a session as a table of one row, or with a zip of its files."""
        if request.query.get("format") == "zip":
            return _zip(waiting, self._prearchive.scans(waiting))
        return tables.answer([self._row(waiting)], request.query)

    def scans(self, request: Request, waiting: Waiting) -> Reply:
        """List the scans of a session."""
        rows = [
            {"ID": scan.id, "xsiType": scan.xsi_type, "series_description": scan.series.series_description}
            for scan in self._prearchive.scans(waiting)
        ]
        return tables.answer(rows, request.query)

    def scan(self, request: Request, waiting: Waiting, scan: WaitingScan) -> Reply:
        """Answer with a zip of the files of a scan."""
        if request.query.get("format") != "zip":
            raise HTTPError(404)
        return _zip(waiting, [scan])

    def resources(self, request: Request, waiting: Waiting, scan: WaitingScan) -> Reply:
        """List the one resource of a scan."""
        size = sum(file.path.stat().st_size for file in scan.series.files)
        counts = {"file_count": str(len(scan.series.files)), "file_size": str(size)}
        row = {"category": "scans", "cat_id": scan.id, "cat_desc": "", "label": scan.label, **counts}
        return tables.answer([row], request.query)

    def files(self, request: Request, waiting: Waiting, scan: WaitingScan) -> Reply:
        """List the files of a scan."""
        base = f"/data{waiting.path}/scans/{scan.id}/resources/{scan.label}/files"
        paths = [file.path for file in scan.series.files]
        rows = [{"Name": path.name, "Size": str(path.stat().st_size), "URI": f"{base}/{path.name}"} for path in paths]
        return tables.answer(rows, request.query)

    def file(self, request: Request, waiting: Waiting, scan: WaitingScan, name: str) -> Reply:
        """Answer with a file of a scan."""
        found = next((file.path for file in scan.series.files if file.path.name == name), None)
        if found is None:
            raise HTTPError(404)
        return file_reply(request, found)

    def remove(self, request: Request, waiting: Waiting) -> Reply:
        """Answer DELETE of a session."""
        return text(self._delete(request, waiting))

    def act(self, request: Request, waiting: Waiting) -> Reply:
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

    def archive(self, request: Request) -> Reply:
        """Answer ``POST /data/services/archive``."""
        return self.service(request, "archive")

    def service(self, request: Request, action: str) -> Reply:
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
        if action not in actions:
            raise HTTPError(404)
        sources = request.values("src")
        if not sources:
            raise HTTPError(400, "The parameter src is missing.")
        found = [self._source(source) for source in sources]
        lines = [actions[action](request, waiting) for waiting in found]
        return Reply("".join(f"{line}\r\n" for line in lines if line).encode())

    def _source(self, source: str) -> Waiting:
        names = [unquote(word) for word in words_of(source)]
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
        self._may.require_edit(place.project)
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
        self._may.require_edit(project.id)
        return f"/data{self._prearchive.move(waiting, project.id).path}"


def _zip(waiting: Waiting, scans: list[WaitingScan]) -> Reply:
    members = [
        (f"{waiting.folder}/scans/{scan.id}/{scan.label}/{file.path.name}", file.path)
        for scan in scans
        for file in scan.series.files
    ]
    return Reply(zip_blocks(members), media_type="application/zip")
