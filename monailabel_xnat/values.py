r"""Values of settings: how a text is read as a number, a list or a folder, and which names a pattern fits.

A pattern is a shell pattern. ``!`` at its start excludes what it fits, and a comma separates several patterns within
one text. ``\`` before one of ``, * ? [ ] ! \`` means that character itself; before any other character it is an
ordinary character. A name that equals a pattern character by character always fits it, so a series description such
as ``[BR-DY_CTAC] Brain Dynamic`` can be used as a pattern without escapes.
"""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")

Value = TypeVar("Value")

EXCLUDE = "!"

_SPECIAL = r",*?[]!" + "\\"
_ESCAPED = re.compile(r"\\([" + re.escape(_SPECIAL) + "])")
_SEPARATOR = re.compile(r"((?:\\[" + re.escape(_SPECIAL) + r"]|[^,])*),?")
_GLOB = frozenset("*?[")

# No count, size or number in XNAT has more. Python refuses to read thousands of digits (ValueError).
_MOST_DIGITS = 18


class Patterns(tuple[str, ...]):
    """Patterns, and the text from which they were read.

    Parameters
    ----------
    parts : iterable of str
        The patterns.
    text : str
        The text of a setting; empty if a list was given.
    """

    text: str

    def __new__(cls, parts: Iterable[str] = (), text: str = "") -> Patterns:
        """Make the tuple."""
        made = super().__new__(cls, parts)
        made.text = text
        return made


def split(text: str) -> list[str]:
    r"""Return the parts of a comma-separated text. ``\,`` does not separate; escapes stay, for :func:`matches`."""
    return [part.strip() for part in _SEPARATOR.findall(text) if part.strip()]


def unescaped(text: str) -> str:
    """Return a text with its escapes replaced by the characters that they stand for."""
    return _ESCAPED.sub(r"\1", text)


def escaped(text: str) -> str:
    """Return the pattern that fits only this text."""
    return re.sub("([" + re.escape(_SPECIAL) + "])", r"\\\1", text)


def is_exclusion(pattern: str) -> bool:
    """Return whether a pattern excludes what it fits."""
    return pattern.startswith(EXCLUDE)


@lru_cache(maxsize=4096)
def matches(patterns: tuple[str, ...], *texts: str) -> bool:
    """Return whether a text fits a pattern such as ``T1*``, and no text fits an exclusion such as ``!*localizer*``.

    Parameters
    ----------
    patterns : tuple of str
        Patterns; upper and lower case are the same. Without patterns everything passes, and if there are only
        exclusions, everything that they do not fit.
    *texts : str
        Names of the same thing, for example a label and an ID.
    """
    if not patterns:
        return True
    wanted, unwanted = _compiled(patterns)
    # DICOM pads names with blanks; patterns have no blanks around them.
    names = [text.strip().lower() for text in texts]
    return (wanted is None or any(map(wanted.match, names))) and not (unwanted and any(map(unwanted.match, names)))


@lru_cache(maxsize=1024)
def fits(pattern: str, text: str) -> bool:
    """Return whether a text fits one pattern; upper and lower case differ, and ``!`` has no meaning."""
    return re.fullmatch(_expression(pattern), text) is not None


@lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """Return one expression for the patterns that include and one for those that exclude; None if there are none."""
    wanted = [_expression(pattern.lower()) for pattern in patterns if not is_exclusion(pattern)]
    unwanted = [_expression(pattern[1:].lower()) for pattern in patterns if is_exclusion(pattern)]
    return (
        re.compile("|".join(f"(?:{expression})" for expression in wanted)) if wanted else None,
        re.compile("|".join(f"(?:{expression})" for expression in unwanted)) if unwanted else None,
    )


def _expression(pattern: str) -> str:
    """Return a regular expression that fits the text of the pattern itself, and all that the pattern stands for."""
    # In a shell pattern, a character in brackets stands for itself: this is how an escape is written there.
    as_glob = _ESCAPED.sub(lambda found: f"[{found[1]}]" if found[1] in _GLOB else found[1], pattern)
    exact = {re.escape(text) + r"\Z" for text in (pattern, unescaped(pattern))}
    return "|".join([*sorted(exact), translate(as_glob)])


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


def whole_number(text: str) -> int | None:
    """Return the number that a text of decimal digits says; None for any other text, and for more than 18 digits."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def http_time(header: str) -> datetime | None:
    """Return the time in an HTTP header such as ``Last-Modified``, UTC; None if there is none (RFC 9110, 5.6.7)."""
    try:
        time_of = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    return time_of.astimezone(timezone.utc) if time_of.tzinfo else time_of.replace(tzinfo=timezone.utc)


def as_folder(value: object) -> Path | None:
    """Return a path, with ``~`` expanded; None for an empty text."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"expected a path, not a {type(value).__name__}")
    return Path(as_text(value)).expanduser() if as_text(value) else None


def as_secret(value: object) -> Secret:
    """Return a value as a Secret."""
    return value if isinstance(value, Secret) else Secret(str(value) if as_text(value) else "")
