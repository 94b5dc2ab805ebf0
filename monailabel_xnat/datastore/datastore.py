"""MONAI Label's datastore over an XNAT archive: all its methods, a few lines each.

Images are XNAT scans with the id ``project/subject/experiment/scan``. A label has the id of its image, and the tag
says which label it is. Other modules do the work: :mod:`~monailabel_xnat.catalog.catalog` knows what exists,
:mod:`~monailabel_xnat.images.images` fetches and converts, :mod:`~monailabel_xnat.labels` stores and reads labels,
:mod:`~monailabel_xnat.images.info` keeps image infos; ``xnatside.py`` has ``_scan``, ``_find`` and ``_label``.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO

from monailabel.interfaces.datastore import Datastore
from typing_extensions import Unpack

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.catalog.first_listing import FirstListing
from monailabel_xnat.client.connection import server_of
from monailabel_xnat.client.graph import Graph, XNATScan, XNATSession, name_of
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings, refuse_unknown
from monailabel_xnat.datastore.client_errors import errors_for_clients
from monailabel_xnat.datastore.facts import Facts
from monailabel_xnat.datastore.opening import ARGUMENTS, Reopening, SettingArguments, settings_beside
from monailabel_xnat.datastore.texts import DatastoreTexts, default_texts
from monailabel_xnat.datastore.xnatside import XnatSide
from monailabel_xnat.errors import InvalidIdError, UnknownImageError, UnknownLabelError
from monailabel_xnat.images import Images
from monailabel_xnat.images.info import ImageInfos
from monailabel_xnat.images.prefetch import PrefetchReport, Progress
from monailabel_xnat.images.scan_writer import ScanWriter
from monailabel_xnat.labels import Labels, LabelStore
from monailabel_xnat.labels.tags import text_of
from monailabel_xnat.labels.version import summary_of
from monailabel_xnat.training.dataset import TRAINING_TAG, TrainingCases
from monailabel_xnat.training.next_samples import NextSamples
from monailabel_xnat.training.training_set import TrainingSet

logger = logging.getLogger(__name__)

MOST_LISTED = 50
"""The number of waiting labels that :meth:`XNATDatastore.status` lists at most; the command ``outbox`` lists all."""


class XNATDatastore(Reopening, XnatSide, Datastore):  # type: ignore[misc]
    """Images and labels of an XNAT archive, for MONAI Label and for training scripts.

    Parameters
    ----------
    api_url : str
        Address of the XNAT site, ``https://xnat.example.org``; not needed if a connection is given.
    username, password : str or None
        Credentials; None: those of the environment or ``~/.netrc``, and without any XNAT is asked as a guest.
    project : str, sequence of str or None
        Project IDs, in a list or separated by commas; None: all projects that the user can read.
    asset_path : str
        Folder where XNAT's archive is mounted on this machine.
    cache_path : str
        Folder for downloads; default: the user's cache folder.
    conf : mapping or None
        MONAI Label's ``--conf``; its entries ``xnat_<setting>`` are settings.
    environ : mapping or None
        Environment to read settings from; None: that of this process.
    connection : xnatpy session or None
        What ``xnat.connect(...)`` returned. The datastore uses its login, and neither changes nor closes the session.
        Once that login has expired, it logs in with ``username`` and ``password`` if they are given as arguments.
        Such a datastore can be used in this process only.
    **settings
        Any other field of :class:`~monailabel_xnat.config.Settings`.

    Raises
    ------
    UnknownSettingError
        If a keyword is not a setting (also a TypeError).
    SettingsError
        If a setting is missing or wrong.
    LoginError
        If XNAT does not accept the credentials.
    NotInArchiveError
        If a project does not exist, or this user may not see it. A project that this user has seen before on this
        machine is left out instead, and :meth:`status` says why; if no project remains, it is an error.
    ServerError
        If XNAT cannot be reached. With the setting ``wait`` the datastore opens nevertheless: its methods raise this
        error until XNAT answers, and labels that are saved meanwhile are kept on this machine.
    """

    def __init__(
        self,
        api_url: str = "",
        username: str | None = None,
        password: str | None = None,
        project: str | Sequence[str] | None = None,
        asset_path: str | Path = "",
        cache_path: str | Path = "",
        *,
        conf: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        connection: XNATSession | None = None,
        **settings: Unpack[SettingArguments],
    ) -> None:
        refuse_unknown(settings, ARGUMENTS)
        given = {"username": username, "password": password, "project": project, "asset_path": asset_path}
        arguments = {"server": api_url, **given, "cache_path": cache_path, **settings}
        if connection is None:
            self._open(Settings.load(arguments, conf, environ))
        else:
            self._open(settings_beside(server_of(connection), arguments, conf, environ), connection)

    def _open(self, settings: Settings, connection: XNATSession | None = None) -> None:
        self._settings = settings
        self._is_borrowed = connection is not None
        session = Session(settings, owner=connection)
        self._catalog = Catalog(session)
        self._images = Images(session, settings, self._catalog.read_cache)
        self._scan_writer = ScanWriter(session, self._catalog)
        self._labels = Labels(session, self._catalog, self._images, settings)
        self._store = LabelStore(session, self._catalog, self._images, settings, self._labels)
        self._infos = ImageInfos(session, self._catalog)
        self._facts = Facts(self._images, self._labels, self._infos)
        self._dataset = TrainingCases(session, self._catalog, self._images, self._labels)
        self._next = NextSamples(settings, self._catalog, self._images, self._labels, self._infos)
        self._texts = DatastoreTexts(session, self._catalog)
        self._graph = Graph(session)
        self._session = session
        self._first_listing = FirstListing(self._catalog)
        self._first_listing.take(wait=settings.wait)
        self._end_with_process()

    def __repr__(self) -> str:
        projects = ", ".join(self._settings.project) or "all projects"
        user = self._session.known_user if self._is_open else self._settings.username
        return f"<{type(self).__name__} {self._settings.server}: {projects}, as {user or 'guest'}>"

    def name(self) -> str:
        """Return the name that was set with :meth:`set_name`; without one, XNAT's address."""
        with errors_for_clients():
            return self._texts.get("name", default_texts(self._settings)["name"])

    def set_name(self, name: str) -> None:
        """Store a name in XNAT."""
        with errors_for_clients():
            self._texts.set("name", name)

    def description(self) -> str:
        """Return the description that was set; without one, a text that names the projects."""
        with errors_for_clients():
            return self._texts.get("description", default_texts(self._settings)["description"])

    def set_description(self, description: str) -> None:
        """Store a description in XNAT."""
        with errors_for_clients():
            self._texts.set("description", description)

    def list_images(self) -> list[str]:
        """List the ids of all images."""
        with errors_for_clients():
            return self._catalog.ids()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """List the ids of the images that have a label; as in LocalDatastore, drafts count only if their tag is given.

        Parameters
        ----------
        label_tag : str or None
            The tag of the labels that count; None: ``final``.
        labels : list of str or None
            Accepted and ignored, as by MONAI Label's own datastores.
        """
        with errors_for_clients():
            labelled = self._labels.images(text_of(label_tag) or TRAINING_TAG)
            return [image for image in self._catalog.ids() if image in labelled] if labelled else []

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """List the ids of images without a label, except scans that are no volume; see :meth:`get_labeled_images`."""
        with errors_for_clients():
            left_out = {*self._images.no_volumes(self._catalog.get), *self._next.hidden}
            left_out.update(self.get_labeled_images(label_tag, labels))
            return [image for image in self._catalog.ids() if image not in left_out]

    def get_image(self, image_id: str | XNATScan, params: Any = None) -> BinaryIO | None:
        """Return the file of :meth:`get_image_uri`, opened for reading; None for an unknown id."""
        with errors_for_clients():
            scan = self._find(image_id)
            return self._images.open(scan) if scan else None

    def get_image_uri(self, image_id: str | XNATScan) -> str:
        """Return the path of an image on this machine; "" for an unknown id. It is fetched and converted only once.

        The NIfTI has the voxels, index order and affine (RAS, mm) that MONAI's ITKReader gives on the DICOM series.

        Raises
        ------
        NoImageError, ImageConversionError
            If the scan holds no image, or if its images are not one volume.
        ServerError
            If XNAT fails.
        """
        with errors_for_clients():
            scan = self._find(image_id)
            return str(self._images.path(scan)) if scan else ""

    def get_image_info(self, image_id: str | XNATScan) -> dict[str, Any]:
        """Return what is known about an image, from memory; {} for an unknown id: the XNAT-OHIF viewer relies on that.

        The keys are: ``name`` (file name for clients), ``path`` and ``checksum`` (if it was fetched and need not be
        compared with XNAT first), ``project``, ``subject``, ``experiment``, ``scan``, ``PatientID``,
        ``StudyInstanceUID``, ``SeriesInstanceUID``, ``StudyDate``, ``Modality``, ``SeriesDescription``, ``ts`` (when
        its session came into the archive, in seconds since 1970; XNAT's clock is taken for UTC); then all that was
        stored with :meth:`update_image_info`.
        """
        with errors_for_clients():
            scan = self._find(image_id)
            return self._facts.image(scan) if scan else {}

    def update_image_info(self, image_id: str | XNATScan, info: dict[str, Any]) -> None:
        """Merge top-level keys into the info of an image; a background thread sends them to XNAT.

        Raises
        ------
        ImageNotFoundException
            If there is no such image (also an UnknownImageError).
        """
        with errors_for_clients():
            scan = self._scan(image_id)
            self._infos.update(scan, info)
            if "strategy" in info:  # MONAI Label has just handed this image out as the next sample
                self._images.expect(lambda count: self._next.likely(scan, count))

    def get_labels_by_image_id(self, image_id: str | XNATScan) -> dict[str, str]:
        """Return the label ids of an image by tag; {} for an unknown id."""
        with errors_for_clients():
            scan = self._find(image_id)
            return {tag: str(scan.image_id) for tag in self._labels.tags(scan)} if scan else {}

    def get_label_by_image_id(self, image_id: str | XNATScan, tag: str) -> str:
        """Return the id of the label of an image with a tag; "" if there is none."""
        return self.get_labels_by_image_id(image_id).get(text_of(tag), "")

    def get_label(self, label_id: str | XNATScan, label_tag: str, params: Any = None) -> io.BytesIO | None:
        """Return the content of a label's file; None if there is no such label."""
        uri = self.get_label_uri(label_id, label_tag)
        return io.BytesIO(Path(uri).read_bytes()) if uri else None

    def get_label_uri(self, label_id: str | XNATScan, label_tag: str) -> str:
        """Return the path of a label on this machine; "" if there is none. The label lies on the grid of its image."""
        with errors_for_clients():
            try:
                scan, label = self._label(label_id)
                if label.names_drawing:
                    return str(self._labels.drawing_path(scan, label))
                return str(self._labels.path(scan, text_of(label_tag), label.version))
            except (InvalidIdError, UnknownImageError, UnknownLabelError):
                return ""

    def get_label_info(self, label_id: str | XNATScan, label_tag: str) -> dict[str, Any]:
        """Return the info that was stored with a label, with ``ts`` and ``name`` as in LocalDatastore; {} if none."""
        with errors_for_clients():
            try:
                scan, label = self._label(label_id)
                if label.names_drawing:
                    return self._facts.drawing(scan, label)
                return self._facts.label(scan, text_of(label_tag), label.version)
            except (InvalidIdError, UnknownImageError, UnknownLabelError):
                return {}

    def update_label_info(self, label_id: str | XNATScan, label_tag: str, info: dict[str, Any]) -> None:
        """Merge top-level keys into the info of a label.

        Raises
        ------
        LabelNotFoundException
            If there is no such label (also an UnknownLabelError).
        """
        with errors_for_clients():
            self._store.update_info(self._label(label_id)[0], text_of(label_tag), info)

    def save_label(
        self, image_id: str | XNATScan, label_filename: str | Path, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Store a label in XNAT as a new version. Earlier versions do not change, and the given file is only read.

        Returns
        -------
        str
            The label id, which is the image id.

        Raises
        ------
        ImageNotFoundException, AmbiguousNameError
            If there is no such image (also an UnknownImageError), or several have the name; the label is kept here.
        LabelFileError, LabelGeometryError
            If the file is not a label, or does not fit this image.
        LabelNotUploadedError
            If XNAT cannot take it now. The label is safe on this machine, is served from there, and is sent later.
        """
        tag = text_of(label_tag) or TRAINING_TAG
        with errors_for_clients():
            find, source = lambda: self._scan(image_id, insist=True), Path(label_filename)
            return str(self._store.save_as_given(name_of(image_id), find, tag, source, label_info or {}).image_id)

    def remove_label(self, label_id: str | XNATScan, label_tag: str) -> None:
        """Remove a label. If it does not exist, nothing happens, as in LocalDatastore."""
        with errors_for_clients():
            scan = self._find(label_id)
            if scan:
                self._store.remove(scan, text_of(label_tag))

    def label_history(self, label_id: str | XNATScan, label_tag: str) -> list[dict[str, Any]]:
        """List the versions of a label, newest first; see :func:`~monailabel_xnat.labels.version.summary_of`."""
        with errors_for_clients():
            scan, _ = self._label(label_id)
            return [summary_of(version) for version in self._labels.history(scan, text_of(label_tag))]

    def restore_label(self, label_id: str | XNATScan, label_tag: str, version: str) -> str:
        """Store an earlier version again as the current one, and return the name of the new version."""
        with errors_for_clients():
            scan, _ = self._label(label_id)
            return self._store.restore(scan, text_of(label_tag), version).name

    def add_image(self, image_id: str | None, image_filename: str | Path, image_info: dict[str, Any]) -> str:
        """Store a new image in XNAT.

        Parameters
        ----------
        image_id : str or None
            ``project/subject/experiment/scan`` with labels that the caller chooses; None: made from the file name.
        image_filename : str or Path
            A NIfTI or other image file; or DICOM: a file, a folder or a zip.
        image_info : dict
            Info to store with the image, as :meth:`update_image_info` does.

        Returns
        -------
        str
            The canonical id, with XNAT's own ids.
        """
        with errors_for_clients():
            scan = self._scan_writer.add(image_id, Path(image_filename))
            if image_info:
                self._infos.update(scan, image_info)
            return str(scan.image_id)

    def remove_image(self, image_id: str | XNATScan) -> None:
        """Delete the scan in XNAT with its labels; this is refused without the setting ``allow_delete``."""
        with errors_for_clients():
            scan = self._scan(image_id)
            self._scan_writer.remove(scan)
            self._images.discard(scan)
            self._catalog.drop(scan.image_id)
            self._store.forget(scan)
            self._infos.forget(scan.image_id)

    def datalist(self) -> list[dict[str, Any]]:
        """Fetch all images with a final label: ``[{"image": path, "label": path}, ...]``; each pair is on one grid."""
        with errors_for_clients():
            return list(self._dataset.pairs())

    def training_set(self) -> TrainingSet:
        """Fetch the cases of :meth:`datalist`; return each with its id, subject, label version and checksums."""
        with errors_for_clients():
            return self._dataset.training_set()

    def get_dataset_archive(self, limit_cases: int | None = None) -> str:
        """Pack the training set into a zip, and return its path."""
        with errors_for_clients():
            return str(self._dataset.archive(limit_cases, self.json()))

    def refresh(self) -> None:
        """Ask XNAT again what exists; images and labels on this machine are compared with XNAT's at their next use."""
        with errors_for_clients():
            self._catalog.renew()
            self._images.compare_anew()
            self._labels.compare_anew()

    def status(self) -> dict[str, Any]:
        """Return counts of images and labels, and what needs attention, from memory: it works while XNAT is away."""
        tags = self._labels.counts()
        status = {"total": len(self._catalog), "completed": tags.get(TRAINING_TAG, 0), "label_tags": tags}
        details = {
            "roi_collections": self._labels.drawn,
            **self._catalog.unread,
            **self._infos.report,
            "xnat": self._catalog.problem,
            "filters": self._catalog.filter_problem,
            "no_volume": self._images.no_volumes(self._catalog.get),
            **self._store.counts,
            "outbox_waits": self._store.report()[:MOST_LISTED],
            **self._dataset.outcome,
            "image_notes": self._images.notes,
            **self._session.report,
        }
        return {**status, **{key: value for key, value in details.items() if value}}

    def json(self) -> dict[str, Any]:
        """Return all that is known about images and labels, in the form of LocalDatastore, nearly without requests.

        XNAT is asked only for new infos of images and labels; see :meth:`get_image_info`. Name and description are
        those that were last set or read on this machine.
        """
        with errors_for_clients():
            objects = self._facts.tree(self._catalog.scans())
        texts = {key: self._texts.known(key, text) for key, text in default_texts(self._settings).items()}
        return {**texts, "images_dir": "", "labels_dir": "", "objects": objects}

    def prefetch(
        self,
        image_ids: Iterable[str | XNATScan],
        *,
        workers: int = 4,
        progress: Callable[[Progress], None] | None = None,
        executor: Executor | None = None,
    ) -> PrefetchReport:
        """Fetch many images, several at a time, and return which were fetched and which failed.

        Parameters
        ----------
        image_ids : iterable of str
            The images to fetch.
        workers : int
            How many are fetched at a time; it has no effect with an executor.
        progress : callable or None
            Called after each image.
        executor : concurrent.futures.Executor or None
            Does the work instead of threads of this process; its workers open connections of their own.

        Raises
        ------
        UnknownImageError, InvalidIdError
            If an id is not the id of an image; then nothing is fetched.
        """
        with errors_for_clients():
            scans = [self._scan(image) for image in image_ids]
            return self._images.prefetch(scans, workers=workers, progress=progress, executor=executor)

    def close(self) -> None:
        """Send what waits for XNAT, and log out; an xnatpy session that was given as connection stays open."""
        if not self._is_open:
            return
        self._close_at_exit()
        self._first_listing.close()
        self._infos.close()
        self._store.close()
        self._images.close()
        self._catalog.close()
        self._session.close()
