"""The mark in the note of a scan which says that MONAI Label added the scan, and under which name.

XNAT lists the notes of scans together with everything else, so that the names of added images are known from memory,
after a restart and on every server of a project.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from urllib.parse import quote, unquote

_MARK = re.compile(r"(?<!\S)monailabel_xnat:added(?P<fields>(?:;[a-z0-9]+(?:=[^;\s]*)?)*)")


@dataclass(frozen=True)
class Mark:
    """What is known about the addition of an image.

    Parameters
    ----------
    is_named : bool
        Whether the series description of the scan is a name under which the image may be asked for.
    name : str
        Such a name where the series description says something else, as for DICOM.
    md5 : str
        Hexadecimal MD5 of the file that was added; empty for DICOM.
    """

    is_named: bool = False
    name: str = ""
    md5: str = ""

    def __str__(self) -> str:
        named = f";name={quote(self.name, safe='')}" if self.name else ";named" if self.is_named else ""
        return "monailabel_xnat:added" + named + (f";md5={self.md5}" if self.md5 else "")

    def alias(self, series_description: str) -> str:
        """Return the name under which the image was added; "" if it was added under an id."""
        # XNAT escapes some characters of what it is sent as HTML would.
        return self.name or (unescape(series_description) if self.is_named else "")


def text_of_mark(note: str) -> str:
    """Return the mark within a note, as text; "" for the note of a scan that others made."""
    found = _MARK.search(note) if note else None
    return found.group() if found else ""


def read_mark(note: str) -> Mark | None:
    """Return the mark within a note; None if there is none."""
    found = _MARK.search(note) if note else None
    if found is None:
        return None
    fields = dict(field.partition("=")[::2] for field in found["fields"].split(";")[1:])
    return Mark("named" in fields, unquote(fields.get("name", "")), fields.get("md5", ""))
