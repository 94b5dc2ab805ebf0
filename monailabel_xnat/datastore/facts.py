"""Facts about images and labels for clients: from XNAT's listing, joined with what MONAI Label stored."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_xnat.catalog import Scan
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.ids import LabelId
from monailabel_xnat.images import Images
from monailabel_xnat.images.info import ImageInfos
from monailabel_xnat.labels import Labels
from monailabel_xnat.labels.description import info_of
from monailabel_xnat.labels.version import LABEL_MAP, LabelVersion

logger = logging.getLogger(__name__)


class Facts:
    """Describes images and labels in dictionaries of plain JSON values. Each call returns a new dictionary.

    Parameters
    ----------
    images, labels, infos
        The sources of the facts.
    """

    def __init__(self, images: Images, labels: Labels, infos: ImageInfos) -> None:
        self._images = images
        self._labels = labels
        self._infos = infos

    def image(self, scan: Scan) -> dict[str, Any]:
        """Return the facts about an image. Info that was stored with it replaces facts of the listing."""
        facts = self._facts(scan)
        facts.update(self._infos.get(scan))
        return facts

    def label(self, scan: Scan, tag: str, version: str | None = None) -> dict[str, Any]:
        """Return the facts about a label: its info, ``ts`` (when it was saved, in seconds since 1970), and ``name``.

        The name is a file name for clients. Keys of the info replace the other two.

        Raises
        ------
        UnknownLabelError
            If there is no such label or version.
        ServerError
            If XNAT fails.
        """
        info = self._labels.info(scan, tag, version)
        found = self._labels.current(scan, tag)
        saved = LabelVersion(version, found.suffix).saved_at if version else found.saved_at
        shown = {"ts": int(saved.timestamp())} if saved else {}
        return {"name": scan.image_id.file_stem + found.extension, **shown, **info}

    def drawing(self, scan: Scan, label: LabelId) -> dict[str, Any]:
        """Return the facts about one drawing on an image, in the form of :meth:`label`.

        Raises
        ------
        UnknownLabelError
            If there is no such drawing.
        """
        description = self._labels.drawing_description(scan, label)
        saved = datetime.fromisoformat(description["saved_at"])
        return {"name": scan.image_id.file_stem + LABEL_MAP, "ts": int(saved.timestamp()), **info_of(description)}

    def tree(self, scans: list[Scan]) -> dict[str, Any]:
        """Return images and their labels in the form of LocalDatastore's index, which Slicer and the Reviewer read."""
        self._labels.load_infos(scans)
        failures: list[str] = []
        branches = {str(scan.image_id): self._branch(scan, failures) for scan in scans}
        if failures:
            logger.warning("%d labels could not be described and are listed without their info", len(failures))
            for failure in failures:
                logger.info("listed without its info: %s", failure)
        return branches

    def _facts(self, scan: Scan) -> dict[str, Any]:
        image = scan.image_id
        facts = {
            "project": image.project,
            "subject": image.subject,
            "experiment": image.experiment,
            "scan": image.scan,
            "PatientID": scan.subject_label,
            "StudyInstanceUID": scan.study_uid,
            "SeriesInstanceUID": scan.series_uid,
            "StudyDate": scan.session_date,
            "Modality": scan.modality,
            "SeriesDescription": scan.series_description,
        }
        known: dict[str, Any] = {key: value for key, value in facts.items() if value}
        with suppress(ValueError):  # the site does not say when the session was added
            added = datetime.fromisoformat(scan.session_added.partition(".")[0])
            known["ts"] = int(added.replace(tzinfo=timezone.utc).timestamp())
        known.update(self._images.facts(scan))
        return known

    def _branch(self, scan: Scan, failures: list[str]) -> dict[str, Any]:
        facts = self._facts(scan)
        extension = "".join(Path(facts["name"]).suffixes)
        return {
            "image": {"ext": extension, "info": {**facts, **self._infos.get(scan)}},
            "labels": {tag: self._leaf(scan, tag, failures) for tag in self._labels.tags(scan)},
        }

    def _leaf(self, scan: Scan, tag: str, failures: list[str]) -> dict[str, Any]:
        try:
            return {"ext": self._labels.current(scan, tag).extension, "info": self.label(scan, tag)}
        except XNATDatastoreError as error:
            failures.append(f"{scan.image_id} {tag}: {error}")
            return {"ext": LABEL_MAP, "info": {}}
