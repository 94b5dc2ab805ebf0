"""The cases of a training set as Python objects, and the manifest by which the set can be made again.

The manifest has, for each label, its version, who saved it and when, and the digests of the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_xnat.disk import file_digest, must_work, private_folder, text_digest, write_whole
from monailabel_xnat.ids import ImageId

FORMAT_VERSION = 1
# The parts of a label's description that say who made it and what it is; "info" says where a drawing came from.
_PROVENANCE = ("saved_at", "saved_by", "source", "segments", "info")

Case = dict[str, str]
"""One case. ``image`` and ``label`` are the absolute paths of two files on one voxel grid, as in MONAI Label's data
list. The other keys are ``image_id`` and its parts ``project``, ``subject``, ``experiment`` and ``scan``;
``label_version`` (``<image id>@<version>`` is a label id); and the digests of the files, ``image_sha256`` and
``label_sha256``, in hexadecimal."""


class TrainingSet(list[Case]):
    """The cases of a training set, sorted by image id. MONAI's datasets and transforms can use this list directly.

    Parameters
    ----------
    cases : iterable of dict
        The cases; see :data:`Case`.
    manifest : Path
        The JSON file on this machine that records label versions, who saved them, and the digests of the files.
    left_out : mapping
        For each labelled image that is not in the set, the reason, by image id.

    Examples
    --------
    A split by patient takes one line; no subject may be on both sides::

        validation = [case for case in training_set if case["subject"] in held_out]
    """

    def __init__(self, cases: Iterable[Case], manifest: Path, left_out: Mapping[str, str]) -> None:
        super().__init__(cases)
        self.manifest = manifest
        self.left_out = dict(left_out)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingSet, (list(self), self.manifest, self.left_out)


def case_from_entry(pair: Mapping[str, str], entry: Mapping[str, Any]) -> Case:
    """Return a case, made from the paths of its files and its entry in the manifest."""
    image = ImageId.parse(entry["image_id"])
    place = {"project": image.project, "subject": image.subject, "experiment": image.experiment, "scan": image.scan}
    label = {"label_version": entry["label"]["version"], "label_sha256": entry["label"]["sha256"]}
    return {**pair, "image_id": str(image), **place, "image_sha256": entry["image"]["sha256"], **label}


def manifest_entry(
    image_id: str, image: Path, image_digest: str, label: Path, version: str, tag: str, description: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entry of one pair in the manifest.

    Parameters
    ----------
    image_id : str
        Canonical id.
    image, label : Path
        The files of the pair.
    image_digest : str
        ``SHA256:<hex>`` of the image; "" if it is not known: then the file is read.
    version : str
        Name of the label's version, for ``<image id>@<version>``.
    tag : str
        Tag of the label.
    description : mapping
        Description of the label, as it is stored in XNAT.
    """
    digest = image_digest.partition(":")[2] or file_digest(image)
    provenance = {key: description[key] for key in _PROVENANCE if description.get(key)}
    stored = {"tag": tag, "version": version, "file": label.name, "sha256": file_digest(label)}
    return {"image_id": image_id, "image": {"file": image.name, "sha256": digest}, "label": {**stored, **provenance}}


def make_manifest(
    server: str, user: str, cases: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Return the manifest of a training set: its cases, the images left out with reasons, who made it, when (UTC)."""
    made_at = datetime.now(timezone.utc).isoformat()
    head = {"format_version": FORMAT_VERSION, "server": server, "made_at": made_at, "made_by": user}
    return {**head, "cases": list(cases), "left_out": dict(left_out)}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a manifest to this machine, readable by this user only, and return its path; equal cases share one file.

    Raises
    ------
    CacheError
        If it cannot be written.
    """
    cases = json.dumps([manifest["cases"], manifest["left_out"]], sort_keys=True)
    path = folder / f"{text_digest(cases)[:16]}.json"
    hint = "free some space, or choose another folder with the setting cache_path"
    with must_work(f"write the manifest of the training set to {folder}", hint):
        private_folder(folder)
        if not path.exists():
            write_whole(path, json.dumps(manifest, indent=1).encode())
    return path
