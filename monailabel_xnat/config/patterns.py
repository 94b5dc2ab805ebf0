r"""Patterns of names, as settings have them, and the names that they fit.

A pattern is a shell pattern. ``!`` at its start excludes what it fits, and a comma separates several patterns within
one text. ``\`` before one of ``, * ? [ ] ! \`` means that character itself; before any other character it is an
ordinary character. A name that equals a pattern character by character always fits it, so a series description such
as ``[BR-DY_CTAC] Brain Dynamic`` can be used as a pattern without escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

EXCLUDE = "!"

_SPECIAL = r",*?[]!" + "\\"
_ESCAPED = re.compile(r"\\([" + re.escape(_SPECIAL) + "])")
_SEPARATOR = re.compile(r"((?:\\[" + re.escape(_SPECIAL) + r"]|[^,])*),?")
_GLOB = frozenset("*?[")


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
