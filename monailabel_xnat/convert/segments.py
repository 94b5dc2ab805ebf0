"""The segments of a ``.seg.nrrd`` file, as 3D Slicer writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Segment:
    """What a number in a label map means.

    Parameters
    ----------
    value : int
        The number.
    name : str
        Its name.
    colour : tuple of int, or None
        Red, green, blue, 0 to 255.
    """

    value: int
    name: str
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class SegmentField:
    """A segment as a header describes it.

    Parameters
    ----------
    name : str
        Its name.
    colour : tuple of int, or None
        Red, green, blue, 0 to 255.
    layer : int or None
        The component of the file that it lies in; None if the header does not say.
    value : int or None
        The number of its voxels there; None if the header does not say.
    """

    name: str
    colour: tuple[int, int, int] | None
    layer: int | None
    value: int | None


def parse_segments(fields: Mapping[str, str]) -> tuple[SegmentField, ...]:
    """Read the segments from the header fields ``Segment0_Name``, ``Segment0_LabelValue`` and so on.

    Returns
    -------
    tuple of SegmentField
        In the order of the header; empty if there are none.

    Raises
    ------
    ValueError
        If a number is none.
    """
    numbers = sorted({int(found[1]) for key in fields if (found := re.match(r"Segment(\d+)_", key))})
    segments = []
    for number in numbers:

        def field(name: str, number: int = number) -> str:
            return fields.get(f"Segment{number}_{name}", "").strip()

        name = field("Name") or field("ID") or f"Segment_{number + 1}"
        layer, value = field("Layer"), field("LabelValue")
        segments.append(
            SegmentField(name, _colour(field("Color")), int(layer) if layer else None, int(value) if value else None)
        )
    return tuple(segments)


def merge_components(
    stack: npt.NDArray[Any], fields: Sequence[SegmentField]
) -> tuple[npt.NDArray[Any], tuple[Segment, ...], tuple[str, ...]]:
    """Make one label map of the components of a file.

    3D Slicer keeps segments that overlap in several components, its layers. Up to version 4.10 it wrote one component
    for each segment and said neither layer nor value: segment i is component i with the value 1. Where several
    segments have a voxel it gets the one later in the header.

    Parameters
    ----------
    stack : ndarray (i, j, k, components)
        Whole numbers.
    fields : sequence of SegmentField
        In the order of the header. Two in different components may have the same value.

    Returns
    -------
    ndarray (i, j, k)
        One value for each voxel.
    tuple of Segment
        The segments; numbered anew, from 1, if two had the same value.
    tuple of str
        Notes: how many voxels were claimed by several segments or by none, and the new numbers.

    Raises
    ------
    ValueError
        If a segment lies in no component, has no possible value, or if voxels of several components are claimed by no
        segment.
    """
    count = stack.shape[3]
    layers, values = _layers(fields, count), _values(fields, count)
    segments = [Segment(value, field.name, field.colour) for value, field in zip(values, fields)]
    if count == 1:
        whole = stack[..., 0]
        # Some writers list the background as a segment.
        segments = [segment for segment in segments if segment.value]
        shared = len(segments) - len({segment.value for segment in segments})
        notes = (
            [f"{shared} segments have the value of another one: the later one in the header counts"] if shared else []
        )
        missing = unclaimed(whole, segments)
        if missing:
            notes.append(f"values that no segment of the file claims are kept: {missing}")
        return whole, tuple(segments), tuple(notes)
    _refuse_unclaimed(stack, segments, layers)
    return _merged(stack, segments, layers)


def unclaimed(array: npt.NDArray[Any], segments: Sequence[Segment]) -> str:
    """List the values of a label map that no segment has, with their voxel counts; empty if there are none.

    Parameters
    ----------
    array : ndarray (i, j, k)
        Whole numbers; 0 is background.
    segments : sequence of Segment
        The segments that are known.
    """
    counts = voxel_counts(array)
    counts[[0, *(segment.value for segment in segments if segment.value < len(counts))]] = 0
    return ", ".join(f"{value} ({counts[value]} voxels)" for value in np.flatnonzero(counts))


def voxel_counts(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Count the voxels of each value, slice by slice, because bincount needs 8 bytes for each voxel at a time."""
    counts = np.zeros(int(array.max(initial=0)) + 1, np.int64)
    for k in range(array.shape[2]):
        counts += np.bincount(array[:, :, k].ravel(order="K"), minlength=len(counts))
    return counts


def _layers(fields: Sequence[SegmentField], count: int) -> list[int]:
    """Return the component of each segment."""
    if count > 1 and all(field.layer is None for field in fields):
        layers = list(range(len(fields)))
    else:
        layers = [field.layer or 0 for field in fields]
    for field, layer in zip(fields, layers):
        if not 0 <= layer < count:
            raise ValueError(f"segment {field.name!r} should lie in component {layer}, but it has {count}, from 0 on")
    return layers


def _values(fields: Sequence[SegmentField], count: int) -> list[int]:
    """Return the value of each segment in its component."""
    layers = [field.layer for field in fields]
    values = []
    for place, field in enumerate(fields):
        is_alone = count > 1 and (field.layer is None or layers.count(field.layer) == 1)
        value = (1 if is_alone else place + 1) if field.value is None else field.value
        if value < 0 or (value == 0 and count > 1):
            raise ValueError(f"segment {field.name!r} has the value {value}, which is no value of a segment")
        values.append(value)
    return values


def _refuse_unclaimed(stack: npt.NDArray[Any], segments: Sequence[Segment], layers: Sequence[int]) -> None:
    problems = []
    for component in range(stack.shape[3]):
        known = [segment for segment, layer in zip(segments, layers) if layer == component]
        missing = unclaimed(stack[..., component], known)
        if missing:
            problems.append(f"component {component}, value {missing}")
    if problems:
        raise ValueError(f"no segment in its header claims {'; '.join(problems)}")


def _merged(
    stack: npt.NDArray[Any], segments: Sequence[Segment], layers: Sequence[int]
) -> tuple[npt.NDArray[Any], tuple[Segment, ...], tuple[str, ...]]:
    notes = []
    values = [segment.value for segment in segments]
    if len(set(values)) < len(values):
        values = list(range(1, len(segments) + 1))
        notes.append("segments in different layers shared values: numbered anew in the order of the header")
    merged = np.zeros(stack.shape[:3], dtype=np.uint16)
    overlap = np.zeros(stack.shape[:3], dtype=bool)
    for value, segment, layer in zip(values, segments, layers):
        inside = stack[..., layer] == segment.value
        overlap |= inside & (merged > 0)
        merged[inside] = value
    count = int(np.count_nonzero(overlap))
    if count:
        notes.append(f"{count} voxels belong to several segments: each has the later one in the header")
    renumbered = tuple(replace(segment, value=value) for segment, value in zip(segments, values))
    return merged, renumbered, tuple(notes)


def _colour(text: str) -> tuple[int, int, int] | None:
    parts = text.split()
    if len(parts) != 3:
        return None
    red, green, blue = (min(255, max(0, round(float(part) * 255))) for part in parts)
    return red, green, blue
