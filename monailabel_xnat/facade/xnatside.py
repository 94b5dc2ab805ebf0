"""The datastore as people see it who know xnatpy: its objects in, its objects out."""

from __future__ import annotations

from typing import Any

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.client.graph import Graph, Item, XNATScan, XNATSession, is_scan
from monailabel_xnat.errors import InvalidIdError, UnknownImageError
from monailabel_xnat.facade.client_errors import errors_for_clients
from monailabel_xnat.ids import LabelId
from monailabel_xnat.labels import Labels


class XnatSide:
    """What a datastore over an XNAT has beyond MONAI Label's: the session, scans and label resources of xnatpy.

    Each object is one of the session :attr:`xnat`, and good as long as that session is open.
    """

    __slots__ = ()

    _catalog: Catalog
    _graph: Graph
    _labels: Labels

    @property
    def xnat(self) -> XNATSession:
        """The session of xnatpy: the one that was given as ``connection``, else our own, with XNAT's data model.

        The data model is loaded at the first use, which takes a while. Our own session keeps its login by itself:
        it and its objects are good until the process ends.
        """
        with errors_for_clients():
            return self._graph.xnat

    def scan(self, image_id: str | XNATScan) -> XNATScan:
        """Return xnatpy's object of an image.

        Raises
        ------
        ImageNotFoundException
            If there is no such image (also an UnknownImageError).
        NotInArchiveError
            If XNAT does not have it any more.
        """
        with errors_for_clients():
            return self._graph.scan(self._scan(image_id).path)

    def image_id(self, scan: str | XNATScan) -> str:
        """Return the image id of a scan of xnatpy, as in :meth:`list_images`.

        Raises
        ------
        ImageNotFoundException
            If it is none of the images (also an UnknownImageError).
        InvalidIdError
            If it is an object of another XNAT.
        """
        with errors_for_clients():
            return str(self._scan(scan).image_id)

    def image_ids(self, item: Item) -> list[str]:
        """Return the ids of the images in a project, subject, experiment or scan of xnatpy, from memory.

        Raises
        ------
        InvalidIdError
            If it is an object of another kind, or of another XNAT.
        """
        with errors_for_clients():
            if is_scan(item):
                found = self._find(item)
                return [str(found.image_id)] if found else []
            contents = self._graph.contents_of(item)
            return [str(scan.image_id) for scan in self._catalog.scans() if contents.holds(scan.image_id, scan.owner)]

    def label_resource(self, image_id: str | XNATScan, tag: str) -> Any:
        """Return xnatpy's object of the resource that holds the versions of a label.

        Raises
        ------
        ImageNotFoundException, LabelNotFoundException
            If there is no such image or label in XNAT (also an UnknownImageError, UnknownLabelError).
        """
        with errors_for_clients():
            scan = self._scan(image_id)
            return self._graph.resource(*self._labels.resource(scan, tag))

    def _scan(self, image: str | XNATScan, *, insist: bool = False) -> Scan:
        """Find an image by its id or by xnatpy's object of it; see :meth:`Catalog.scan`."""
        if not is_scan(image):
            return self._catalog.scan(image, insist=insist)
        for place in self._graph.places_of(image):
            found = self._catalog.by_session(*place)
            if found:
                return found
        raise UnknownImageError(
            f"no image {image!r} on {self._graph.server}",
            hint="the filters in the settings may leave it out, or it has no image files; refresh() shows what is new",
        )

    def _label(self, label: str | XNATScan) -> tuple[Scan, LabelId]:
        """Find the image of a label by the label's id, or by xnatpy's object of the image."""
        if not is_scan(label):
            return self._catalog.label(label)
        scan = self._scan(label)
        return scan, LabelId(scan.image_id)

    def _find(self, image: str | XNATScan) -> Scan | None:
        try:
            return self._scan(image)
        except (InvalidIdError, UnknownImageError):
            return None
