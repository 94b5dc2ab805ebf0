"""The collection of the facts of a report: from memory, from descriptions of labels, and from files of some labels.

No request is sent for an image without a label, and nothing is changed in XNAT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import numpy as np

from monailabel_xnat import __version__
from monailabel_xnat.catalog import Scan
from monailabel_xnat.cli.common import Opened, progress
from monailabel_xnat.cli.report.facts import (
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
from monailabel_xnat.cli.report.pairs import compared, pairs_worth_comparing
from monailabel_xnat.cli.report.summaries import agreement_of, people_of, progress_of, shown_labels, volumes_of
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.labels import Labels
from monailabel_xnat.labels.tags import tag_of
from monailabel_xnat.labels.version import WITHOUT_DESCRIPTION, LabelVersion

_MILLILITRE = 1000.0  # mm3
_UNKNOWN_IMAGE = "its image is not among those of this report: `monailabel-xnat outbox` says more"


def gather(parts: Opened, *, most_pairs: int) -> Report:
    """Return all facts of a report.

    Parameters
    ----------
    parts : Opened
        The parts of the datastore.
    most_pairs : int
        How many pairs of labels are compared at most, the newest first. Their files are downloaded.

    Raises
    ------
    ServerError
        If XNAT cannot list the images.
    """
    scans = parts.catalog.scans()
    with progress("reading labels", len(scans)) as step:
        labels, hidden = _labels_of(parts, scans, step)
    images = tuple(_image(parts.labels, scan) for scan in scans)
    worth = pairs_worth_comparing(labels)
    with progress("comparing labels", min(len(worth), most_pairs)) as step:
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
        # Of a label whose versions could not be listed there is only the problem.
        people=people_of(label for label in labels if label.version or not label.problem),
        pairs=tuple(pairs),
        agreement=agreement_of(pairs),
        volumes=volumes_of(labels),
        left_out=(*_left_out(parts), *_unmeasured(labels, hidden), *failures),
        outbox=tuple(_waiting(parts, item) for item in parts.store.report()),
        cache=cache_of(parts),
        connection=connection_of(parts),
    )


def _labels_of(parts: Opened, scans: Sequence[Scan], step: Callable[[], None]) -> tuple[list[SavedLabel], int]:
    """Return all versions of the labels of images, oldest first, and the number of hidden versions."""

    def read(scan: Scan) -> list[SavedLabel | None]:
        try:
            # If all versions of a label are hidden, there is still a resource, but no label.
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
    """Return all versions of a label, with None for each hidden one.

    A version, or a list of versions, that cannot be read is an entry with a problem.
    """
    found: list[SavedLabel | None] = []
    versions: list[LabelVersion] = []
    current = ""
    try:
        versions = labels.index.all(scan, tag)
        if tag in labels.tags(scan):
            current = labels.current(scan, tag).name
    except XNATDatastoreError as error:
        image = scan.image_id
        found.append(SavedLabel(str(image), image.project, tag, "", "", "", "", True, True, (), str(error)))
    for version in versions:
        found.append(None if version.is_hidden else _saved(labels, scan, tag, version, version.name == current))
    if current and current not in {version.name for version in versions}:
        found.append(_saved(labels, scan, tag, None, True))
    return found


def _saved(labels: Labels, scan: Scan, tag: str, version: LabelVersion | None, is_current: bool) -> SavedLabel:
    """Return the facts about a version of a label; without a version, those of the drawing that is the label."""
    saved = version.saved_at if version else None
    problem = ""
    try:
        description = labels.description(scan, tag, version.name if version else None)
    except XNATDatastoreError as error:
        description, problem = {}, str(error)
    if saved and not description:  # labels of other programs have no time in their names, and never a description
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
    """Return a time as UTC, ISO 8601 in whole seconds; "" if the text is not a time."""
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


def _left_out(parts: Opened) -> list[LeftOut]:
    """Return what is missing in the project, as far as this computer knows."""
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
    """Return the labels that cannot be read, those without volumes, and the number of removed versions."""
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


def _waiting(parts: Opened, item: dict[str, Any]) -> Waiting:
    if parts.catalog.get(str(item.get("image", ""))) is None:
        # An id that no image has may be the name of a patient, and the reason repeats it: show neither.
        item = {**item, "image": "", "waits_for": _UNKNOWN_IMAGE}
    return Waiting(
        image=str(item.get("image", "")),
        tag=str(item.get("tag", "")),
        saved_by=str(item.get("saved_by", "")),
        state=str(item["state"]),
        waits_for=str(item["waits_for"]),
        attempts=int(item.get("attempts", 0)),
    )


def cache_of(parts: Opened) -> CacheFacts:
    """Return the number and size of the images that the cache holds now, and its limit."""
    entries = parts.images.cache.entries()
    return CacheFacts(len(entries), sum(entry.size for entry in entries), parts.session.settings.cache_budget)


def connection_of(parts: Opened) -> Connection:
    """Return the state of the connection, and the number of requests so far."""
    pace = parts.session.pace.summary()
    return Connection(
        server=parts.session.settings.server,
        user=parts.session.known_user or "guest",
        requests=pace["requests"],
        repeated=pace["repeated"],
        connections=pace["connections"],
        problem=parts.catalog.problem,
    )
