"""DICOM objects that hold labels: opened, their text decoded, damage named."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom import charset
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.file import read_dicom
from monailabel_xnat.errors import ImageConversionError, LabelFileError, XNATDatastoreError

ObjectSource = Path | bytes
"""A file, or its content."""

_SOP_CLASS = 0x00080016
_CHARACTER_SET = 0x00080005
_DENSE = frozenset(("GB18030", "GBK", "GB2312", "shift_jis", "euc_kr", "iso_ir_166"))
_THREE_BYTES = 0x800
_STORE_AGAIN = "store it again from the program that made it"


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Turn whatever pydicom stumbles over in a damaged object into an error that names it."""
    try:
        yield
    except XNATDatastoreError:
        raise
    except Exception as error:
        # pydicom raises OSError too; those of the system have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LabelFileError(f"{name} is damaged: {error}", hint=_STORE_AGAIN) from error


def name_of(source: ObjectSource) -> str:
    """Name an object for messages."""
    return source.name if isinstance(source, Path) else "the DICOM object"


def open_object(source: ObjectSource, classes: Collection[str], kind: str, *, pixels: bool = True) -> Dataset:
    """Read a DICOM object of one of several SOP classes.

    Parameters
    ----------
    source : Path or bytes
        A file, or its content.
    classes : collection of str
        UIDs of the SOP classes that it may have.
    kind : str
        What these are, for messages.
    pixels : bool
        Whether to read the pixel data.

    Raises
    ------
    LabelFileError
        If it is something else, or damaged.
    """
    name = name_of(source)
    with damage_named(name):
        try:
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels)
        except FileNotFoundError as error:
            raise LabelFileError(f"no such file: {name}", hint="check the path") from error
        except InvalidDicomError as error:
            raise LabelFileError(f"{name} is no DICOM file", hint=f"give a {kind}") from error
        sop_class = elements.text(dataset, _SOP_CLASS)
        if sop_class not in classes:
            found = UID(sop_class).name if sop_class else "of no SOP class"
            raise LabelFileError(f"{name} is no {kind}, but {found}", hint=f"give a {kind}")
    return dataset


def refuse_truncated(path: Path) -> None:
    """Refuse a file that ends within an element: pydicom takes what is there of a sequence as all of it.

    Raises
    ------
    LabelFileError
        If it is not whole.
    """
    with path.open("rb") as stream:
        try:
            read_dicom(path, stream, ())
        except ImageConversionError as error:
            raise LabelFileError(error.message, hint=_STORE_AGAIN) from error


def encodings_of(dataset: Dataset) -> list[str]:
    """Return Python's names of the character sets of a dataset, for `decoded`."""
    return list(charset.convert_encodings(list(elements.texts(dataset, _CHARACTER_SET)) or ""))


def decoded(dataset: Dataset, tag: int, encodings: list[str]) -> str:
    """Return the text of an element, empty if it is absent.

    Text that is strict UTF-8 is taken as such, whatever character set its object states: dcmjs, and with it the
    viewers, writes UTF-8 always, and hands on the character set of the images. Other text is decoded as stated.
    """
    element = dataset.get_item(tag) if tag in dataset else None
    if element is not None and isinstance(element.value, bytes):
        value = element.value.rstrip(b"\0 ")
        unicode = _as_utf8(value, encodings)
        if unicode is not None:
            return unicode.strip()
        return str(charset.decode_bytes(value, encodings, TEXT_VR_DELIMS | PN_DELIMS)).strip()
    return elements.text(dataset, tag)


def _as_utf8(value: bytes, encodings: list[str]) -> str | None:
    """Decode text as UTF-8; None if it is none, or may well be none."""
    if value.isascii():
        return None  # escape sequences of Japanese and Korean sets among it
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return None
    # In sets that use nearly every byte, two bytes of theirs may look like a letter of UTF-8; three hardly do.
    is_doubtful = bool(_DENSE & set(encodings)) and all(ord(letter) < _THREE_BYTES for letter in text)
    if is_doubtful or b"\x1b" in value:
        return None
    # dcmjs reads UTF-8 within sequences as Latin-1, and when it stores that again it is UTF-8 twice over.
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
