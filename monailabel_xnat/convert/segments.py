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


def parse_segments(fields: Mapping[str, str]) -> tuple[tuple[Segment, ...], tuple[int, ...]]:
    """Read the segments from the header fields ``Segment0_Name``, ``Segment0_LabelValue`` and so on.

    Returns
    -------
    tuple of Segment
        In the order of the header; empty if there are none.
    tuple of int
        The layer that each lies in.

    Raises
    ------
    ValueError
        If a number is none.
    """
    numbers = sorted({int(found[1]) for key in fields if (found := re.match(r"Segment(\d+)_", key))})
    segments, layers = [], []
    for number in numbers:

        def field(name: str, default: str, number: int = number) -> str:
            return fields.get(f"Segment{number}_{name}", default).strip() or default

        value = int(field("LabelValue", str(number + 1)))
        name = field("Name", field("ID", f"Segment_{number + 1}"))
        segments.append(Segment(value, name, _colour(field("Color", ""))))
        layers.append(int(field("Layer", "0")))
    return tuple(segments), tuple(layers)


def merge_layers(
    stack: npt.NDArray[Any], segments: Sequence[Segment], layers: Sequence[int]
) -> tuple[npt.NDArray[Any], tuple[Segment, ...], tuple[str, ...]]:
    """Merge overlapping segments into one label map: the later one in the header has the voxel.

    Parameters
    ----------
    stack : ndarray (i, j, k, layers)
        Values of each layer.
    segments : sequence of Segment
        In the order of the header. Two in different layers may have the same value.
    layers : sequence of int
        The layer of each.

    Returns
    -------
    ndarray (i, j, k), uint16
        One value for each voxel.
    tuple of Segment
        The segments; numbered anew, from 1, if two had the same value.
    tuple of str
        Notes: how many voxels were claimed by several, and the new numbers.
    """
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
