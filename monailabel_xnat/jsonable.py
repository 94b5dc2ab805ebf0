"""Plain JSON values of what MONAI Label and its scorers hand over, and files of them whose size tells a change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any


def plain(value: Any) -> Any:
    """Copy a value with nothing in it but what JSON knows.

    Parameters
    ----------
    value : object
        Nested mappings, sequences, sets, enums, paths, NumPy scalars and arrays. NaN and infinity, which JSON does
        not know, become None.

    Raises
    ------
    TypeError
        If there is something else in it.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return _plain_number(value)
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON: {value!r:.100}")


# After this many rewritings a file may have a size that it had before: a file of as many bytes costs nothing.
_SIZE_CYCLE = 1024


def resized(content: bytes, previous_size: int) -> bytes:
    """Lengthen JSON by blanks, so that XNAT's listing, which shows sizes, tells others of the change.

    Parameters
    ----------
    content : bytes
        The JSON that is to be stored.
    previous_size : int
        Bytes of what it replaces: it gets one more than that, modulo 1024.
    """
    return content + b" " * ((previous_size + 1 - len(content)) % _SIZE_CYCLE)


def _plain_number(value: Any) -> Any:
    # numpy.float64 is a float to Python, and str subclasses are strings: keep only the base types.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            number = kind(value)
            return None if isinstance(number, float) and not math.isfinite(number) else number
    return value
