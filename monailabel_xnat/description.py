"""Name and description of a datastore, kept as a resource of its project."""

from __future__ import annotations

import json
import threading

from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.client.upload import upload
from monailabel_xnat.errors import ServerError, SettingsError
from monailabel_xnat.listing import list_projects
from monailabel_xnat.memory import Memory

RESOURCE = "MONAILABEL_datastore"
FILE = "datastore.json"

_KIND = "datastore"


class Description:
    """Texts about the datastore: ``name`` and ``description``.

    Parameters
    ----------
    session : Session
        The connection; of several configured projects the first one holds the texts.
    memory : Memory
        Keeps them on this machine, for :meth:`known`.
    """

    def __init__(self, session: Session, memory: Memory) -> None:
        self._session = session
        self._memory = memory
        self._lock = threading.Lock()
        self._texts: dict[str, str] | None = None

    def get(self, key: str, default: str) -> str:
        """Give a text, or the default where none was set; asks XNAT once."""
        with self._lock:
            if self._texts is None:
                self._texts = self._read()
                self._remember()
            return self._texts.get(key) or default

    def known(self, key: str, default: str) -> str:
        """Give a text as far as it was set or asked for on this machine, or the default; never asks XNAT."""
        texts = self._texts
        if texts is None:
            texts = self._memory.get(_KIND, self._key(), "") or {}
        return texts.get(key) or default

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
            project = self._home()
            if project is None:
                raise SettingsError(
                    "which project should hold the name and description of the datastore?",
                    hint="name one with the setting project",
                )
            texts = {**self._read(), key: str(text)}
            content = json.dumps(texts, indent=1, sort_keys=True).encode()
            upload(
                self._session,
                self._resource(project),
                FILE,
                content,
                format="JSON",
                content="MONAILABEL",
                overwrite=True,
            )
            self._texts = texts
            self._remember()

    def _remember(self) -> None:
        self._memory.put(_KIND, self._key(), "", self._texts)

    def _key(self) -> str:
        return ",".join(self._session.settings.project)

    def _read(self) -> dict[str, str]:
        project = self._home()
        if project is None:
            return {}
        path = self._resource(project)
        if not any(file.path == FILE for file in list_files(self._session, path)):
            return {}
        try:
            texts = json.loads(self._session.request("GET", f"{path}/files/{FILE}").content)
        except ValueError:
            raise ServerError(f"{FILE} of project {project!r} is not JSON", hint="delete it in XNAT") from None
        return {str(key): str(text) for key, text in texts.items()} if isinstance(texts, dict) else {}

    def _home(self) -> str | None:
        """Give the project that holds the texts: the first configured one, or the only one there is."""
        configured = self._session.settings.project
        projects = configured or list_projects(self._session)
        return projects[0] if configured or len(projects) == 1 else None

    @staticmethod
    def _resource(project: str) -> str:
        return quoted("data", "projects", project, "resources", RESOURCE)
