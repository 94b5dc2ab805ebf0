"""The training set: pairs of image and label as local files, and as one archive."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import ImageConversionError, UnknownLabelError, XNATDatastoreError
from monailabel_xnat.images import Images
from monailabel_xnat.images.cache.entry import digest_of, files_of
from monailabel_xnat.labels import Labels
from monailabel_xnat.labels.segments import has_unnamed_values, unknown_names
from monailabel_xnat.labels.version import WITHOUT_DESCRIPTION
from monailabel_xnat.training.training_set import (
    TrainingSet,
    case_from_entry,
    make_manifest,
    manifest_entry,
    write_manifest,
)

logger = logging.getLogger(__name__)

TRAINING_TAG = "final"

_FOLDER_KIND = "DICOM folder"

# The voxel values, by label name, of the model that is trained in this thread. If empty, labels stay as they are.
_of_model: ContextVar[Mapping[str, int]] = ContextVar("labels of the model", default=MappingProxyType({}))


@contextmanager
def labels_of_model(values: Mapping[str, int]) -> Iterator[None]:
    """Make training sets for a model with these values, within the block and in this thread.

    ``values`` has the voxel value of each structure of the model, by name; see :meth:`TrainingCases.pairs`.
    """
    token = _of_model.set(dict(values))
    try:
        yield
    finally:
        _of_model.reset(token)


class TrainingCases:
    """Makes training sets from the images that have a final label.

    Parameters
    ----------
    session : Session
        The connection. Its settings say how many transfers may run at a time, and where manifests are kept.
    catalog : Catalog
        The list of images.
    images : Images
        Provides the files of images.
    labels : Labels
        Provides the labels.
    """

    def __init__(self, session: Session, catalog: Catalog, images: Images, labels: Labels) -> None:
        self._session = session
        self._catalog = catalog
        self._images = images
        self._labels = labels
        self._workers = session.settings.connections
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._left_out: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._names: dict[str, str] = {}

    @property
    def left_out(self) -> dict[str, str]:
        """The labelled images that the last training set left out: the reasons, by image id."""
        with self._lock:
            return dict(self._left_out)

    @property
    def outcome(self) -> dict[str, dict[str, str]]:
        """Facts about the last training set that users should know.

        ``left_out`` has the reasons why images were left out, and ``label_notes`` has notes on labels, by image id.
        ``label_names`` says, by name of a structure, what became of structures that the model does not know.
        """
        with self._lock:
            found = {"left_out": self._left_out, "label_notes": self._notes, "label_names": self._names}
            return {key: dict(value) for key, value in found.items()}

    def labelled(self) -> list[Scan]:
        """Return the images that have a final label."""
        images = self._labels.images(TRAINING_TAG)
        return [scan for scan in self._catalog.scans() if str(scan.image_id) in images] if images else []

    def pairs(self) -> list[dict[str, str]]:
        """Fetch every image with a final label, in parallel, and keep a manifest of them.

        Cases that cannot be read are left out, with a warning, and listed in :attr:`left_out`.

        The voxel values of the labels are those of the setting ``labels``. If it is empty, they are those of the model
        within :func:`labels_of_model`: structures that the model does not know become background, a case without any
        known structure is left out, and values that nobody named stay as they are.

        Returns
        -------
        list of dict
            ``image`` and ``label``: absolute paths of two files on one voxel grid, sorted by image id. With
            ``image_format="dicom"`` the image is a folder, which MONAI's ITKReader reads on the grid of the label.

        Raises
        ------
        CacheError
            If the manifest cannot be written.
        """
        pairs, manifest = self._collect()
        write_manifest(self._session.settings.server_folder / "manifests", manifest)
        return pairs

    def training_set(self) -> TrainingSet:
        """Fetch the same cases as :meth:`pairs`, and return each with the facts that the manifest has about it.

        Raises
        ------
        CacheError
            If the manifest cannot be written.
        """
        pairs, manifest = self._collect()
        path = write_manifest(self._session.settings.server_folder / "manifests", manifest)
        cases = [case_from_entry(pair, entry) for pair, entry in zip(pairs, manifest["cases"], strict=True)]
        return TrainingSet(cases, path, manifest["left_out"])

    def archive(self, limit: int | None, metadata: Mapping[str, Any]) -> Path:
        """Pack the training set into a zip: ``image/...``, ``label/...``, ``metadata.json`` and ``manifest.json``.

        Parameters
        ----------
        limit : int or None
            At most this many cases are packed; all if it is None, 0, negative or larger than their number.
        metadata : mapping
            The content of ``metadata.json``.

        Returns
        -------
        Path
            A temporary file, which the caller deletes.

        Raises
        ------
        UnknownLabelError
            If there is nothing to pack. If labels were left out, the message has the first reason.
        """
        pairs, manifest = self._collect()
        if not pairs:
            raise self._nothing_to_pack()
        if limit and 0 < limit < len(pairs):
            pairs, manifest["cases"] = pairs[:limit], manifest["cases"][:limit]
        with tempfile.NamedTemporaryFile(prefix="dataset-", suffix=".zip", delete=False) as packed:
            # The files are not compressed: they are compressed already, or will soon be unpacked.
            with zipfile.ZipFile(packed, "w") as archive:
                for pair in pairs:
                    for kind, path in pair.items():
                        for file in files_of(Path(path)):
                            archive.write(file, f"{kind}/{file.relative_to(Path(path).parent).as_posix()}")
                archive.writestr("metadata.json", json.dumps(metadata))
                archive.writestr("manifest.json", json.dumps(manifest, indent=1))
            return Path(packed.name)

    def _collect(self) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Return the pairs and their manifest."""
        self._catalog.require_answer()
        self._catalog.settle()
        self._labels.compare_drawn()
        scans = sorted(self.labelled(), key=lambda scan: scan.image_id)
        self._images.hold(scans)
        self._images.compare_anew(scans)
        self._labels.compare_anew(scans)
        values = _of_model.get() if not self._session.settings.label_values else {}
        with ThreadPoolExecutor(self._workers, thread_name_prefix="xnat-datalist") as pool:
            found = list(pool.map(lambda scan: self._case(scan, values), scans))
        failures = {str(scan.image_id): case for scan, case in zip(scans, found, strict=True) if isinstance(case, str)}
        notes = {
            str(case[1]["image_id"]): "; ".join(case[1]["label"]["notes"])
            for case in found
            if not isinstance(case, str) and case[1]["label"].get("notes")
        }
        names = _effects_of_names([case[1] for case in found if not isinstance(case, str)], values)
        with self._lock:
            self._left_out, self._notes, self._names = failures, notes, names
        for name, effect in names.items():
            logger.warning("labels in the training set: %s %s", name, effect)
        if notes:
            logger.warning("%d images of the training set have a label with a note", len(notes))
            for image, note in notes.items():
                logger.info("noted: %s: %s", image, note)
        if failures:
            logger.warning("%d of %d labelled images are left out of the training set", len(failures), len(scans))
            for image, reason in failures.items():
                logger.info("left out: %s: %s", image, reason)
        cases = [case for case in found if not isinstance(case, str)]
        server, user = self._session.settings.server, self._session.user
        manifest = make_manifest(server, user, [case for _, case in cases], failures)
        return [pair for pair, _ in cases], manifest

    def _nothing_to_pack(self) -> UnknownLabelError:
        left_out = self.left_out
        if not left_out:
            return UnknownLabelError(
                f"no image has a label with tag {TRAINING_TAG!r}", hint="save a label first, then ask again"
            )
        image, reason = next(iter(left_out.items()))
        which = "the only labelled image is" if len(left_out) == 1 else f"all {len(left_out)} labelled images are"
        return UnknownLabelError(
            f"{which} left out of the training set; {image}: {reason}",
            hint='status()["left_out"] has the reason of each',
        )

    def _case(self, scan: Scan, values: Mapping[str, int]) -> tuple[dict[str, str], dict[str, Any]] | str:
        """Return the pair of one image and its entry in the manifest; or, as a text, the reason why there is none."""
        try:
            image = self._images.path(scan)
            self._images.require_compared(scan)
            label = self._labels.training_path(scan, TRAINING_TAG, values)
            version = self._labels.current(scan, TRAINING_TAG)
            description = self._labels.description(scan, TRAINING_TAG)
            digest = self._folder_digest(scan, image) if image.is_dir() else self._images.checksum(scan) or ""
            entry = manifest_entry(str(scan.image_id), image, digest, label, version.name, TRAINING_TAG, description)
            if not description and version.saved_at is not None:  # one of our labels, which should have a description
                entry["label"]["notes"] = [WITHOUT_DESCRIPTION]
        except (XNATDatastoreError, OSError) as error:
            return str(error)
        return {"image": str(image), "label": str(label)}, entry

    def _folder_digest(self, scan: Scan, folder: Path) -> str:
        """Return ``SHA256:<hex>`` of a folder of DICOM files, after checking that it is read on the grid of its image.

        The result is kept on disk, so a folder is checked only once.

        Raises
        ------
        ImageConversionError
            If MONAI's ITKReader reads the folder on another grid than that of the image.
        ImageError, ServerError, CacheError
            If the grid of the image cannot be read.
        """
        # When the files of an image change, its folder gets another name.
        known = self._catalog.read_cache.get(_FOLDER_KIND, str(scan.image_id), folder.name)
        if isinstance(known, str) and known:
            return known
        # This import loads SimpleITK and ITK, which takes a while.
        from monailabel_xnat.convert.dicom.series import require_grid_in_folder

        try:
            require_grid_in_folder(folder, self._images.grid(scan))
        except ImageConversionError as error:
            raise ImageConversionError(f"scan {scan.image_id}: {error.message}", hint=error.hint) from None
        digest = f"SHA256:{digest_of(folder)}"
        self._catalog.read_cache.put(_FOLDER_KIND, str(scan.image_id), folder.name, digest)
        return digest


def _effects_of_names(cases: Sequence[Mapping[str, Any]], values: Mapping[str, int]) -> dict[str, str]:
    """Return texts that say, with counts, what became of structures unknown to the model and of unnamed values."""
    if not values:
        return {}
    segments = [case["label"].get("segments") or () for case in cases]
    unknown = Counter(name for found in segments for name in unknown_names(found, values))
    effects = {
        name: f"became background in {count} of {len(cases)} cases: the model has {', '.join(values)}"
        for name, count in sorted(unknown.items())
    }
    unnamed = sum(not found or has_unnamed_values(found) for found in segments)
    if unnamed:
        effects["values that nobody named"] = f"stayed as they are in {unnamed} of {len(cases)} cases"
    return effects
