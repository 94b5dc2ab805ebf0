"""Reading labels: which labels exist, their files, their descriptions and their history."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from monailabel_xnat.catalog import Catalog, Resource, Scan
from monailabel_xnat.catalog.selection import drawn_labels
from monailabel_xnat.client.drawn import Drawing, DrawnScan
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.convert import Grid
from monailabel_xnat.disk import text_digest
from monailabel_xnat.errors import (
    CacheError,
    MalformedFileError,
    NotInArchiveError,
    ServerError,
    TransferError,
    UnknownImageError,
    UnknownLabelError,
    XNATDatastoreError,
)
from monailabel_xnat.ids import LabelId
from monailabel_xnat.images import Images
from monailabel_xnat.images.imagefile import true_ending
from monailabel_xnat.labels.description import Descriptions, info_of
from monailabel_xnat.labels.drawings import Drawings
from monailabel_xnat.labels.entry import State, WaitingLabel
from monailabel_xnat.labels.files import (
    LabelFiles,
    align,
    grid_now,
    grid_of_file,
    mark_of,
    place,
    require_fit_of_description,
    require_fit_of_file,
)
from monailabel_xnat.labels.index import HalfLabels, Index, LabelCounts
from monailabel_xnat.labels.outbox import outbox_of
from monailabel_xnat.labels.resources import BUILT_IN_RESOURCE, StoredVersions
from monailabel_xnat.labels.segments import differing_values, write_mapped
from monailabel_xnat.labels.tags import resource_of, text_of
from monailabel_xnat.labels.version import LABEL_MAP, WITHOUT_DESCRIPTION, LabelVersion

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Labels:
    """Reads the labels of images.

    The label with a tag is the newest one among the versions in XNAT and those that wait in the outbox. For the tag in
    the setting ``roi_tag``, drawings count as well: ROI collections, and scans that hold a DICOM SEG or RTSTRUCT.

    Parameters
    ----------
    session : Session
        The connection.
    catalog : Catalog
        Finds the images, and gets what our own writes change.
    images : Images
        Returns the grids of images.
    settings : Settings
        The settings: folders, and the values of labels.

    Attributes
    ----------
    outbox, files, versions, index, drawings, descriptions
        The parts that hold the labels; `LabelStore`, which changes labels, uses them too.
    """

    def __init__(self, session: Session, catalog: Catalog, images: Images, settings: Settings) -> None:
        self._session = session
        self._images = images
        self._settings = settings
        self._catalog = catalog
        folder = settings.server_folder / "labels"
        self.outbox = outbox_of(settings, self._note_departure)
        self.files = LabelFiles(session, folder)
        self.versions = StoredVersions(session, catalog, lambda image: self._label_counts.update([image]))
        self.index = Index(self.versions, self.outbox, settings.label_resource)
        self.drawings = Drawings(session, images, folder, catalog.read_cache)
        self.descriptions = Descriptions(session, catalog.read_cache)
        self._label_counts = LabelCounts(catalog, self._tags_in_xnat, lambda scan: len(drawn_labels(scan, settings)))
        self._halves = HalfLabels(catalog, self.versions, settings.connections)

    @property
    def drawn(self) -> int:
        """How many drawings that were saved in viewers count as labels."""
        return self._label_counts.drawn

    def counts(self) -> dict[str, int]:
        """Return how many images have a label, by tag, waiting labels included; makes no request."""
        counts = Counter(self._label_counts.counts())
        for tag in {entry.tag for entry in self.outbox.entries()}:
            counts[tag] = len(self.images(tag))
        return dict(+counts)

    def images(self, tag: str) -> set[str]:
        """Return the ids of the images that have a label with a tag, waiting labels included; makes no request."""
        images = self._label_counts.images(tag)
        for entry in self.outbox.entries():
            scan = self._waiting_on(entry) if entry.tag == tag else None
            if scan is not None:
                images.add(str(scan.image_id))
        return images

    def tags(self, scan: Scan) -> list[str]:
        """Return the tags of the labels that an image has, waiting labels included; makes no request."""
        return self._with_drawn(scan, self.index.tags(scan))

    def current(self, scan: Scan, tag: str) -> LabelVersion:
        """Return the current version of a label, without its description.

        Raises
        ------
        UnknownLabelError
            If there is no such label.
        ServerError
            If XNAT fails.
        """
        tag = text_of(tag)
        drawn = self.drawing(scan, tag)
        return self.drawings.version(scan, drawn) if drawn else self.index.find(scan, tag)

    def resource(self, scan: Scan, tag: str) -> tuple[str, str]:
        """Return where XNAT holds a label: the path of the scan or ROI collection, and the name of its resource.

        Raises
        ------
        UnknownLabelError
            If there is no such label in XNAT.
        """
        drawn = self.drawing(scan, tag)
        if isinstance(drawn, DrawnScan):
            return drawn.path, drawn.folder
        return (drawn.path, drawn.kind) if drawn else (scan.path, self.index.resource(scan, tag))

    def path(self, scan: Scan, tag: str, version: str | None = None) -> Path:
        """Return the file of a label, of its current or of an earlier version; it is downloaded only once.

        Raises
        ------
        UnknownLabelError
            If there is no such label or version.
        LabelGeometryError
            If the image changed after the label was made.
        LabelError
            If it is a drawing that cannot be read as a label of the image.
        UnreadDrawingError
            If a drawing that cannot be read may be newer.
        ServerError
            If XNAT fails.
        """
        tag = text_of(tag)
        scan = self.compared(scan) if version is None and tag == self._settings.roi_tag else scan
        return self._listed_anew(scan, lambda: self._path(scan, tag, version))

    def compare_drawn(self) -> None:
        """Check whether scans that hold drawings were overwritten; :meth:`training_path` relies on this check."""
        self._catalog.compare_drawn()

    def compared(self, scan: Scan) -> Scan:
        """Return an image with the drawings that it has now; the listing does not show changes in drawn scans.

        Raises
        ------
        ServerError
            If XNAT fails, so that it is not known what is drawn now.
        """
        if not scan.drawn_scans:
            return scan
        self._catalog.compare_drawn(scan)
        return self._catalog.scan(scan.image_id)

    def _path(self, scan: Scan, tag: str, version: str | None = None) -> Path:
        drawn = self.drawing(scan, tag, version)
        if drawn is not None:
            return self.drawings.path(scan, drawn)
        found = self.index.find(scan, tag, version)
        path = self._file(scan, tag, version, found)
        if found.suffix != LABEL_MAP:
            return path
        if found.saved_at is None:
            return self._on_grid(scan, path, found.resource)
        grid = grid_now(self._images, scan)
        return path if grid is None else self._fitting(path, grid)

    def _fitting(self, path: Path, grid: Grid) -> Path:
        """Return a label of ours if it lies on the grid of its image as it is now, or as another program reads it."""
        label = grid_of_file(path)
        if label is not None and grid.is_other_form(label):
            return self.files.derived(path, f"placed_{mark_of(grid)}", lambda target: place(path, grid, target))
        require_fit_of_file(path, grid)
        return path

    def _file(self, scan: Scan, tag: str, version: str | None, found: LabelVersion) -> Path:
        """Return the file of a version as it was stored; it is downloaded if it is not on this machine."""
        entry = self.index.entry(scan, tag, found.name)
        while entry is not None:
            try:
                return self.files.keep(scan.image_id, tag, found, entry.file)
            except FileNotFoundError:  # it was just moved to another folder, or sent to XNAT
                gone, entry = entry, self.outbox.moved(entry)
                if entry is None:
                    self._note_departure(gone)
                    scan = self._catalog.scan(scan.image_id)
                    found = self.index.find(scan, tag, version)
        return self.files.path(scan.image_id, tag, found)

    def _on_grid(self, scan: Scan, path: Path, resource: str) -> Path:
        """Return a label of another program, on the grid that its image has now."""
        grid = self._images.grid(scan)
        if resource == BUILT_IN_RESOURCE and true_ending(path) == LABEL_MAP:
            label = grid_of_file(path)
            if label is not None and label.matches(grid):
                return path
        return self.files.derived(path, f"aligned_{mark_of(grid)}", lambda target: align(path, grid, target))

    def compare_anew(self, scans: Iterable[Scan] | None = None) -> None:
        """Mark labels of other programs, on some images or all (None), to be compared with XNAT when next used."""
        self.index.compare_anew(scans)
        self.drawings.ask_again()

    def training_path(self, scan: Scan, tag: str, values: Mapping[str, int] | None = None) -> Path:
        """Return the file of a label for a training set, with the values in the setting ``labels``.

        If names in its description have other values in the setting, a new file is made. Segments whose names are not
        in the setting become background.

        Parameters
        ----------
        scan : Scan
            The image.
        tag : str
            The label's tag.
        values : mapping of str to int or None
            Names and values of the labels of the model that is trained; used if the setting is empty.

        Raises
        ------
        LabelError
            If it has named segments, but none with a wanted name.
        UnknownLabelError, ServerError, CacheError
            As for :meth:`path`.
        """
        return self._listed_anew(scan, lambda: self._training_path(scan, text_of(tag), values or {}))

    def _training_path(self, scan: Scan, tag: str, of_model: Mapping[str, int]) -> Path:
        configured = self._settings.label_values
        self._catalog.drawn.require_compared(scan)
        grid = self._images.grid(scan)  # without a grid to compare with, a label must not be trained on
        drawn = self.drawing(scan, tag)
        version = None if drawn else self.index.find(scan, tag)
        if version and version.saved_at is None:
            self.versions.require_compared(scan)
        path = self._path(scan, tag, version.name if version else None)
        if drawn and configured:  # it was decoded with these values
            return path
        description = self.description(scan, tag, version.name if version else None)
        if version and version.suffix == LABEL_MAP:
            require_fit_of_description(description, grid)
        source = "the setting labels" if configured else "the model that is trained"
        table = differing_values(description.get("segments") or (), configured or of_model, source)
        if not table:
            return path
        mark = text_digest(json.dumps(sorted(table.items())))[:8]
        return self.files.derived(path, mark, lambda target: write_mapped(path, table, target))

    def info(self, scan: Scan, tag: str, version: str | None = None) -> dict[str, Any]:
        """Return the label info stored with a label.

        Raises
        ------
        UnknownLabelError
            If there is no such label or version.
        ServerError
            If XNAT fails.
        """
        return info_of(self.description(scan, tag, version))

    def description(self, scan: Scan, tag: str, version: str | None = None) -> dict[str, Any]:
        """Return the description of a label, {} if XNAT lists none; see :mod:`monailabel_xnat.labels.description`.

        Raises
        ------
        UnknownLabelError
            If there is no such label or version.
        TransferError
            If it differs in size or MD5 from XNAT's list, or does not have the form of a description.
        ServerError
            If XNAT fails.
        """
        return self._listed_anew(scan, lambda: self._description(scan, text_of(tag), version))

    def drawing_path(self, scan: Scan, label: LabelId) -> Path:
        """Return the file of one drawing on an image (a ROI collection or a scan) as a label map.

        Raises
        ------
        UnknownLabelError
            If there is no such drawing.
        LabelError, ServerError, CacheError
            As for :meth:`path`.
        """
        scan = self.compared(scan)
        return self.drawings.path(scan, self.drawings.named(scan, label))

    def drawing_description(self, scan: Scan, label: LabelId) -> dict[str, Any]:
        """Return a description of one drawing on an image, like that of a saved label.

        Raises
        ------
        UnknownLabelError
            If there is no such drawing.
        """
        return self.drawings.description(scan, self.drawings.named(scan, label))

    def load_infos(self, scans: Iterable[Scan]) -> None:
        """Read the descriptions of all labels of these images, in parallel, if they are not known yet."""
        wanted = [(scan, tag) for scan in scans for tag in self.tags(scan)]
        if not wanted:
            return
        with ThreadPoolExecutor(min(self._settings.connections, len(wanted))) as pool:
            list(pool.map(lambda pair: self._try_to_load(*pair), wanted))

    def history(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """Return all versions of a label with their descriptions, newest first; [] if there are none.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        tag = text_of(tag)
        self.versions.forget(scan)
        versions = self.index.all(scan, tag)
        if not versions:
            return []
        with ThreadPoolExecutor(min(self._settings.connections, len(versions))) as pool:
            return list(pool.map(lambda version: self._with_description(scan, tag, version), versions))

    def _with_description(self, scan: Scan, tag: str, version: LabelVersion) -> LabelVersion:
        """Return a version with its description, or with the problem of its description."""
        try:
            description = self.description(scan, tag, version.name)
        except MalformedFileError as error:  # it stays malformed, but users must see and restore the other versions
            logger.warning("the description of a version of a label cannot be used: %s", type(error).__name__)
            return replace(version, problem=str(error))
        is_ours = version.saved_at is not None
        return replace(
            version, description=description, problem=WITHOUT_DESCRIPTION if is_ours and not description else ""
        )

    def _listed_anew(self, scan: Scan, read: Callable[[], Result]) -> Result:
        """Read a part of a label. If XNAT does not have it as it was listed, forget the list and read once more."""
        try:
            return read()
        except (NotInArchiveError, TransferError):
            if not self.versions.forget(scan):
                raise
            return read()

    def _description(self, scan: Scan, tag: str, version: str | None) -> dict[str, Any]:
        drawn = self.drawing(scan, tag, version)
        if drawn is not None:
            return self.drawings.description(scan, drawn)
        return self._described(scan, tag, self.index.find(scan, tag, version))

    def _tags_in_xnat(self, scan: Scan) -> list[str]:
        return self._with_drawn(scan, self.index.tags_in_xnat(scan))

    def _with_drawn(self, scan: Scan, tags: list[str]) -> list[str]:
        """Return tags together with the tag that the image has because of drawings."""
        drawn = self.drawings.tag(scan) if scan.drawings else ""
        return tags if not drawn or drawn in tags else sorted([*tags, drawn])

    def _waiting_on(self, entry: WaitingLabel) -> Scan | None:
        """Return the image of a label that waits; None if it is not listed, or the label is not served."""
        if entry.image_id is None or entry.state in (State.REFUSED, State.UNASSIGNED, State.RAW):
            return None
        try:
            return self._catalog.scan(entry.image_id)
        except (UnknownImageError, ServerError):  # ServerError: XNAT has not answered since the start
            return None

    def drawing(self, scan: Scan, tag: str, version: str | None = None) -> Drawing | None:
        """Return the drawing that is the label: the newest one, if no label of ours is newer; else None.

        Raises
        ------
        UnreadDrawingError
            If a drawing that cannot be read may be newer than all labels that can be read.
        """
        if version is not None or not (scan.drawings or scan.unread) or tag != self._settings.roi_tag:
            return None
        try:
            ours = self.index.find(scan, tag)
        except UnknownLabelError:
            return self.drawings.newest(scan, tag)
        return self.drawings.newest(scan, tag, after=ours.saved_at, is_labelled=True)

    def _described(self, scan: Scan, tag: str, version: LabelVersion) -> dict[str, Any]:
        if version.is_pending:
            entry = self.index.entry(scan, tag, version.name)
            try:
                if entry is not None:
                    return entry.description()
            except CacheError:
                if entry is not None and self.outbox.current(entry) is not None:
                    raise
            scan, version = self.arrived(scan, tag, version)
        return self.descriptions.read(scan, version)

    def arrived(self, scan: Scan, tag: str, version: LabelVersion) -> tuple[Scan, LabelVersion]:
        """Return a version from XNAT after another thread or process has taken it out of the outbox.

        Raises
        ------
        UnknownLabelError
            If it was removed and not sent to XNAT.
        ServerError
            If XNAT fails.
        """
        self.outbox.look_again()
        self._catalog.put_resource(scan.image_id, Resource(resource_of(tag), None, None))
        scan = self._catalog.scan(scan.image_id)
        self.versions.forget(scan)
        return scan, self.index.find(scan, tag, version.name)

    def _try_to_load(self, scan: Scan, tag: str) -> None:
        try:
            self.description(scan, tag)
        except XNATDatastoreError as error:
            logger.debug("a label's description could not be read: %s", error)

    def _note_departure(self, entry: WaitingLabel) -> None:
        """Note that a label has left the outbox, so that XNAT is asked for it before the catalog shows it."""
        if entry.image_id is not None and entry.state in (State.READY, State.UNCHECKED):
            self._catalog.put_resource(entry.image_id, Resource(resource_of(entry.tag), None, None))
