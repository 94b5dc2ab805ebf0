"""The methods of the datastore for people who use xnatpy: they take and return objects of xnatpy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.client.dicomweb import DicomWebAnswer, read_dicomweb, root_of
from monailabel_xnat.client.graph import Graph, Item, XNATScan, XNATSession, is_scan, name_of
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.datastore.client_errors import errors_for_clients
from monailabel_xnat.errors import InvalidIdError, LabelFileError, SettingsError, UnknownImageError
from monailabel_xnat.ids import LabelId
from monailabel_xnat.images import Images
from monailabel_xnat.images.info import ImageInfos
from monailabel_xnat.labels import Labels
from monailabel_xnat.labels.description import describe
from monailabel_xnat.labels.incoming import read_incoming
from monailabel_xnat.labels.index import DRAFT_TAG
from monailabel_xnat.labels.viewer_copies import write_as_seg
from monailabel_xnat.training.next_samples import NextSamples


class XnatSide:
    """The methods that a datastore on XNAT has in addition to MONAI Label's: for xnatpy, DICOM SEG and DICOMweb.

    Objects of xnatpy belong to the session :attr:`xnat`, and can be used as long as that session is open.
    """

    __slots__ = ()

    _catalog: Catalog
    _graph: Graph
    _images: Images
    _infos: ImageInfos
    _labels: Labels
    _next: NextSamples
    _session: Session
    _settings: Settings

    @property
    def xnat(self) -> XNATSession:
        """The session of xnatpy, with XNAT's data model: the one that was given as ``connection``, or our own.

        The data model is loaded at the first use, which takes a while. Our own session renews its login by itself, so
        it and its objects can be used until the process ends.
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
            If the scan is not one of the images (also an UnknownImageError).
        InvalidIdError
            If the object belongs to another XNAT.
        """
        with errors_for_clients():
            return str(self._scan(scan).image_id)

    def image_ids(self, item: Item) -> list[str]:
        """Return the ids of the images in a project, subject, experiment or scan of xnatpy.

        They come from memory. XNAT is asked only about a project that is not among those of this datastore: images of
        this datastore may be shared into it.

        Raises
        ------
        InvalidIdError
            If the object is of another kind, or belongs to another XNAT.
        """
        with errors_for_clients():
            if is_scan(item):
                found = self._find(item)
                return [str(found.image_id)] if found else []
            contents = self._graph.contents_of(item)
            scans = self._catalog.of_project(contents.project) if contents.project else self._catalog.scans()
            return [str(scan.image_id) for scan in scans if contents.holds(scan.image_id)]

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

    def write_dicom_seg(
        self, image_id: str | XNATScan, label_filename: str, label_info: Mapping[str, Any], target: str | Path
    ) -> None:
        """Write a label to a DICOM SEG file that refers to the series of its image; nothing is stored in XNAT.

        Parameters
        ----------
        image_id : str
            The image; it must be stored as DICOM.
        label_filename : str
            A label map on the grid of the image, of any kind that :meth:`save_label` takes.
        label_info : dict
            As for :meth:`save_label`; it contains the names of the values.
        target : str or Path
            The file to write.

        Raises
        ------
        ImageNotFoundException
            If there is no such image (also an UnknownImageError).
        NoImageError
            If the image is not stored as DICOM.
        LabelFileError, LabelGeometryError, LabelError
            If the file is not a label map, does not fit this image, or is empty: a SEG cannot be empty.
        """
        with errors_for_clients():
            scan = self._scan(image_id)
            incoming = read_incoming(Path(label_filename), lambda: self._images.grid(scan))
            if incoming.problem is not None:
                raise incoming.problem
            if incoming.label is None:
                raise LabelFileError("the result is no segmentation", hint="ask for it as JSON")
            label, sent_as = incoming.label, incoming.file_type
            configured = self._settings.label_values
            description = describe(scan, DRAFT_TAG, label_info, label=label, file_type=sent_as, configured=configured)
            write_as_seg(self._images, scan, label, DRAFT_TAG, description, Path(target))

    def require_dicom(self, image_id: str | XNATScan) -> None:
        """Raise an error unless an image is stored as DICOM, so that a SEG can refer to it. It is fetched if needed.

        Raises
        ------
        ImageNotFoundException
            If there is no such image (also an UnknownImageError).
        NoImageError
            If it is not stored as DICOM.
        """
        with errors_for_clients():
            self._images.dicom_folder(self._scan(image_id))

    def dicomweb(self, path: str, query: str = "", accept: str = "", root: str = "") -> DicomWebAnswer:
        """Return the answer of XNAT's DICOMweb plugin to a request with the login of this datastore.

        Parameters
        ----------
        path : str
            The path below the service: ``studies/<UID>/series``.
        query : str
            The query, encoded as in an address.
        accept : str
            The media types that the client accepts; empty: all.
        root : str
            Path of the DICOMweb service below XNAT's address; empty: that of the only project in the settings.

        Raises
        ------
        SettingsError
            If no root is given, and the settings do not name exactly one project.
        InvalidIdError
            If the path is not one of DICOMweb, or leads out of it.
        """
        with errors_for_clients():
            if not root and len(self._settings.project) != 1:
                raise SettingsError(
                    "XNAT's DICOMweb plugin serves each project by itself, and the settings name no project or several",
                    hint="set MONAI_LABEL_QIDO_PREFIX and MONAI_LABEL_WADO_PREFIX to xapi/dicomweb/projects/<project>",
                )
            return read_dicomweb(self._session, root or root_of(self._settings.project[0]), path, query, accept)

    def info_values(self, image_ids: Collection[str], *keys: str) -> dict[str, Any]:
        """Return one value of what is stored with many images, by the ids of those that have it.

        Parameters
        ----------
        image_ids : collection of str
            Which images, by their ids as in :meth:`list_images`.
        *keys : str
            Where the value stands among what was stored with the image: ``"epistemic_entropy"``, or
            ``"strategy", "random", "ts"``.
        """
        with errors_for_clients():
            return self._infos.values(image_ids, keys)

    def hand_out(self, choose: Callable[[], Any], client_id: str = "") -> Any:
        """Return the next sample that a strategy chooses, and claim it on all servers.

        ``choose`` asks the strategy, and ``client_id`` is the client that asks; see :meth:`NextSamples.hand_out`.
        """
        with errors_for_clients():
            return self._next.hand_out(choose, client_id)

    def _scan(self, image: str | XNATScan, *, insist: bool = False) -> Scan:
        """Return an image by its id, another name, or xnatpy's object of it; see :meth:`Catalog.scan`."""
        if not is_scan(image):
            return self._catalog.scan(image, insist=insist)
        for place in self._graph.places_of(image):
            found = self._catalog.by_session(place.experiment, place.scan)
            if found and place.subject in ("", found.image_id.subject, found.subject_label):
                return found
        raise UnknownImageError(
            f"no image {name_of(image)!r} on {self._graph.server}",
            hint="the filters in the settings may leave it out, or it has no image files; refresh() shows what is new",
        )

    def _label(self, label: str | XNATScan) -> tuple[Scan, LabelId]:
        """Return the image of a label, and the label's id, by that id as text or by xnatpy's object of the image."""
        if not is_scan(label):
            return self._catalog.label(label)
        scan = self._scan(label)
        return scan, LabelId(scan.image_id)

    def _find(self, image: str | XNATScan) -> Scan | None:
        try:
            return self._scan(image)
        except (InvalidIdError, UnknownImageError):
            return None
