"""A series that is not a regular volume becomes the right volume, or an error that names what was found."""

from __future__ import annotations

import numpy as np
import pytest
from itk_reference import assert_as_itk_reader, assert_file_affine, voxels
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid
from series_writer import AXIAL, CORONAL, SAGITTAL, SeriesWriter, random_stack

from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.errors import ImageConversionError, NoImageError

STACK = random_stack((6, 6, 7))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "dicom"


@pytest.fixture
def convert(folder, tmp_path):
    def run(**options):
        return dicom_to_nifti(folder, tmp_path / "image.nii", **options)

    return run


def refused(convert, *expected, kind=ImageConversionError, **options):
    """Check that the conversion fails, that the error says all that is expected, and that no file is left."""
    with pytest.raises(kind) as caught:
        convert(**options)
    for part in expected:
        assert part in str(caught.value), str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def at(*positions):
    """Move each slice to a distance from the first, in mm, along z."""

    def change(dataset, number):
        dataset.ImagePositionPatient = [0, 0, positions[number]]

    return change


def test_a_missing_slice_is_named(folder, convert):
    SeriesWriter(folder).write(STACK, change=at(0, 2.5, 5, 10, 12.5, 15))
    refused(convert, "1 of 7 slices missing", "spacing 2.500 mm", "5.000 mm between", "0002.dcm", "0003.dcm")


def test_irregular_spacing_is_named(folder, convert):
    SeriesWriter(folder).write(STACK, change=at(0, 2, 4.3, 6, 8.4, 10))
    refused(convert, "varies from 1.600 mm", "to 2.400 mm", "0004.dcm", "0003.dcm")


def test_gantry_tilt_is_named_with_its_angle(folder, convert):
    def tilt(dataset, number):
        dataset.ImagePositionPatient = [0, number * 5 * np.tan(np.radians(15)), number * 5]

    SeriesWriter(folder).write(STACK, change=tilt)
    refused(convert, "gantry tilt", "15.0 degrees")


def test_slices_shifted_sideways_are_refused(folder, convert):
    def shift(dataset, number):
        dataset.ImagePositionPatient = [3 * (number == 2), 0, number * 5]

    SeriesWriter(folder).write(STACK, change=shift)
    refused(convert, "shifted sideways by up to 3.0 mm")


def test_a_localizer_is_refused_with_its_orientations(folder, convert):
    series = generate_uid()
    for name, orientation in (("a", AXIAL), ("s", SAGITTAL), ("c", CORONAL)):
        writer = SeriesWriter(folder, modality="MR", orientation=orientation, series_uid=series)
        writer.write(STACK[:2], names=(name + "{}.dcm").format)
    refused(convert, "6 images in 3 orientations", "2 x sagittal", "2 x coronal", "2 x axial", "s0.dcm, s1.dcm")


def test_a_pixel_spacing_that_differs_is_refused(folder, convert):
    def zoom(dataset, number):
        if number == 3:
            dataset.PixelSpacing = [0.5, 0.5]

    SeriesWriter(folder).write(STACK, change=zoom)
    refused(convert, "pixel spacing", "0.7 x 0.9 mm in 0000.dcm", "0.5 x 0.5 mm in 0003.dcm")


def test_one_slice_of_another_size_is_named(folder, convert):
    writer = SeriesWriter(folder)
    writer.write(STACK[:5])
    writer.write_slice(random_stack((9, 8)), 5, "scout.dcm")
    refused(convert, "5 of 7x6", "1 of 8x9 (scout.dcm)")


def test_a_file_stored_twice_is_dropped_and_noted(folder, convert):
    paths = SeriesWriter(folder).write(STACK)
    (folder / "copy of 2.dcm").write_bytes(paths[2].read_bytes())
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))
    assert volume.notes == ("dropped 1 files that repeat an image: copy of 2.dcm",)


def test_a_slice_sent_twice_under_two_uids_is_dropped_and_noted(folder, convert):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    writer.write_slice(STACK[3], 3, "again.dcm")
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))
    assert volume.notes == ("dropped 1 images with the position and pixels of another: again.dcm",)


def test_a_whole_series_sent_twice_is_one_volume(folder, convert):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    writer.write(STACK, names="again/{}.dcm".format)
    assert convert().shape == (7, 6, 6)


def test_two_different_slices_at_one_position_are_refused(folder, convert):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    writer.write_slice(STACK[0], 3, "other.dcm")
    refused(convert, "7 images at 6 positions", "2 x at (-100.50, -80.25, 37.62) mm", "0003.dcm, other.dcm")


def test_one_uid_for_different_pixels_is_refused(folder, convert):
    uid = generate_uid()

    def same(dataset, number):
        dataset.SOPInstanceUID = uid

    writer = SeriesWriter(folder)
    writer.write_slice(STACK[0], 0, "a.dcm", same)
    writer.write_slice(STACK[1], 0, "b.dcm", same)
    refused(convert, "a.dcm and b.dcm have one SOP Instance UID")


def test_one_uid_for_all_slices_of_a_careless_anonymiser_does_no_harm(folder, convert):
    uid = generate_uid()

    def same(dataset, number):
        dataset.SOPInstanceUID = uid

    SeriesWriter(folder).write(STACK, change=same)
    assert convert().shape == (7, 6, 6)


VOLUMES = random_stack((3, 4, 6, 7))


@pytest.mark.parametrize("slices_first", [True, False])
@pytest.mark.parametrize(
    ("name", "setter"),
    [
        ("Instance Number", lambda dataset, t: None),
        ("Temporal Position Identifier", lambda d, t: setattr(d, "TemporalPositionIdentifier", t + 1)),
        ("Acquisition Number", lambda d, t: setattr(d, "AcquisitionNumber", t + 7)),
        ("Echo Time", lambda d, t: setattr(d, "EchoTime", str(10 + 2.5 * t))),
        ("Diffusion b-value", lambda d, t: setattr(d, "DiffusionBValue", 500.0 * t)),
        ("Image Type", lambda d, t: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "ABC"[t]])),
    ],
)
def test_a_time_series_is_four_dimensional(folder, convert, name, setter, slices_first):
    """Volumes are ordered by the element that tells them apart, whatever the Instance Numbers are."""
    writer = SeriesWriter(folder, modality="MR")
    for t, stack in enumerate(VOLUMES):

        def change(dataset, k, t=t):
            setter(dataset, t)
            dataset.InstanceNumber = t * 4 + k if slices_first else k * 3 + t

        writer.write(stack, names=f"{t}-{{}}.dcm".format, change=change)
    volume = convert()
    assert volume.shape == (7, 6, 4, 3)
    np.testing.assert_array_equal(voxels(volume.path), VOLUMES.transpose(3, 2, 1, 0))
    assert volume.notes == (f"3 volumes at 4 positions, told apart by {name}",)
    assert_file_affine(volume)
    assert len(volume.sop_instance_uids) == 12


def test_a_blank_slice_in_two_volumes_is_no_copy(folder, convert):
    volumes = VOLUMES.copy()
    volumes[:, 0] = 0
    writer = SeriesWriter(folder, modality="MR")
    for t, stack in enumerate(volumes):
        writer.write(stack, names=f"{t}-{{}}".format, change=lambda d, k, t=t: setattr(d, "InstanceNumber", t * 4 + k))
    np.testing.assert_array_equal(voxels(convert().path), volumes.transpose(3, 2, 1, 0))


def test_a_time_series_that_was_cut_short_is_refused(folder, convert):
    writer = SeriesWriter(folder, modality="MR")
    for t, stack in enumerate(VOLUMES):
        count = 3 if t == 2 else 4
        change = lambda d, k, t=t: setattr(d, "InstanceNumber", t * 4 + k)  # noqa: E731
        writer.write(stack[:count], names=f"{t}-{{}}.dcm".format, change=change)
    refused(convert, "11 images at 4 positions, 3 at most of them", "2 x at", "0-3.dcm, 1-3.dcm")


def test_cine_at_one_position_is_a_series_in_time(folder, convert):
    writer = SeriesWriter(folder, modality="MR")
    for t in range(5):
        change = lambda d, k, t=t: setattr(d, "TriggerTime", str(40 * t))  # noqa: E731
        writer.write_slice(STACK[t], 0, f"{9 - t}.dcm", change)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK[:5, None].transpose(3, 2, 1, 0))


def test_images_at_one_position_that_are_no_cine_are_refused(folder, convert):
    writer = SeriesWriter(folder)
    for number in range(2):
        change = lambda d, k, n=number: setattr(d, "InstanceNumber", n)  # noqa: E731
        writer.write_slice(STACK[number], 0, f"{number}.dcm", change)
    refused(convert, "2 different images at each of 1 positions", "0.dcm, 1.dcm")


@pytest.mark.parametrize("order", ["slice by slice", "volume by volume"])
def test_enhanced_diffusion_is_ordered_by_dimension_index(folder, convert, order):
    """Index values (stack, position, b-value, direction), as Philips writes them."""
    places = [(k, t) for k in range(4) for t in range(3)]
    if order == "volume by volume":
        places.sort(key=lambda place: place[1])

    def index(group, number):
        k, t = places[number]
        content = group.FrameContentSequence[0]
        content.DimensionIndexValues = [1, k + 1, 1 if t == 0 else 2, 65 if t == 0 else t]

    frames = np.stack([VOLUMES[t, k] for k, t in places])
    SeriesWriter(folder, modality="MR").write_enhanced(frames, places=[k for k, _ in places], change=index)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), VOLUMES.transpose(3, 2, 1, 0))
    assert volume.notes == ("3 volumes at 4 positions, told apart by Dimension Index Values",)


def test_several_enhanced_files_of_one_volume_each_are_four_dimensional(folder, convert):
    writer = SeriesWriter(folder, modality="MR")
    for t, stack in enumerate(VOLUMES):
        path = writer.write_enhanced(stack, name=f"{9 - t}.dcm")
        _alter(path, lambda dataset, t=t: setattr(dataset, "InstanceNumber", t + 1))
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), VOLUMES.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("syntax", ["explicit", "RLE"])
def test_enhanced_cine_at_one_position_is_a_series_in_time(folder, convert, syntax):
    stack = random_stack((5, 32, 40))
    SeriesWriter(folder, modality="MR", syntax=syntax).write_enhanced(stack, places=[0] * 5)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), stack[:, None].transpose(3, 2, 1, 0))


def test_enhanced_frames_in_two_orientations_are_refused(folder, convert):
    def turn(group, number):
        item = Dataset()
        item.ImageOrientationPatient = list(SAGITTAL if number > 3 else AXIAL)
        group.PlaneOrientationSequence = Items([item])

    SeriesWriter(folder, modality="MR").write_enhanced(STACK, change=turn)
    refused(convert, "6 images in 2 orientations", "enhanced.dcm")


def test_a_mosaic_without_the_header_of_siemens_is_named(folder, convert):
    def mosaic(dataset, number):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]

    SeriesWriter(folder, modality="MR").write(STACK[:2], change=mosaic)
    refused(convert, "2 of 2 files are mosaics", "private header of Siemens", "0000.dcm, 0001.dcm")


def test_what_is_no_image_is_ignored_and_noted(folder, convert):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    for sop_class, name in (
        ("1.2.840.10008.5.1.4.1.1.88.33", "sr"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "pr.dcm"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "ko.dcm"),
    ):
        dataset = writer.header(0)
        dataset.SOPClassUID, dataset.SeriesInstanceUID = sop_class, generate_uid()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        writer.save(dataset, name)
    segmentation = SeriesWriter(folder, bits=8)
    dataset = segmentation.header(0)
    segmentation.set_pixels(dataset, STACK[:1])
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    segmentation.save(dataset, "seg.dcm")
    (folder / "catalog.xml").write_text("<cat:Catalog/>")
    (folder / "junk.dcm").write_bytes(b"\xff\x00" * 300)
    (folder / "._0000.dcm").write_bytes(b"\x00\x05\x16\x07" + b"Mac OS X" * 20)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))
    (note,) = volume.notes
    for part in ("Comprehensive SR", "Presentation State", "Key Object", "1 x Segmentation", "3 x not DICOM"):
        assert part in note


def test_a_folder_without_images_says_what_it_holds(folder, convert):
    folder.mkdir()
    (folder / "catalog.xml").write_text("<cat:Catalog/>")
    refused(convert, "no DICOM image", "1 x not DICOM", kind=NoImageError)


def test_an_empty_and_a_missing_folder_are_named(folder, convert):
    refused(convert, "no such folder", str(folder), kind=NoImageError)
    folder.mkdir()
    refused(convert, "found nothing", kind=NoImageError)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NoImageError, match=r"no such file.*absent\.dcm"):
        dicom_to_nifti([tmp_path / "absent.dcm"], tmp_path / "image.nii")


def test_two_series_need_a_choice(folder, convert):
    for name in ("a", "b"):
        SeriesWriter(folder, series_uid=f"1.2.{ord(name)}").write(STACK, names=f"{name}{{}}".format)
    refused(convert, "2 series lie together", "1.2.97 (CT 1 made, 6 files)", "1.2.98")
    refused(convert, "no image of series 1.2.3", "1.2.97", kind=NoImageError, series_uid="1.2.3")
    volume = convert(series_uid="1.2.98")
    assert volume.series_uid == "1.2.98"
    assert volume.notes == ("ignored 6 images of other series",)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "deflated", "RLE", "JPEG-LS"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(folder, convert, syntax, share):
    paths = SeriesWriter(folder, syntax=syntax).write(random_stack((3, 40, 40)))
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[: int(len(data) * share)])
    refused(convert, "0002.dcm", "truncated")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_every_cut_of_a_file_is_noticed(folder, convert, tmp_path):
    paths = SeriesWriter(folder).write(STACK[:2])
    data = paths[1].read_bytes()
    for length in range(0, len(data), 7):
        paths[1].write_bytes(data[:length])
        refused(convert, "0001.dcm")
    assert not (tmp_path / "image.nii").exists()


def test_an_image_without_pixel_data_is_named(folder, convert):
    def strip(dataset, number):
        if number == 1:
            del dataset.PixelData

    SeriesWriter(folder).write(STACK, change=strip)
    refused(convert, "0001.dcm has no pixel data")


def test_pixels_that_cannot_be_decoded_are_named(folder, convert):
    paths = SeriesWriter(folder, syntax="JPEG 2000").write(random_stack((3, 40, 40)))
    data = bytearray(paths[1].read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start : start + 60] = bytes(60)
    paths[1].write_bytes(data)
    refused(convert, "0001.dcm cannot be decoded (JPEG 2000")


def test_a_number_that_is_none_is_named(folder, convert):
    (path,) = SeriesWriter(folder).write(STACK[:1])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"0.7\\0.9 ", b"0,7\\0,9 "))
    refused(convert, "0000.dcm: Pixel Spacing (0028,0030)", "0,7")


def test_a_ct_that_does_not_say_where_it_lies_is_refused(folder, convert):
    def strip(dataset, number):
        del dataset.ImagePositionPatient

    SeriesWriter(folder).write(STACK, change=strip)
    refused(convert, "none of the 6 CT images says where it lies")


def test_one_slice_without_a_position_is_named(folder, convert):
    def strip(dataset, number):
        if number == 4:
            del dataset.ImagePositionPatient

    SeriesWriter(folder).write(STACK, change=strip)
    refused(convert, "no position or orientation in 1 of 6 images: 0004.dcm")


def test_several_clips_are_refused(folder, convert):
    writer = SeriesWriter(folder, modality="US", bits=8)
    for name in ("a", "b"):
        dataset = writer.header(0)
        writer.set_pixels(dataset, random_stack((4, 6, 7), 0, 255))
        writer.save(dataset, name)
    refused(convert, "2 files without positions, with several frames each: a, b")


def test_a_rescue_of_the_old_file_survives_a_failed_conversion(folder, convert, tmp_path):
    SeriesWriter(folder).write(STACK)
    before = convert().path.read_bytes()
    SeriesWriter(folder, orientation=SAGITTAL).write(STACK, names="more/{}".format)
    refused(convert, "2 series")
    assert (tmp_path / "image.nii").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("offsets", [[0, 3, 6, 9], [0, -3, -6, -9], [5, 8, 11, 14]], ids=str)
def test_a_dose_grid_follows_its_frame_offsets(folder, convert, offsets):
    _write_dose(folder, offsets)
    assert_as_itk_reader(convert(), folder)


def test_a_dose_grid_of_uneven_offsets_is_refused(folder, convert):
    _write_dose(folder, [0, 3, 6, 10])
    refused(convert, "varies from 3.000 mm", "to 4.000 mm")


def _write_dose(folder, offsets):
    writer = SeriesWriter(folder)
    dataset = writer.header(0)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"
    writer.set_pixels(dataset, STACK[:4])
    dataset.PixelSpacing, dataset.ImagePositionPatient = [2, 3], [1, 2, 3]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.GridFrameOffsetVector, dataset.FrameIncrementPointer = offsets, 0x3004000C
    writer.save(dataset, "dose.dcm")


def _alter(path, change):
    import pydicom

    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("spacing", [None, "", [0, 0.9], [-0.7, 0.9]], ids=str)
@pytest.mark.parametrize("count", [1, 6])
def test_cross_sections_without_a_pixel_spacing_are_refused(folder, convert, modality, spacing, count):
    def change(dataset, number):
        if number == count - 1:
            dataset.PixelSpacing = spacing
            if spacing is None:
                del dataset.PixelSpacing

    SeriesWriter(folder, modality=modality).write(STACK[:count], change=change)
    refused(convert, f"no Pixel Spacing above 0 in 1 of {count} images: 000{count - 1}.dcm")


def test_a_pixel_spacing_that_is_not_a_number_is_refused(folder, convert):
    (path,) = SeriesWriter(folder).write(STACK[:1])
    path.write_bytes(path.read_bytes().replace(b"0.7\\0.9 ", b"NaN\\NaN "))
    refused(convert, "Pixel Spacing (0028,0030) is not a list of numbers")


def test_an_enhanced_file_without_a_pixel_spacing_is_refused(folder, convert):
    path = SeriesWriter(folder, modality="MR").write_enhanced(STACK)
    _alter(path, lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"))
    refused(convert, "no Pixel Spacing above 0 in 6 of 6 images: enhanced.dcm")


@pytest.mark.parametrize("missing", ["ImagePositionPatient", "ImageOrientationPatient"])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_single_slice_that_does_not_say_where_it_lies_is_refused(folder, convert, modality, missing):
    SeriesWriter(folder, modality=modality).write(STACK[:1], change=lambda d, n: delattr(d, missing))
    refused(convert, "none of the 1", "says where it lies", "0000.dcm")


@pytest.mark.parametrize("missing", ["PlanePositionSequence", "PlaneOrientationSequence"])
def test_an_enhanced_file_that_does_not_say_where_it_lies_is_refused(folder, convert, missing):
    path = SeriesWriter(folder, modality="MR").write_enhanced(STACK)

    def strip(dataset):
        for group in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
            if missing in group:
                delattr(group, missing)

    _alter(path, strip)
    refused(convert, "none of the 6", "says where it lies", "enhanced.dcm")


def test_a_dose_without_a_pixel_spacing_is_refused(folder, convert):
    _write_dose(folder, [0, 3, 6, 9])
    _alter(folder / "dose.dcm", lambda dataset: delattr(dataset, "PixelSpacing"))
    refused(convert, "no Pixel Spacing above 0 in 4 of 4 images: dose.dcm")


def test_a_secondary_capture_without_a_pixel_spacing_is_noted(folder, convert):
    SeriesWriter(folder, modality="OT").write(STACK[:1], change=lambda d, n: delattr(d, "PixelSpacing"))
    assert convert().notes == ("no Pixel Spacing in 1 of 1 images, which ITK takes for 1 mm",)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0.2, 0.98, 0), (2, 0, 0, 0, 2, 0)], ids=["slanting", "long"])
def test_directions_that_are_no_unit_vectors_at_right_angles_are_refused(folder, convert, orientation):
    SeriesWriter(folder, orientation=orientation).write(STACK[:1])
    refused(convert, "Image Orientation (Patient) is not two unit vectors at right angles")


def _traits(writer, volumes, setters, number=lambda volume, k: k + 1):
    """Write volumes that lie at the same positions. The setter of a volume writes the element that tells it apart."""
    for volume, (stack, setter) in enumerate(zip(volumes, setters, strict=True)):

        def change(dataset, k, volume=volume, setter=setter):
            setter(dataset)
            dataset.InstanceNumber = number(volume, k)

        writer.write(stack, names=f"{volume}-{{}}.dcm".format, change=change)


def _set(**values):
    def change(dataset):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


COMBINED = {
    "Echo Time x Image Type": [
        _set(EchoTime=str(te), ImageType=["ORIGINAL", "PRIMARY", kind]) for te in (4, 9) for kind in "MP"
    ],
    "Diffusion b-value x Diffusion Gradient Orientation": [
        _set(DiffusionBValue=0.0),
        *(
            _set(DiffusionBValue=b, DiffusionGradientOrientation=g)
            for b in (500.0, 900.0)
            for g in ([0, 0, 1.0], [1.0, 0, 0])
        ),
    ],
    "Temporal Position Identifier x Image Type": [
        _set(TemporalPositionIdentifier=t, ImageType=["DERIVED", "PRIMARY", kind])
        for t in (1, 2, 3)
        for kind in ("A", "B")
    ],
    "Trigger Time x Echo Time x Image Type": [
        _set(TriggerTime=str(t), EchoTime=str(te), ImageType=["ORIGINAL", "PRIMARY", kind])
        for t in (10, 20)
        for te in (3, 6)
        for kind in "MP"
    ],
}


@pytest.mark.parametrize("name", COMBINED)
def test_a_combination_of_traits_tells_volumes_apart(folder, convert, name):
    volumes = random_stack((len(COMBINED[name]), 3, 6, 7))
    _traits(SeriesWriter(folder, modality="MR"), volumes, COMBINED[name])
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), volumes.transpose(3, 2, 1, 0))
    assert volume.notes == (f"{len(volumes)} volumes at 3 positions, told apart by {name}",)


def test_volumes_told_apart_by_a_combination_stay_in_the_order_of_their_numbers(folder, convert):
    setters = COMBINED["Echo Time x Image Type"][::-1]
    volumes = random_stack((4, 3, 6, 7))
    _traits(SeriesWriter(folder, modality="MR"), volumes, setters, number=lambda volume, k: volume * 3 + k)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), volumes.transpose(3, 2, 1, 0))
    assert volume.notes == ("4 volumes at 3 positions, told apart by Instance Number",)


def test_one_dynamic_slice_is_ordered_by_acquisition_time(folder, convert):
    writer = SeriesWriter(folder, modality="MR")
    for t in range(5):
        change = lambda d, k, t=t: setattr(d, "AcquisitionTime", f"1000{59 - t:02d}.5")  # noqa: E731
        writer.write_slice(STACK[t], 0, f"{t}.dcm", change)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK[4::-1, None].transpose(3, 2, 1, 0))
    assert volume.notes == ("5 volumes at 1 positions, told apart by Acquisition Time",)


@pytest.mark.parametrize("count", [1, 3])
def test_volumes_after_midnight_follow_those_before(folder, convert, count):
    times = ("235955.25", "235958", "000001.5", "000004")
    volumes = random_stack((4, count, 6, 7))
    setters = [_set(AcquisitionTime=time) for time in times]
    _traits(SeriesWriter(folder, modality="MR"), volumes, setters)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), volumes.transpose(3, 2, 1, 0))
    assert volume.notes == (f"4 volumes at {count} positions, told apart by Acquisition Time",)


def test_one_dynamic_slice_with_times_in_whole_seconds_is_ordered_by_its_numbers(folder, convert):
    writer = SeriesWriter(folder, modality="MR")
    for t in range(5):

        def change(dataset, _, t=t):
            dataset.AcquisitionTime, dataset.InstanceNumber = f"{100000 + t // 2}", t

        writer.write_slice(STACK[t], 0, f"{9 - t}.dcm", change)
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK[:5, None].transpose(3, 2, 1, 0))


def test_volumes_that_lack_different_slices_are_not_mixed(folder, convert):
    """Each position had two of three time points, so the Instance Numbers made two volumes of them."""
    writer = SeriesWriter(folder, modality="MR")
    for t in range(3):
        for k in range(3):
            if t == k:
                continue

            def change(dataset, number, t=t):
                dataset.TemporalPositionIdentifier, dataset.InstanceNumber = t + 1, t * 3 + number

            writer.write_slice(VOLUMES[t, k], k, f"{t}-{k}.dcm", change)
    refused(convert, "Temporal Position Identifier contradicts them")


@pytest.mark.parametrize("name", ["Echo Time", "Trigger Time"])
def test_numbers_that_mix_up_the_echoes_are_refused(folder, convert, name):
    """The times differ a little from slice to slice, and the numbers of one slice run backwards."""
    writer = SeriesWriter(folder, modality="MR")
    for t in range(3):
        for k in range(3):

            def change(dataset, number, t=t):
                setattr(dataset, name.replace(" ", ""), f"{5 * (t + 1) + number / 1000}")
                dataset.InstanceNumber = number * 3 + (2 - t if number == 1 else t)

            writer.write_slice(VOLUMES[t, k], k, f"{t}-{k}.dcm", change)
    refused(convert, f"{name} contradicts them")


def test_the_scaling_of_a_dose_is_noted(folder, convert):
    _write_dose(folder, [0, 3, 6, 9])
    _alter(folder / "dose.dcm", lambda dataset: setattr(dataset, "DoseGridScaling", "0.0025"))
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK[:4].transpose(2, 1, 0))
    assert volume.notes == ("Dose Grid Scaling is not applied: a value times 0.0025 is the dose",)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_negative_spacing_between_slices_does_not_turn_the_stack(folder, convert, modality):
    SeriesWriter(folder, modality=modality).write(STACK, change=lambda d, n: setattr(d, "SpacingBetweenSlices", "-2.5"))
    volume = convert()
    np.testing.assert_array_equal(voxels(volume.path), STACK.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 2.5])


def test_slices_in_a_grid_of_united_imaging_are_not_taken_for_one_slice(folder, convert):
    def grid(dataset, number):
        dataset.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "9")

    SeriesWriter(folder, modality="MR").write(STACK[:1], change=grid)
    refused(convert, "1 of 1 files are mosaics")
