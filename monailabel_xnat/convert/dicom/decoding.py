"""Decoding of DICOM pixel data with the reader that is known to be right for a file.

SimpleITK (GDCM) reads most files right, but not all. It returns wrong values without any warning for 32-bit big endian
values, 1-bit values, values with fewer bits than 32, run-length encoded colours of more than 8 bits and inverted
JPEG 2000 images. pydicom reads all uncompressed files as the standard says. So pydicom decodes uncompressed files
and run-length encoded samples that are larger than usual, and SimpleITK decodes all others. The meaning of the stored
values is then applied in the same way for both (:mod:`monailabel_xnat.convert.dicom.pixels`). A file for which neither
reader is known to be right is refused, and the error names it.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from monailabel_xnat.convert.dicom.file import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    damage_named,
)
from monailabel_xnat.convert.dicom.fragments import split
from monailabel_xnat.convert.dicom.headers import ImageHeader, picture_of
from monailabel_xnat.convert.dicom.pixels import (
    INVERTED,
    PALETTE,
    PLAIN,
    SUBSAMPLED,
    YBR,
    Array,
    SliceValues,
    colours_of_indices,
    inverted,
    looked_up,
    rgb_of_ybr,
    within_bits,
)
from monailabel_xnat.convert.geometry import Floats
from monailabel_xnat.convert.itk import itk_affine, itk_reader, itk_values
from monailabel_xnat.errors import ImageConversionError

_GDCM = "GDCMImageIO"
_PIXEL_DATA = 0x7FE00010
# GDCM cannot read a file that has them.
_EXTENDED_TABLES = (0x7FE00001, 0x7FE00002)
_UNCOMPRESSED = frozenset((IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED))
_JPEG = frozenset((JPEGBaseline8Bit, JPEGExtended12Bit))
_BITS = (1, 8, 16, 32)
_ONE_SAMPLE = frozenset((PLAIN, INVERTED, PALETTE))
_COLOURS = frozenset(("RGB", YBR, SUBSAMPLED))
# The decoder of JPEG 2000 itself turns these into RGB.
_CODED_COLOURS = frozenset(("YBR_RCT", "YBR_ICT"))

# The elements that a decoder needs: none of them says where the image lies or how its values are scaled.
_PIXEL_DESCRIPTION = (
    0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010,
    0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x7FE00010,
)  # fmt: skip
# The elements that say which value or colour a stored value stands for.
_TABLES = (
    0x00280103, 0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222,
    0x00281223, 0x00283000,
)  # fmt: skip


def decode_file(header: ImageHeader) -> list[SliceValues]:
    """Return the values of all frames of a file, each scaled as the header says for that frame.

    Returns
    -------
    list of SliceValues
        One for each frame (or each tile of a mosaic): (rows, columns) or (rows, columns, samples).

    Raises
    ------
    ImageConversionError
        If the file cannot be decoded, or its header describes the pixels in a contradictory or unknown way.
    """
    if header.tiles:
        return _cut(decode_file(picture_of(header))[0], header)
    _refuse_unclear(header)
    if not _is_for_pydicom(header) and _is_scaled_by_simpleitk(header) and _is_plainly_stored(header):
        try:
            decoded = _checked(decode(header), header)
            slices = [SliceValues.of(decoded[frame.index]).compact() for frame in header.frames]
            if all(is_within_bits(part, header) for part in slices):
                return slices
        except ImageConversionError:
            pass  # SimpleITK refuses files whose geometry it cannot use, but may still decode their pixels, below.
    values = _meant(_checked(_stored(header), header), header)
    is_scaled = values.ndim == 3 and header.photometric != PALETTE and not header.modality_lut
    scalings = [(frame.slope, frame.intercept) if is_scaled else (1.0, 0.0) for frame in header.frames]
    return [
        SliceValues.of(values[frame.index], *scaling).compact()
        for frame, scaling in zip(header.frames, scalings, strict=True)
    ]


def is_within_bits(values: SliceValues, header: ImageHeader) -> bool:
    """Return whether values that SimpleITK scaled can come from samples of the stored bits.

    GDCM keeps bits above Bits Stored (overlays of old files) in JPEG 2000 images.
    """
    if header.samples > 1:
        return True
    count = 1 << header.bits_stored
    low, high = (-count // 2, count // 2 - 1) if header.signed else (0, count - 1)
    slope, intercept = header.frames[0].slope, header.frames[0].intercept
    ends = sorted((low * slope + intercept, high * slope + intercept))
    rounding = 1e-9 * max(map(abs, ends))
    return ends[0] - rounding <= values.low and values.high <= ends[1] + rounding


def _is_plainly_stored(header: ImageHeader) -> bool:
    """Return whether GDCM is known to find the frames of compressed pixels."""
    if len(header.frames) == 1:
        return True
    return split(_pixel_data(header)).is_plain(len(header.frames))


def _pixel_data(header: ImageHeader) -> bytes:
    """Return the value of the element with compressed pixels, and what follows it in the file."""
    with header.file().open("rb") as stream:
        end = stream.seek(0, io.SEEK_END)
        # A damaged file may state a length that is longer than the file. What is not there is found when it is decoded.
        stream.seek(max(0, end - header.pixel_length))
        return stream.read()


def decode(header: ImageHeader) -> Array:
    """Return all frames of a file as SimpleITK reads them: (frames, rows, columns) or (frames, rows, columns, samples).

    Raises
    ------
    ImageConversionError
        If SimpleITK cannot decode it.
    """
    return _decode(header.file(), header)


def file_geometry(header: ImageHeader) -> Floats:
    """Return the affine (4, 4), voxel index to LPS in mm, that ITK reads from the header of one file.

    Raises
    ------
    ImageConversionError
        If ITK cannot read it.
    """
    try:
        return _geometry(header.file())
    except RuntimeError as error:
        failure = error
    # GDCM refuses some descriptions of pixels, for example 6 of 8 bits. Describe them in a plain way in a copy, and
    # read the geometry from that.
    dataset = _read(header, ())
    with tempfile.TemporaryDirectory(prefix="monailabel_xnat-") as folder, damage_named(header.path):
        _describe(dataset, header, header.bits_allocated)
        copy = Path(folder) / header.path.name
        dataset.save_as(copy)
        try:
            return _geometry(copy)
        except RuntimeError:
            raise _undecodable(header, failure) from failure


def _geometry(path: Path) -> Floats:
    reader = itk_reader(path, _GDCM)
    reader.ReadImageInformation()
    return itk_affine(reader)


def _cut(picture: SliceValues, header: ImageHeader) -> list[SliceValues]:
    """Return the values of each tile of a mosaic's picture."""
    parts = []
    _, across = header.tiles
    for number in range(len(header.frames)):
        top, left = number // across * header.rows, number % across * header.columns
        stored = picture.stored[top : top + header.rows, left : left + header.columns]
        parts.append(SliceValues.of(stored, picture.slope, picture.intercept).compact())
    return parts


def _refuse_unclear(header: ImageHeader) -> None:
    """Refuse a file whose pixels no reader is known to read right."""
    problem = _problem_of_bits(header) or (_problem_of_colours if header.samples == 3 else _problem_of_greys)(header)
    if problem:
        raise ImageConversionError(
            f"{header.path.name}: {problem} cannot be read in a way that is known to be right",
            hint="convert the images to plain RGB or MONOCHROME2, or attach them to the scan as NIfTI",
        )


def _problem_of_bits(header: ImageHeader) -> str:
    bits = f"pixels of {header.bits_stored} of {header.bits_allocated} bits"
    if header.bits_allocated not in _BITS or not 0 < header.bits_stored <= header.bits_allocated:
        return bits
    if header.bits_allocated > 16 and header.transfer_syntax not in (*_UNCOMPRESSED, RLELossless):
        return f"compressed {bits}"
    return "" if header.high_bit == header.bits_stored - 1 else f"{bits} with High Bit {header.high_bit}"


def _problem_of_greys(header: ImageHeader) -> str:
    if header.samples != 1 or header.photometric not in _ONE_SAMPLE | {""}:
        return _kind(header)
    if header.photometric == PALETTE and _is_rescaled(header):
        return "colours with a Rescale Slope or a Modality LUT"
    if header.photometric == INVERTED and header.modality_lut:
        return "an inverted image (MONOCHROME1) with a Modality LUT"
    return ""


def _problem_of_colours(header: ImageHeader) -> str:
    known = _COLOURS if header.transfer_syntax in _UNCOMPRESSED else _COLOURS | _CODED_COLOURS
    is_ybr = header.photometric in (YBR, SUBSAMPLED)
    if header.photometric not in known or (is_ybr and (header.bits_stored, header.bits_allocated) != (8, 8)):
        return _kind(header)
    if header.signed or _is_rescaled(header):
        return "colours that are signed, or have a Rescale Slope or a Modality LUT,"
    return _contradiction(header) if header.transfer_syntax in _JPEG else ""


def _kind(header: ImageHeader) -> str:
    kind = header.photometric or "no Photometric Interpretation"
    return f"{header.samples} samples of {kind}, {header.bits_stored} of {header.bits_allocated} bits,"


def _is_rescaled(header: ImageHeader) -> bool:
    return header.modality_lut or {(frame.slope, frame.intercept) for frame in header.frames} != {(1.0, 0.0)}


def _contradiction(header: ImageHeader) -> str:
    """Return how the markers of a JPEG stream contradict the Photometric Interpretation; "" if they do not.

    GDCM believes the header. A JFIF marker, and Adobe's with transform 1, say that the samples are YBR.
    """
    content = _read(header, (_PIXEL_DATA,)).PixelData
    start = content.find(b"\xff\xd8\xff")
    markers = content[start : content.find(b"\xff\xda", start)]
    adobe = markers.find(b"Adobe\0")
    is_ybr = b"JFIF\0" in markers or (adobe >= 0 and markers[adobe + 11 : adobe + 12] == b"\1")
    is_rgb = adobe >= 0 and markers[adobe + 11 : adobe + 12] == b"\0"
    if (is_ybr and header.photometric == "RGB") or (is_rgb and header.photometric != "RGB"):
        return f"colours that the header calls {header.photometric}, and the JPEG stream {'YBR' if is_ybr else 'RGB'},"
    return ""


def _is_scaled_by_simpleitk(header: ImageHeader) -> bool:
    """Return whether SimpleITK returns the final values.

    GDCM scales all frames with the slope of the first one, and applies no Modality LUT.
    """
    scalings = {(frame.slope, frame.intercept) for frame in header.frames}
    is_coded_colour = header.samples == 3 and header.bits_allocated == 8
    is_grey = header.photometric in (PLAIN, "") and not header.modality_lut
    return len(scalings) == 1 and (is_grey or is_coded_colour)


def _stored(header: ImageHeader) -> Array:
    """Return the decoded pixels without scaling: single samples as they are stored, colours as RGB."""
    if _is_for_pydicom(header):
        return _by_pydicom(header)
    try:
        return _decode_bare(header)
    except ImageConversionError:
        if header.transfer_syntax != RLELossless:
            raise
    return _by_pydicom(header)


def _is_for_pydicom(header: ImageHeader) -> bool:
    """Return whether pydicom must decode a file: it is uncompressed, or run-length encoded with large samples.

    GDCM mixes up the bytes of such samples.
    """
    if header.transfer_syntax != RLELossless:
        return header.transfer_syntax in _UNCOMPRESSED
    return header.bits_allocated > (8 if header.samples == 3 else 16)


def _meant(stored: Array, header: ImageHeader) -> Array:
    """Return what stored values stand for, before Rescale Slope and Intercept."""
    if header.samples == 3:
        return stored
    stored = within_bits(stored, header.bits_allocated, header.bits_stored, header.signed)
    if header.photometric == INVERTED:
        return inverted(stored, header.bits_stored, header.signed)
    if header.photometric != PALETTE and not header.modality_lut:
        return stored
    tables = _read(header, _TABLES)
    with damage_named(header.path):
        return colours_of_indices(stored, tables) if header.photometric == PALETTE else looked_up(stored, tables)


def _by_pydicom(header: ImageHeader) -> Array:
    """Return uncompressed or run-length encoded pixels: (frames, rows, columns), or RGB (frames, rows, columns, 3)."""
    dataset = _read(header, _PIXEL_DESCRIPTION)
    with damage_named(header.path):
        _describe(dataset, header, header.bits_stored)
        if header.transfer_syntax in _UNCOMPRESSED:
            # Cut off bytes after the last frame: pydicom would warn about them.
            dataset.PixelData = dataset.PixelData[: _expected_bytes(header, len(dataset.PixelData))]
        values: Array = dataset.pixel_array
        values = values.reshape((len(header.frames), *values.shape[-3 if header.samples == 3 else -2 :]))
        return rgb_of_ybr(values) if header.photometric in (YBR, SUBSAMPLED) else values


def _expected_bytes(header: ImageHeader, found: int) -> int:
    bits = header.rows * header.columns * header.samples * header.bits_allocated * len(header.frames)
    size = (bits + 7) // 8
    if header.photometric == SUBSAMPLED:
        if found >= size:
            raise ImageConversionError(
                f"{header.path.name}: its colours are said to be subsampled ({SUBSAMPLED}), but its size says that "
                "they are not",
                hint="convert the images to RGB",
            )
        size = size * 2 // 3
    return size + size % 2


def _read(header: ImageHeader, tags: tuple[int, ...]) -> Dataset:
    """Return a dataset with some elements of a file, or with all elements if no tags are given."""
    source: Any = header.path if header.held is None else io.BytesIO(header.held)
    is_encapsulated = header.transfer_syntax not in _UNCOMPRESSED
    with damage_named(header.path):
        # pydicom would leave out compressed pixels that do not end with a delimiter.
        dataset = pydicom.dcmread(
            source, specific_tags=list(tags) or None, force=True, stop_before_pixels=is_encapsulated
        )
        if is_encapsulated and (not tags or _PIXEL_DATA in tags):
            count = len(header.frames)
            fragments = split(_pixel_data(header))
            streams = fragments.of_frames(count)
            if streams is None:
                raise ImageConversionError(
                    f"{header.path.name}: its {len(fragments.parts)} fragments of compressed pixel data do not say "
                    f"which of the {count} frames they belong to",
                    hint="store it with an offset table, or uncompressed",
                )
            dataset.PixelData = encapsulate(streams)
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            for tag in _EXTENDED_TABLES:
                dataset.pop(tag, None)
        return dataset


def _describe(dataset: Dataset, header: ImageHeader, bits: int) -> None:
    """Write a complete description of the pixels into a dataset, because headers may lack parts of it.

    ``bits`` is written as Bits Stored.
    """
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = header.rows, header.columns, header.samples
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = header.bits_allocated, bits, bits - 1
    dataset.PixelRepresentation = int(header.signed)
    dataset.NumberOfFrames = len(header.frames)
    dataset.PhotometricInterpretation = header.photometric if header.samples == 3 else PLAIN
    if header.samples == 3 and "PlanarConfiguration" not in dataset:
        dataset.PlanarConfiguration = 0
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)


def _decode_bare(header: ImageHeader) -> Array:
    """Return the pixels that SimpleITK decodes from a copy with the pixel description only.

    So nothing is scaled or inverted, and the geometry does not matter.
    """
    dataset = _read(header, _PIXEL_DESCRIPTION)
    with tempfile.TemporaryDirectory(prefix="monailabel_xnat-") as folder, damage_named(header.path):
        copy = Path(folder) / header.path.name
        for bits in dict.fromkeys((header.bits_stored, header.bits_allocated)):
            _describe(dataset, header, bits)
            dataset.save_as(copy)
            try:
                return _decode(copy, header)
            except ImageConversionError as error:
                failure = error
        raise failure


def _decode(path: Path, header: ImageHeader) -> Array:
    try:
        return itk_values(itk_reader(path, _GDCM).Execute())
    except RuntimeError as error:
        raise _undecodable(header, error) from error


def _checked(values: Array, header: ImageHeader) -> Array:
    expected: tuple[int, ...] = (len(header.frames), header.rows, header.columns)
    if header.samples == 3:
        expected = (*expected, 3)
    if values.shape != expected:
        found, promised = (" x ".join(map(str, shape)) for shape in (values.shape, expected))
        raise ImageConversionError(
            f"{header.path.name} decodes to {found} values, but its header says {promised} (frames, rows, columns)",
            hint="remove or repair this file",
        )
    return values


def _undecodable(header: ImageHeader, error: RuntimeError) -> ImageConversionError:
    reason = str(error).strip().splitlines()[-1].strip()
    return ImageConversionError(
        f"{header.path.name} cannot be decoded ({UID(header.transfer_syntax).name}): {reason}",
        hint="if the file is whole, store it in another way (uncompressed, unsigned) that SimpleITK reads",
    )
