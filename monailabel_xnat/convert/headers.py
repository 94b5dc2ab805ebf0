"""What the conversion needs from the header of a DICOM file, read in one pass."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import UID

from monailabel_xnat.convert import elements
from monailabel_xnat.convert.frames import FRAME_TAGS, Frame, read_frames
from monailabel_xnat.errors import ImageConversionError

_RESTORE = "download the scan again, or restore the file in the archive"

_DICOM_SUFFIXES = frozenset(("", ".dcm", ".dicom", ".dic", ".ima", ".img"))

# Objects with pixel data that are no image of the patient: they lie beside the images they refer to.
_NO_IMAGES = frozenset(
    (
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.11.12",  # Advanced Blending Presentation State
    )
)

_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_IMAGE_TYPE = 0x00080008
_MODALITY = 0x00080060
_SERIES_DESCRIPTION = 0x0008103E
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_SERIES_NUMBER = 0x00200011
_INSTANCE_NUMBER = 0x00200013
_SAMPLES = 0x00280002
_PHOTOMETRIC = 0x00280004
_PLANAR = 0x00280006
_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_BITS_ALLOCATED = 0x00280100
_BITS_STORED = 0x00280101
_HIGH_BIT = 0x00280102
_SIGNED = 0x00280103
_REAL_WORLD_VALUES = 0x00409096
_FLOAT_PIXEL_DATA = 0x7FE00008
_DOUBLE_PIXEL_DATA = 0x7FE00009
_PIXEL_DATA = 0x7FE00010
_UNDEFINED_LENGTH = 0xFFFFFFFF

_TAGS = [
    _SOP_CLASS, _SOP_INSTANCE, _IMAGE_TYPE, _MODALITY, _SERIES_DESCRIPTION, _STUDY, _SERIES, _SERIES_NUMBER,
    _INSTANCE_NUMBER, _SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS, _BITS_ALLOCATED, _BITS_STORED,
    _HIGH_BIT, _SIGNED, _REAL_WORLD_VALUES, *FRAME_TAGS,
]  # fmt: skip

_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


@dataclass(frozen=True)
class ImageHeader:
    """The header of one DICOM image file.

    Parameters
    ----------
    path : Path
        The file.
    sop_class, sop_instance_uid, series_uid, study_uid : str
        What the file is, and where it belongs.
    modality, description : str
        Modality and Series Description.
    series_number : str
        Series Number, as written.
    image_type : tuple of str
        Image Type.
    transfer_syntax : str
        UID of the transfer syntax.
    rows, columns, samples : int
        Size of a frame and samples per pixel.
    bits_allocated, bits_stored, high_bit : int
        Size of a pixel.
    signed : bool
        Pixel Representation.
    photometric : str
        Photometric Interpretation.
    real_world_values : bool
        Whether there is a Real World Value Mapping, which GDCM applies to MR.
    pixel_offset : int
        Where raw, little endian pixel data begins in the file; -1 if it is compressed or stored otherwise.
    pixel_length : int
        Its length as the element states it.
    frames : tuple of Frame
        In the order of the pixel data.
    """

    path: Path
    sop_class: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    modality: str
    description: str
    series_number: str
    image_type: tuple[str, ...]
    transfer_syntax: str
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    real_world_values: bool
    pixel_offset: int
    pixel_length: int
    frames: tuple[Frame, ...]

    @property
    def frame_bytes(self) -> int:
        """Size of one frame of raw pixel data."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8


@dataclass(frozen=True)
class OtherFile:
    """A file that is no image: ``kind`` says what it is, e.g. "Basic Text SR Storage" or "not DICOM"."""

    path: Path
    kind: str


def read_header(path: Path) -> ImageHeader | OtherFile:
    """Read the header of a file, and check that its pixel data is whole.

    Raises
    ------
    ImageConversionError
        If the file is a DICOM image that is truncated, has no pixel data, or has a header that makes no sense.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(132)
        if not _looks_like_dicom(start):
            if not start.strip(b"\0") and len(start) < 132 and path.suffix.lower() in _DICOM_SUFFIXES:
                raise ImageConversionError(f"{path.name} is truncated: it has {size} bytes", hint=_RESTORE)
            return OtherFile(path, "not DICOM")
        stream.seek(0)
        try:
            dataset = _read_dataset(stream)
            return _image_or_other(path, stream, dataset, size)
        except (elements.ElementError, struct.error) as error:
            raise ImageConversionError(f"{path.name}: {error}", hint="repair or remove this file") from error


def _looks_like_dicom(start: bytes) -> bool:
    """Tell DICOM by its magic word, or, in files of old that lack it, by a first element of group 2 or 8."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element = int.from_bytes(start[2:4], "little")
    length = int.from_bytes(start[4:8], "little")
    return element <= 0x70 and ((start[4:6].isalpha() and start[4:6].isupper()) or length < 128)


def _read_dataset(stream: BinaryIO) -> FileDataset:
    """Read the header; the stream is left where the pixel data begins."""
    path = Path(stream.name)
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    except zlib.error as error:
        raise ImageConversionError(f"{path.name} is truncated or damaged: {error}", hint=_RESTORE) from error
    except (EOFError, OSError, KeyError, ValueError, NotImplementedError, AttributeError, TypeError) as error:
        message = f"{path.name} is damaged, its header cannot be read: {error}"
        raise ImageConversionError(message, hint=_RESTORE) from error


def _image_or_other(path: Path, stream: BinaryIO, dataset: FileDataset, size: int) -> ImageHeader | OtherFile:
    meta = dataset.file_meta
    sop_class = elements.text(dataset, _SOP_CLASS) or str(meta.get("MediaStorageSOPClassUID", ""))
    kind = UID(sop_class).name if sop_class else ""
    has_rows = elements.integer(dataset, _ROWS) > 0
    if sop_class in _NO_IMAGES or (kind and not has_rows and "Image Storage" not in kind):
        return OtherFile(path, kind)
    if not has_rows:
        message = f"{path.name} is truncated, or no whole DICOM object: {size} bytes, and no Rows in the header"
        raise ImageConversionError(message, hint=_RESTORE)
    syntax = str(meta.get("TransferSyntaxUID", "")) or (_IMPLICIT if dataset.is_implicit_VR else _EXPLICIT)
    image = _image(path, dataset, sop_class, syntax)
    offset, length = _pixel_data(path, stream, image, size)
    return replace(image, pixel_offset=offset, pixel_length=length)


def _image(path: Path, dataset: FileDataset, sop_class: str, syntax: str) -> ImageHeader:
    count = int(elements.decimal(dataset, _FRAMES) or 1)
    order = elements.decimal(dataset, _INSTANCE_NUMBER) or 0.0
    allocated = elements.integer(dataset, _BITS_ALLOCATED, 16)
    stored = elements.integer(dataset, _BITS_STORED, allocated)
    return ImageHeader(
        path=path,
        sop_class=sop_class,
        sop_instance_uid=elements.text(dataset, _SOP_INSTANCE),
        series_uid=elements.text(dataset, _SERIES),
        study_uid=elements.text(dataset, _STUDY),
        modality=elements.text(dataset, _MODALITY),
        description=elements.text(dataset, _SERIES_DESCRIPTION),
        series_number=elements.text(dataset, _SERIES_NUMBER),
        image_type=elements.texts(dataset, _IMAGE_TYPE),
        transfer_syntax=syntax,
        rows=elements.integer(dataset, _ROWS),
        columns=elements.integer(dataset, _COLUMNS),
        samples=elements.integer(dataset, _SAMPLES, 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=elements.integer(dataset, _HIGH_BIT, stored - 1),
        signed=elements.integer(dataset, _SIGNED) == 1,
        photometric=elements.text(dataset, _PHOTOMETRIC),
        real_world_values=_REAL_WORLD_VALUES in dataset,
        pixel_offset=-1,
        pixel_length=0,
        frames=read_frames(path, dataset, count, order),
    )


def _pixel_data(path: Path, stream: BinaryIO, image: ImageHeader, size: int) -> tuple[int, int]:
    """Find the raw pixel data, (offset, length), or (-1, length) if it is not stored plainly.

    Raises
    ------
    ImageConversionError
        If there is none, or less than the header promises.
    """
    expected = image.frame_bytes * len(image.frames)
    if image.transfer_syntax == _DEFLATED:
        _check_length(path, _inflated_length(path), expected)
        return -1, expected
    big = image.transfer_syntax == _BIG_ENDIAN
    tag, length = _element_start(stream, big, explicit=image.transfer_syntax != _IMPLICIT)
    if tag in (_FLOAT_PIXEL_DATA, _DOUBLE_PIXEL_DATA):
        raise ImageConversionError(
            f"{path.name} stores floating point pixel data, which SimpleITK does not read",
            hint="convert the object to NIfTI and attach it to the scan as resource NIFTI",
        )
    if tag != _PIXEL_DATA:
        raise ImageConversionError(
            f"{path.name} has no pixel data: {UID(image.sop_class).name}, {size} bytes", hint=_RESTORE
        )
    offset = stream.tell()
    if length == _UNDEFINED_LENGTH:
        _check_fragments(path, stream, size, len(image.frames))
        return -1, size - offset
    if image.transfer_syntax not in (_IMPLICIT, _EXPLICIT, _BIG_ENDIAN):
        return -1, length
    if image.photometric == "YBR_FULL_422":
        expected = expected * 2 // 3
    _check_length(path, min(length, size - offset), expected)
    return (-1 if big else offset), length


def _element_start(stream: BinaryIO, big: bool, explicit: bool) -> tuple[int, int]:
    """Read tag and length of the pixel data element; (0, 0) at the end of the file."""
    order = ">" if big else "<"
    start = stream.read(12 if explicit else 8)
    if len(start) < 8:
        return 0, 0
    group, element = struct.unpack_from(f"{order}HH", start)
    if explicit and len(start) < 12:
        return group << 16 | element, 0
    (length,) = struct.unpack_from(f"{order}I", start, 8 if explicit else 4)
    return group << 16 | element, length


def _check_length(path: Path, length: int, expected: int) -> None:
    if length < expected:
        raise ImageConversionError(
            f"{path.name} is truncated: {length} of {expected} bytes of pixel data", hint=_RESTORE
        )


def _inflated_length(path: Path) -> int:
    dataset = pydicom.dcmread(path, specific_tags=[_PIXEL_DATA])
    return len(dataset.PixelData) if _PIXEL_DATA in dataset else 0


def _check_fragments(path: Path, stream: BinaryIO, size: int, frames: int) -> None:
    """Walk the fragments of compressed pixel data (DICOM PS3.5 A.4) to see that the last one is whole."""
    count = -1  # The first item is the offset table.
    position = stream.tell()
    while True:
        stream.seek(position)
        start = stream.read(8)
        group, element, length = struct.unpack("<HHI", start) if len(start) == 8 else (0, 0, 0)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        position += 8 + length
        if (group, element) != (0xFFFE, 0xE000) or position > size:
            # Some writers leave out the delimiter at the end: nothing is missing then.
            if position == size and not start and count >= frames:
                break
            message = f"{path.name} is truncated: its compressed pixel data ends in fragment {count + 1}"
            raise ImageConversionError(message, hint=_RESTORE)
        count += 1
    if count < 1:
        raise ImageConversionError(f"{path.name} has no pixel data: no fragment is stored", hint=_RESTORE)
