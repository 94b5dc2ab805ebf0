"""Comparison of the labels that different users saved for one image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.cli.report.facts import LeftOut, Pair, SavedLabel, StructureAgreement
from monailabel_xnat.convert.agreement import beside, compare_labels, values_by_name
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.labels import Labels


def pairs_worth_comparing(labels: Iterable[SavedLabel]) -> list[tuple[SavedLabel, SavedLabel]]:
    """Return pairs of labels by two users for the same image and tag, each user's newest version; newest pairs first.

    Within a pair the labels are sorted by user. Labels without structures are left out.

    Parameters
    ----------
    labels : iterable of SavedLabel
        All versions, oldest first.
    """
    newest: dict[tuple[str, str], dict[str, SavedLabel]] = {}
    for label in labels:
        if label.version and label.saved_by and label.segments:
            newest.setdefault((label.image, label.tag), {})[label.saved_by] = label
    pairs = [
        pair
        for by_user in newest.values()
        for pair in combinations(sorted(by_user.values(), key=lambda label: label.saved_by), 2)
    ]
    return sorted(pairs, key=lambda pair: max(label.saved_at for label in pair), reverse=True)


def compared(
    labels: Labels, catalog: Catalog, pairs: Sequence[tuple[SavedLabel, SavedLabel]], step: Callable[[], None]
) -> tuple[list[Pair], list[LeftOut]]:
    """Compare pairs of labels; return the results, and the pairs that could not be compared.

    The files are used as they were stored, so the image need not be fetched. Both must be on one voxel grid.

    Parameters
    ----------
    labels, catalog
        The labels and the list of images.
    pairs : sequence of tuple
        As of :func:`pairs_worth_comparing`.
    step : callable
        Called after each pair.
    """
    found: list[Pair] = []
    failures: list[LeftOut] = []
    for first, second in pairs:
        try:
            paths = [_file(labels, catalog, label) for label in (first, second)]
            one, other = (
                values_by_name(labels.description(catalog.scan(label.image), label.tag, label.version))
                for label in (first, second)
            )
            structures = compare_labels(paths[0], paths[1], beside(one, other))
        # SimpleITK raises RuntimeError for a file that it cannot read.
        except (XNATDatastoreError, OSError, RuntimeError) as error:
            what = f"{first.image} {first.tag}: {first.saved_by} and {second.saved_by}"
            failures.append(LeftOut("pair of labels", what, str(error)))
        else:
            agreements = tuple(
                StructureAgreement(item.name, item.dice, item.mean_distance, item.greatest_distance)
                for item in structures
                if any(item.volumes)  # a structure that is named but not drawn in either label does not count
            )
            found.append(Pair(first.image, first.tag, (first.saved_by, second.saved_by), agreements))
        step()
    return found, failures


def _file(labels: Labels, catalog: Catalog, label: SavedLabel) -> Path:
    """Return the file of a version as it was stored: from the outbox, or downloaded from XNAT."""
    scan = catalog.scan(label.image)
    entry = labels.index.entry(scan, label.tag, label.version)
    if entry is not None:
        return entry.file
    return labels.files.path(scan.image_id, label.tag, labels.index.find(scan, label.tag, label.version))
