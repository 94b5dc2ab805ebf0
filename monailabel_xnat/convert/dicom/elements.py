"""Values of single DICOM elements, read from their bytes.

pydicom keeps an element as bytes until somebody asks for it. Reading these bytes directly takes a fraction of the time
of pydicom's own conversion. It also raises no warnings about values that break a rule of the standard which does not
matter here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pydicom.tag import Tag

Elements = Mapping[int, bytes] | Dataset
"""Elements by tag: a mapping to their bytes (little endian), or a dataset that pydicom read."""


class ElementError(ValueError):
    """An element holds a value that its type does not allow, or one that makes no sense."""


def _value(source: Elements, tag: int) -> Any:
    """Return the value of an element, as bytes if pydicom has not converted it yet; None if it is absent."""
    if type(source) is dict or not isinstance(source, Dataset):  # the first costs a fraction of the second
        return source.get(tag)
    element = source.get_item(Tag(tag)) if Tag(tag) in source else None
    return None if element is None else element.value


def text(source: Elements, tag: int) -> str:
    """Return the value of a string element without padding, empty if it is absent."""
    value = _value(source, tag)
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif not isinstance(value, str):
        # Somebody asked for it, so pydicom has converted it to one number or several.
        value = str(value) if isinstance(value, (int, float)) else "\\".join(str(part) for part in value)
    return str(value).strip(" \0")


def texts(source: Elements, tag: int) -> tuple[str, ...]:
    """Return the values of a string element that may have several; empty if it is absent."""
    value = text(source, tag)
    return tuple(part.strip() for part in value.split("\\")) if value else ()


def decimals(source: Elements, tag: int, count: int = 0) -> tuple[float, ...] | None:
    """Return the values of a decimal or integer string (DS, IS), None if it is absent or empty.

    Parameters
    ----------
    source : mapping of int to bytes, or Dataset
        The elements.
    tag : int
        Tag of the element, e.g. 0x00200032.
    count : int
        How many values there must be; 0 allows any number.

    Raises
    ------
    ElementError
        If a value is not a finite number, or the number of values is wrong.
    """
    value = _value(source, tag)
    if value is None:
        return None
    values = _numbers(value if isinstance(value, bytes) else text(source, tag))
    if values is None:
        return None
    if not all(map(math.isfinite, values)):
        raise ElementError(f"{_name(tag)} is not a list of numbers: {text(source, tag)!r}")
    if count and len(values) != count:
        raise ElementError(f"{_name(tag)} has {len(values)} values instead of {count}")
    return values


@lru_cache(1024)  # most are the same in all files of a series
def _numbers(value: bytes | str) -> tuple[float, ...] | None:
    """Return the numbers of a decimal or integer string, None for none, and not a number if one is none."""
    whole = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    parts = [part.strip() for part in whole.strip(" \0").split("\\")]
    if not any(parts):
        return None
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        return (math.nan,)


def decimal(source: Elements, tag: int) -> float | None:
    """Return the first value of a decimal or integer string, None if it is absent or empty."""
    values = decimals(source, tag)
    return values[0] if values else None


def integers(source: Elements, tag: int, code: str = "H") -> tuple[int, ...]:
    """Return the values of a binary integer element (US "H", UL "I"), empty if it is absent."""
    return tuple(int(value) for value in _unpack(source, tag, code))


def integer(source: Elements, tag: int, default: int = 0) -> int:
    """Return the first value of a US element, ``default`` if it is absent or empty."""
    values = integers(source, tag)
    return values[0] if values else default


def double(source: Elements, tag: int) -> float | None:
    """Return the first value of an FD element, None if it is absent or empty."""
    values = _unpack(source, tag, "d")
    return float(values[0]) if values else None


def doubles(source: Elements, tag: int) -> tuple[float, ...]:
    """Return the values of an FD element, empty if it is absent."""
    return tuple(float(value) for value in _unpack(source, tag, "d"))


def items(source: Elements, tag: int) -> list[Dataset]:
    """Return the items of a sequence, an empty list if it is absent or was not read by pydicom."""
    if not isinstance(source, Dataset) or Tag(tag) not in source:
        return []
    return list(source[Tag(tag)].value or [])


def is_filled(source: Elements, tag: int) -> bool:
    """Return whether an element or a sequence is present and not empty."""
    return bool(_value(source, tag))


def _unpack(source: Elements, tag: int, code: str) -> tuple[Any, ...]:
    value = _value(source, tag)
    if value is None:
        return ()
    if not isinstance(value, bytes):
        return tuple(value) if hasattr(value, "__iter__") else (value,)
    little = not isinstance(source, Dataset) or getattr(source.get_item(Tag(tag)), "is_little_endian", True)
    order = "<" if little else ">"
    return struct.unpack_from(f"{order}{len(value) // struct.calcsize(code)}{code}", value)


def _name(tag: int) -> str:
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"
