"""Values of MONAI Label and its scorers as plain JSON, and JSON files whose size shows that they have changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any


def plain(value: Any) -> Any:
    """Return a copy of a value that contains only what JSON knows.

    Parameters
    ----------
    value : object
        Nested mappings, sequences, sets, enums, paths, NumPy scalars and arrays. NaN and infinity, which JSON does
        not know, become None.

    Raises
    ------
    TypeError
        If the value contains something else.
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
    if hasattr(value, "tolist"):  # values of NumPy and torch; neither is imported here
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON: {value!r:.100}")


# A file gets at most this many blanks, which costs nothing. After this many changes a size may come again.
_SIZE_CYCLE = 1024


def resized(content: bytes, previous_size: int) -> bytes:
    """Return JSON with blanks added at its end, so that its size differs from that of the file which it replaces.

    XNAT's listing shows sizes: by them other processes notice the change.

    Parameters
    ----------
    content : bytes
        The JSON that is to be stored.
    previous_size : int
        Size of the file that it replaces, in bytes. The new size is one byte more than that, modulo 1024.
    """
    return content + b" " * ((previous_size + 1 - len(content)) % _SIZE_CYCLE)


def _plain_number(value: Any) -> Any:
    # numpy.float64 is a subclass of float, and there are subclasses of str: return only the base types.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            number = kind(value)
            return None if isinstance(number, float) and not math.isfinite(number) else number
    return value
