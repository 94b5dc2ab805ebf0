"""Values of settings: how a text is read as a number, a list or a folder."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from monailabel_xnat.config.patterns import Patterns, split, unescaped

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")

Value = TypeVar("Value")


class Secret:
    """A text that shows itself only when asked by ``reveal()``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "'***'"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def as_text(value: object) -> str:
    """Return the text of a value, without blanks around it; a number or a path is accepted as well."""
    if isinstance(value, bool) or not isinstance(value, (str, os.PathLike, numbers.Real)):
        raise ValueError(f"expected a text, not a {type(value).__name__}")
    return str(value).strip()


def _number(value: object, kind: Callable[[str], Value], expected: str) -> Value:
    try:
        return kind(as_text(value))
    except ValueError:
        raise ValueError(f"expected {expected}") from None


def as_flag(value: object) -> bool:
    """Return the truth value of true or false, yes or no, on or off, 1 or 0."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f"expected one of {', '.join(_TRUE + _FALSE)}")
    return text in _TRUE


def at_least(lowest: int) -> Callable[[object], int]:
    """Return a function that reads a whole number and refuses one below a limit."""

    def whole(value: object) -> int:
        expected = f"a whole number of at least {lowest}"
        number = _number(value, int, expected)
        if number < lowest:
            raise ValueError(f"expected {expected}")
        return number

    return whole


def as_seconds(value: object) -> float:
    """Return a number of seconds, which must be above 0."""
    number = _number(value, float, "a number of seconds above 0")
    if not 0 < number < float("inf"):
        raise ValueError("expected a number of seconds above 0")
    return number


def limit_in(unit: str) -> Callable[[object], float]:
    """Return a function that reads a limit in a unit: a number of at least 0, where 0 means no limit."""
    expected = f"a number of {unit}, 0 for no limit"

    def limit(value: object) -> float:
        number = _number(value, float, expected)
        if not 0 <= number < float("inf"):
            raise ValueError(f"expected {expected}")
        return number

    return limit


def one_of(*choices: str) -> Callable[[object], str]:
    """Return a function that reads one of several words, in upper or lower case."""

    def choose(value: object) -> str:
        text = as_text(value).lower()
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text

    return choose


def _parts(value: object) -> list[str]:
    """Return the parts of a comma-separated text, or the texts of a list, each once; texts of a list are not split."""
    if not isinstance(value, (str, list, tuple, set, frozenset)):
        raise ValueError("expected a comma-separated text, or a list of texts")
    parts = split(value) if isinstance(value, str) else [as_text(part) for part in value]
    return list(dict.fromkeys(part for part in parts if part))


def as_names(value: object) -> tuple[str, ...]:
    """Return the names in a list or in a comma-separated text."""
    return tuple(map(unescaped, _parts(value))) if isinstance(value, str) else tuple(_parts(value))


def as_patterns(value: object) -> Patterns:
    """Return the patterns in a list or in a comma-separated text."""
    return Patterns(_parts(value), text=value.strip() if isinstance(value, str) else "")


def as_label_values(value: object) -> tuple[tuple[str, int], ...]:
    """Return pairs of name and voxel value, read from ``spleen=1,liver=2`` or from a mapping."""
    expected = "expected name=value pairs such as spleen=1,liver=2"
    pairs = value.items() if isinstance(value, Mapping) else [part.rsplit("=", 1) for part in as_names(value)]
    try:
        # int() of a number such as 1.5 would silently cut off its decimals; int() of its text fails.
        labels = tuple((as_text(name), int(as_text(number))) for name, number in pairs)
    except ValueError:
        raise ValueError(expected) from None
    if not all(name for name, _ in labels):
        raise ValueError(expected)
    if len(dict(labels)) < len(labels) or len({number for _, number in labels}) < len(labels):
        raise ValueError("expected each name and each voxel value once")
    if any(number < 1 for _, number in labels):
        raise ValueError("expected voxel values of at least 1")
    return labels


def as_label_resources(value: object) -> tuple[tuple[str, str, str], ...]:
    """Return triples of tag, resource and pattern, read from ``tag:resource:pattern,...`` or a list.

    Without a pattern all NIfTI files of the resource count.
    """
    parts = value if isinstance(value, (list, tuple)) else _parts(value)
    found = [part if isinstance(part, (list, tuple)) else (*as_text(part).split(":"), "*") for part in parts]
    if not all(len(item) in (3, 4) and all(item) for item in found):
        raise ValueError("expected tag:resource:pattern, such as final:SEG:*_final.nii.gz")
    return tuple((as_text(tag), as_text(resource), as_text(pattern)) for tag, resource, pattern, *_ in found)


def as_server(value: object) -> str:
    """Return the address of an XNAT site; the path of a page that was copied with it is cut off."""
    parts = urlsplit(as_text(value))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address such as https://xnat.example.org")
    if parts.username or parts.password:
        raise ValueError("expected an address without user name and password, which would end up in logs")
    path = re.sub(r"/(app|data|xapi|REST)(/.*)?$", "", parts.path).rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def as_folder(value: object) -> Path | None:
    """Return a path, with ``~`` expanded; None for an empty text."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"expected a path, not a {type(value).__name__}")
    return Path(as_text(value)).expanduser() if as_text(value) else None


def as_secret(value: object) -> Secret:
    """Return a value as a Secret."""
    return value if isinstance(value, Secret) else Secret(str(value) if as_text(value) else "")
