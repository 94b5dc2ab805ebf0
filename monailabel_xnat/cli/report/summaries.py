"""Summaries of the facts: progress over time, work of each person, agreement of annotators, volumes and outliers."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import mean, quantiles

from monailabel_xnat.cli.report.facts import (
    DRAFT,
    FINAL,
    UNLABELLED,
    Agreement,
    Day,
    ImageFacts,
    Pair,
    Person,
    ProjectProgress,
    SavedLabel,
    StructureVolumes,
    Volume,
)

# Tukey's rule for outliers. With fewer values the quartiles are not meaningful.
_RANGES = 1.5
_FEWEST_VALUES = 5
# Relative tolerance: the quartiles of equal volumes may differ from them in the last digit.
_ROUNDING = 1e-9


def progress_of(images: Sequence[ImageFacts], labels: Iterable[SavedLabel], today: str) -> tuple[ProjectProgress, ...]:
    """Return the progress of each project, sorted by project.

    An image counts as a draft from the day of its oldest label, and as final from the day of its oldest final label.

    Parameters
    ----------
    images : sequence of ImageFacts
        All images, as they are now.
    labels : iterable of SavedLabel
        All versions of their labels.
    today : str
        The last day, ISO 8601.
    """
    dates: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for label in labels:
        dates[label.image, label.tag == FINAL].append(label.saved_at[:10])
    by_project: dict[str, list[ImageFacts]] = defaultdict(list)
    for image in images:
        by_project[image.project].append(image)
    return tuple(_progress(name, by_project[name], dates, today) for name in sorted(by_project))


def _progress(
    project: str, images: Sequence[ImageFacts], dates: Mapping[tuple[str, bool], list[str]], today: str
) -> ProjectProgress:
    labelled: list[str] = []  # the days on which images got their first label; "" if that is not known
    finished: list[str] = []
    for image in images:
        finals = dates.get((image.image, True), [])
        if image.state != UNLABELLED:
            # If the final label was removed later, it does not count.
            drafts = dates.get((image.image, False), [])
            labelled.append(_first([*drafts, *(finals if image.state == FINAL else ())]))
        if image.state == FINAL:
            finished.append(_first(finals))
    days = sorted({day for day in (*labelled, *finished) if day} | {today})
    labelled.sort()
    finished.sort()
    counts = [(bisect_right(labelled, day), bisect_right(finished, day)) for day in days]
    return ProjectProgress(
        project=project,
        images=len(images),
        unlabelled=len(images) - len(labelled),
        draft=len(labelled) - len(finished),
        final=len(finished),
        undated=sum(not first for first in labelled),
        days=tuple(Day(day, some - final, final) for day, (some, final) in zip(days, counts, strict=True)),
    )


def _first(days: Iterable[str]) -> str:
    """Return the earliest of the days that are known, "" if none is."""
    return min(filter(None, days), default="")


def people_of(labels: Iterable[SavedLabel]) -> tuple[Person, ...]:
    """Return a summary of the labels of each user; the user with most versions comes first."""
    by_user: dict[str, list[SavedLabel]] = defaultdict(list)
    for label in labels:
        by_user[label.saved_by].append(label)
    people = [
        Person(
            user=user,
            versions=len(saved),
            drafts=sum(label.tag != FINAL for label in saved),
            finals=sum(label.tag == FINAL for label in saved),
            with_model=sum(bool(label.model) for label in saved),
            images=len({label.image for label in saved}),
            current=sum(label.is_current for label in saved),
            last=max(label.saved_at for label in saved),
        )
        for user, saved in by_user.items()
    ]
    return tuple(sorted(people, key=lambda person: (-person.versions, person.user)))


def agreement_of(pairs: Iterable[Pair]) -> tuple[Agreement, ...]:
    """Return the agreement of each pair of users about each structure, sorted by users and structure."""
    found: dict[tuple[tuple[str, str], str], list[tuple[float, str, float | None]]] = defaultdict(list)
    for pair in pairs:
        for item in pair.structures:
            found[pair.users, item.name].append((item.dice, pair.image, item.greatest_distance))
    return tuple(
        Agreement(
            users=users,
            structure=structure,
            dices=tuple(sorted(dice for dice, _, _ in items)),
            mean_dice=mean(dice for dice, _, _ in items),
            lowest_image=min(items, key=lambda item: item[:2])[1],
            greatest_distance=max((far for _, _, far in items if far is not None), default=None),
        )
        for (users, structure), items in sorted(found.items())
    )


def shown_labels(labels: Iterable[SavedLabel]) -> dict[str, SavedLabel]:
    """Return the label that represents each image, by image: its final label, otherwise its newest one."""
    chosen: dict[str, SavedLabel] = {}
    for label in sorted(labels, key=lambda label: (label.tag == FINAL, label.saved_at, label.tag)):
        if label.is_current:
            chosen[label.image] = label
    return chosen


def volumes_of(labels: Iterable[SavedLabel]) -> tuple[StructureVolumes, ...]:
    """Return the volumes of each structure in each project, sorted by project and name.

    If there are at least five volumes, a volume is an outlier if it lies more than 1.5 interquartile ranges below the
    first or above the third quartile (Tukey). If a structure has no voxels in a label, the label has no volume of it.
    """
    found: dict[tuple[str, str], list[Volume]] = defaultdict(list)
    for label in shown_labels(labels).values():
        volumes: dict[str, float] = defaultdict(float)
        for segment in label.segments:
            if segment.volume:
                volumes[segment.name] += segment.volume
        state = FINAL if label.tag == FINAL else DRAFT
        for name, volume in volumes.items():
            found[label.project, name].append(Volume(label.image, state, label.saved_by, volume))
    return tuple(_measured(*key, values) for key, values in sorted(found.items()))


def _measured(project: str, structure: str, values: list[Volume]) -> StructureVolumes:
    values = sorted(values, key=lambda value: (value.volume, value.image))
    sizes = [value.volume for value in values]
    first, median, third = quantiles(sizes, method="inclusive") if len(sizes) > 1 else sizes * 3
    has_fences = len(sizes) >= _FEWEST_VALUES
    if has_fences:
        reach = _RANGES * (third - first) + _ROUNDING * third
        sides = ["small" if size < first - reach else "large" if size > third + reach else "" for size in sizes]
        values = [replace(value, side=side) for value, side in zip(values, sides, strict=True)]
    return StructureVolumes(project, structure, tuple(values), first, median, third, has_fences)
