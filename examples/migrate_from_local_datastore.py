"""Move the labels of a MONAI Label folder to XNAT: nothing is overwritten, and nothing is changed in the folder.

    export MONAI_LABEL_XNAT_SERVER=https://xnat.example.org
    export MONAI_LABEL_XNAT_USERNAME=ann MONAI_LABEL_XNAT_PASSWORD=...
    python examples/migrate_from_local_datastore.py /data/studies --project LIVER --report report.csv          # looks
    python examples/migrate_from_local_datastore.py /data/studies --project LIVER --report report.csv --apply  # does

The folder is what MONAI Label was started with as ``--studies``: images, ``datastore_v2.json``, and a folder in
``labels`` for each tag. Each image is looked for in XNAT: by the mapping file, else by its name, which may be a
SeriesInstanceUID, the name under which it was added, the label of a session with one image, or ``<session>_<scan>``.
The image that is found must have the same voxels in the same place. Labels keep their tag and their info.

The report lists every label and what became of it. If its column ``scan`` is empty, fill in the image id
(``LIVER/subj01/subj01_CT1/2``), and use the file as ``--mapping``. You can run the same command again at any time:
labels that are in XNAT already are not changed, and it continues with the others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from monailabel_xnat import (
    AmbiguousNameError,
    InvalidIdError,
    LabelNotUploadedError,
    UnknownImageError,
    XNATDatastore,
    XNATDatastoreError,
)

ENDINGS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".json")
"""The endings of the names of images and labels, longest first."""

DONE = ("saved", "in XNAT already", "on its way", "would be saved")
"""The outcomes for a label after which nothing is left to do."""


@dataclass(frozen=True)
class LocalImage:
    """An image of the folder, with a file and an info for each tag of a label."""

    name: str
    path: Path
    info: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the report. It is about a label, or about an image if ``tag`` is empty."""

    image: str
    tag: str
    scan: str
    outcome: str
    reason: str = ""


class NoMatchError(LookupError):
    """Nothing in XNAT has the name of an image."""


def read_folder(folder: Path) -> list[LocalImage]:
    """Return the images that MONAI Label would list.

    These are the images in ``datastore_v2.json``, and files that are not in it yet: MONAI Label adds those when it
    starts. The folder is only read; MONAI Label's own class would write to it.
    """
    index: dict[str, Any] = {"objects": {}}
    if (folder / "datastore_v2.json").exists():
        index = json.loads((folder / "datastore_v2.json").read_text(encoding="utf-8"))
    images_folder = folder / index.get("images_dir", "")
    labels_folder = folder / index.get("labels_dir", "labels")
    known = index["objects"]
    paths = {name: images_folder / f"{name}{entry['image']['ext']}" for name, entry in known.items()}
    images = {}
    for name, path in {**dict(files_by_name(images_folder)), **paths}.items():
        if path.exists():  # MONAI Label forgets images whose file is gone, too
            images[name] = LocalImage(name, path, known.get(name, {}).get("image", {}).get("info", {}), {})
    for tag_folder in sorted(path for path in labels_folder.iterdir() if path.is_dir()):
        for name, path in files_by_name(tag_folder):
            entry = known.get(name, {}).get("labels", {}).get(tag_folder.name)
            if entry is not None:  # another file of the same name has been replaced by a later save
                path = tag_folder / f"{name}{entry['ext']}"
            image = images.get(name) or LocalImage(name, Path(), {}, {})
            labels = {**image.labels, tag_folder.name: (path, entry["info"] if entry else {})}
            images[name] = replace(image, labels=labels)
    return sorted(images.values(), key=lambda image: image.name)


def files_by_name(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the images or labels in a folder, with their names as MONAI Label makes them: without the ending."""
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
        if path.is_file() and ending and not path.name.startswith("datastore"):
            yield path.name.removesuffix(ending), path


def read_mapping(path: Path | None) -> dict[str, str]:
    """Read the scan of each image from a CSV file with the columns ``image`` and ``scan``; empty cells do not count."""
    if path is None:
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row["scan"].strip() for row in csv.DictReader(stream) if row["scan"].strip()}


def find_scan(datastore: XNATDatastore, project: str, name: str, mapping: Mapping[str, str]) -> str:
    """Return the image id of the scan that is an image of the folder.

    Raises
    ------
    NoMatchError
        If nothing in XNAT has this name.
    UnknownImageError, InvalidIdError, AmbiguousNameError
        If the mapping names no image, or if several images have the name.
    """
    if name in mapping:
        return datastore.image_id(mapping[name])
    with suppress(UnknownImageError, InvalidIdError):
        return datastore.image_id(name)  # a SeriesInstanceUID, or the name of an added image
    experiments = datastore.xnat.projects[project].experiments
    session, _, scan = name.rpartition("_")
    found: list[str] = []
    if name in experiments:
        found = datastore.image_ids(experiments[name])
    elif session in experiments:
        images = datastore.image_ids(experiments[session])
        found = [image for image in images if datastore.get_image_info(image)["scan"] == scan]
    if len(found) > 1:
        raise AmbiguousNameError(f"{len(found)} images in XNAT fit this name", hint="name one of them in the mapping")
    if not found:
        raise NoMatchError("no image in XNAT has this name")
    return found[0]


def difference(local: Path, stored: str) -> str:
    """Return how two image files differ: "" if they have the same voxels in the same place.

    Programs store axes in different orders and directions, so both are compared on axes to the left, to the back
    and upwards. Values may differ by rounding.
    """
    ours, theirs = SimpleITK.ReadImage(str(local)), SimpleITK.ReadImage(stored)
    if ours.GetDimension() == theirs.GetDimension() == 3:
        ours, theirs = SimpleITK.DICOMOrient(ours, "LPS"), SimpleITK.DICOMOrient(theirs, "LPS")
    if ours.GetSize() != theirs.GetSize():
        return f"the scan in XNAT has {theirs.GetSize()} voxels, the image here {ours.GetSize()}"
    places = [[*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()] for image in (ours, theirs)]
    if not np.allclose(*places, rtol=0, atol=1e-2):
        return "the scan in XNAT lies elsewhere than the image here, or has another voxel size"
    here, there = (SimpleITK.GetArrayFromImage(image).astype(float) for image in (ours, theirs))
    wrong = ~np.isclose(here, there, rtol=1e-4, atol=1e-2)
    return f"the scan in XNAT has other values in {wrong.sum()} of {wrong.size} voxels" if wrong.any() else ""


def earlier_outcome(datastore: XNATDatastore, image_id: str, tag: str, sha256: str) -> str:
    """Return what became of a file that was saved before; "" if none of the versions is that file.

    The version need not be the newest one any more. A version that XNAT did not accept yet waits on this
    computer, and is sent automatically while a datastore is open.
    """
    for version in datastore.label_history(image_id, tag):
        info = datastore.get_label_info(f"{image_id}@{version['version']}", tag)
        if info.get("migrated_from", {}).get("sha256") == sha256:
            return "in XNAT already" if version["in_xnat"] else "on its way"
    return ""


class Migration:
    """Moves one image after the other.

    Parameters
    ----------
    datastore : XNATDatastore
        The datastore to write to. It is read-only without ``--apply``.
    folder : Path
        The folder to read.
    args : argparse.Namespace
        The command line.
    """

    def __init__(self, datastore: XNATDatastore, folder: Path, args: argparse.Namespace) -> None:
        self.datastore = datastore
        self.folder = folder
        self.args = args
        self.mapping = read_mapping(args.mapping)

    def move(self, image: LocalImage) -> Iterator[Row]:
        """Find the image in XNAT, add it if requested, save its labels, and yield what became of each."""
        tags = list(image.labels) or [""]
        try:
            image_id = find_scan(self.datastore, self.args.project, image.name, self.mapping)
            reason = self._difference(image, image_id)
        except (NoMatchError, UnknownImageError, InvalidIdError, AmbiguousNameError) as error:
            if isinstance(error, NoMatchError) and self.args.add_images and image.path.is_file():
                yield from self._add(image)
            else:
                yield from (Row(image.name, tag, "", "not matched", str(error)) for tag in tags)
        except (XNATDatastoreError, RuntimeError) as error:  # RuntimeError: SimpleITK cannot read a file
            yield from (Row(image.name, tag, "", "failed", str(error)) for tag in tags)
        else:
            if reason:
                # The column of the scan stays empty, because a person must fill it in.
                yield from (Row(image.name, tag, "", "not matched", f"{image_id}: {reason}") for tag in tags)
            else:
                yield from (self._save(image, image_id, tag) for tag in image.labels)

    def _add(self, image: LocalImage) -> Iterator[Row]:
        """Add an image under its name, so that it is found by that name the next time, and save its labels."""
        if not self.args.apply:
            yield Row(image.name, "", "", "would be added")
            yield from (Row(image.name, tag, "", "would be saved") for tag in image.labels)
            return
        try:
            image_id = self.datastore.add_image(image.name, str(image.path), dict(image.info))
        except XNATDatastoreError as error:
            yield from (Row(image.name, tag, "", "failed", str(error)) for tag in ["", *image.labels])
            return
        yield Row(image.name, "", image_id, "added")
        yield from (self._save(image, image_id, tag) for tag in image.labels)

    def _difference(self, image: LocalImage, image_id: str) -> str:
        if not self.args.compare:
            return ""
        if not image.path.is_file():
            return "there is no image here to compare it with"
        return difference(image.path, self.datastore.get_image_uri(image_id))

    def _save(self, image: LocalImage, image_id: str, tag: str) -> Row:
        path, info = image.labels[tag]
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            earlier = earlier_outcome(self.datastore, image_id, tag, sha256)
            if earlier:
                return Row(image.name, tag, image_id, earlier)
            if tag in self.datastore.get_labels_by_image_id(image_id):
                # Saving it would make it the newest one, and hide the label that somebody has made in XNAT.
                return Row(image.name, tag, image_id, "conflict", "XNAT has another label with this tag")
            if not self.args.apply:
                return Row(image.name, tag, image_id, "would be saved")
            origin = {"file": path.relative_to(self.folder).as_posix(), "sha256": sha256}
            self.datastore.save_label(image_id, str(path), tag, {**info, "migrated_from": origin})
            return Row(image.name, tag, image_id, "saved")
        except LabelNotUploadedError as error:
            return Row(image.name, tag, image_id, "on its way", str(error))
        except (XNATDatastoreError, OSError) as error:
            return Row(image.name, tag, image_id, "failed", str(error))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Move the labels of a MONAI Label folder to XNAT.")
    parser.add_argument("folder", type=Path, help="what MONAI Label was started with as --studies")
    parser.add_argument("--project", required=True, help="ID of the project in XNAT")
    parser.add_argument("--apply", action="store_true", help="write to XNAT; without it, say what would be written")
    parser.add_argument("--mapping", type=Path, help="CSV file with the columns image and scan")
    parser.add_argument("--add-images", action="store_true", help="add images to XNAT that are not found there")
    parser.add_argument("--report", type=Path, help="CSV file to write what became of each label to")
    parser.add_argument(
        "--no-compare",
        dest="compare",
        action="store_false",
        help="believe names and mapping; labels must still lie on the grid of their scan",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Move what can be moved, and return 1 if something is left behind, else 0."""
    args = parse_arguments(arguments)
    rows: list[Row] = []
    # Read-only without --apply: even if this script has an error, nothing is changed.
    with XNATDatastore(project=args.project, image_format="nifti", read_only=not args.apply) as datastore:
        migration = Migration(datastore, args.folder, args)
        for image in read_folder(args.folder):
            for row in migration.move(image):
                rows.append(row)
                print(" ".join(filter(None, (row.image, row.tag, row.scan, f"{row.outcome}:", row.reason))).rstrip(":"))
    if args.report:
        args.report.touch(mode=0o600)  # it holds ids of patients' images
        with args.report.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(Row.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    labels = [row for row in rows if row.tag]
    print(", ".join(f"{count} labels {outcome}" for outcome, count in Counter(row.outcome for row in labels).items()))
    return int(any(row.outcome not in DONE for row in labels))


if __name__ == "__main__":
    sys.exit(main())
