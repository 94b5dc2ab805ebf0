"""Pixels that are stored in any way have the values that pydicom reads, or are an error that names the reason."""

from __future__ import annotations

import io
from itertools import cycle, product

import numpy as np
import PIL.Image
import pydicom
import pytest
from itk_reference import voxels
from pixel_files import COLOURS, UNCOMPRESSED, Pixels
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_pixel_data_frame
from pydicom.pixel_data_handlers.util import apply_modality_lut
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEGBaseline8Bit

from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.errors import ImageConversionError

GREY_BITS = ((1, 1), (8, 8), (8, 6), (16, 16), (16, 12), (32, 32), (32, 20))
COLOUR_BITS = ((8, 8), (16, 16), (16, 12), (32, 32))
PALETTE_BITS = ((8, 8), (8, 6), (16, 16), (16, 12))


SCALES = (("CT", 2.0), ("OT", None), ("RTDOSE", None), ("OT", 0.5), ("CR", -3.0), ("CT", None), ("OT", -1.0))


def greys():
    scales = cycle(SCALES)
    for syntax, (allocated, stored), signed, inverted, frames in product(
        (*UNCOMPRESSED, "RLE", "JPEG 2000", "JPEG-LS"), GREY_BITS, (False, True), (False, True), (1, 3)
    ):
        if allocated == 1 and (signed or inverted or syntax == "RLE"):
            continue
        if syntax.startswith("JPEG") and (signed or allocated not in (8, 16) or (allocated == 8 and stored < 8)):
            continue  # Pillow does not write them
        photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
        modality, slope = next(scales)
        if inverted or (frames > 1 and modality in ("CT", "CR")):
            modality = "OT"
        yield Pixels(modality, syntax, allocated, stored, signed, photometric, 0, frames, slope, -7.0 * bool(slope))


def colours():
    for syntax, bits, planar, frames in product((*UNCOMPRESSED, "RLE"), COLOUR_BITS, (0, 1), (1, 3)):
        yield Pixels("OT", syntax, *bits, photometric="RGB", planar=planar, frames=frames)
    for syntax, photometric, planar, frames in product((*UNCOMPRESSED, "RLE"), COLOURS[1:], (0, 1), (1, 3)):
        if photometric == "YBR_FULL" or (planar == 0 and syntax in UNCOMPRESSED):
            yield Pixels("OT", syntax, 8, 8, photometric=photometric, planar=planar, frames=frames)
    for syntax, frames in product(("JPEG 2000", "JPEG-LS"), (1, 3)):
        yield Pixels("OT", syntax, 8, 8, photometric="RGB", frames=frames)


def palettes():
    for syntax, bits, frames in product((*UNCOMPRESSED, "RLE"), PALETTE_BITS, (1, 3)):
        yield Pixels("OT", syntax, *bits, photometric="PALETTE COLOR", frames=frames)


def written_by_pydicom(pixels, path):
    """Return the stored values that pydicom decodes, where it can."""
    stored = pydicom.dcmread(path).pixel_array
    return stored.reshape(pixels.frames, *stored.shape[-3 if pixels.samples == 3 else -2 :])


def check(tmp_path, pixels):
    values = pixels.random()
    path = pixels.write(tmp_path / str(pixels), values)
    if not pixels.syntax.startswith("JPEG"):
        np.testing.assert_array_equal(written_by_pydicom(pixels, path), values, err_msg=str(pixels))
    volume = dicom_to_nifti(path, tmp_path / "image.nii")
    found = voxels(volume.path)
    assert found.shape == pixels.truth(values).shape, str(pixels)
    tolerance = 1 if pixels.photometric.startswith("YBR") else 0
    np.testing.assert_allclose(found, pixels.truth(values), rtol=0, atol=tolerance, err_msg=str(pixels))


@pytest.mark.parametrize("kinds", [palettes, colours, pytest.param(greys, marks=pytest.mark.slow)])
def test_every_kind_of_pixel_has_the_values_that_were_stored(tmp_path, kinds):
    for pixels in kinds():
        check(tmp_path, pixels)


def test_a_dose_of_32_bits_in_big_endian_is_not_shuffled(tmp_path):
    check(tmp_path, Pixels("RTDOSE", "big endian", 32, 32, frames=3))


def test_red_of_16_bits_does_not_become_cyan_by_run_lengths(tmp_path):
    pixels = Pixels("OT", "RLE", 16, 16, photometric="RGB")
    red = np.zeros((1, 6, 8, 3), int)
    red[..., 0] = 60000
    path = pixels.write(tmp_path / "red", red)
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    assert found[0, 0, 0].tolist() == [60000, 0, 0]


def lut(first=0, bits=16, entries=4096):
    item = Dataset()
    table = (np.arange(entries) * 7 + 3) % (1 << bits)
    item.add_new("LUTDescriptor", "US", [entries, first, bits])
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return Items([item])


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "deflated", "RLE", "JPEG-LS"])
@pytest.mark.parametrize("modality", ["CR", "CT"])
def test_a_modality_lut_is_applied(tmp_path, syntax, modality):
    pixels = Pixels(modality, syntax, 16, 12)
    values = pixels.random()
    path = pixels.write(tmp_path / "cr", values, lambda d: setattr(d, "ModalityLUTSequence", lut(first=5)))
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    np.testing.assert_array_equal(found[..., 0].T, apply_modality_lut(values[0], pydicom.dcmread(path)))


def test_an_inverted_image_with_a_modality_lut_is_refused(tmp_path):
    pixels = Pixels("CR", "explicit", 16, 12, photometric="MONOCHROME1")
    path = pixels.write(tmp_path / "cr", pixels.random(), lambda d: setattr(d, "ModalityLUTSequence", lut()))
    with pytest.raises(ImageConversionError, match=r"MONOCHROME1.*Modality LUT"):
        dicom_to_nifti(path, tmp_path / "image.nii")


def change_to(**elements):
    def change(dataset):
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("pixels", "change", "named"),
    [
        (Pixels("CT", stored=12), change_to(HighBit=15), "12 of 16 bits with High Bit 15"),
        (Pixels("CT"), change_to(BitsStored=20), "20 of 16 bits"),
        (Pixels("OT", photometric="RGB"), change_to(PhotometricInterpretation="YBR_FULL"), "YBR_FULL, 16 of 16 bits"),
        (Pixels("OT", photometric="RGB"), change_to(PhotometricInterpretation="HSV"), "3 samples of HSV"),
        (Pixels("OT", photometric="RGB"), change_to(RescaleSlope="2", RescaleIntercept="0"), "colours"),
        (
            Pixels("OT", "explicit", 8, 8, photometric="RGB"),
            change_to(PhotometricInterpretation="YBR_FULL_422"),
            "subsampled",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pixels_that_can_be_meant_in_two_ways_are_refused(tmp_path, pixels, change, named):
    path = pixels.write(tmp_path / "odd", pixels.random(), change)
    with pytest.raises(ImageConversionError) as caught:
        dicom_to_nifti(path, tmp_path / "image.nii")
    assert named in str(caught.value)
    assert "a.dcm" in str(caught.value)


@pytest.mark.parametrize(("said", "is_right"), [("YBR_FULL", True), ("RGB", False)])
def test_jpeg_colours_that_contradict_the_header_are_refused(tmp_path, said, is_right):
    picture = np.zeros((1, 6, 8, 3), np.uint8)
    picture[..., 0] = 200
    stream = io.BytesIO()
    PIL.Image.fromarray(picture[0]).save(stream, "JPEG", quality=98, subsampling=0)

    def compress(dataset):
        dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation = JPEGBaseline8Bit, said
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True

    path = Pixels("OT", "explicit", 8, 8, photometric="RGB").write(tmp_path / "jpeg", picture, compress)
    if is_right:
        found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
        np.testing.assert_allclose(found[:, :, 0].transpose(1, 0, 2), picture[0], atol=2)
    else:
        with pytest.raises(ImageConversionError, match=r"header calls RGB, and the JPEG stream YBR"):
            dicom_to_nifti(path, tmp_path / "image.nii")


def test_real_world_values_and_windows_are_not_applied(tmp_path):
    item = Dataset()
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, 4095
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 3.0, 7.0
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    change = change_to(RealWorldValueMappingSequence=Items([item]), **window)
    for modality in ("CT", "OT", "CR"):
        pixels = Pixels(modality, stored=12, slope=2.0, intercept=-5.0)
        path = pixels.write(tmp_path / modality, pixels.random(), change)
        found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
        np.testing.assert_array_equal(found, pixels.truth(pixels.random()))


@pytest.mark.parametrize("is_empty", [False, True], ids=["without", "empty"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000", "RLE"])
def test_frames_without_an_offset_table_are_read(tmp_path, syntax, frames, is_empty):
    pixels = Pixels("OT", syntax, frames=frames)
    path = pixels.write(tmp_path / "dicom", pixels.random())
    data = path.read_bytes()
    start = data.index(b"\xe0\x7f\x10\x00OB") + 12
    rest = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    path.write_bytes(data[:start] + (b"\xfe\xff\x00\xe0\0\0\0\0" if is_empty else b"") + data[rest:])
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    np.testing.assert_array_equal(found, pixels.truth(pixels.random()))


def item(content):
    content += b"\0" * (len(content) % 2)
    return b"\xfe\xff\x00\xe0" + len(content).to_bytes(4, "little") + content


def stored_as(streams, form):
    """Return compressed frames as the value of the pixel data: items that may be usual in some scanners only."""
    size = 1 << 20 if "one" in form else 40
    parts = [[stream[at : at + size] for at in range(0, len(stream), size)] for stream in streams]
    lengths = [sum(len(item(part)) for part in frame) for frame in parts]
    offsets = b"".join(sum(lengths[:number]).to_bytes(4, "little") for number in range(len(lengths)))
    table = b"" if "no table" in form else item(offsets if "table" in form else b"")
    end = b"" if "no end" in form else b"\xfe\xff\xdd\xe0\0\0\0\0"
    return table + b"".join(item(part) for frame in parts for part in frame) + end


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("syntax", "form"),
    [
        *product(("JPEG-LS", "JPEG 2000"), ("several, table", "several, empty", "several, no table", "one, no end")),
        *product(("RLE",), ("several, table", "one, no table, no end", "one, table, no end")),
    ],
)
def test_frames_in_several_fragments_or_without_an_end_are_put_together(tmp_path, syntax, form, frames):
    """Run lengths without table and end were read as the wrong frames; the others were refused."""
    pixels = Pixels("OT", syntax, frames=frames)
    path = pixels.write(tmp_path / "dicom", pixels.random())
    streams = list(generate_pixel_data_frame(pydicom.dcmread(path).PixelData, frames))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00OB") + 12] + stored_as(streams, form))
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    np.testing.assert_array_equal(found, pixels.truth(pixels.random()))


def test_run_lengths_that_do_not_say_where_a_frame_begins_are_refused(tmp_path):
    pixels = Pixels("OT", "RLE", frames=3)
    path = pixels.write(tmp_path / "dicom", pixels.random())
    streams = list(generate_pixel_data_frame(pydicom.dcmread(path).PixelData, 3))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00OB") + 12] + stored_as(streams, "several, empty"))
    with pytest.raises(ImageConversionError, match=r"a\.dcm: its \d+ fragments .* which of the 3 frames"):
        dicom_to_nifti(path, tmp_path / "image.nii")


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
def test_frames_with_an_extended_offset_table_are_read(tmp_path, syntax):
    pixels = Pixels("OT", syntax, frames=3)

    def extend(dataset):
        streams = list(generate_pixel_data_frame(dataset.PixelData, 3))
        data, offsets, lengths = encapsulate_extended(streams)
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = data, offsets, lengths

    path = pixels.write(tmp_path / "dicom", pixels.random(), extend)
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    np.testing.assert_array_equal(found, pixels.truth(pixels.random()))


@pytest.mark.parametrize("syntax", ["explicit", "RLE", "JPEG-LS", "JPEG 2000"])
@pytest.mark.parametrize("slope", [None, 2.0, 0.5])
def test_an_overlay_in_the_upper_bits_is_no_part_of_the_values(tmp_path, syntax, slope):
    """In JPEG 2000 it was."""
    pixels = Pixels("OT", syntax, 16, 16, slope=slope, intercept=-7.0 * bool(slope))
    path = pixels.write(tmp_path / "dicom", pixels.random(), change_to(BitsStored=12, HighBit=11))
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    np.testing.assert_array_equal(found, pixels.truth(pixels.random() & 4095))


@pytest.mark.parametrize("form", ["short", "long"])
@pytest.mark.parametrize("kind", [b"ZZ", b"??", b"\0\0"])
def test_an_element_of_unknown_kind_before_the_pixels_does_no_harm(tmp_path, kind, form):
    pixels = Pixels("CT")
    path = pixels.write(tmp_path / "dicom", pixels.random())
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")
    length = (4).to_bytes(2, "little") if form == "short" else b"\0\0" + (4).to_bytes(4, "little")
    path.write_bytes(data[:at] + b"\x27\x00\x01\x10" + kind + length + b"abcd" + data[at:])
    found = voxels(dicom_to_nifti(path, tmp_path / "image.nii").path)
    np.testing.assert_array_equal(found, pixels.truth(pixels.random()))
