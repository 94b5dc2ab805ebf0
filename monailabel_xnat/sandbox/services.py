"""What stands below ``/data/services`` and ``/data/prearchive``, sent to its module."""

from __future__ import annotations

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.dicomdump import DicomDump
from monailabel_xnat.sandbox.importing import Import
from monailabel_xnat.sandbox.permissions import Permissions
from monailabel_xnat.sandbox.prearchivehandlers import PrearchiveCalls
from monailabel_xnat.sandbox.refresh import CatalogRefresh
from monailabel_xnat.sandbox.replies import HTTPError, Reply
from monailabel_xnat.sandbox.request import Request
from monailabel_xnat.sandbox.resources import Resources


class Services:
    """The services, for one request's user."""

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._import = Import(archive, resources, may)
        self._prearchive = PrearchiveCalls(archive, resources, may)
        self._refresh = CatalogRefresh(archive, resources, may)
        self._dump = DicomDump(archive, resources, may)

    def answer(self, request: Request, words: list[str]) -> Reply | None:
        """Answer what is a service; None if the path, below ``/data``, is none of these.

        Raises
        ------
        HTTPError
            404 for a service that the sandbox does not have.
        """
        if words[:1] == ["prearchive"]:
            return self._prearchive.handle(request, words[1:])
        if words[:1] != ["services"]:
            return None
        name = words[1:]
        if name == ["import"]:
            return self._import.handle(request)
        if name == ["archive"]:
            return self._prearchive.service(request, "archive")
        if name[:1] == ["prearchive"] and len(name) == 2:
            return self._prearchive.service(request, name[1])
        if name == ["refresh", "catalog"]:
            return self._refresh.handle(request)
        if name == ["dicomdump"]:
            return self._dump.handle(request)
        raise HTTPError(404)
