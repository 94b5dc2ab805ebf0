"""Gathers the facts of a report: from memory, from the descriptions of labels, and of pairs of labels from their files.

XNAT is not asked for anything of an image that has no label, and nothing is changed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from typing import Any, Protocol

import numpy as np

from monailabel_xnat import __version__
from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.client.session import Session
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.images import Images
from monailabel_xnat.labels import Labels, LabelStore
from monailabel_xnat.labels.tags import tag_of
from monailabel_xnat.labels.version import WITHOUT_DESCRIPTION, LabelVersion
from monailabel_xnat.report.comparisons import compared, pairs_worth_comparing
from monailabel_xnat.report.facts import (
    DRAFT,
    FINAL,
    UNLABELLED,
    CacheFacts,
    Connection,
    ImageFacts,
    LeftOut,
    Report,
    SavedLabel,
    Segment,
    Waiting,
)
from monailabel_xnat.report.summaries import agreement_of, people_of, progress_of, shown_labels, volumes_of

_MILLILITRE = 1000.0  # mm3
_UNKNOWN_IMAGE = "its image is not among those of this report: `monailabel-xnat outbox` says more"

Watch = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Shows how far something with a title and a number of steps has come; what it yields is called after each step."""


class Parts(Protocol):
    """The parts of a datastore that a report is made of."""

    @property
    def session(self) -> Session:
        """The connection."""

    @property
    def catalog(self) -> Catalog:
        """What exists."""

    @property
    def images(self) -> Images:
        """Files of images."""

    @property
    def labels(self) -> Labels:
        """Labels of images."""

    @property
    def store(self) -> LabelStore:
        """What waits to be saved."""


def gather(parts: Parts, *, most_pairs: int, watch: Watch) -> Report:
    """Gather all facts.

    Parameters
    ----------
    parts : Parts
        The datastore.
    most_pairs : int
        How many pairs of labels are compared at most, the newest first; their files are fetched.
    watch : callable
        Shows the progress.

    Raises
    ------
    ServerError
        If XNAT cannot list the images.
    """
    scans = parts.catalog.scans()
    with watch("reading labels", len(scans)) as step:
        labels, hidden = _labels_of(parts, scans, step)
    images = tuple(_image(parts.labels, scan) for scan in scans)
    worth = pairs_worth_comparing(labels)
    with watch("comparing labels", min(len(worth), most_pairs)) as step:
        pairs, failures = compared(parts.labels, parts.catalog, worth[:most_pairs], step)
    if len(worth) > most_pairs:
        reason = f"only the newest {most_pairs} pairs are compared: see the option --pairs"
        failures.append(LeftOut("pair of labels", f"{len(worth) - most_pairs} more pairs", reason))
    now = datetime.now(timezone.utc)
    return Report(
        made_at=now.isoformat(timespec="seconds"),
        made_with=__version__,
        images=images,
        labels=tuple(labels),
        projects=progress_of(images, labels, now.date().isoformat()),
        people=people_of(label for label in labels if not _is_unread(label)),
        pairs=tuple(pairs),
        agreement=agreement_of(pairs),
        volumes=volumes_of(labels),
        left_out=(*_left_out(parts), *_unmeasured(labels, hidden), *failures),
        outbox=tuple(_waiting(parts, item) for item in parts.store.report()),
        cache=cache_of(parts),
        connection=connection_of(parts),
    )


def _labels_of(parts: Parts, scans: Sequence[Scan], step: Callable[[], None]) -> tuple[list[SavedLabel], int]:
    """Return all versions of the labels of images, oldest first, and how many others are hidden."""

    def read(scan: Scan) -> list[SavedLabel | None]:
        try:
            # Where all versions are hidden, there is a resource, but no label.
            stored = {tag for tag in (tag_of(resource.label) for resource in scan.resources) if tag}
            tags = sorted(stored.union(parts.labels.tags(scan)))
            return [found for tag in tags for found in _versions(parts.labels, scan, tag)]
        finally:
            step()

    with ThreadPoolExecutor(parts.session.settings.connections) as pool:
        found = [label for labels in pool.map(read, scans) for label in labels]
    labels = [label for label in found if label is not None]
    return sorted(labels, key=lambda label: (label.saved_at, label.image, label.tag)), len(found) - len(labels)


def _versions(labels: Labels, scan: Scan, tag: str) -> list[SavedLabel | None]:
    """Return all versions of a label, None for each hidden one; what cannot be read is one with its problem."""
    found: list[SavedLabel | None] = []
    versions: list[LabelVersion] = []
    current = ""
    try:
        versions = labels.index.all(scan, tag)
        if tag in labels.tags(scan):
            current = labels.current(scan, tag).name
    except XNATDatastoreError as error:
        found.append(_unread(scan, tag, error))
    for version in versions:
        found.append(None if version.is_hidden else _saved(labels, scan, tag, version, version.name == current))
    if current and current not in {version.name for version in versions}:
        found.append(_saved(labels, scan, tag, None, True))
    return found


def _saved(labels: Labels, scan: Scan, tag: str, version: LabelVersion | None, is_current: bool) -> SavedLabel:
    """Describe a version of a label, or with None the drawing that is the label."""
    saved = version.saved_at if version else None
    problem = ""
    try:
        description = labels.description(scan, tag, version.name if version else None)
    except XNATDatastoreError as error:
        description, problem = {}, str(error)
    if saved and not description:  # what other programs left never has one
        problem = problem or WITHOUT_DESCRIPTION
    return SavedLabel(
        image=str(scan.image_id),
        project=scan.image_id.project,
        tag=tag,
        version=version.name if version else "",
        saved_at=_utc(description.get("saved_at")) or (saved.isoformat() if saved else ""),
        saved_by=str(description.get("saved_by") or ""),
        model=str((description.get("source") or {}).get("model") or ""),
        is_current=is_current,
        in_xnat=not (version and version.is_pending),
        segments=tuple(_segments(description)),
        problem=problem,
    )


def _unread(scan: Scan, tag: str, error: XNATDatastoreError) -> SavedLabel:
    image = scan.image_id
    return SavedLabel(str(image), image.project, tag, "", "", "", "", True, True, (), str(error))


def _is_unread(label: SavedLabel) -> bool:
    """Return whether not even the versions of a label could be listed."""
    return not label.version and bool(label.problem)


def _segments(description: dict[str, Any]) -> Iterable[Segment]:
    """Return the structures of a label, with the volume of their voxels in ml."""
    geometry = description.get("geometry") or {}
    voxel = None
    if "affine" in geometry:
        voxel = abs(float(np.linalg.det(np.array(geometry["affine"], float)[:3, :3]))) / _MILLILITRE
    for segment in description.get("segments") or ():
        voxels = segment.get("voxels")
        volume = None if voxel is None or voxels is None else voxels * voxel
        yield Segment(str(segment["name"]), voxels, volume)


def _utc(text: Any) -> str:
    """Return a time as UTC, ISO 8601 in whole seconds; "" for what is none."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(timezone.utc).isoformat(timespec="seconds")
    except ValueError:
        return ""


def _image(labels: Labels, scan: Scan) -> ImageFacts:
    tags = labels.tags(scan)
    return ImageFacts(
        image=str(scan.image_id),
        project=scan.image_id.project,
        series_description=scan.series_description,
        modality=scan.modality,
        state=FINAL if FINAL in tags else DRAFT if tags else UNLABELLED,
    )


def _left_out(parts: Parts) -> list[LeftOut]:
    """Return what is missing of the project, as far as this computer knows."""
    catalog = parts.catalog
    unread = catalog.unread
    found = [LeftOut("scan that is no volume", *item) for item in parts.images.no_volumes(catalog.get).items()]
    found += [
        LeftOut("drawing that cannot be read", what, str(reason)) for what, reason in unread["roi_unread"].items()
    ]
    found += [
        LeftOut("drawing that cannot be read", f"{count} of kind {kind}", "this version does not read the kind")
        for kind, count in unread["roi_kinds_unread"].items()
    ]
    if catalog.filter_problem:
        found.append(LeftOut("all images", "", catalog.filter_problem))
    if catalog.problem:
        found.append(LeftOut("part of the listing", "", catalog.problem))
    return found


def _unmeasured(labels: Sequence[SavedLabel], hidden: int) -> list[LeftOut]:
    """Return which labels cannot be read, which are not among the volumes, and how many were removed."""
    found = [
        LeftOut("label that cannot be read", f"{label.image} {label.tag} {label.version}".strip(), label.problem)
        for label in labels
        if label.problem
    ]
    for label in shown_labels(labels).values():
        if label.problem or any(segment.volume is not None for segment in label.segments):
            continue
        reason = (
            "it has no description that names structures with their numbers of voxels"
            if label.version
            else "it was drawn in a viewer, and has not been read on this computer yet"
        )
        found.append(LeftOut("label without volumes", f"{label.image} {label.tag}", reason))
    if hidden:
        found.append(LeftOut("removed label", f"{hidden} versions", "somebody removed them who may not delete"))
    return found


def _waiting(parts: Parts, item: dict[str, Any]) -> Waiting:
    if parts.catalog.get(str(item.get("image", ""))) is None:
        # What was given as its image may be the name of a patient, and the reason repeats it.
        item = {**item, "image": "", "waits_for": _UNKNOWN_IMAGE}
    return Waiting(
        image=str(item.get("image", "")),
        tag=str(item.get("tag", "")),
        saved_by=str(item.get("saved_by", "")),
        state=str(item["state"]),
        waits_for=str(item["waits_for"]),
        attempts=int(item.get("attempts", 0)),
    )


def cache_of(parts: Parts) -> CacheFacts:
    """Return what the cache of images holds now."""
    entries = parts.images.cache.entries()
    return CacheFacts(len(entries), sum(entry.size for entry in entries), parts.session.settings.cache_budget)


def connection_of(parts: Parts) -> Connection:
    """Return how the connection is, and what was asked through it until now."""
    pace = parts.session.pace.summary()
    return Connection(
        server=parts.session.settings.server,
        user=parts.session.known_user or "guest",
        requests=pace["requests"],
        repeated=pace["repeated"],
        connections=pace["connections"],
        problem=parts.catalog.problem,
    )
