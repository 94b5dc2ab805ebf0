"""Small files with headers of huge contents: each is refused, or read, within limits of memory and time."""

from __future__ import annotations

import gzip
import warnings
import zlib

import nibabel
import numpy as np
import pydicom
import pytest
from aim_writer import Markup, write_aim
from bounds import little
from pydicom.sequence import Sequence as Items
from rtstruct_writer import Roi, StructureSetWriter
from series_writer import SeriesWriter, random_stack

from monailabel_xnat.convert import (
    Grid,
    LabelMap,
    Segment,
    dicom_to_nifti,
    read_aim,
    read_label,
    read_rtstruct,
    read_seg,
    write_seg,
)
from monailabel_xnat.convert.dicom.headers import read_header
from monailabel_xnat.errors import ImageConversionError, LabelFileError, LabelGeometryError

GRID = Grid((512, 512, 4), np.diag([-1.0, -1.0, 3.0, 1.0]))


def changed(path, **elements):
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def slices_in(folder, count=3, **options):
    folder.mkdir()
    SeriesWriter(folder, **options).write(random_stack((count, 6, 5)))
    return sorted(folder.iterdir())


def seg_in(tmp_path, **options):
    """Return a SEG of one segment, the grid of its image, and its label map."""
    images = slices_in(tmp_path / "images", **options)
    volume = dicom_to_nifti(images, tmp_path / "image.nii")
    array = np.zeros(volume.shape, np.uint8)
    array[1:3, 2:4] = 1
    label = LabelMap(array, volume.affine, (Segment(1, "liver"),))
    path = tmp_path / "seg.dcm"
    write_seg(label, images, path, description="seg", algorithm_type="MANUAL")
    return path, Grid(volume.shape, volume.affine), label


def header_of(shape, dtype=np.uint8, kind=nibabel.Nifti1Header):
    header = kind()
    header.set_data_dtype(dtype)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["vox_offset"] = 352 if kind is nibabel.Nifti1Header else 544
    header["pixdim"][1:4] = 1
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("count", [10_000_000, 100_000_000, 10**30])
@pytest.mark.parametrize("syntax", ["explicit", "RLE"])
def test_millions_of_frames_in_a_ct_file_of_a_few_kilobytes_are_refused_at_once(tmp_path, count, syntax):
    first = slices_in(tmp_path / "images", syntax=syntax)[0]
    path = changed(first, NumberOfFrames=str(count)[:12])
    with little(200, 10), pytest.raises(ImageConversionError, match=r"truncated.*(bytes|fragments)"):
        read_header(path)


def test_a_negative_number_of_frames_says_what_is_expected(tmp_path):
    path = changed(slices_in(tmp_path / "images")[0], NumberOfFrames="-5")
    with pytest.raises(ImageConversionError, match="Number of Frames is -5, but at least 1 is expected"):
        read_header(path)


def test_an_image_without_columns_is_refused(tmp_path):
    path = changed(slices_in(tmp_path / "images")[0], Columns=0, NumberOfFrames="99999999")
    with little(200, 10), pytest.raises(ImageConversionError, match="Columns is 0, but at least 1 is expected"):
        read_header(path)


@pytest.mark.parametrize("spacing", [1e-300, 1e300])
def test_an_absurd_pixel_spacing_is_no_linalgerror(tmp_path, spacing):
    images = slices_in(tmp_path / "images")
    for image in images:
        changed(image, PixelSpacing=[str(spacing), str(spacing)])
    with pytest.raises(ImageConversionError, match=r"Pixel Spacing is .* 1e-06 to 1e[+]06 mm are expected"):
        dicom_to_nifti(images, tmp_path / "image.nii")


def test_an_absurd_position_says_what_is_expected(tmp_path):
    images = slices_in(tmp_path / "images")
    changed(images[0], ImagePositionPatient=["1e300", "0", "0"])
    with pytest.raises(ImageConversionError, match=r"Image Position .* at most 1e[+]09 mm is expected"):
        dicom_to_nifti(images, tmp_path / "image.nii")


def test_a_deflated_file_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("monailabel_xnat.convert.dicom.file._LARGEST_INFLATED", 20 << 20)
    path = slices_in(tmp_path / "images", syntax="deflated")[0]
    content = path.read_bytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = content[: 144 + int.from_bytes(content[140:144], "little")]
    with path.open("wb") as stream:
        stream.write(meta)
        for _ in range(40):
            stream.write(packer.compress(bytes(1 << 20)))
        stream.write(packer.flush())
    with little(200, 60), pytest.raises(ImageConversionError, match="once it is inflated"):
        read_header(path)


def test_sequences_within_sequences_do_not_end_the_reader(tmp_path):
    path = slices_in(tmp_path / "images")[0]
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    path.write_bytes(
        path.read_bytes() + b"\x30\x00\x00\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" + nested
    )
    with little(), pytest.raises(ImageConversionError):
        read_header(path)


@pytest.mark.parametrize("channels", [(), (4,), (1, 300)])
def test_a_small_packed_label_of_gigabytes_is_compared_with_its_image_before_it_is_unpacked(tmp_path, channels):
    shape = (1500, 1500, 700, *channels) if len(channels) < 2 else (20, 20, 20, *channels)
    path = tmp_path / "label.nii.gz"
    path.write_bytes(gzip.compress(header_of(shape)) + bytes(1_500_000))
    with little(200, 10), pytest.raises(LabelGeometryError, match="its image has 512 x 512 x 4 voxels: at most"):
        read_label(path, GRID)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize("name", ["label.nii", "label.nii.gz"])
def test_absurd_nifti_dimensions_are_no_memoryerror(tmp_path, name, kind):
    path = tmp_path / name
    content = header_of((32767,) * 7, np.float64, kind) + bytes(1000)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with little(200, 10), pytest.raises(LabelFileError, match="bytes are missing"):
        read_label(path)


@pytest.mark.parametrize("offset", [float("inf"), float("nan"), -1e30, 1e30])
def test_an_absurd_offset_of_the_voxels_is_no_overflowerror(tmp_path, offset):
    header = nibabel.Nifti1Header(header_of((2, 3, 4))[:348], check=False)
    header["vox_offset"] = offset
    (tmp_path / "label.nii").write_bytes(header.binaryblock + bytes(100))
    with little(200, 10), pytest.raises(LabelFileError, match="voxels begin at byte"):
        read_label(tmp_path / "label.nii")


@pytest.mark.parametrize("image", [GRID, None])
def test_an_nrrd_label_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path, image):
    path = tmp_path / "label.nrrd"
    head = "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 3000 3000 3000\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nkinds: domain domain domain\n"
    path.write_bytes(f"{head}encoding: gzip\n\n".encode() + gzip.compress(bytes(1000)))
    expected = LabelGeometryError if image else LabelFileError
    with little(300, 10), pytest.raises(expected, match=r"at most|cannot hold"):
        read_label(path, image)


def test_voxels_of_no_size_in_an_nrrd_file_are_no_linalgerror(tmp_path):
    path = tmp_path / "label.nrrd"
    head = "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
    head += "space directions: (1e-300,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nkinds: domain domain domain\n"
    path.write_bytes(f"{head}encoding: raw\n\n".encode() + bytes(8))
    with pytest.raises(LabelFileError, match="is no label map"):
        read_label(path)


def test_a_seg_without_rows_is_refused(tmp_path):
    path, grid, _ = seg_in(tmp_path)
    changed(path, Rows=0, NumberOfFrames="100000000")
    with little(200, 10), pytest.raises(LabelFileError, match="0 rows and 5 columns; at least 1 is expected"):
        read_seg(path, grid)


def test_a_seg_that_promises_millions_of_frames_is_refused_at_once(tmp_path):
    path, grid, _ = seg_in(tmp_path)
    changed(path, NumberOfFrames="100000000")
    with little(200, 10), pytest.raises(LabelGeometryError, match="more than 1 segments can fill"):
        read_seg(path, grid)


def test_a_seg_whose_frames_are_not_all_described_is_refused(tmp_path):
    path, grid, _ = seg_in(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = Items(dataset.PerFrameFunctionalGroupsSequence[:-1])
    dataset.save_as(path)
    with pytest.raises(LabelFileError, match=r"has 3 frames, but functional groups, .*, of 2"):
        read_seg(path, grid)


@pytest.mark.slow
def test_a_seg_of_65535_named_segments_is_read_in_linear_time(tmp_path):
    path, grid, label = seg_in(tmp_path)
    dataset = pydicom.dcmread(path)
    segments = []
    for number in range(1, 65536):
        item = pydicom.Dataset()
        item.SegmentNumber, item.SegmentLabel = number, f"segment {number}"
        # The last number has the value 1, so each of the others gets another value.
        item.SegmentDescription = "label value 1" if number == 65535 else ""
        segments.append(item)
    dataset.SegmentSequence = Items(segments)
    dataset.save_as(path)
    with little(1500, 60):
        found = read_seg(path, grid)
    assert len(found.segments) == 65535
    assert np.array_equal(found.array > 0, label.array > 0)


def test_a_seg_nrrd_of_thousands_of_segments_in_two_layers_is_read_in_linear_time(tmp_path):
    path = tmp_path / "label.seg.nrrd"
    count, side = 2_000, 32
    values = np.zeros((2, side, side, side), np.uint16, order="F")
    values[:, 1] = np.arange(side * side).reshape(side, side) % (count // 2) + 1
    head = f"NRRD0004\ntype: uint16\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 {side} {side} {side}\n"
    head += "space directions: none (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nkinds: list domain domain domain\n"
    head += "endian: little\nencoding: raw\n"
    for number in range(count):
        layer, value = divmod(number, count // 2)
        head += f"Segment{number}_Layer:={layer}\nSegment{number}_LabelValue:={value + 1}\n"
    path.write_bytes(f"{head}\n".encode() + values.tobytes(order="F"))
    with little(600, 30):
        found = read_label(path)
    assert len(found.segments) == count
    assert f"{side * side} voxels belong to several segments" in " ".join(found.notes)


def zigzag(points: int) -> np.ndarray:
    """Return corners (n, 2) that run up and down the whole slice of `GRID`."""
    x = np.linspace(1, 510, points)
    return np.stack([x, np.where(np.arange(points) % 2, 1.3, 510.3)], axis=1)


def in_patient(corners: np.ndarray, z: float = 0.0) -> np.ndarray:
    return np.concatenate([corners, np.full((len(corners), 1), z)], axis=1)


def written(tmp_path, rois):
    with warnings.catch_warnings():
        # pydicom warns if a text is too long for its element. Other writers do not.
        warnings.simplefilter("ignore")
        return StructureSetWriter().write(tmp_path / "rt.dcm", rois)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "OPEN_PLANAR"])
def test_a_structure_set_of_100000_zigzags_is_refused_at_once(tmp_path, kind):
    closed = in_patient(np.array([[1, 1], [5, 1], [5, 5], [1, 5.0]]))
    roi = Roi(1, "path", [closed, in_patient(zigzag(100_000))], kinds=["CLOSED_PLANAR", kind])
    path = written(tmp_path, [roi])
    with little(400, 30), pytest.raises(LabelFileError, match="the contours of one plane are"):
        read_rtstruct(path, GRID)


def test_contours_that_cross_each_row_a_thousand_times_take_little_memory(tmp_path):
    path = written(tmp_path, [Roi(1, "zigzag", [in_patient(zigzag(2_000))])])
    with little(200, 30):
        assert read_rtstruct(path, GRID).array.any()


def test_a_corner_at_the_end_of_the_world_is_refused(tmp_path):
    corners = in_patient(np.array([[1, 1], [5, 1], [5, 5], [1, 1e300]]))
    path = StructureSetWriter().write(tmp_path / "rt.dcm", [Roi(1, "far", [corners])])
    with pytest.raises(LabelFileError, match="has a corner at"):
        read_rtstruct(path, GRID)


def test_an_aim_document_of_zigzags_is_refused_at_once(tmp_path):
    grid = Grid(GRID.shape, GRID.affine, lambda: {("1.2.3", 1): 0})
    path = write_aim(tmp_path / "aim.xml", {"zigzag": [Markup("1.2.3", zigzag(20_000))]})
    with little(400, 30), pytest.raises(LabelFileError, match="the contours of one plane are"):
        read_aim(path, grid)


@pytest.mark.parametrize(
    ("old", "new"), [('x value="1.5"', 'x value="1e300"'), ('Number value="1"', 'Number value="inf"')]
)
def test_absurd_numbers_of_an_aim_document_are_refused(tmp_path, old, new):
    path = write_aim(tmp_path / "aim.xml", {"liver": [Markup("1.2.3", [(1, 1), (3, 1), (3, 3)])]})
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(LabelFileError, match="damaged, or no AIM document"):
        read_aim(path, GRID)
