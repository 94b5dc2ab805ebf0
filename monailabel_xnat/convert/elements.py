"""Values of single DICOM elements, from their bytes.

pydicom keeps an element as bytes until it is asked for. Reading these bytes directly costs a fraction of
pydicom's own conversion and raises no warning about values that break a rule of the standard which does not
matter here.
"""

from __future__ import annotations

import struct
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag


class ElementError(ValueError):
    """An element holds something other than what its value representation says."""


def _raw(dataset: Dataset, tag: int) -> Any:
    return dataset.get_item(Tag(tag)) if Tag(tag) in dataset else None


def text(dataset: Dataset, tag: int) -> str:
    """Give the value of a string element without padding, empty if it is absent."""
    element = _raw(dataset, tag)
    if element is None or element.value is None:
        return ""
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif not isinstance(value, str):
        value = "\\".join(str(part) for part in value)
    return str(value).strip(" \0")


def texts(dataset: Dataset, tag: int) -> tuple[str, ...]:
    """Give the values of a multi-valued string element."""
    value = text(dataset, tag)
    return tuple(part.strip() for part in value.split("\\")) if value else ()


def decimals(dataset: Dataset, tag: int, count: int = 0) -> tuple[float, ...] | None:
    """Give the values of a decimal or integer string (DS, IS), None if it is absent or empty.

    Parameters
    ----------
    dataset : Dataset
        As read from a file.
    tag : int
        The element, e.g. 0x00200032.
    count : int
        How many values there must be; 0 for any number.

    Raises
    ------
    ElementError
        If a value is no number or their count is wrong.
    """
    parts = texts(dataset, tag)
    if not any(parts):
        return None
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        raise ElementError(f"{_name(tag)} is not a list of numbers: {text(dataset, tag)!r}") from None
    if count and len(values) != count:
        raise ElementError(f"{_name(tag)} has {len(values)} values instead of {count}")
    return values


def decimal(dataset: Dataset, tag: int) -> float | None:
    """Give the first value of a decimal or integer string, None if it is absent or empty."""
    values = decimals(dataset, tag)
    return values[0] if values else None


def integers(dataset: Dataset, tag: int, code: str = "H") -> tuple[int, ...]:
    """Give the values of a binary integer element (US "H", UL "I"), empty if it is absent."""
    return tuple(int(value) for value in _unpack(dataset, tag, code))


def integer(dataset: Dataset, tag: int, default: int = 0) -> int:
    """Give the first value of a US element."""
    values = integers(dataset, tag)
    return values[0] if values else default


def double(dataset: Dataset, tag: int) -> float | None:
    """Give the first value of an FD element, None if it is absent or empty."""
    values = _unpack(dataset, tag, "d")
    return float(values[0]) if values else None


def items(dataset: Dataset, tag: int) -> list[Dataset]:
    """Give the items of a sequence, none if it is absent."""
    if Tag(tag) not in dataset:
        return []
    return list(dataset[Tag(tag)].value or [])


def _unpack(dataset: Dataset, tag: int, code: str) -> tuple[Any, ...]:
    element = _raw(dataset, tag)
    if element is None or element.value is None:
        return ()
    if not isinstance(element.value, bytes):
        return tuple(element.value) if hasattr(element.value, "__iter__") else (element.value,)
    count = len(element.value) // struct.calcsize(code)
    order = "<" if element.is_little_endian else ">"
    return struct.unpack_from(f"{order}{count}{code}", element.value)


def _name(tag: int) -> str:
    return str(BaseTag(tag))
