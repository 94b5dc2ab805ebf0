"""What stands below ``/data/services`` and ``/data/prearchive``, sent to its module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monailabel_xnat.sandbox.access.permissions import Permissions
from monailabel_xnat.sandbox.archive.archive import Archive
from monailabel_xnat.sandbox.archive.refresh import CatalogRefresh
from monailabel_xnat.sandbox.archive.resources import Resources
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply
from monailabel_xnat.sandbox.http.request import Request

if TYPE_CHECKING:
    from monailabel_xnat.sandbox.dicom.prearchivehandlers import PrearchiveCalls


class Services:
    """The services, for one request's user.

    Those that read DICOM are imported when first asked for: pydicom takes half of the sandbox's start otherwise.
    """

    def __init__(self, archive: Archive, resources: Resources, may: Permissions) -> None:
        self._parts = (archive, resources, may)

    def answer(self, request: Request, words: list[str]) -> Reply | None:
        """Answer what is a service; None if the path, below ``/data``, is none of these.

        Raises
        ------
        HTTPError
            404 for a service that the sandbox does not have.
        """
        if words[:1] == ["prearchive"]:
            return self._prearchive().handle(request, words[1:])
        return self._service(request, words[1:]) if words[:1] == ["services"] else None

    def _service(self, request: Request, name: list[str]) -> Reply:
        if name == ["import"]:
            from monailabel_xnat.sandbox.dicom.importing import Import

            return Import(*self._parts).handle(request)
        if name == ["archive"]:
            return self._prearchive().service(request, "archive")
        if name[:1] == ["prearchive"] and len(name) == 2:
            return self._prearchive().service(request, name[1])
        if name == ["refresh", "catalog"]:
            return CatalogRefresh(*self._parts).handle(request)
        if name == ["dicomdump"]:
            from monailabel_xnat.sandbox.dicom.dicomdump import DicomDump

            return DicomDump(*self._parts).handle(request)
        raise HTTPError(404)

    def _prearchive(self) -> PrearchiveCalls:
        from monailabel_xnat.sandbox.dicom.prearchivehandlers import PrearchiveCalls

        return PrearchiveCalls(*self._parts)
