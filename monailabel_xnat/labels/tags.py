"""The XNAT resource that belongs to a tag, and the tag that belongs to a resource.

A label with the tag T is stored in the resource ``MONAILABEL_<T>``. Letters, digits, ``_`` and ``-`` stay as they are.
Every other byte of the tag's UTF-8 is written as ``.XX``, in upper-case hexadecimal (``v 1`` is ``MONAILABEL_v.201``).
We use the resources of some names for other things. A tag with such a name has its first letter written in this way:
the tag ``info`` is ``MONAILABEL_.69nfo``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from monailabel_xnat.catalog.selection import OWN_RESOURCES
from monailabel_xnat.errors import LabelError

# Names whose resources hold other things than labels. They are compared without case, because some databases and file
# systems of XNAT do so.
RESERVED = frozenset({"info", "datastore"})
# XNAT names a folder after the resource, and file systems allow at most 255 bytes for a name.
LONGEST_RESOURCE = 200

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_-]|\.[0-9A-F]{2})+")
_ESCAPE = re.compile(r"\.([0-9A-F]{2})")


def text_of(tag: object) -> str:
    """Return a tag as plain text. MONAI Label passes a member of its enum or a string."""
    return str.__str__(getattr(tag, "value", tag) or "")


def is_tag(tag: str) -> bool:
    """Return whether there can be a label with a tag."""
    try:
        return bool(resource_of(tag))
    except LabelError:
        return False


@lru_cache(maxsize=4096)
def resource_of(tag: str) -> str:
    """Return the label of the XNAT resource for a tag.

    Raises
    ------
    LabelError
        If the tag is empty, too long, or a text that cannot be encoded as UTF-8.
    """
    if not tag:
        raise LabelError("a label needs a tag, but it is empty", hint='give one such as "final" or "original"')
    try:
        content = tag.encode()
    except UnicodeEncodeError:
        raise LabelError(f"the tag {tag!r} holds an incomplete character", hint="use letters and digits") from None
    escaped = "".join(chr(byte) if byte in _PLAIN else f".{byte:02X}" for byte in content)
    if tag.lower() in RESERVED:
        escaped = f".{content[0]:02X}{escaped[1:]}"
    if len(OWN_RESOURCES + escaped) > LONGEST_RESOURCE:
        raise LabelError(
            f"the tag {tag[:20]!r}... is too long: XNAT takes {LONGEST_RESOURCE} characters, this needs "
            f"{len(OWN_RESOURCES + escaped)}",
            hint="use a shorter one",
        )
    return OWN_RESOURCES + escaped


@lru_cache(maxsize=4096)
def tag_of(resource: str) -> str | None:
    """Return the tag of the labels in a resource; None for a resource that is not one of ours."""
    escaped = resource[len(OWN_RESOURCES) :]
    if not resource.startswith(OWN_RESOURCES) or not _ESCAPED.fullmatch(escaped):
        return None
    content = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), escaped).encode("latin-1")
    try:
        tag = content.decode()
        return tag if resource_of(tag) == resource else None
    except (UnicodeDecodeError, LabelError):
        return None
