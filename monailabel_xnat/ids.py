"""Ids of images and labels as values: the only place that splits an id at its slashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from monailabel_xnat.errors import InvalidIdError

EXPECTED_FORM = "project/subject/experiment/scan"

# In a label id, this prefix marks the ID of a drawn scan (SEG or RTSTRUCT) in the place of a ROI collection.
_SCAN = "scan:"
_VERSION = re.compile(r"[0-9]{8}T[0-9]{6}[0-9]*Z-[0-9a-f]{12}")
# "@" is reserved only where a label id would take the text after it for a version.
_RESERVED = re.compile(rf"[/%#]|^\s+|\s+$|@(?={_VERSION.pattern}$)")
# Nearly all ids look like this: four parts, and no part needs encoding.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+){3}")
_TEXTS = frozenset((str,))
_NO_NAMES = frozenset(("", ".", ".."))
_UNSAFE_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_FILE_NAME = 120


@dataclass(frozen=True, order=True)
class ImageId:
    """One scan of an XNAT archive.

    Parameters
    ----------
    project, subject, experiment, scan : str
        XNAT's own ids (``LIVER``, ``XNAT_S00001``, ``XNAT_E00001``, ``2``), or labels in their place
        until the catalog has resolved them.

    Examples
    --------
    >>> str(ImageId("LIVER", "XNAT_S00001", "XNAT_E00001", "4/a"))
    'LIVER/XNAT_S00001/XNAT_E00001/4%2Fa'
    >>> ImageId.parse("LIVER/XNAT_S00001/XNAT_E00001/4%2Fa").scan
    '4/a'
    """

    # A project has tens of thousands of these; slots save memory.
    __slots__ = ("experiment", "project", "scan", "subject")

    project: str
    subject: str
    experiment: str
    scan: str

    def __post_init__(self) -> None:
        parts = self._parts
        if _TEXTS.issuperset(map(type, parts)) and _NO_NAMES.isdisjoint(parts):
            return
        for value in parts:
            if not isinstance(value, str) or value in _NO_NAMES:
                noun = next(noun for noun in EXPECTED_FORM.split("/") if getattr(self, noun) is value)
                raise InvalidIdError(
                    f"image id with {value!r} for its {noun}", hint=f"expected {EXPECTED_FORM}, no part empty"
                )

    def __reduce__(self) -> tuple[type[ImageId], tuple[str, str, str, str]]:
        # A frozen class with slots has no state that pickle could set, so the constructor is called again.
        return ImageId, self._parts

    @classmethod
    def parse(cls, text: str) -> ImageId:
        """Return the image id that a text stands for.

        Parameters
        ----------
        text : str
            ``project/subject/experiment/scan``, each part percent-encoded where it holds ``/``, ``%``,
            ``#`` or starts or ends with whitespace.

        Raises
        ------
        InvalidIdError
            If there are not four parts, or one is empty.
        """
        parts = text.split("/") if isinstance(text, str) else []
        if len(parts) != len(EXPECTED_FORM.split("/")) or not all(parts):
            raise InvalidIdError(f"malformed image id {text!r}", hint=f"expected {EXPECTED_FORM}")
        return cls(*(unquote(part) for part in parts))

    def __str__(self) -> str:
        return id_text(self.project, self.subject, self.experiment, self.scan)

    @property
    def _parts(self) -> tuple[str, str, str, str]:
        return self.project, self.subject, self.experiment, self.scan

    @property
    def file_stem(self) -> str:
        """A name for files of this image. It is readable and unique, and has no dots or separators."""
        return safe_name("_".join(self._parts), str(self))


@dataclass(frozen=True, order=True)
class LabelId:
    """One label of an image: the current one, an earlier version, one ROI collection, or one scan that was drawn.

    Parameters
    ----------
    image : ImageId
        The image that the label belongs to.
    version : str or None
        Name of a stored version, ``20261123T101500000000Z-0123456789ab``.
    collection : str or None
        Label of a ROI collection of the image's session.
    drawn_scan : str or None
        ID of a scan that holds a DICOM SEG or RTSTRUCT.
    """

    image: ImageId
    version: str | None = None
    collection: str | None = None
    drawn_scan: str | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.version, self.collection, self.drawn_scan)) > 1:
            raise InvalidIdError("a label id names a version, a ROI collection or a scan, not two of them")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            raise InvalidIdError(
                f"malformed label version {self.version!r}",
                hint="expected <UTC>-<12 hex digits>, as in the history",
            )
        if self.collection == "" or self.drawn_scan == "":
            raise InvalidIdError("a label id with an empty ROI collection or scan")

    @property
    def names_drawing(self) -> bool:
        """Whether the id names a drawing (a ROI collection or a drawn scan), and not a label with a tag."""
        return self.collection is not None or self.drawn_scan is not None

    @classmethod
    def parse(cls, text: str) -> LabelId:
        """Return the label id that a text stands for.

        The forms are ``<image id>``, ``<image id>@<version>``, ``<image id>#<ROI collection>`` and
        ``<image id>#scan:<scan>``. If the label of a ROI collection itself starts with ``scan:``, its colon is encoded.

        Raises
        ------
        InvalidIdError
            If the image id or what follows it is malformed.
        """
        if not isinstance(text, str):
            raise InvalidIdError(f"malformed label id {text!r}", hint=f"expected {EXPECTED_FORM}")
        *_, (image, *rest) = splits_of_label_id(text)
        return cls(ImageId.parse(image), *rest)

    def __str__(self) -> str:
        if self.drawn_scan is not None:
            return f"{self.image}#{_SCAN}{_encode(self.drawn_scan)}"
        if self.collection is not None:
            name = _encode(self.collection)
            return f"{self.image}#{name.replace(':', '%3A', 1) if name.startswith(_SCAN) else name}"
        return f"{self.image}@{self.version}" if self.version else str(self.image)


def splits_of_label_id(text: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    """Yield each way to split a text into image, version, ROI collection and scan of a label id.

    There can be several ways, because the name of an added image may contain ``#`` and ``@``. In an image id these are
    encoded. So if the image is given by its id, the last way is right: it splits at the first ``#``, if there is one.
    """
    yield text, None, None, None
    image, at_sign, version = text.rpartition("@")
    if at_sign and _VERSION.fullmatch(version):
        yield image, version, None, None
    for place in reversed([number for number, character in enumerate(text) if character == "#"]):
        name = text[place + 1 :]
        if name.startswith(_SCAN):
            yield text[:place], None, None, unquote(name[len(_SCAN) :])
        else:
            yield text[:place], None, unquote(name), None


def id_text(project: str, subject: str, experiment: str, scan: str) -> str:
    """Return the text of an image id, as ``str(ImageId(...))`` does, without making the object."""
    text = f"{project}/{subject}/{experiment}/{scan}"
    if _PLAIN_ID.fullmatch(text):
        return text
    return "/".join(_encode(part) for part in (project, subject, experiment, scan))


def safe_name(text: str, identity: str) -> str:
    """Return a file name of letters, digits, ``_`` and ``-``, which ends in a digest that makes it unique.

    Parameters
    ----------
    text : str
        What the name should look like. Other characters become ``_``, and a long text is cut.
    identity : str
        What the digest is made of: different identities get different names.
    """
    name = _UNSAFE_IN_FILE_NAMES.sub("_", text)[:_LONGEST_FILE_NAME]
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name}_{digest}"


def _encode(part: str) -> str:
    return _RESERVED.sub(lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), part)
