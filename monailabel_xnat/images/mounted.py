"""Reading files in place where XNAT's archive is mounted on this machine, after they are proven to be the right ones.

A mount is read without XNAT, so nothing but the files themselves shows to which scan they belong: sessions of two
projects may have the same label, their scans the same number, and their files the same names and sizes. A folder is
used only if all of the following holds. If no folder passes, the files are downloaded, with a warning.

- It lies where the scan belongs. A path without the project in it proves this only if exactly one project is
  configured. If none is configured, which means all projects, the MD5s of all files must prove it.
- Each file that XNAT lists is there, with its size, and with its MD5 if XNAT lists one.
- Each DICOM image in it belongs to the series that XNAT lists for the scan. A file without both an MD5 and a series to
  compare is not proven.

If only the series is wrong, it is an error: either another archive is mounted, or somebody rewrote headers without
XNAT. If such files are downloaded, they are used with a warning, because XNAT itself says that they are the scan's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from monailabel_xnat.catalog.scan import Scan
from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.items import read_scan
from monailabel_xnat.client.session import Session
from monailabel_xnat.disk import file_digest, text_digest
from monailabel_xnat.errors import ImageError, ServerError
from monailabel_xnat.images.imagefile import holds_dicom

logger = logging.getLogger(__name__)

# If a second scan has the same number (4), XNAT gives it the id 4-MR1, but leaves it in the folder of the number
# (PrearcSessionArchiver).
_CLASHING_ID = re.compile(r"(\d+)-[A-Z]{2}\d+")
# A file that XNAT keeps beside the files of a resource and does not list.
_CATALOG = "_catalog.xml"
_READ_AT_A_TIME = 4


class Mounted(NamedTuple):
    """A folder of the archive, and the state of its files before they were read (:func:`state_of`)."""

    folder: Path
    state: str


class _Candidate(NamedTuple):
    """A folder that may hold the files, and whether its path names the project."""

    folder: Path
    names_project: bool


class _Doubt(NamedTuple):
    """The reason against a folder, and whether it is only that its headers name another series."""

    reason: str
    is_series: bool = False


class MountedArchive:
    """The folder where XNAT's archive is mounted.

    These layouts are known: XNAT's own (``<project>/arc001/<session>/SCANS/<scan>/<resource>``) and the one of XNAT's
    JupyterHub (``projects/<project>/experiments/<session>/...``). The mount may also start at the project or at the
    session. In addition, the end of the path that the server itself names for the scan is looked for.

    Parameters
    ----------
    session : Session
        The connection; its settings say which projects are configured.
    folder : Path
        The mount (setting ``asset_path``).
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._folder = folder
        self._projects = len(session.settings.project)

    def find(
        self,
        scan: Scan,
        label: str,
        files: Sequence[RemoteFile],
        *,
        only: RemoteFile | None = None,
        as_a_whole: bool = False,
    ) -> Mounted | None:
        """Return the folder of a resource, if it is proven to hold the scan's files.

        Parameters
        ----------
        scan : Scan
            The scan.
        label : str
            Label of its resource.
        files : sequence of RemoteFile
            The files that XNAT lists there.
        only : RemoteFile or None
            The only one of them that is needed, and must be proven; None for all.
        as_a_whole : bool
            Whether the folder itself is handed out. Then it must not hold any other DICOM image.

        Returns
        -------
        Mounted or None
            None if there is no such folder or it is not proven; a warning in the log then says which were tried.

        Raises
        ------
        ImageError
            If the files are those that XNAT lists, but belong to another series than the scan.
        """
        wanted = [only] if only else files
        tried: list[str] = []
        of_other_series = ""
        for candidate in self._candidates(scan, label):
            state = state_of(candidate.folder, files, as_a_whole=as_a_whole)
            doubt = self._doubt(candidate, scan, label, wanted) or (
                _stray_image(candidate.folder, files) if as_a_whole else None
            )
            if doubt is None:
                return Mounted(candidate.folder, state)
            tried.append(f"{candidate.folder} ({doubt.reason})")
            # If neither the path nor MD5s show that the files are the scan's, another series may mean another project.
            if doubt.is_series and (candidate.names_project or _is_digested(wanted)):
                of_other_series = of_other_series or tried[-1]
        if of_other_series:
            raise ImageError(
                f"the files of scan {scan.image_id} below asset_path are not of its series: {of_other_series}",
                hint="check that asset_path is the archive of this XNAT; without asset_path, the files are downloaded",
            )
        tried = tried or [f"{self._folder / path} (no such folder)" for path, _ in self._session_paths(scan)[:1]]
        logger.warning("not found below asset_path, so it is downloaded: %s", "; ".join(tried))
        return None

    def _doubt(self, candidate: _Candidate, scan: Scan, label: str, files: Sequence[RemoteFile]) -> _Doubt | None:
        """Return a reason why a folder is not, or may not be, the scan's; None if it is proven."""
        folder = candidate.folder
        if not candidate.names_project and self._projects != 1 and not _is_digested(files):
            return _Doubt("its path names no project, and XNAT lists no MD5 digests")
        different = _difference(folder, files)
        if different:
            return different
        series = scan.series_uid if holds_dicom(label, files) else ""
        with ThreadPoolExecutor(_READ_AT_A_TIME) as pool:
            doubts = list(pool.map(lambda file: _doubt_of_file(folder / file.path, file, series), files))
        return min(filter(None, doubts), key=lambda doubt: doubt.is_series, default=None)

    def _candidates(self, scan: Scan, label: str) -> Iterator[_Candidate]:
        given = set()
        for candidate in self._by_layout(scan, label):
            given.add(candidate.folder)
            yield candidate
        for candidate in self._by_server_path(scan, label):
            if candidate.folder not in given:
                yield candidate

    def _by_layout(self, scan: Scan, label: str) -> Iterator[_Candidate]:
        for session_path, names_project in self._session_paths(scan):
            for session_folder in sorted(self._folder.glob(session_path)) if _is_plain(session_path) else ():
                for scan_id in _scan_folders(scan.image_id.scan):
                    folder = session_folder / "SCANS" / scan_id / label
                    if folder.is_dir():
                        yield _Candidate(folder, names_project)

    def _session_paths(self, scan: Scan) -> list[tuple[str, bool]]:
        """Return patterns for the place of a session below the mount, each with whether it names the project."""
        session = _literal(scan.session_label)
        projects = [_literal(project) for project in _projects(scan)]
        paths = [f"{project}/arc*/{session}" for project in projects]
        paths += [f"projects/{project}/experiments/{session}" for project in projects]
        bare = [f"arc*/{session}", session] if self._projects < 2 else []
        return [*((path, True) for path in paths), *((path, False) for path in bare)]

    def _by_server_path(self, scan: Scan, label: str) -> Iterator[_Candidate]:
        """Return the folders below the mount that match an end of the server's own path, the longest end first.

        The end must contain the project. Unless several projects are configured, the session is enough.
        """
        path = self._server_path(scan, label)
        parts = PurePosixPath(path).parts[1:-1]
        if not path or ".." in parts or "SCANS" not in parts:
            return
        session = len(parts) - parts[::-1].index("SCANS") - 2
        owners = [place for place, part in enumerate(parts[: max(session, 0)]) if part in _projects(scan)]
        project = owners[-1] if owners else -1
        for start in range((session if self._projects < 2 else project) + 1):
            folder = self._folder.joinpath(*parts[start:])
            if folder.is_dir():
                yield _Candidate(folder, start <= project)

    def _server_path(self, scan: Scan, label: str) -> str:
        """Return the path of the resource's catalog on the server; "" if XNAT does not say it."""
        try:
            item = read_scan(self._session, scan.path)
            children = item["items"][0]["children"]
        except (ServerError, LookupError, TypeError):
            return ""
        for child in children:
            for resource in child.get("items", ()) if child.get("field") == "file" else ():
                fields = resource.get("data_fields", {})
                if fields.get("label") == label:
                    return str(fields.get("URI", ""))
        return ""


def _doubt_of_file(path: Path, file: RemoteFile, series: str) -> _Doubt | None:
    from monailabel_xnat.convert.dicom.headers import read_series_uid

    try:
        if file.md5 and file_digest(path, "md5") != file.md5:
            return _Doubt(f"{file.path} has another MD5 digest than XNAT lists")
        found = read_series_uid(path) if series else ""
    except OSError as error:
        return _Doubt(f"{file.path} cannot be read: {error.strerror or type(error).__name__}")
    if found not in ("", series):
        return _Doubt(f"{file.path} is of the series {found}, XNAT lists {series}", is_series=True)
    if not file.md5 and not found:
        return _Doubt(f"XNAT lists no MD5 digest of {file.path}, and no series tells whose it is")
    return None


def state_of(folder: Path, files: Sequence[RemoteFile], *, as_a_whole: bool) -> str:
    """Return a digest of the state of mounted files; it differs after a file has changed. The files are not read.

    Writing or replacing a file changes its inode or its times, and nobody can set the time of the last change (ctime).

    Parameters
    ----------
    folder : Path
        The folder that holds the files.
    files : sequence of RemoteFile
        The files.
    as_a_whole : bool
        Whether the folder itself is handed out. Then any other DICOM image in it counts as well.
    """
    told = []
    for file in sorted(files, key=lambda file: file.path):
        try:
            found = (folder / file.path).stat()
            facts = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
        except OSError:
            facts = "missing"
        told.append(f"{file.path} {facts}\n")
    if as_a_whole:
        told.append(str(_stray_image(folder, files)))
    return text_digest("".join(told))


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_plain(path: str) -> bool:
    return all(part not in ("", ".", "..") for part in path.split("/"))


def _scan_folders(scan_id: str) -> list[str]:
    clashing = _CLASHING_ID.fullmatch(scan_id)
    names = [scan_id, clashing.group(1)] if clashing else [scan_id]
    return [name for name in names if "/" not in name and name not in ("", ".", "..")]


def _difference(folder: Path, files: Sequence[RemoteFile]) -> _Doubt | None:
    """Return how a folder differs from the names and sizes that XNAT lists; None if it does not differ."""
    for file in files:
        if ".." in file.path.split("/") or file.path.startswith("/"):
            return _Doubt(f"XNAT lists the name {file.path!r}, which leaves it")
        try:
            size = (folder / file.path).stat().st_size
        except OSError:
            return _Doubt(f"{file.path} is not there")
        if file.size is not None and size != file.size:
            return _Doubt(f"{file.path} has {size} bytes instead of {file.size}")
    return None


def _stray_image(folder: Path, files: Sequence[RemoteFile]) -> _Doubt | None:
    """Return a DICOM image in a folder that XNAT does not list, because readers of the folder would read it, too."""
    from monailabel_xnat.convert.dicom.headers import read_series_uid

    listed = {file.path for file in files}
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name not in listed and not name.endswith(_CATALOG) and path.is_file() and read_series_uid(path):
                return _Doubt(f"{name} is an image that XNAT does not list")
    except OSError as error:
        return _Doubt(f"it cannot be read: {error.strerror or type(error).__name__}")
    return None


def _is_digested(files: Sequence[RemoteFile]) -> bool:
    return all(file.md5 for file in files)


def _projects(scan: Scan) -> list[str]:
    """Return the projects whose folders may hold a scan's session: the owner, then the one that it is listed under."""
    return list(dict.fromkeys((scan.owner or scan.image_id.project, scan.image_id.project)))
