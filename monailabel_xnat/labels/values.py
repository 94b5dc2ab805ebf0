"""The setting ``labels``: which voxel value each name of a segment stands for."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monailabel_xnat.convert import LabelMap, Segment, read_label, write_label
from monailabel_xnat.convert.segments import unclaimed, voxel_counts
from monailabel_xnat.errors import LabelError

logger = logging.getLogger(__name__)

_BETWEEN_WORDS = re.compile(r"[\s_-]+")
# What a value is called that nobody named.
_UNNAMED = re.compile(r"(Segment|ROI)[ _]?\d+", re.IGNORECASE)


def with_values(label: LabelMap, values: Mapping[str, int]) -> LabelMap:
    """Give each segment the value that its name has in the settings.

    Names are compared without case, and blanks, ``_`` and ``-`` are one. Segments of other names are left out, for a
    model cannot know what they are; the notes tell which.

    Parameters
    ----------
    label : LabelMap
        With its segments.
    values : mapping of str to int
        Voxel value of each name; empty: the label stays as it is.

    Raises
    ------
    LabelError
        If it has segments, but none with a name of the settings.
    """
    if not values or not label.segments:
        return label
    wanted = _by_plain_name(values)
    table = {
        segment.value: wanted[_plain(segment.name)] for segment in label.segments if _plain(segment.name) in wanted
    }
    left_out = sorted({segment.name for segment in label.segments if segment.value not in table})
    if not table:
        raise LabelError(
            f"no segment has a name of the setting labels ({', '.join(values)}): it has {', '.join(left_out)}",
            hint="name the segments so, or change the setting",
        )
    counts = voxel_counts(label.array)
    counted = ", ".join(f"{name} ({_voxels(counts, label.segments, name)} voxels)" for name in left_out)
    nameless = unclaimed(label.array, label.segments)
    names = {value: name for name, value in values.items()}
    segments = {
        table[segment.value]: Segment(table[segment.value], names[table[segment.value]], segment.colour)
        for segment in label.segments
        if segment.value in table
    }
    notes = [f"left out, for their names are not in the setting labels: {counted}"] if left_out else []
    notes += [f"left out, for no segment claims these values: {nameless}"] if nameless else []
    return replace(
        label,
        array=mapped(label.array, table),
        segments=tuple(segment for _, segment in sorted(segments.items())),
        notes=(*label.notes, *notes),
    )


def differing_values(
    segments: Sequence[Mapping[str, Any]], values: Mapping[str, int], source: str = "the setting labels"
) -> dict[int, int]:
    """Return the wanted value for each value of a stored label; {} if none differs.

    Parameters
    ----------
    segments : sequence of mapping
        As in the label's description. Values without a name of their own stay as they are; those of a name that is
        not wanted become 0.
    values : mapping of str to int
        Voxel value of each wanted name.
    source : str
        Who wants them, for the errors.

    Raises
    ------
    LabelError
        If no segment has a wanted name, or a value without a name is that of a name.
    """
    if not values:
        return {}
    wanted = _by_plain_name(values)
    table = {}
    for segment in segments:
        value, name = int(segment["value"]), str(segment["name"])
        table[value] = value if _UNNAMED.fullmatch(name) else wanted.get(_plain(name), 0)
    _refuse_shared_values(segments, table, source)
    if table and not any(table.values()):
        names = ", ".join(str(segment["name"]) for segment in segments)
        raise LabelError(
            f"no segment has a name of {source} ({', '.join(values)}): it has {names}",
            hint="change the names in the label's info, or say with the setting labels which name has which value",
        )
    return table if any(value != other for value, other in table.items()) else {}


def unknown_names(segments: Sequence[Mapping[str, Any]], values: Mapping[str, int]) -> list[str]:
    """Return the names of segments that hold voxels and have no wanted name; values that nobody named do not count."""
    wanted = _by_plain_name(values)
    names = {str(segment["name"]) for segment in segments if segment.get("voxels", 1)}
    return sorted(name for name in names if not _UNNAMED.fullmatch(name) and _plain(name) not in wanted)


def has_unnamed_values(segments: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a label has voxels of values that nobody named."""
    return any(segment.get("voxels", 1) and _UNNAMED.fullmatch(str(segment["name"])) for segment in segments)


def _refuse_shared_values(segments: Sequence[Mapping[str, Any]], table: Mapping[int, int], source: str) -> None:
    """Refuse a value without a name that a named segment gets in the settings: they would become one."""
    holding = [segment for segment in segments if segment.get("voxels", 1)]
    for segment in holding:
        value, name = int(segment["value"]), str(segment["name"])
        others = [str(other["name"]) for other in holding if table[int(other["value"])] == value and other != segment]
        if others and _UNNAMED.fullmatch(name):
            raise LabelError(
                f"the value {value} has no name ({segment.get('voxels', 'some')} voxels), and {others[0]!r} has this "
                f"value in {source}",
                hint="name the value in the label's info (label_info), or save the label without it",
            )


def write_mapped(source: Path, table: Mapping[int, int], target: Path) -> None:
    """Write a label map with other values."""
    label = read_label(source)
    write_label(replace(label, array=mapped(label.array, table)), target)
    left_out = sum(not other for other in table.values())
    if left_out:
        logger.warning("%d segments are left out of a label, for their names are not wanted", left_out)


def mapped(array: np.ndarray[Any, Any], table: Mapping[int, int]) -> np.ndarray[Any, Any]:
    """Replace the values of a label map; those that are not in the table become 0."""
    largest = max(table.values(), default=0)
    lookup = np.zeros(int(array.max(initial=0)) + 1, np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
    for value, other in table.items():
        if value < len(lookup):
            lookup[value] = other
    # In the order of memory, which NIfTI is written in.
    return np.asfortranarray(lookup[array])


def _voxels(counts: npt.NDArray[np.int64], segments: Sequence[Segment], name: str) -> int:
    values = {segment.value for segment in segments if segment.name == name and segment.value < len(counts)}
    return int(counts[sorted(values)].sum())


def _by_plain_name(values: Mapping[str, int]) -> dict[str, int]:
    return {_plain(name): value for name, value in values.items()}


def _plain(name: str) -> str:
    return _BETWEEN_WORDS.sub(" ", name).strip().casefold()
