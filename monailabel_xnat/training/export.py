"""A training set as a folder in a layout that other tools read: MONAI and the Decathlon, nnU-Net, or BIDS.

Every layout has NIfTI files (``.nii.gz``); an image and its label are on one voxel grid. The file `MANIFEST` says from
which image and label version each file was made. The same cases always give the same bytes, so an export can be
repeated: files that are there already are not written again, and files that are no longer part of it are removed.

Sources of the layouts: the Medical Segmentation Decathlon's ``dataset.json`` as ``monai.data.load_decathlon_datalist``
reads it; nnU-Net v2, documentation/dataset_format.md; BIDS 1.9, derivatives "Imaging data types: Segmentations".
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from isal import igzip

from monailabel_xnat.convert.itk import simpleitk
from monailabel_xnat.disk import file_digest, must_work, text_digest, whole, write_whole
from monailabel_xnat.errors import LabelError, SettingsError, name_some
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.segments import has_unnamed_values
from monailabel_xnat.training.nnunet import as_json, nnunet_texts
from monailabel_xnat.training.training_set import Case

DECATHLON, NNUNET, BIDS = "decathlon", "nnunet", "bids"
LAYOUTS = (DECATHLON, NNUNET, BIDS)
MANIFEST = "monailabel_xnat.json"
FORMAT_VERSION = 1

_BIDS_VERSION = "1.9.0"
_BLOCK = 1 << 20
# isal has no types.
_igzip: Any = igzip


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes
    ----------
    folder
        The folder of the export.
    written, kept, removed
        How many image and label files were written, how many were there already, and how many files were removed
        because they are no longer part of the export.
    training, validation, unlabelled
        The number of cases of each kind.
    changed
        Names of files that are no longer part of the export, but stay because somebody has changed them.
    """

    folder: Path
    written: int
    kept: int
    removed: int
    training: int
    validation: int
    unlabelled: int
    changed: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A file on this disk from which a file of the export is made, and the SHA-256 of its content."""

    path: Path
    sha256: str


def common_values(segments: Iterable[Sequence[Mapping[str, Any]]], *, consecutive: bool) -> dict[str, int]:
    """Return one voxel value for each name of a structure, for labels that come from many people.

    If all labels agree, the values stay as they are. Otherwise the structures are numbered 1, 2, ... in the order of
    the lowest value that each has in any label.

    Parameters
    ----------
    segments : iterable of sequence of mapping
        The segments of each label (``value`` and ``name``), as its description has them.
    consecutive : bool
        Whether the values must be 1 to N without a gap, as nnU-Net demands.

    Returns
    -------
    dict
        Voxel value by name of structure, in ascending order of the values.

    Raises
    ------
    LabelError
        If values would have to be changed, but some values have no name.
    """
    labels = [[(str(item["name"]), int(item["value"])) for item in label] for label in segments]
    pairs = {pair for label in labels for pair in label}
    names = {name for name, _ in pairs}
    values = {value for _, value in pairs}
    agree = len(pairs) == len(names) == len(values)
    if agree and (not consecutive or values == set(range(1, len(values) + 1))):
        return dict(sorted(pairs, key=lambda pair: pair[1]))
    if any(has_unnamed_values([{"name": name}]) for name in names):
        raise LabelError(
            "labels have values that nobody named, and these values cannot be brought to one meaning",
            hint="say which value each name has with the setting labels, such as spleen=1,liver=2",
        )
    lowest = {name: min(value for other, value in pairs if other == name) for name in names}
    return {name: number for number, name in enumerate(sorted(names, key=lambda name: (lowest[name], name)), start=1)}


def is_for_validation(project: str, subject: str, fraction: float) -> bool:
    """Return whether a subject's cases are for validation; the result does not depend on the other subjects."""
    return int(text_digest(f"{project}/{subject}")[:8], 16) < fraction * 16**8


def export(
    folder: Path,
    layout: str,
    cases: Sequence[Case],
    *,
    unlabelled: Mapping[str, Path] | None = None,
    labels: Mapping[str, int],
    modalities: Iterable[str] = (),
    validation: float = 0.0,
    name: str = "XNAT",
    origin: Mapping[str, Any] | None = None,
    step: Callable[[], None] | None = None,
    workers: int = 2,
) -> Export:
    """Write cases to a folder in the layout of another tool.

    Parameters
    ----------
    folder : Path
        The folder; it is made if it is missing. It must be empty, or hold an earlier export of the same layout.
    layout : str
        One of `LAYOUTS`.
    cases : sequence of Case
        Cases as :meth:`~monailabel_xnat.XNATDatastore.training_set` returns them; each pair is on one voxel grid.
    unlabelled : mapping or None
        Files of further images, by image id, on which a model can predict.
    labels : mapping
        Voxel value by name of structure, for the whole set.
    modalities : iterable of str
        The modalities of all images, in DICOM's abbreviations. nnU-Net chooses its intensity normalisation by them.
    validation : float
        The share of the subjects, 0 to 1, whose cases are for validation. All cases of a subject are on one side.
    name : str
        Name of the data set.
    origin : mapping or None
        Facts for the manifest, such as the server, and the images that were left out with the reasons.
    step : callable or None
        Called after each file.
    workers : int
        How many files are written at a time.

    Returns
    -------
    Export
        What was written, kept and removed.

    Raises
    ------
    SettingsError
        If the folder holds other files, or the cases do not fit the layout.
    CacheError
        If the files cannot be written.
    """
    if layout not in LAYOUTS:
        raise SettingsError(f"there is no layout {layout!r}", hint=f"choose one of {', '.join(LAYOUTS)}")
    made = _Layout(layout, cases, dict(unlabelled or {}), dict(labels), tuple(modalities), validation, name)
    old = _read_manifest(folder, layout)
    files: dict[str, Any] = dict(old.get("files", {}))
    with must_work(f"write the export to {folder}", "make room there, or choose another folder"):
        _require_free(folder, [*made.sources, *made.texts], files)
        folder.mkdir(parents=True, exist_ok=True)
        head = {"format_version": FORMAT_VERSION, "layout": layout, "labels": made.labels, **dict(origin or {})}
        # Write the manifest first: it marks these files as ours, so an export that was interrupted can be repeated.
        planned = {path: files.get(path, {}) for path in (*made.sources, *made.texts)}
        _write_json(folder / MANIFEST, {**head, "complete": False, "files": {**files, **planned}})
        with ThreadPoolExecutor(max(1, workers)) as pool:
            entries = list(
                pool.map(
                    lambda place: _made(folder, place, made.sources[place], files.get(place, {}), step), made.sources
                )
            )
        removed, changed = _remove_others(folder, files, planned)
        texts = {path: _written_text(folder / path, text) for path, text in made.texts.items()}
        known = {path: entry for path, (entry, _) in zip(made.sources, entries, strict=True)}
        known.update((path, {"sha256": digest}) for path, digest in texts.items())
        _write_json(folder / MANIFEST, {**head, "complete": True, "cases": made.described, "files": known})
    kept = sum(is_kept for _, is_kept in entries)
    counts = (len(made.training), len(made.validation), len(made.unlabelled))
    return Export(folder, len(entries) - kept, kept, removed, *counts, tuple(changed))


def read_cases(path: Path) -> dict[str, Any]:
    """Return the manifest of an export, with ``cases`` (image ids and files) and ``labels`` (values by name).

    Parameters
    ----------
    path : Path
        The manifest, or the folder in which it is.

    Raises
    ------
    SettingsError
        If it is not the manifest of a complete export.
    """
    file = path / MANIFEST if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes())
        if found["format_version"] == FORMAT_VERSION and isinstance(found["cases"], list):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise SettingsError(f"{file} is not the manifest of a complete export", hint="pull into that folder first")


class _Layout:
    """The places of all files of an export, and the text files that belong to the layout."""

    def __init__(
        self,
        layout: str,
        cases: Sequence[Case],
        unlabelled: dict[str, Path],
        labels: dict[str, int],
        modalities: tuple[str, ...],
        fraction: float,
        name: str,
    ) -> None:
        self.layout = layout
        self.labels = labels
        self.name = name
        self.validation = [
            case for case in cases if fraction and is_for_validation(case["project"], case["subject"], fraction)
        ]
        held_out = {case["image_id"] for case in self.validation}
        self.training = [case for case in cases if case["image_id"] not in held_out]
        self.unlabelled = unlabelled
        self.modality = self._one_modality(modalities)
        self.sources: dict[str, _Source] = {}
        self.described: list[dict[str, Any]] = []
        for split, group in (("training", self.training), ("validation", self.validation)):
            for case in group:
                self._add(case, split)
        for image_id, path in sorted(unlabelled.items()):
            place = self._place(image_id)[0].replace("imagesTr/", "imagesTs/")
            self.sources[place] = _Source(path, file_digest(path))
            self.described.append({"image_id": image_id, "split": "unlabelled", "image": place})
        self.texts = {
            DECATHLON: self._decathlon_texts,
            NNUNET: self._nnunet_texts,
            BIDS: self._bids_texts,
        }[layout]()

    def _one_modality(self, modalities: tuple[str, ...]) -> str:
        found = sorted(set(filter(None, modalities)))
        if self.layout == NNUNET and len(found) > 1:
            raise SettingsError(
                f"nnU-Net trains on one modality, and the images are {', '.join(found)}",
                hint=f"choose one with the setting modality, such as --conf xnat_modality {found[0]}",
            )
        return found[0] if len(found) == 1 else "unknown"

    def _add(self, case: Case, split: str) -> None:
        image, label = self._place(case["image_id"])
        self.sources[image] = _Source(Path(case["image"]), case["image_sha256"])
        self.sources[label] = _Source(Path(case["label"]), case["label_sha256"])
        facts = {"image_id": case["image_id"], "label_version": case["label_version"], "split": split}
        self.described.append({**facts, "image": image, "label": label})

    def _place(self, image_id: str) -> tuple[str, str]:
        """Return the paths of the image and the label of a case, below the folder."""
        image = ImageId.parse(image_id)
        stem = image.file_stem
        if self.layout == DECATHLON:
            return f"imagesTr/{stem}.nii.gz", f"labelsTr/{stem}.nii.gz"
        if self.layout == NNUNET:
            return f"imagesTr/{stem}_0000.nii.gz", f"labelsTr/{stem}.nii.gz"
        subject, session = f"sub-{_alphanumeric(image.subject)}", f"ses-{_alphanumeric(image.experiment)}"
        file = f"{subject}_{session}_acq-{_alphanumeric(image.scan)}"
        below = f"{subject}/{session}/anat/{file}"
        return f"{below}_{self.modality.lower()}.nii.gz", f"derivatives/monailabel/{below}_desc-final_dseg.nii.gz"

    def _decathlon_texts(self) -> dict[str, str]:
        def pair(case: Case) -> dict[str, str]:
            image, label = self._place(case["image_id"])
            return {"image": f"./{image}", "label": f"./{label}"}

        tests = [item["image"] for item in self.described if item["split"] == "unlabelled"]
        found = {
            "name": self.name,
            "description": f"images and labels of {self.name}, from XNAT",
            "tensorImageSize": "3D",
            "modality": {"0": self.modality},
            "labels": {"0": "background", **{str(value): name for name, value in self.labels.items()}},
            "numTraining": len(self.training),
            "numTest": len(tests),
            "training": [pair(case) for case in self.training],
            "validation": [pair(case) for case in self.validation],
            "test": [f"./{place}" for place in tests],
        }
        return {"dataset.json": as_json(found)}

    def _nnunet_texts(self) -> dict[str, str]:
        def stems(cases: Sequence[Case]) -> list[str]:
            return [ImageId.parse(case["image_id"]).file_stem for case in cases]

        return nnunet_texts(self.name, self.modality, self.labels, stems(self.training), stems(self.validation))

    def _bids_texts(self) -> dict[str, str]:
        by = [{"Name": "monailabel_xnat"}]
        head = {"Name": self.name, "BIDSVersion": _BIDS_VERSION}
        rows = "".join(f"{value}\t{name}\n" for name, value in [("background", 0), *self.labels.items()])
        people = sorted({PurePosixPath(place).parts[0] for place in self.sources if place.startswith("sub-")})
        derived = {**head, "DatasetType": "derivative", "GeneratedBy": by}
        return {
            "dataset_description.json": as_json({**head, "DatasetType": "raw"}),
            "participants.tsv": "participant_id\n" + "".join(f"{person}\n" for person in people),
            # BIDS has no suffix for CT, and none for an MR image of which only the modality is known.
            ".bidsignore": f"*_{self.modality.lower()}.nii.gz\n{MANIFEST}\n",
            "derivatives/monailabel/dataset_description.json": as_json(derived),
            "derivatives/monailabel/desc-final_dseg.tsv": f"index\tname\n{rows}",
        }


def _alphanumeric(text: str) -> str:
    """Return a text as a BIDS label, which has only letters and digits; a digest keeps different texts different."""
    plain = re.sub(r"[^A-Za-z0-9]", "", text)
    return plain if plain == text or not re.search(r"[^A-Za-z0-9_]", text) else f"{plain}x{text_digest(text)[:8]}"


def _read_manifest(folder: Path, layout: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {folder / MANIFEST}: {error}", hint="choose another folder") from None
    if not isinstance(found, dict) or found.get("layout") != layout:
        raise SettingsError(f"{folder} holds another export than {layout}", hint="choose another folder")
    return found


def _require_free(folder: Path, paths: Iterable[str], ours: Mapping[str, Any]) -> None:
    """Refuse to write over a file that no export has written."""
    taken = [path for path in paths if path not in ours and (folder / path).exists()]
    if taken:
        raise SettingsError(
            f"{folder} holds files that are not of an export: {name_some(taken)}", hint="choose an empty folder"
        )


def _made(
    folder: Path, place: str, source: _Source, known: Mapping[str, Any], step: Callable[[], None] | None
) -> tuple[dict[str, str], bool]:
    """Write one file unless it is there already; return its entry for the manifest, and whether it was there."""
    target = folder / place
    is_kept = known.get("made_of") == source.sha256 and target.is_file() and file_digest(target) == known.get("sha256")
    if not is_kept:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as temporary:
            _write_packed(source.path, temporary)
    if step:
        step()
    return {"made_of": source.sha256, "sha256": known["sha256"] if is_kept else file_digest(target)}, is_kept


def _write_packed(source: Path, target: Path) -> None:
    """Write an image as ``.nii.gz``, with the same voxels, index order and affine."""
    name = source.name.lower()
    if name.endswith(".nii.gz"):
        shutil.copyfile(source, target)
    elif name.endswith(".nii"):
        # The gzip header gets no name and no time, so that equal images give equal bytes.
        with (
            source.open("rb") as raw,
            target.open("xb") as file,
            _igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        ):
            shutil.copyfileobj(raw, packed, _BLOCK)
    else:
        named = target.with_name(target.name + ".nii.gz")  # SimpleITK compresses only files with this ending
        try:
            simpleitk().WriteImage(simpleitk().ReadImage(str(source)), str(named), True)
            named.replace(target)
        finally:
            named.unlink(missing_ok=True)


def _remove_others(folder: Path, files: Mapping[str, Any], planned: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Remove files of an earlier export that are no longer part of it; return their number, and those that stay.

    A file that somebody has changed stays.
    """
    removed, changed = 0, []
    for place in sorted(files.keys() - planned.keys()):
        path = folder / place
        if not path.is_file():
            continue
        if file_digest(path) != files[place].get("sha256"):
            changed.append(place)
            continue
        path.unlink()
        removed += 1
        for parent in path.parents:
            if parent == folder:
                break
            with suppress(OSError):  # it is not empty
                parent.rmdir()
    return removed, changed


def _written_text(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)
    return file_digest(path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, as_json(content).encode())
