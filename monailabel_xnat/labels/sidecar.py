"""The description that is stored beside each label, as JSON.

``format_version``
    1.
``image_id``, ``tag``, ``series_uid``
    What the label belongs to.
``saved_at``, ``saved_by``
    When (UTC, ISO 8601) and by which XNAT user.
``source``
    ``model`` and ``model_version`` that made it, ``client`` that sent it and ``file_type`` of what was sent, as far as
    known.
``segments``
    Of a label map: ``value``, ``name``, ``colour`` (red, green, blue, 0 to 255, or null) and ``voxels`` (how many).
``geometry``
    Of a label map: ``shape`` (i, j, k), ``affine`` (voxel index to RAS, mm) and ``orientation`` (such as ``LPS``).
``sha256``
    Hexadecimal digest of the file beside it.
``notes``
    What was changed when it was stored, such as the order of its axes.
``restored_from``
    The version whose content was stored anew, where it was.
``info``
    MONAI Label's label info, unchanged; the only part that changes later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from monailabel_xnat.catalog.listing import Scan
from monailabel_xnat.convert import LabelMap, Segment
from monailabel_xnat.convert.geometry import axis_codes
from monailabel_xnat.convert.segments import voxel_counts
from monailabel_xnat.jsonable import resized

FORMAT_VERSION = 1


def describe(
    scan: Scan,
    tag: str,
    info: Mapping[str, Any],
    *,
    label: LabelMap | None,
    file_type: str,
    configured: Mapping[str, int],
) -> dict[str, Any]:
    """Describe a label, but for what is known only once its file is written.

    Parameters
    ----------
    scan : Scan
        The image.
    tag : str
        The label's tag.
    info : mapping
        The caller's label info, plain JSON values.
    label : LabelMap or None
        The label map, on the grid of the image; None for the result of another task.
    file_type : str
        Extension of what was sent.
    configured : mapping of str to int
        Voxel value of each name in the settings.
    """
    params = info.get("params")
    params = params if isinstance(params, Mapping) else {}
    source = {
        "model": _first(info.get("model"), params.get("model")),
        "model_version": _first(info.get("model_version"), params.get("model_version")),
        "client": _first(info.get("client_id"), params.get("client_id")),
        "file_type": file_type,
    }
    segments = _segments(label, info, configured) if label else []
    return {
        "format_version": FORMAT_VERSION,
        "image_id": str(scan.image_id),
        "tag": tag,
        "series_uid": scan.series_uid,
        "source": {key: value for key, value in source.items() if value},
        "segments": segments,
        "geometry": _geometry(label) if label else None,
        "notes": [*label.notes, *_unnamed(label, segments, info, configured)] if label else [],
        "info": dict(info),
    }


def completed(sidecar: Mapping[str, Any], *, sha256: str, saved_at: datetime, saved_by: str) -> dict[str, Any]:
    """Add what is known once the label is written."""
    time = saved_at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    return {**sidecar, "sha256": sha256, "saved_at": time, "saved_by": saved_by}


def placed(sidecar: Mapping[str, Any], label: LabelMap, sha256: str) -> dict[str, Any]:
    """Say that a label was put on the grid of its image after it had been described."""
    notes = [*sidecar.get("notes", []), *label.notes]
    return {**sidecar, "geometry": _geometry(label), "notes": notes, "sha256": sha256}


def encode(sidecar: Mapping[str, Any], previous_size: int | None = None) -> bytes:
    """Write a description as JSON.

    Parameters
    ----------
    sidecar : mapping
        The description.
    previous_size : int or None
        Bytes of the one that it replaces; the new one is made to differ in size.
    """
    content = json.dumps(sidecar, indent=1).encode()
    return content if previous_size is None else resized(content, previous_size)


def decode(content: bytes) -> dict[str, Any]:
    """Read a description.

    Raises
    ------
    ValueError
        If it is no JSON object.
    """
    sidecar = json.loads(content)
    if not isinstance(sidecar, dict):
        raise ValueError("it is no JSON object")
    return sidecar


def info_of(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Give the label info in a description; {} if there is none."""
    info = sidecar.get("info")
    return dict(info) if isinstance(info, Mapping) else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value), None)


def _geometry(label: LabelMap) -> dict[str, Any]:
    return {
        "shape": [int(size) for size in label.array.shape],
        "affine": [[float(value) for value in row] for row in label.affine],
        "orientation": axis_codes(label.affine),
    }


def _segments(label: LabelMap, info: Mapping[str, Any], configured: Mapping[str, int]) -> list[dict[str, Any]]:
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
    """Name the values of a label map.

    Each value takes the first name found in: the file itself (``.seg.nrrd``), the model's ``label_names`` in the
    info's ``params``, the info's ``label_info``, the settings; else it is called ``Segment_<value>``.

    Parameters
    ----------
    present : sequence of int
        Values other than 0 that occur.
    in_file : sequence of Segment
        What the file says.
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


def _unnamed(
    label: LabelMap, segments: Sequence[Mapping[str, Any]], info: Mapping[str, Any], configured: Mapping[str, int]
) -> list[str]:
    """Note the values that have no name although others have; what the file itself says is noted when it is read."""
    given = {segment.value for segment in _names_given([segment["value"] for segment in segments], info, configured)}
    missing = [segment for segment in segments if segment["value"] not in given]
    if label.segments or not given or not missing:
        return []
    values = ", ".join(f"{segment['value']} ({segment['voxels']} voxels)" for segment in missing)
    return [f"values that no name was given for are kept: {values}"]


def _label_names(names: Any) -> list[Segment]:
    """Read a model's labels: ``{name: value}`` or ``{name: [value, ...]}``, or names for 1, 2, ..."""
    if isinstance(names, Mapping):
        pairs = [(name, values if isinstance(values, list) else [values]) for name, values in names.items()]
        return [Segment(int(value), str(name)) for name, values in pairs for value in values if _is_number(value)]
    if isinstance(names, list):
        return [Segment(number, str(name)) for number, name in enumerate(names, 1)]
    return []


def _label_info(entries: Any, present: Sequence[int]) -> list[Segment]:
    """Read a client's ``[{"name", "idx"}, ...]``.

    3D Slicer's ``idx`` counts all its segments, also those that it does not send, while the values in its file count
    only those sent: where the numbers have gaps and the values fit the places in the list, the places count.
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
        for value, item in zip(values, items)
    ]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and value.isdigit())


def _colour(value: Any) -> tuple[int, int, int] | None:
    if not isinstance(value, list) or len(value) < 3:
        return None
    channels = value[:3]
    if not all(isinstance(channel, int) and 0 <= channel <= 255 for channel in channels):
        return None
    return channels[0], channels[1], channels[2]
