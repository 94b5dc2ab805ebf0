"""The descriptions of labels in XNAT, read once and changed in their info only."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping
from typing import Any

from monailabel_xnat.client.files import RemoteFile, list_files
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import Upload, upload_files
from monailabel_xnat.errors import NotInArchiveError
from monailabel_xnat.labels.model import SIDECAR, LabelVersion
from monailabel_xnat.labels.sidecar import decode, encode, info_of
from monailabel_xnat.memory import Memory

logger = logging.getLogger(__name__)


_KIND = "label description"


class Descriptions:
    """Reads and changes the sidecar files.

    Parameters
    ----------
    session : Session
        The connection.
    memory : Memory
        Keeps what was read.
    """

    def __init__(self, session: Session, memory: Memory) -> None:
        self._session = session
        self._memory = memory
        self._lock = threading.Lock()
        self._read: dict[str, tuple[RemoteFile, dict[str, Any]]] = {}

    def read(self, version: LabelVersion) -> dict[str, Any]:
        """Give the description of a version; {} if it has none.

        Raises
        ------
        NotInArchiveError
            If it was listed, but is gone.
        ServerError
            If XNAT fails.
        """
        file = version.sidecar_file
        if file is None:
            return {}
        with self._lock:
            known = self._read.get(file.uri)
        # The same size and digest; a change always shows in the size.
        if known is None or known[0] != file:
            known = (file, self._remembered(file) or self._fetch(file))
            with self._lock:
                self._read[file.uri] = known
        return copy.deepcopy(known[1])

    def merge(self, resource: str, version: LabelVersion, changes: Mapping[str, Any]) -> list[RemoteFile]:
        """Merge top-level keys into the info of a version, as XNAT holds it now; the caller holds the resource.

        Returns
        -------
        list of RemoteFile
            The files of the resource afterwards.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        name = version.name + SIDECAR
        file = next((file for file in list_files(self._session, resource) if file.path == name), None)
        sidecar = self._merged_into(file) if file else {}
        changed = {**sidecar, "info": {**info_of(sidecar), **changes}}
        content = encode(changed, previous_size=(file.size or 0) if file else None)
        listing = upload_files(self._session, resource, [Upload(name, content, "JSON", "MONAILABEL")], overwrite=True)
        written = next(file for file in listing if file.path == name)
        with self._lock:
            self._read[written.uri] = (written, changed)
        self._remember(written, changed)
        return listing

    def _merged_into(self, file: RemoteFile) -> dict[str, Any]:
        try:
            return self._fetch(file)
        except NotInArchiveError:
            return {}

    def _fetch(self, file: RemoteFile) -> dict[str, Any]:
        try:
            sidecar = decode(self._session.request("GET", file.uri).content)
        except ValueError:
            logger.warning("the description of a label in XNAT cannot be read: %s", file.path)
            return {}
        self._remember(file, sidecar)
        return sidecar

    def _remember(self, file: RemoteFile, sidecar: dict[str, Any]) -> None:
        if file.size is not None:
            self._memory.put(_KIND, file.uri, _state(file), sidecar)

    def _remembered(self, file: RemoteFile) -> dict[str, Any] | None:
        sidecar = self._memory.get(_KIND, file.uri, _state(file)) if file.size is not None else None
        return sidecar if isinstance(sidecar, dict) else None


def _state(file: RemoteFile) -> str:
    return f"{file.size} bytes, MD5 {file.md5}"
