"""The form of a label's description: what is not of this form, or describes another label, is not believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from monailabel_xnat.catalog.listing import Scan
from monailabel_xnat.errors import InvalidIdError
from monailabel_xnat.ids import ImageId
from monailabel_xnat.labels.tags import resource_of


def require_description(description: Mapping[str, Any], scan: Scan, resource: str, digest: str) -> None:
    """Refuse what is no description of a label; see :mod:`~monailabel_xnat.labels.sidecar` for the form.

    Parameters
    ----------
    description : mapping
        What was read.
    scan : Scan
        The image that it should describe a label of.
    resource : str
        Label of the resource that it lies in.
    digest : str
        How the SHA-256 of the label's file begins, hexadecimal.

    Raises
    ------
    ValueError
        If it has not the form of a description, or is that of another label. The text says what is wrong.
    """
    for key, is_fine in _NEEDED.items():
        if key not in description:
            raise ValueError(f"{key} is missing")
        if not is_fine(description[key]):
            raise ValueError(f"{key} has a wrong type")
    for key, is_fine in _OPTIONAL.items():
        if key in description and not is_fine(description[key]):
            raise ValueError(f"{key} has a wrong type")
    if not description["sha256"].lower().startswith(digest):
        raise ValueError("it describes another label: its sha256 is not that of the file beside it")
    if resource_of(description["tag"]) != resource:
        raise ValueError(f"it describes a label with tag {description['tag']!r}")
    if not _is_of(description, scan):
        raise ValueError("it describes a label of another image")


def _is_of(description: Mapping[str, Any], scan: Scan) -> bool:
    """Return whether a description is of an image: by its ids, or by its series, which a copied session keeps."""
    series = description.get("series_uid")
    if series and series == scan.series_uid:
        return True
    try:
        image = ImageId.parse(description["image_id"])
    except InvalidIdError:
        return False
    return (image.experiment, image.scan) == (scan.image_id.experiment, scan.image_id.scan)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value.lower()) <= set("0123456789abcdef")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list_of(is_fine: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(is_fine, value))


def _is_segment(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_whole(value.get("value"))
        and _is_text(value.get("name"))
        and (value.get("colour") is None or _is_list_of(_is_number, 3)(value["colour"]))
        and (value.get("voxels") is None or _is_whole(value["voxels"]))
    )


def _is_geometry(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _is_list_of(_is_whole, 3)(value.get("shape"))
        and _is_list_of(_is_list_of(_is_number, 4), 4)(value.get("affine"))
    )


_NEEDED: Mapping[str, Callable[[Any], bool]] = {
    "format_version": _is_whole,
    "image_id": _is_text,
    "tag": _is_text,
    "sha256": _is_digest,
    "segments": _is_list_of(_is_segment),
    "info": _is_object,
}
_OPTIONAL: Mapping[str, Callable[[Any], bool]] = {
    "series_uid": lambda value: value is None or _is_text(value),
    "saved_at": _is_text,
    "saved_by": _is_text,
    "source": _is_object,
    "geometry": _is_geometry,
    "notes": _is_list_of(_is_text),
    "restored_from": _is_text,
}
