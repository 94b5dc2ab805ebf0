"""XNAT's archive where it is mounted on this machine: files read in place, once proven to be the right ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import ServerError
from monailabel_xnat.listing import Scan

logger = logging.getLogger(__name__)

# XNAT gives a second scan of the same number the id 4-MR1, and leaves it in the folder of the number
# (PrearcSessionArchiver).
_CLASHING_ID = re.compile(r"(\d+)-[A-Z]{2}\d+")


class MountedArchive:
    """The folder where XNAT's archive is mounted.

    Known layouts: XNAT's own (``<project>/arc001/<session>/SCANS/<scan>/<resource>``), that of XNAT's JupyterHub
    (``projects/<project>/experiments/<session>/...``), both also with the mount starting at the project or at the
    session; and whatever path the server itself names, found here by its tail.

    Parameters
    ----------
    session : Session
        The connection.
    folder : Path
        The mount (setting ``asset_path``).
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._folder = folder

    def find(self, scan: Scan, label: str, files: Sequence[RemoteFile]) -> Path | None:
        """Find the folder of a resource.

        Parameters
        ----------
        scan : Scan
            The scan.
        label : str
            Label of its resource.
        files : sequence of RemoteFile
            What XNAT lists there: each must be here, with its size.

        Returns
        -------
        Path or None
            None if it is not here, or not the same; the log then says at WARNING where it was looked for.
        """
        tried: list[str] = []
        for folder in self._candidates(scan, label):
            problem = _difference(folder, files)
            if not problem:
                return folder
            tried.append(f"{folder} ({problem})")
        tried = tried or [f"{self._folder / path} (no such folder)" for path in _session_paths(scan)[:1]]
        logger.warning("not found below asset_path, so it is downloaded: %s", "; ".join(tried))
        return None

    def _candidates(self, scan: Scan, label: str) -> Iterator[Path]:
        given = set()
        for folder in self._by_layout(scan, label):
            given.add(folder)
            yield folder
        for folder in self._by_server_path(scan, label):
            if folder not in given:
                yield folder

    def _by_layout(self, scan: Scan, label: str) -> Iterator[Path]:
        for session_path in _session_paths(scan):
            for session_folder in sorted(self._folder.glob(session_path)) if _is_plain(session_path) else ():
                for scan_id in _scan_folders(scan.image_id.scan):
                    folder = session_folder / "SCANS" / scan_id / label
                    if folder.is_dir():
                        yield folder

    def _by_server_path(self, scan: Scan, label: str) -> Iterator[Path]:
        """Give the folders below the mount that a tail of the server's own path leads to, the longest tail first."""
        path = self._server_path(scan, label)
        parts = PurePosixPath(path).parts[1:-1]
        if not path or ".." in parts:
            return
        for start in range(len(parts)):
            folder = self._folder.joinpath(*parts[start:])
            if folder.is_dir():
                yield folder

    def _server_path(self, scan: Scan, label: str) -> str:
        """Ask for the path of the resource's catalog on the server; "" if XNAT does not tell."""
        try:
            item = self._session.json(scan.path)
            children = item["items"][0]["children"]
        except (ServerError, LookupError, TypeError):
            return ""
        for child in children:
            for resource in child.get("items", ()) if child.get("field") == "file" else ():
                fields = resource.get("data_fields", {})
                if fields.get("label") == label:
                    return str(fields.get("URI", ""))
        return ""


def _session_paths(scan: Scan) -> list[str]:
    """Give where a session may lie below the mount, as patterns."""
    session = _literal(scan.session_label)
    projects = dict.fromkeys((scan.owner or scan.image_id.project, scan.image_id.project))
    paths = [f"{_literal(project)}/arc*/{session}" for project in projects]
    paths += [f"projects/{_literal(project)}/experiments/{session}" for project in projects]
    return [*paths, f"arc*/{session}", session]


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_plain(path: str) -> bool:
    return all(part not in ("", ".", "..") for part in path.split("/"))


def _scan_folders(scan_id: str) -> list[str]:
    clashing = _CLASHING_ID.fullmatch(scan_id)
    names = [scan_id, clashing.group(1)] if clashing else [scan_id]
    return [name for name in names if "/" not in name and name not in ("", ".", "..")]


def _difference(folder: Path, files: Sequence[RemoteFile]) -> str:
    """Say how a folder differs from what XNAT lists; "" if it does not."""
    for file in files:
        if ".." in file.path.split("/") or file.path.startswith("/"):
            return f"XNAT lists the name {file.path!r}, which leaves it"
        try:
            size = (folder / file.path).stat().st_size
        except OSError:
            return f"{file.path} is not there"
        if file.size is not None and size != file.size:
            return f"{file.path} has {size} bytes instead of {file.size}"
    return ""
