"""The training set: pairs of image and label as local files, and as one archive."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import UnknownLabelError, XNATDatastoreError
from monailabel_xnat.images import Images
from monailabel_xnat.labels import Labels

logger = logging.getLogger(__name__)

TRAINING_TAG = "final"


class Dataset:
    """What can be trained on.

    Parameters
    ----------
    catalog : Catalog
        The images.
    images : Images
        Gives their files.
    labels : Labels
        Gives their labels.
    settings : Settings
        How many transfers may run at a time.
    """

    def __init__(self, catalog: Catalog, images: Images, labels: Labels, settings: Settings) -> None:
        self._catalog = catalog
        self._images = images
        self._labels = labels
        self._workers = settings.connections
        self._lock = threading.Lock()
        self._left_out: dict[str, str] = {}

    @property
    def left_out(self) -> dict[str, str]:
        """Which labelled images the last :meth:`pairs` left out, by image id, and why."""
        with self._lock:
            return dict(self._left_out)

    def labelled(self, tag: str = TRAINING_TAG) -> list[Scan]:
        """List the images that have a label with a tag."""
        return [scan for scan in self._catalog.scans() if tag in self._labels.tags(scan)]

    def pairs(self) -> list[dict[str, str]]:
        """Fetch every image with a final label, in parallel.

        Returns
        -------
        list of dict
            ``image`` and ``label``: absolute paths of files on one voxel grid, sorted by image id. What cannot be
            read is left out, with a warning, and listed in :attr:`left_out`.
        """
        scans = sorted(self.labelled(), key=lambda scan: scan.image_id)
        self._images.hold(scans)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="xnat-datalist") as pool:
            pairs = list(pool.map(self._pair, scans))
        failures = {str(scan.image_id): pair for scan, pair in zip(scans, pairs) if isinstance(pair, str)}
        with self._lock:
            self._left_out = failures
        if failures:
            logger.warning("%d of %d labelled images are left out of the training set", len(failures), len(scans))
            for image, reason in failures.items():
                logger.debug("left out: %s: %s", image, reason)
        return [pair for pair in pairs if isinstance(pair, dict)]

    def archive(self, limit: int | None, metadata: Mapping[str, Any]) -> Path:
        """Pack the training set into a zip: ``image/...``, ``label/...`` and ``metadata.json``.

        Parameters
        ----------
        limit : int or None
            At most this many cases; all if it is not between 1 and their number.
        metadata : mapping
            Goes into ``metadata.json``.

        Returns
        -------
        Path
            A temporary file, the caller's to delete.

        Raises
        ------
        UnknownLabelError
            If there is nothing to pack.
        """
        pairs = self.pairs()
        if not pairs:
            raise UnknownLabelError(
                f"no image has a usable label with tag {TRAINING_TAG!r}", hint="save a label first, then ask again"
            )
        if limit and 0 < limit < len(pairs):
            pairs = pairs[:limit]
        with tempfile.NamedTemporaryFile(prefix="dataset-", suffix=".zip", delete=False) as file:
            # Stored, not deflated: images and labels are compressed already or soon unpacked.
            with zipfile.ZipFile(file, "w") as archive:
                for pair in pairs:
                    for kind, path in pair.items():
                        archive.write(path, f"{kind}/{Path(path).name}")
                archive.writestr("metadata.json", json.dumps(metadata))
            return Path(file.name)

    def _pair(self, scan: Scan) -> dict[str, str] | str:
        """Give the pair of one image, or why there is none."""
        try:
            image = self._images.path(scan)
            label = self._labels.training_path(scan, TRAINING_TAG)
        except XNATDatastoreError as error:
            return str(error)
        return {"image": str(image), "label": str(label)}
