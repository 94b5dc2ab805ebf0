"""Name and description of a datastore, kept as a resource of its project."""

from __future__ import annotations

import json
import threading

from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.client.upload import upload
from monailabel_xnat.errors import ServerError, SettingsError
from monailabel_xnat.listing import list_projects

RESOURCE = "MONAILABEL_datastore"
FILE = "datastore.json"


class Description:
    """Texts about the datastore: ``name`` and ``description``.

    Parameters
    ----------
    session : Session
        The connection; of several configured projects the first one holds the texts.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._texts: dict[str, str] | None = None

    def get(self, key: str, default: str) -> str:
        """Give a text, or the default where none was set; asks XNAT once."""
        with self._lock:
            if self._texts is None:
                self._texts = self._read()
            return self._texts.get(key) or default

    def set(self, key: str, text: str) -> None:
        """Store a text in XNAT.

        Raises
        ------
        SettingsError
            If it is not clear which project should hold it.
        ServerError
            If XNAT does not take it.
        """
        with self._lock:
            texts = {**self._read(), key: str(text)}
            content = json.dumps(texts, indent=1, sort_keys=True).encode()
            path = self._resource(self._project())
            upload(self._session, path, FILE, content, format="JSON", content="MONAILABEL", overwrite=True)
            self._texts = texts

    def _read(self) -> dict[str, str]:
        projects = self._session.settings.project or tuple(list_projects(self._session))
        if not projects or (len(projects) > 1 and not self._session.settings.project):
            return {}
        path = self._resource(projects[0])
        if not any(file.path == FILE for file in list_files(self._session, path)):
            return {}
        try:
            texts = json.loads(self._session.request("GET", f"{path}/files/{FILE}").content)
        except ValueError:
            raise ServerError(f"{FILE} of project {projects[0]!r} is not JSON", hint="delete it in XNAT") from None
        return {str(key): str(text) for key, text in texts.items()} if isinstance(texts, dict) else {}

    def _project(self) -> str:
        projects = self._session.settings.project or tuple(list_projects(self._session))
        if not projects or (len(projects) > 1 and not self._session.settings.project):
            raise SettingsError(
                "which project should hold the name and description of the datastore?",
                hint="name one with the setting project",
            )
        return projects[0]

    @staticmethod
    def _resource(project: str) -> str:
        return quoted("data", "projects", project, "resources", RESOURCE)
