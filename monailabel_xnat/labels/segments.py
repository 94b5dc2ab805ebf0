"""The names of the values in a label map, and the setting ``labels``, which gives each name its value."""

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
from monailabel_xnat.convert.labelmap import unclaimed, voxel_counts
from monailabel_xnat.errors import LabelError

logger = logging.getLogger(__name__)


def segments_of(label: LabelMap, info: Mapping[str, Any], configured: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the ``segments`` in a label map's description: value, name, colour and number of voxels of each."""
    counts = voxel_counts(label.array)
    present = [int(value) for value in np.flatnonzero(counts) if value > 0]
    segments = name_segments(present, label.segments, info, configured)
    return [
        {
            "value": segment.value,
            "name": segment.name,
            "colour": list(segment.colour) if segment.colour else None,
            "voxels": int(counts[segment.value]) if segment.value < len(counts) else 0,
        }
        for segment in segments
    ]


def name_segments(
    present: Sequence[int], in_file: Sequence[Segment], info: Mapping[str, Any], configured: Mapping[str, int]
) -> list[Segment]:
    """Return segments with a name for each value of a label map.

    Each value gets the first name that is found in these places: the file itself (``.seg.nrrd``), the model's
    ``label_names`` in the info's ``params``, the info's ``label_info``, the settings. Without a name it is called
    ``Segment_<value>``.

    Parameters
    ----------
    present : sequence of int
        The values that occur, without 0.
    in_file : sequence of Segment
        The segments that the file names.
    info : mapping
        MONAI Label's label info.
    configured : mapping of str to int
        Voxel value of each name in the settings.

    Returns
    -------
    list of Segment
        One for each value that occurs or that the file names, ascending.
    """
    named: dict[int, Segment] = {segment.value: segment for segment in in_file if segment.value > 0}
    for segment in _names_given(present, info, configured):
        if segment.value in present:
            named.setdefault(segment.value, segment)
    for value in present:
        named.setdefault(value, Segment(value, f"Segment_{value}"))
    return sorted(named.values(), key=lambda segment: segment.value)


def _names_given(present: Sequence[int], info: Mapping[str, Any], configured: Mapping[str, int]) -> list[Segment]:
    params = info.get("params")
    models = _label_names(params.get("label_names")) if isinstance(params, Mapping) else []
    settings = [Segment(value, name) for name, value in configured.items()]
    return [*models, *_label_info(info.get("label_info"), present), *settings]


def unnamed_values(
    label: LabelMap, segments: Sequence[Mapping[str, Any]], info: Mapping[str, Any], configured: Mapping[str, int]
) -> list[str]:
    """Return a note on values without a name, if other values have one.

    For a file that names its segments, such a note was made when it was read.
    """
    given = {segment.value for segment in _names_given([segment["value"] for segment in segments], info, configured)}
    missing = [segment for segment in segments if segment["value"] not in given]
    if label.segments or not given or not missing:
        return []
    values = ", ".join(f"{segment['value']} ({segment['voxels']} voxels)" for segment in missing)
    return [f"values that no name was given for are kept: {values}"]


def _label_names(names: Any) -> list[Segment]:
    """Return the segments of a model's labels: ``{name: value}``, ``{name: [value, ...]}``, or names for 1, 2, ..."""
    if isinstance(names, Mapping):
        pairs = [(name, values if isinstance(values, list) else [values]) for name, values in names.items()]
        return [Segment(int(value), str(name)) for name, values in pairs for value in values if _is_number(value)]
    if isinstance(names, list):
        return [Segment(number, str(name)) for number, name in enumerate(names, 1)]
    return []


def _label_info(entries: Any, present: Sequence[int]) -> list[Segment]:
    """Return the segments of a client's ``[{"name", "idx"}, ...]``.

    In 3D Slicer, ``idx`` counts all segments, also those that are not sent, but the values in the file count only the
    segments that are sent. So if the numbers have gaps, and all values fit the places in the list, the places are used.
    """
    if not isinstance(entries, list):
        return []
    items = [item for item in entries if isinstance(item, Mapping) and item.get("name")]
    places = range(1, len(items) + 1)
    numbers = [int(item["idx"]) if _is_number(item.get("idx")) else 0 for item in items]
    by_place = set(numbers) != set(places) and all(value in places for value in present)
    values = list(places) if by_place else numbers
    return [
        Segment(value, str(item["name"]), _colour(item.get("color") or item.get("colour")))
        for value, item in zip(values, items, strict=True)
    ]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and value.isdecimal())


def _colour(value: Any) -> tuple[int, int, int] | None:
    if not isinstance(value, list) or len(value) < 3:
        return None
    channels = value[:3]
    if not all(isinstance(channel, int) and 0 <= channel <= 255 for channel in channels):
        return None
    return channels[0], channels[1], channels[2]


_BETWEEN_WORDS = re.compile(r"[\s_-]+")
# The names of values that nobody named.
_UNNAMED = re.compile(r"(Segment|ROI)[ _]?\d+", re.IGNORECASE)


def with_values(label: LabelMap, values: Mapping[str, int]) -> LabelMap:
    """Return a label in which each segment has the value that its name has in the settings.

    Names are compared without case; blanks, ``_`` and ``-`` count as the same. Segments with other names are left out,
    because a model cannot know what they are; the notes list them.

    Parameters
    ----------
    label : LabelMap
        The label with its segments.
    values : mapping of str to int
        Voxel value of each name. If it is empty, the label is returned as it is.

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
    """Return the wanted value for each value of a stored label; {} if no value changes.

    Parameters
    ----------
    segments : sequence of mapping
        The segments in the label's description. Values without a name stay as they are. Values whose name is not
        wanted become 0.
    values : mapping of str to int
        Voxel value of each wanted name.
    source : str
        Where the wanted names come from, for the errors.

    Raises
    ------
    LabelError
        If no segment has a wanted name, or a value without a name is the wanted value of a named segment.
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
    """Return the names of segments with voxels that are not wanted names; values that nobody named are left out."""
    wanted = _by_plain_name(values)
    names = {str(segment["name"]) for segment in segments if segment.get("voxels", 1)}
    return sorted(name for name in names if not _UNNAMED.fullmatch(name) and _plain(name) not in wanted)


def has_unnamed_values(segments: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a label has voxels of values that nobody named."""
    return any(segment.get("voxels", 1) and _UNNAMED.fullmatch(str(segment["name"])) for segment in segments)


def _refuse_shared_values(segments: Sequence[Mapping[str, Any]], table: Mapping[int, int], source: str) -> None:
    """Refuse a value without a name if a named segment gets the same value, because the two would become one."""
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
    """Write a label map with other values, given by a table from old to new value; 0 leaves a value out."""
    label = read_label(source)
    write_label(replace(label, array=mapped(label.array, table)), target)
    left_out = sum(not other for other in table.values())
    if left_out:
        logger.warning("%d segments are left out of a label, for their names are not wanted", left_out)


def mapped(array: np.ndarray[Any, Any], table: Mapping[int, int]) -> np.ndarray[Any, Any]:
    """Return a label map (i, j, k) with other values, uint8 or uint16; values that are not in the table become 0."""
    largest = max(table.values(), default=0)
    lookup = np.zeros(int(array.max(initial=0)) + 1, np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
    for value, other in table.items():
        if value < len(lookup):
            lookup[value] = other
    # Fortran order is the order in which NIfTI is written.
    return np.asfortranarray(lookup[array])


def _voxels(counts: npt.NDArray[np.int64], segments: Sequence[Segment], name: str) -> int:
    values = {segment.value for segment in segments if segment.name == name and segment.value < len(counts)}
    return int(counts[sorted(values)].sum())


def _by_plain_name(values: Mapping[str, int]) -> dict[str, int]:
    return {_plain(name): value for name, value in values.items()}


def _plain(name: str) -> str:
    return _BETWEEN_WORDS.sub(" ", name).strip().casefold()
