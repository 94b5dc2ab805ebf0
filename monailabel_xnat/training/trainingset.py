"""A training set as Python objects: its cases, and where its manifest is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monailabel_xnat.ids import ImageId

Case = dict[str, str]
"""One case: ``image`` and ``label`` are the absolute paths of two files on one voxel grid, as in the data list of MONAI
Label. Beside them stand ``image_id``, its parts ``project``, ``subject``, ``experiment`` and ``scan``, the
``label_version`` (``<image id>@<version>`` is a label id), and the digests of the files, ``image_sha256`` and
``label_sha256``, in hexadecimal."""


class TrainingSet(list[Case]):
    """The cases of a training set, sorted by image id, for MONAI's datasets and transforms as they are.

    Parameters
    ----------
    cases : iterable of dict
        See :data:`Case`.
    manifest : Path
        The JSON file on this machine that says which label versions these are, whose, and which bytes.
    left_out : mapping
        Why a labelled image is not among them, by image id.

    Examples
    --------
    A split by patient is one line, for no subject may be on both sides::

        validation = [case for case in training_set if case["subject"] in held_out]
    """

    def __init__(self, cases: Iterable[Case], manifest: Path, left_out: Mapping[str, str]) -> None:
        super().__init__(cases)
        self.manifest = manifest
        self.left_out = dict(left_out)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingSet, (list(self), self.manifest, self.left_out)


def make_case(pair: Mapping[str, str], entry: Mapping[str, Any]) -> Case:
    """Make a case of the paths of its files and of its entry in the manifest."""
    image = ImageId.parse(entry["image_id"])
    place = {"project": image.project, "subject": image.subject, "experiment": image.experiment, "scan": image.scan}
    label = {"label_version": entry["label"]["version"], "label_sha256": entry["label"]["sha256"]}
    return {**pair, "image_id": str(image), **place, "image_sha256": entry["image"]["sha256"], **label}
