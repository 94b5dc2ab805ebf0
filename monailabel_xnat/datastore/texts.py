"""The name and the description of a datastore, which are stored in a resource of its project."""

from __future__ import annotations

import json
import threading
from typing import Any

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.documents import find_object
from monailabel_xnat.client.files import Counts
from monailabel_xnat.client.items import list_projects, project_path, resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import upload
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, SettingsError

RESOURCE = "MONAILABEL_datastore"
FILE = "datastore.json"

_KIND = "datastore"
# The listing shows counts only for resources of scans, so for this resource they are not known.
_UNKNOWN = Counts(None, None)


class DatastoreTexts:
    """The texts ``name`` and ``description`` of a datastore.

    Parameters
    ----------
    session : Session
        The connection. If several projects are configured, the first one holds the texts.
    catalog : Catalog
        Its read cache keeps the texts on this machine, for :meth:`known`. It knows whether XNAT has answered.
    """

    def __init__(self, session: Session, catalog: Catalog) -> None:
        self._session = session
        self._catalog = catalog
        self._read_cache = catalog.read_cache
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._texts: dict[str, str] | None = None

    def get(self, key: str, default: str) -> str:
        """Return a text, or the default if none was set or the project was lost. XNAT is asked only once.

        As long as XNAT has not answered since the start it is the one that is known, and the description says so.

        Raises
        ------
        TransferError
            If the file of the texts differs in size or MD5 from XNAT's list.
        ServerError
            If XNAT fails.
        """
        if self._catalog.absence:
            text = self.known(key, default)
            return f"{text}. {self._catalog.problem}" if key == "description" else text
        with self._lock:
            if self._texts is None:
                try:
                    self._texts = self._read() or {}
                except (AccessDeniedError, NotInArchiveError):  # the project that holds them was lost
                    return default
                self._remember()
            return self._texts.get(key) or default

    def known(self, key: str, default: str) -> str:
        """Return a text that was set or read on this machine, or the default. XNAT is never asked."""
        texts = self._texts
        if texts is None:
            texts = self._read_cache.get(_KIND, self._key(), "") or {}
        return texts.get(key) or default

    def set(self, key: str, text: str) -> None:
        """Store a text in XNAT.

        Raises
        ------
        SettingsError
            If no project is configured, and the user can read none or several.
        TransferError
            If the file of the texts differs in size or MD5 from XNAT's list; then nothing is written.
        ServerError
            If XNAT does not accept it.
        """
        with self._lock:
            project = self._home()
            if project is None:
                raise SettingsError(
                    "it is not clear which project should hold the name and description of the datastore",
                    hint="name one with the setting project",
                )
            stored = self._read()
            texts = {**(stored or {}), key: str(text)}
            content = json.dumps(texts, indent=1, sort_keys=True).encode()
            upload(
                self._session,
                resource_path(project_path(project), RESOURCE),
                FILE,
                content,
                format="JSON",
                content="MONAILABEL",
                overwrite=stored is not None,
            )
            self._texts = texts
            self._remember()

    def _remember(self) -> None:
        self._read_cache.put(_KIND, self._key(), "", self._texts)

    def _key(self) -> str:
        return ",".join(self._session.settings.project)

    def _read(self) -> dict[str, str] | None:
        """Return the texts that XNAT holds now; None if there are none."""
        project = self._home()
        if project is None:
            return None
        found = find_object(self._session, project_path(project), RESOURCE, FILE, _UNKNOWN, _texts_in)
        return found[1] if found else None

    def _home(self) -> str | None:
        """Return the project that holds the texts: the first configured one, or the only one that the user can read."""
        configured = self._session.settings.project
        projects = configured or list_projects(self._session)
        return projects[0] if configured or len(projects) == 1 else None


def _texts_in(found: dict[str, Any]) -> dict[str, str]:
    """Return the content of the file if all its values are texts; otherwise raise ValueError."""
    if not all(isinstance(text, str) for text in found.values()):
        raise ValueError("a text has a wrong type")
    return found


def default_texts(settings: Settings) -> dict[str, str]:
    """Return the texts of a datastore for which none were set: they contain XNAT's address and the projects."""
    projects = ", ".join(settings.project) or "all projects"
    return {"name": f"XNAT {settings.server}", "description": f"{projects} on {settings.server}"}
