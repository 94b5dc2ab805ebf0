"""DICOM objects that hold labels: opening them, decoding their text, and finding the images that they were drawn on."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import charset
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import UID
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.file import read_dicom, require_bounded
from monailabel_xnat.convert.grid import Sources
from monailabel_xnat.errors import ImageConversionError, LabelFileError, XNATDatastoreError

ObjectSource = Path | bytes
"""The path of a file, or the content of a file."""

_SOP_CLASS = 0x00080016
_CHARACTER_SET = 0x00080005
_DENSE = frozenset(("GB18030", "GBK", "GB2312", "shift_jis", "euc_kr", "iso_ir_166"))
_THREE_BYTES = 0x800
_STORE_AGAIN = "store it again from the program that made it"

SEG_CLASSES = frozenset(
    (
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    )
)
RTSTRUCT_CLASSES = frozenset(("1.2.840.10008.5.1.4.1.1.481.3",))
_SOP_INSTANCE = 0x00080018
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_INSTANCE = 0x00081155
_REFERENCED_SERIES = 0x00081115
_REFERENCED_INSTANCES = 0x0008114A
_REFERENCED_FRAMES = 0x00081160
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230
_DERIVATION = 0x00089124
_SOURCE_IMAGES = 0x00082112
_REFERENCED_FRAMES_OF_REFERENCE = 0x30060010
_RT_STUDIES = 0x30060012
_RT_SERIES = 0x30060014
_CONTOUR_IMAGES = 0x30060016
_ROI_CONTOURS = 0x30060039
_CONTOURS = 0x30060040
ImageReference = tuple[str, tuple[int, ...]]
"""SOP Instance UID of an image, and the numbers (from 1) of the frames that are meant. Without numbers all frames are
meant."""


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Turn any error that pydicom raises for a damaged object into a `LabelFileError` that names the object."""
    try:
        yield
    except XNATDatastoreError:
        raise
    except Exception as error:
        # pydicom also raises OSError. Only an OSError of the system has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LabelFileError(f"{name} is damaged: {error}", hint=_STORE_AGAIN) from error


def name_of(source: ObjectSource) -> str:
    """Return how messages call an object."""
    return source.name if isinstance(source, Path) else "the DICOM object"


def open_object(source: ObjectSource, classes: Collection[str], kind: str, *, pixels: bool = True) -> Dataset:
    """Read a DICOM object of one of several SOP classes.

    Parameters
    ----------
    source : Path or bytes
        The path of a file, or its content.
    classes : collection of str
        UIDs of the SOP classes that it may have.
    kind : str
        The name of this kind of object, for messages.
    pixels : bool
        Whether to read the pixel data.

    Raises
    ------
    LabelFileError
        If the file does not exist, is not an object of these classes, or is damaged.
    """
    name = name_of(source)
    with damage_named(name):
        try:
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
                try:
                    require_bounded(stream)
                except ImageConversionError as error:
                    raise LabelFileError(f"{name}: {error.message}", hint=_STORE_AGAIN) from error
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
    """Refuse a file that ends within an element. pydicom reads a sequence that is cut off as if it were complete.

    Raises
    ------
    LabelFileError
        If the file is cut off.
    """
    with path.open("rb") as stream:
        try:
            read_dicom(path, stream, ())
        except ImageConversionError as error:
            raise LabelFileError(error.message, hint=_STORE_AGAIN) from error


def encodings_of(dataset: Dataset) -> list[str]:
    """Return the names that Python has for the character sets of a dataset; `decoded` needs them."""
    return list(charset.convert_encodings(list(elements.texts(dataset, _CHARACTER_SET)) or ""))


def decoded(dataset: Dataset, tag: int, encodings: list[str]) -> str:
    """Return the text of an element, empty if it is absent.

    Valid UTF-8 is decoded as UTF-8, whatever character set the object states. The reason is dcmjs, which the viewers
    use: it always writes UTF-8, but copies the stated character set from the images. Other text is decoded as stated.

    Parameters
    ----------
    dataset : Dataset
        The object, or an item in it.
    tag : int
        Tag of the element.
    encodings : list of str
        Character sets of the object, as `encodings_of` returns them.
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
    """Return text decoded as UTF-8; None if it is not UTF-8, or may be in another character set."""
    if value.isascii():
        return None  # it may hold escape sequences of Japanese and Korean sets
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return None
    # Some character sets use nearly every byte. Two of their bytes may look like one letter in UTF-8; with three bytes
    # that is unlikely.
    is_doubtful = bool(_DENSE & set(encodings)) and all(ord(letter) < _THREE_BYTES for letter in text)
    if is_doubtful or b"\x1b" in value:
        return None
    # dcmjs reads UTF-8 within sequences as Latin-1. When it stores such text again, the text is encoded twice.
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


@dataclass(frozen=True)
class References:
    """The images that an object refers to.

    Parameters
    ----------
    study_uid : str
        Study Instance UID.
    series_uids : tuple of str
        Series Instance UIDs, each once.
    instance_uids : tuple of str
        SOP Instance UIDs, each once.
    """

    study_uid: str
    series_uids: tuple[str, ...]
    instance_uids: tuple[str, ...]


def seg_references(source: ObjectSource) -> References:
    """Read which images a DICOM SEG refers to, without reading its pixels.

    Parameters
    ----------
    source : Path or bytes
        The path of a file, or its content.

    Raises
    ------
    LabelFileError
        If it is not a DICOM SEG, or damaged.
    """
    dataset = open_object(source, SEG_CLASSES, "DICOM SEG", pixels=False)
    with damage_named(name_of(source)):
        series = elements.items(dataset, _REFERENCED_SERIES)
        instances = [item for one in series for item in elements.items(one, _REFERENCED_INSTANCES)]
        # The standard requires this list, but some programs leave it out. The frames name their images, too.
        instances = instances or list(_source_images(dataset))
        return References(elements.text(dataset, _STUDY), _uids(series, _SERIES), _uids(instances, _INSTANCE))


class SliceFinder:
    """Finds the slices that images became, by references to these images.

    Parameters
    ----------
    sources : mapping
        The slice that each image of the volume became; see `Grid.sources`.
    """

    def __init__(self, sources: Sources) -> None:
        self._frames: dict[str, dict[int, int]] = {}
        for (uid, number), place in sources.items():
            self._frames.setdefault(uid, {})[number] = place

    def slices(self, images: Iterable[ImageReference]) -> frozenset[int]:
        """Return the slices that these images became. Images outside the volume are left out."""
        return frozenset(place for uid, numbers in images for place in self._meant(self._frames.get(uid, {}), numbers))

    @staticmethod
    def _meant(frames: Mapping[int, int], numbers: tuple[int, ...]) -> list[int]:
        # A file with only one frame can mean only that frame, whatever frame number is written.
        if not numbers or len(frames) == 1:
            return list(frames.values())
        return [frames[number] for number in numbers if number in frames]


def contour_references(contour: Dataset) -> list[ImageReference]:
    """Read which images a contour of an RTSTRUCT was drawn on."""
    return [
        (elements.text(image, _INSTANCE), _frame_numbers(image)) for image in elements.items(contour, _CONTOUR_IMAGES)
    ]


def frame_references(dataset: Dataset) -> list[list[ImageReference]]:
    """Read which images each frame of a DICOM SEG was drawn on.

    Returns
    -------
    list of list of ImageReference
        The images of each frame, in the order of the frames.
    """
    (shared,) = elements.items(dataset, _SHARED_GROUPS)[:1] or [Dataset()]
    found = []
    for group in elements.items(dataset, _FRAME_GROUPS):
        derivations = elements.items(group, _DERIVATION) or elements.items(shared, _DERIVATION)
        images = [image for derivation in derivations for image in elements.items(derivation, _SOURCE_IMAGES)]
        found.append([(elements.text(image, _INSTANCE), _frame_numbers(image)) for image in images])
    return found


def _frame_numbers(image: Dataset) -> tuple[int, ...]:
    return tuple(int(number) for number in elements.decimals(image, _REFERENCED_FRAMES) or ())


def rtstruct_references(source: ObjectSource) -> References:
    """Read which images a DICOM RTSTRUCT refers to.

    Parameters
    ----------
    source : Path or bytes
        The path of a file, or its content.

    Raises
    ------
    LabelFileError
        If it is not an RTSTRUCT, or damaged.
    """
    dataset = open_object(source, RTSTRUCT_CLASSES, "RTSTRUCT")
    with damage_named(name_of(source)):
        frames = elements.items(dataset, _REFERENCED_FRAMES_OF_REFERENCE)
        studies = [item for frame in frames for item in elements.items(frame, _RT_STUDIES)]
        series = [item for study in studies for item in elements.items(study, _RT_SERIES)]
        images = [item for one in series for item in elements.items(one, _CONTOUR_IMAGES)]
        images = images or list(_contour_images(dataset))
        # A structure set may be stored in a study of its own, so the study that it refers to counts.
        study = next(iter(_uids(studies, _INSTANCE)), elements.text(dataset, _STUDY))
        return References(study, _uids(series, _SERIES), _uids(images, _INSTANCE))


@dataclass(frozen=True)
class DrawnObject:
    """A DICOM SEG or RTSTRUCT: its kind (``SEG`` or ``RTSTRUCT``), SOP Instance UID and references to images."""

    kind: str
    instance_uid: str
    references: References


def drawn_object(source: ObjectSource) -> DrawnObject:
    """Read the kind, the UID and the references of a DICOM SEG or RTSTRUCT.

    Raises
    ------
    LabelFileError
        If it is neither, or damaged.
    """
    dataset = open_object(source, SEG_CLASSES | RTSTRUCT_CLASSES, "DICOM SEG or RTSTRUCT", pixels=False)
    with damage_named(name_of(source)):
        is_seg = elements.text(dataset, _SOP_CLASS) in SEG_CLASSES
        uid = elements.text(dataset, _SOP_INSTANCE)
    references = seg_references(source) if is_seg else rtstruct_references(source)
    return DrawnObject("SEG" if is_seg else "RTSTRUCT", uid, references)


def kind_of_head(head: bytes) -> str:
    """Return the kind of a file by its first bytes: ``SEG`` or ``RTSTRUCT``, or "" for any other file."""
    sop_class = _text_of_head(head, _SOP_CLASS)
    return "SEG" if sop_class in SEG_CLASSES else "RTSTRUCT" if sop_class in RTSTRUCT_CLASSES else ""


def instance_of_head(head: bytes) -> str:
    """Return the SOP Instance UID in the first bytes of a DICOM file; "" for any other file."""
    return _text_of_head(head, _SOP_INSTANCE)


def _text_of_head(head: bytes, tag: int) -> str:
    try:
        with damage_named("a file"):
            dataset = read_partial(io.BytesIO(head), stop_when=lambda tag, vr, length: tag > _SOP_INSTANCE)
            return elements.text(dataset, tag)
    except LabelFileError:
        return ""


def _source_images(dataset: Dataset) -> Iterator[Dataset]:
    for frame in elements.items(dataset, _FRAME_GROUPS):
        for derivation in elements.items(frame, _DERIVATION):
            yield from elements.items(derivation, _SOURCE_IMAGES)


def _contour_images(dataset: Dataset) -> Iterator[Dataset]:
    for roi in elements.items(dataset, _ROI_CONTOURS):
        for contour in elements.items(roi, _CONTOURS):
            yield from elements.items(contour, _CONTOUR_IMAGES)


def _uids(items: list[Dataset], tag: int) -> tuple[str, ...]:
    return tuple(uid for uid in dict.fromkeys(elements.text(item, tag) for item in items) if uid)
