"""The parts of a DICOM file's header that the conversion needs, read in one pass.

In a Siemens mosaic, all slices of a volume are tiles of one picture; scanners export fMRI and diffusion images so. The
tiles are the slices, row by row, along the slice normal that Siemens' own header (CSA) states. Image Position (Patient)
is the position of the picture as if it were one large slice with the same centre, so the slices begin further inside.

United Imaging calls the same a grid. Its private VFrame Sequence states the position of each tile. The grid is as wide
as a mosaic, but has only as many rows as its tiles need (dcm2niix, UIH/README.md).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.uid import UID
from pydicom.values import convert_SQ

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.elements import ElementError, Elements
from monailabel_xnat.convert.dicom.file import (
    RESTORE,
    DicomFile,
    damage_named,
    file_size,
    has_float_pixels,
    locate_pixel_data,
    read_dicom,
)
from monailabel_xnat.convert.dicom.frames import FRAME_TAGS, Frame, frame_count, read_frames
from monailabel_xnat.convert.geometry import Plane
from monailabel_xnat.disk import private_folder, write_whole
from monailabel_xnat.errors import ImageConversionError

with warnings.catch_warnings():
    # nibabel calls all of its DICOM readers experimental; only the reader of Siemens' header is used.
    warnings.simplefilter("ignore")
    from nibabel.nicom import csareader

_csa: Any = csareader

# Objects with pixel data that are not images of the patient. They are stored beside the images that they refer to.
_NO_IMAGES = frozenset(
    (
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.11.12",  # Advanced Blending Presentation State
    )
)

_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"

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
_MODALITY_LUT = 0x00283000
_DOSE_GRID_SCALING = 0x3004000E
# Private elements of United Imaging: how many slices are tiled into one picture, and what differs between them.
_IMAGES_IN_GRID = 0x00651050
_FRAMES_IN_GRID = 0x00651051
TAGS = frozenset((
    _SOP_CLASS, _SOP_INSTANCE, _IMAGE_TYPE, _MODALITY, _SERIES_DESCRIPTION, _STUDY, _SERIES, _SERIES_NUMBER,
    _INSTANCE_NUMBER, _SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS, _BITS_ALLOCATED, _BITS_STORED,
    _HIGH_BIT, _SIGNED, _MODALITY_LUT, _DOSE_GRID_SCALING, _IMAGES_IN_GRID, *FRAME_TAGS,
))  # fmt: skip
"""All that is read of a header, by top-level tag."""

OF_EACH_FILE = frozenset((_SOP_INSTANCE, _INSTANCE_NUMBER, *FRAME_TAGS)) - {_IMAGE_TYPE}
"""Those that `placed` reads."""

# The least cosine of the angle between the slice normal that Siemens states and that of Image Orientation (Patient).
_PARALLEL = 0.99

MOSAIC = "MOSAIC"
"""The value in Image Type that marks a mosaic."""


# CT, MR and PET images (DICOM PS3.4 B.5).
_DIRECT_CLASSES = frozenset(("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"))


@dataclass(frozen=True)
class ImageHeader:
    """The header of one DICOM image file.

    Parameters
    ----------
    path : Path
        The file.
    sop_class, sop_instance_uid, series_uid, study_uid : str
        SOP class, SOP Instance UID, and the UIDs of its series and its study.
    modality, description : str
        Modality and Series Description.
    series_number : str
        Series Number, as written.
    image_type : tuple of str
        Image Type.
    transfer_syntax : str
        UID of the transfer syntax.
    rows, columns, samples : int
        Size of a frame in pixels, and samples per pixel.
    bits_allocated, bits_stored, high_bit : int
        How many bits a sample takes, how many of them are used, and which is the highest of these.
    signed : bool
        Whether samples are signed (Pixel Representation).
    photometric : str
        Photometric Interpretation.
    modality_lut : bool
        Whether there is a Modality LUT Sequence instead of Rescale Slope and Intercept.
    pixel_offset : int
        Position of raw, little endian pixel data in the file; -1 if the pixels are compressed or stored otherwise.
    pixel_length : int
        Length of the pixel data in bytes, as the element states it.
    frames : tuple of Frame
        The frames in the order of the pixel data.
    tiles : tuple of int
        For a mosaic, the number of rows and columns of tiles in the picture; each tile is then one of the frames, and
        ``rows`` and ``columns`` are the size of a tile. Empty for any other image.
    dose_scaling : str
        Dose Grid Scaling, as written; "" for an image that is not a dose.
    held : bytes or None
        The content of the file, if it was not read from the disk.
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
    modality_lut: bool
    pixel_offset: int
    pixel_length: int
    frames: tuple[Frame, ...]
    tiles: tuple[int, ...] = ()
    dose_scaling: str = ""
    held: bytes | None = field(default=None, repr=False, compare=False)

    def file(self) -> Path:
        """Return the path of the file; a file that is held in memory is written there first."""
        if self.held is not None:
            private_folder(self.path.parent)
            write_whole(self.path, self.held)
        return self.path

    @property
    def is_simple(self) -> bool:
        """Whether it is one grey slice, and only Rescale Slope and Intercept lie between a value and its meaning."""
        return (
            self.sop_class in _DIRECT_CLASSES
            and len(self.frames) == self.samples == 1
            and not self.tiles
            and self.photometric == "MONOCHROME2"
            and self.bits_allocated in (8, 16)
            and 0 < self.bits_stored <= self.bits_allocated
            and self.high_bit == self.bits_stored - 1
            and not self.modality_lut
        )

    @property
    def frame_bytes(self) -> int:
        """Size of one frame of raw pixel data, in bytes."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8


@dataclass(frozen=True)
class OtherFile:
    """A file that is not an image: ``kind`` says what it is, e.g. "Basic Text SR Storage" or "not DICOM"."""

    path: Path
    kind: str


def read_header(path: Path, content: bytes | None = None) -> ImageHeader | OtherFile:
    """Read the header of a file, and check that its pixel data is complete.

    Parameters
    ----------
    path : Path
        The file.
    content : bytes, optional
        Its content, if the file is not on the disk.

    Returns
    -------
    ImageHeader or OtherFile
        The header of an image, or what kind of file it is otherwise.

    Raises
    ------
    ImageConversionError
        If the file is a DICOM image that is truncated, has no pixel data, or has a header that makes no sense.
    """
    with path.open("rb") if content is None else io.BytesIO(content) as stream:
        file = read_dicom(path, stream, TAGS)
        if file is None:
            return OtherFile(path, "not DICOM")
        with damage_named(path):
            return _image_or_other(path, stream, file)


def read_series_uid(path: Path) -> str:
    """Return the Series Instance UID of a DICOM file with an image; "" for any other file, and for a damaged one."""
    with path.open("rb") as stream:
        try:
            file = read_dicom(path, stream, (_SERIES, _ROWS))
            has_image = file is not None and elements.integer(file.elements, _ROWS) > 0
        except (ImageConversionError, elements.ElementError):
            return ""
        return elements.text(file.elements, _SERIES) if file is not None and has_image else ""


def _image_or_other(path: Path, stream: BinaryIO, file: DicomFile) -> ImageHeader | OtherFile:
    sop_class = elements.text(file.elements, _SOP_CLASS) or file.media_class
    kind = UID(sop_class).name if sop_class else ""
    has_rows = elements.integer(file.elements, _ROWS) > 0
    stream.seek(file.end)
    if sop_class in _NO_IMAGES or has_float_pixels(stream, file.syntax):
        return OtherFile(path, kind)
    # An object of an image class must have rows and pixels. An object of another class is an image if it has both.
    is_image = not kind or "Image Storage" in kind or sop_class == _DOSE
    if not is_image and (not has_rows or file.end >= file_size(stream)):
        return OtherFile(path, kind)
    if not has_rows:
        message = f"{path.name} is truncated, or no whole DICOM object: there are no Rows in its header"
        raise ImageConversionError(message, hint=RESTORE)
    image = _image(path, file.elements, sop_class, file.syntax)
    if image.columns < 1:
        raise ElementError(f"Columns is {image.columns}, but at least 1 is expected")
    image = placed(image, path, stream, file.elements)
    return untiled(image, stream) if is_mosaic(image.image_type) and len(image.frames) == 1 else image


def placed(image: ImageHeader, path: Path, stream: BinaryIO, found: Elements) -> ImageHeader:
    """Return a header with what each file of a series has of its own: its name, its frames, and where its pixels are.

    Parameters
    ----------
    image : ImageHeader
        The header so far.
    path : Path
        The file.
    stream : binary file
        The open file, or a BytesIO, at the end of the header.
    found : mapping of int to bytes, or Dataset
        The elements of its header.

    Raises
    ------
    ImageConversionError
        If the pixels are not all there.
    ElementError
        If a number in the header is none.
    """
    # Only pixel data of the right size proves that the stated number of frames is true.
    count = frame_count(found)
    bits = image.rows * image.columns * max(1, image.samples) * max(1, image.bits_allocated) * count
    expected = (bits + 7) // 8
    if image.photometric == "YBR_FULL_422":
        expected = expected * 2 // 3
    offset, length = locate_pixel_data(path, stream, image.transfer_syntax, expected, count)
    order = elements.decimal(found, _INSTANCE_NUMBER) or 0.0
    return replace(
        image,
        path=path,
        sop_instance_uid=elements.text(found, _SOP_INSTANCE),
        pixel_offset=offset,
        pixel_length=length,
        frames=read_frames(path, found, count, order),
        held=stream.getvalue() if isinstance(stream, io.BytesIO) else None,
    )


def _image(path: Path, dataset: Elements, sop_class: str, syntax: str) -> ImageHeader:
    allocated = elements.integer(dataset, _BITS_ALLOCATED, 16)
    stored = elements.integer(dataset, _BITS_STORED, allocated)
    image_type = elements.texts(dataset, _IMAGE_TYPE)
    if (elements.decimal(dataset, _IMAGES_IN_GRID) or 0.0) > 1 and not is_mosaic(image_type):
        image_type = (*image_type, MOSAIC)
    return ImageHeader(
        path=path,
        sop_class=sop_class,
        sop_instance_uid="",
        series_uid=elements.text(dataset, _SERIES),
        study_uid=elements.text(dataset, _STUDY),
        modality=elements.text(dataset, _MODALITY),
        description=elements.text(dataset, _SERIES_DESCRIPTION),
        series_number=elements.text(dataset, _SERIES_NUMBER),
        image_type=image_type,
        transfer_syntax=syntax,
        rows=elements.integer(dataset, _ROWS),
        columns=elements.integer(dataset, _COLUMNS),
        samples=elements.integer(dataset, _SAMPLES, 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=elements.integer(dataset, _HIGH_BIT, stored - 1),
        signed=elements.integer(dataset, _SIGNED) == 1,
        photometric=elements.text(dataset, _PHOTOMETRIC),
        modality_lut=elements.is_filled(dataset, _MODALITY_LUT),
        dose_scaling=elements.text(dataset, _DOSE_GRID_SCALING),
        pixel_offset=-1,
        pixel_length=0,
        frames=(),
    )


def is_mosaic(image_type: Sequence[str]) -> bool:
    """Return whether an Image Type marks a mosaic."""
    return MOSAIC in image_type


def untiled(picture: ImageHeader, stream: BinaryIO) -> ImageHeader:
    """Return the header of a mosaic with its tiles as frames; unchanged if nothing says where they lie.

    Parameters
    ----------
    picture : ImageHeader
        The header of the file, with the whole picture as its one frame.
    stream : binary file
        The open file.

    Raises
    ------
    ElementError
        If the numbers in its header make no sense.
    """
    stream.seek(0)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    plane = picture.frames[0].plane
    if plane is None:
        return picture
    if _FRAMES_IN_GRID in dataset:
        grid = dataset[_FRAMES_IN_GRID]
        # In implicit VR, and as UN, pydicom does not know that this private element is a sequence (PS3.5 6.2.2).
        tiles = convert_SQ(grid.value, True, True) if grid.VR == "UN" else grid.value
        return _in_a_grid(picture, plane, int(dataset[_IMAGES_IN_GRID].value), tiles)
    csa = _csa.get_csa_header(dataset, "image")
    count = int((_csa.get_n_mosaic(csa) if csa else None) or 0)
    if count < 1:
        return picture
    across = math.ceil(math.sqrt(count))
    rows, columns = _size_of_tile(picture, (across, across), count)
    step = dataset.get("SpacingBetweenSlices")
    if not step or not float(step) > 0:
        raise ElementError("a mosaic without Spacing Between Slices does not say where its slices lie")
    stated = _csa.get_slice_normal(csa)
    along = 1.0 if stated is None else float(plane.normal @ stated)
    if abs(along) < _PARALLEL * (1.0 if stated is None else float(np.linalg.norm(stated))) or along == 0:
        raise ElementError("the slice normal of a mosaic does not fit to Image Orientation (Patient)")
    normal = plane.normal * np.sign(along)
    first = _first_pixel(plane, picture.rows - rows, picture.columns - columns)
    places = [first + number * float(step) * normal for number in range(count)]
    return _with_tiles(picture, (across, across), replace(plane, thickness=float(step)), places)


def _in_a_grid(picture: ImageHeader, plane: Plane, count: int, tiles: Sequence[pydicom.Dataset]) -> ImageHeader:
    places = [[float(value) for value in tile.get("ImagePositionPatient") or ()] for tile in tiles]
    if [len(place) for place in places] != [3] * count:
        raise ElementError(f"a grid of {count} slices does not state the position of each of them")
    across = math.ceil(math.sqrt(count))
    return _with_tiles(picture, (math.ceil(count / across), across), plane, places)


def _with_tiles(picture: ImageHeader, tiles: tuple[int, int], plane: Plane, places: Sequence[Any]) -> ImageHeader:
    """Return the header of a mosaic, whose tiles lie at some places (3,), LPS, mm, row by row."""
    rows, columns = _size_of_tile(picture, tiles, len(places))
    frames = []
    for number, place in enumerate(places):
        x, y, z = (float(value) for value in place)
        frames.append(replace(picture.frames[0], index=number, plane=replace(plane, position=(x, y, z))))
    return replace(picture, rows=rows, columns=columns, tiles=tiles, frames=tuple(frames))


def _size_of_tile(picture: ImageHeader, tiles: tuple[int, int], count: int) -> tuple[int, int]:
    down, across = tiles
    if picture.rows % down or picture.columns % across:
        raise ElementError(f"a mosaic of {picture.columns} x {picture.rows} pixels cannot hold {count} tiles")
    return picture.rows // down, picture.columns // across


def picture_of(header: ImageHeader) -> ImageHeader:
    """Return the header of a mosaic as it is stored: with one frame, which is the whole picture."""
    frames = (replace(header.frames[0], index=0),)
    down, across = header.tiles
    return replace(header, rows=header.rows * down, columns=header.columns * across, tiles=(), frames=frames)


def _first_pixel(plane: Plane, rows: int, columns: int) -> Any:
    """Return the position (3,), LPS, mm, of the first pixel of a slice with the same centre as the picture.

    The slice is ``rows`` and ``columns`` smaller than the picture.
    """
    along_row, along_column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    inwards = along_column * plane.spacing[0] * rows + along_row * plane.spacing[1] * columns
    return np.array(plane.position) + inwards / 2.0
