"""DICOM SEG: our files come back as they were, files of others are read, and others read our files."""

from __future__ import annotations

import logging
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.sr.coding import CodedConcept
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, generate_uid
from series_writer import AXIAL, CORONAL, SAGITTAL, SeriesWriter, rotated

from monailabel_xnat.convert import Grid, LabelMap, Segment, dicom_to_nifti, read_seg, seg_references, write_seg
from monailabel_xnat.convert.seg.segments import dicom_lab_to_rgb, rgb_to_dicom_lab
from monailabel_xnat.errors import ImageError, LabelError, LabelFileError, LabelGeometryError

with warnings.catch_warnings():
    # It imports modules that pydicom will move.
    warnings.simplefilter("ignore")
    import pydicom_seg

SHARED = Path(__file__).parents[2].parent / "shared" / "dicom"
CASES = SHARED.parent / "cases"
DEFLATED_FRAMES = pydicom.uid.UID("1.2.840.10008.1.2.8.1")
ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "oblique": rotated(20, -35, 70),
}
SOURCE = {
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.77",
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Jörg",
    "PatientID": "P-1",
    "PatientBirthDate": "19700102",
    "PatientSex": "O",
    "StudyDate": "20200304",
    "StudyTime": "101112",
    "AccessionNumber": "A1",
    "StudyID": "S1",
    "ReferringPhysicianName": "",
    "Manufacturer": "nobody",
}


def add_patient(dataset, _number):
    for keyword, value in SOURCE.items():
        setattr(dataset, keyword, value)


class Case:
    """A series, the NIfTI file made of it, and its grid."""

    def __init__(self, folder, shape=(7, 10, 9), order=None, orientation=AXIAL, **series):
        self.writer = SeriesWriter(folder / "dicom", orientation=orientation, **series)
        names = "{:04d}.dcm".format if order is None else lambda number: f"{order[number]:04d}.dcm"
        self.files = self.writer.write(np.zeros(shape, int), names=names, change=add_patient)
        self.volume = dicom_to_nifti(self.files, folder / "image.nii")
        self.grid = Grid.of_nifti(self.volume.path)
        self.path = folder / "seg.dcm"

    def write(self, array, segments=(), **options):
        defaults = {"description": "model", "algorithm_type": "AUTOMATIC", "algorithm_name": "net"}
        label = LabelMap(array, self.grid.affine, tuple(segments))
        write_seg(label, self.files, self.path, **{**defaults, **options})
        return self.path

    def random(self, values=(0, 0, 1, 2), seed=0):
        return np.random.default_rng(seed).choice(values, self.grid.shape).astype(np.uint8)

    def sources(self):
        """The datasets of the slices, in the order of the volume."""
        datasets = {str(found.SOPInstanceUID): found for found in map(pydicom.dcmread, self.files)}
        return [datasets[uid] for uid in self.volume.sop_instance_uids]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path, orientation=ORIENTATIONS["oblique"])


shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    orientation=st.sampled_from(sorted(ORIENTATIONS)),
    step=st.sampled_from([2.5, -2.5]),
    values=st.lists(st.integers(1, 65535), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 10**6),
    background=st.floats(0, 0.95),
    flips=st.lists(st.sampled_from([0, 1, 2]), unique=True),
    axes=st.permutations([0, 1, 2]),
)
def test_any_label_map_comes_back(shape, orientation, step, values, seed, background, flips, axes):
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(seed)
        order = random.permutation(shape[0])
        case = Case(Path(folder), shape, order, ORIENTATIONS[orientation], step=step)
        array = random.choice(values, case.grid.shape).astype(np.uint16)
        array[random.random(array.shape) < background] = 0
        array.flat[random.integers(array.size)] = values[0]
        label = turned(LabelMap(array, case.grid.affine), flips, axes)
        write_seg(label, case.files, case.path, description="x", algorithm_type="MANUAL")
        back = read_seg(case.path, case.grid)
        np.testing.assert_array_equal(back.array, array)
        np.testing.assert_array_equal(back.affine, case.grid.affine)
        assert [segment.value for segment in back.segments] == sorted(set(array[array > 0].tolist()))
        assert back.notes == ()
        # On a grid whose axes run in another way, the same SEG has the same voxels.
        other = read_seg(case.path, label.grid)
        np.testing.assert_array_equal(other.array, label.array)


def turned(label, flips, axes):
    """Return the same label with its axes in another order and direction."""
    affine = label.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (label.array.shape[axis] - 1)
        affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, :3][:, axes]
    return LabelMap(np.flip(label.array, flips).transpose(axes), affine)


def test_what_the_seg_says(case):
    array = case.random((0, 3, 40))
    array[:, :, 2] = 0
    known = [Segment(3, "Léber", (10, 20, 30)), Segment(9, "absent")]
    uid = generate_uid()
    dataset = pydicom.dcmread(case.write(array, known, description="a\\b" + "c" * 90, instance_uid=uid))
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert (dataset.SOPInstanceUID, dataset.Modality, dataset.SegmentationType) == (uid, "SEG", "BINARY")
    assert dataset.SeriesDescription == "a/b" + "c" * 61
    for keyword in SOURCE.keys() - {"SpecificCharacterSet", "Manufacturer"}:
        assert dataset[keyword].value == SOURCE[keyword], keyword
    assert dataset.StudyInstanceUID == case.writer.study_uid
    assert dataset.SeriesInstanceUID != case.writer.series_uid
    assert dataset.SeriesInstanceUID.is_valid
    assert [segment.SegmentNumber for segment in dataset.SegmentSequence] == [1, 2]
    first, second = dataset.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("Léber", "Segment 40")
    assert (first.SegmentAlgorithmType, first.SegmentAlgorithmName) == ("AUTOMATIC", "net")
    assert dicom_lab_to_rgb(first.RecommendedDisplayCIELabValue) == (10, 20, 30)
    assert dataset.NumberOfFrames == len(dataset.PerFrameFunctionalGroupsSequence) == 12
    shared = dataset.SharedFunctionalGroupsSequence[0]
    sources = {source.SOPInstanceUID: source for source in case.sources()}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        source = sources[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert [float(value) for value in position] == [float(value) for value in source.ImagePositionPatient]
        number, rank = frame.FrameContentSequence[0].DimensionIndexValues
        assert number == frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert 1 <= rank <= 6
    np.testing.assert_allclose(
        [float(value) for value in shared.PlaneOrientationSequence[0].ImageOrientationPatient],
        [float(value) for value in source.ImageOrientationPatient],
        atol=1e-9,
    )
    references = seg_references(case.path)
    assert references.study_uid == case.writer.study_uid
    assert references.series_uids == (case.writer.series_uid,)
    assert set(references.instance_uids) == set(sources)
    assert seg_references(case.path.read_bytes()) == references


def test_segment_made_by_hand_names_no_algorithm(case):
    dataset = pydicom.dcmread(case.write(case.random(), algorithm_type="MANUAL", algorithm_name="net"))
    assert "SegmentAlgorithmName" not in dataset.SegmentSequence[0]
    with pytest.raises(ValueError, match="MAGIC"):
        case.write(case.random(), algorithm_type="MAGIC")


def test_odd_headers_of_the_images_do_not_stand_in_the_way(tmp_path):
    odd = {("PatientID", "LO"): "x" * 80, ("StudyDate", "DA"): "2020.13.40", ("AccessionNumber", "SH"): "1" * 20}

    def change(dataset, _number):
        for (keyword, kind), value in odd.items():
            dataset.add(pydicom.DataElement(keyword, kind, value, validation_mode=pydicom.config.IGNORE))

    writer = SeriesWriter(tmp_path / "dicom")
    files = writer.write(np.zeros((3, 4, 5), int), change=change)
    grid = Grid.of_nifti(dicom_to_nifti(files, tmp_path / "image.nii").path)
    array = np.ones(grid.shape, np.uint8)
    write_seg(LabelMap(array, grid.affine), files, tmp_path / "seg.dcm", description="x", algorithm_type="MANUAL")
    np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", grid).array, array)


def test_empty_label_and_label_of_another_image_are_refused(case):
    with pytest.raises(LabelError, match="empty"):
        case.write(np.zeros(case.grid.shape, np.uint8))
    with pytest.raises(LabelGeometryError):
        case.write(np.ones((2, 2, 2), np.uint8))
    assert not case.path.exists()
    assert list(case.path.parent.glob(".*")) == []
    with pytest.raises(ImageError):
        write_seg(LabelMap(case.random(), case.grid.affine), [], case.path, description="x", algorithm_type="MANUAL")


def test_images_without_positions_are_refused(tmp_path):
    def change(dataset, _number):
        del dataset.ImagePositionPatient

    files = SeriesWriter(tmp_path / "dicom", modality="OT").write(np.zeros((2, 4, 5), int), change=change)
    grid = Grid.of_nifti(dicom_to_nifti(files, tmp_path / "image.nii").path)
    label = LabelMap(np.ones(grid.shape, np.uint8), grid.affine)
    with pytest.raises(LabelError, match="where in the patient"):
        write_seg(label, files, tmp_path / "seg.dcm", description="x", algorithm_type="MANUAL")


@pytest.mark.parametrize("places", [range(6), [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]])
def test_enhanced_images_are_referred_to_by_frame(tmp_path, places):
    writer = SeriesWriter(tmp_path / "dicom", modality="MR", orientation=ORIENTATIONS["oblique"])
    path = writer.write_enhanced(np.zeros((6, 8, 9), int), places=places)
    volume = dicom_to_nifti(path, tmp_path / "image.nii")
    grid = Grid.of_nifti(volume.path)
    array = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    target = tmp_path / "seg.dcm"
    write_seg(LabelMap(array, grid.affine), [path], target, description="x", algorithm_type="MANUAL")
    np.testing.assert_array_equal(read_seg(target, grid).array, array)
    dataset = pydicom.dcmread(target)
    masks = dataset.pixel_array
    for mask, frame in zip(masks, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == volume.sop_instance_uids[0]
        k = volume.frame_numbers.index(int(image.ReferencedFrameNumber))
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(mask.T == 1, array[:, :, k] == number)
    assert seg_references(target).instance_uids == (volume.sop_instance_uids[0],)


@pytest.mark.parametrize(
    ("name", "charset", "stored"),
    [
        ("Liver", "ISO_IR 100", b"Liver"),
        ("Milz größe", "ISO_IR 100", "Milz größe".encode("latin-1")),
        ("脾臓", "ISO_IR 192", "脾臓".encode()),
    ],
)
def test_names_are_written_as_dcmjs_reads_them_where_they_fit(case, name, charset, stored):
    # It reads names within sequences as Latin-1, whatever the character set says.
    path = case.write(case.random((0, 1)), [Segment(1, name)])
    dataset = pydicom.dcmread(path)
    assert dataset.SpecificCharacterSet == charset
    assert dataset.SegmentSequence[0].get_item("SegmentLabel").value.strip() == stored
    assert dataset.PatientName == SOURCE["PatientName"]
    assert read_seg(path, case.grid).segments[0].name == name


# Our files, read by others


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_reads_ours(tmp_path, orientation):
    case = Case(tmp_path, orientation=ORIENTATIONS[orientation])
    array = case.random((0, 1, 2, 3))
    array[:, :, :2] = 0
    seg = highdicom.seg.segread(case.write(array))
    pixels = seg.get_pixels_by_source_instance(
        case.volume.sop_instance_uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels.transpose(2, 1, 0), array)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pydicom_seg_reads_ours(tmp_path, orientation, caplog):
    caplog.set_level(logging.ERROR)
    case = Case(tmp_path, orientation=ORIENTATIONS[orientation])
    array = case.random((0, 1, 2, 3))
    array[:, :, :2] = 0
    result = pydicom_seg.MultiClassReader().read(pydicom.dcmread(case.write(array)))
    np.testing.assert_array_equal(result.data.transpose(2, 1, 0), array[:, :, 2:])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.grid.affine
    np.testing.assert_allclose(result.origin, lps[:3] @ [0, 0, 2, 1], atol=1e-4)
    np.testing.assert_allclose(result.spacing, np.linalg.norm(lps[:3, :3], axis=0), atol=1e-5)


# Files of others, read by us


def highdicom_seg(case, masks, kind="BINARY", order=None, **options):
    """Write masks (slices, rows, columns[, segments]) with highdicom."""
    count = masks.shape[3] if masks.ndim == 4 else int(masks.max())
    tissue = CodedConcept("85756007", "SCT", "Tissue")
    descriptions = [
        highdicom.seg.SegmentDescription(number, f"part {number}", tissue, tissue, "MANUAL")
        for number in range(1, count + 1)
    ]
    sources = case.sources()
    order = range(len(sources)) if order is None else order
    seg = highdicom.seg.Segmentation(
        source_images=[sources[k] for k in order],
        pixel_array=masks[list(order)],
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        **options,
    )
    seg.save_as(case.path)
    return case.path


def as_stack(array):
    return np.ascontiguousarray(array.transpose(2, 1, 0))


@pytest.mark.parametrize("order", [None, [6, 5, 4, 3, 2, 1, 0], [3, 1, 0, 2, 6, 4, 5], [2, 3]])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_seg_of_highdicom_is_read(tmp_path, orientation, order):
    case = Case(tmp_path, orientation=ORIENTATIONS[orientation])
    array = case.random((0, 1, 2, 3))
    array[:, :, 4] = 0
    if order == [2, 3]:
        array[:, :, [0, 1, 4, 5, 6]] = 0
    label = read_seg(highdicom_seg(case, as_stack(array), order=order), case.grid)
    np.testing.assert_array_equal(label.array, array)
    assert label.segments == tuple(Segment(number, f"part {number}") for number in (1, 2, 3))


def test_overlapping_segments_of_highdicom_are_read(case):
    masks = np.random.default_rng(0).integers(0, 2, (*as_stack(case.random()).shape, 3)).astype(bool)
    label = read_seg(highdicom_seg(case, masks), case.grid)
    expected = np.max(masks * [1, 2, 3], axis=3)
    np.testing.assert_array_equal(as_stack(label.array), expected)
    several = int((masks.sum(axis=3) > 1).sum())
    assert label.notes == (f"{several} voxels belong to several segments: each has the one of the highest number",)


@pytest.mark.parametrize("options", [{}, {"max_fractional_value": 7}, {"transfer_syntax_uid": RLELossless}])
def test_fractional_segments_count_from_half_on(case, options):
    fractions = np.random.default_rng(0).random(as_stack(case.random()).shape)
    path = highdicom_seg(case, fractions[..., np.newaxis], "FRACTIONAL", fractional_type="PROBABILITY", **options)
    largest = options.get("max_fractional_value", 255)
    label = read_seg(path, case.grid)
    stored = np.around(fractions * largest)
    np.testing.assert_array_equal(as_stack(label.array), stored >= largest / 2)
    assert label.notes == (f"fractional segments: voxels count from {largest / 2:g} on",)


def test_masks_of_dcmjs_that_are_called_fractional_are_not_lost(case):
    masks = case.random((0, 1))

    def compress(dataset):
        frames = dataset.pixel_array
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.SegmentationType, dataset.SegmentationFractionalType = "FRACTIONAL", "PROBABILITY"
        dataset.MaximumFractionalValue = 255
        dataset.compress(RLELossless, frames)

    label = read_seg(edited(case, compress, masks), case.grid)
    np.testing.assert_array_equal(label.array, masks)
    assert "taken as masks" in label.notes[0]


def pydicom_seg_of(case, array):
    template = pydicom_seg.template.from_dcmqi_metainfo(
        {
            "ContentCreatorName": "x",
            "ClinicalTrialSeriesID": "1",
            "ClinicalTrialTimePointID": "1",
            "SeriesDescription": "x",
            "SeriesNumber": "3",
            "InstanceNumber": "1",
            "segmentAttributes": [
                [
                    {
                        "labelID": number,
                        "SegmentLabel": f"part {number}",
                        "SegmentDescription": "a part",
                        "SegmentAlgorithmType": "MANUAL",
                        "SegmentedPropertyCategoryCodeSequence": TISSUE,
                        "SegmentedPropertyTypeCodeSequence": TISSUE,
                        "recommendedDisplayRGBValue": [100, 50, number],
                    }
                    for number in (1, 2, 3)
                ]
            ],
        }
    )
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(as_stack(array))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    writer = pydicom_seg.MultiClassWriter(
        template=template, inplane_cropping=True, skip_empty_slices=True, skip_missing_segment=False
    )
    writer.write(image, case.sources()).save_as(case.path)
    return case.path


TISSUE = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_seg_of_pydicom_seg_is_read(tmp_path, orientation, caplog):
    caplog.set_level(logging.ERROR)
    case = Case(tmp_path, orientation=ORIENTATIONS[orientation])
    array = case.random((0, 1, 2, 3))
    # The frames are cropped: only a part of each slice is stored.
    array[:2], array[:, 7:], array[:, :, 3] = 0, 0, 0
    label = read_seg(pydicom_seg_of(case, array), case.grid)
    np.testing.assert_array_equal(label.array, array)
    assert [segment.name for segment in label.segments] == ["part 1", "part 2", "part 3"]


def edited(case, change, array=None):
    """Write one of our files, and change its dataset."""
    dataset = pydicom.dcmread(case.write(case.random() if array is None else array))
    change(dataset)
    with pytest.MonkeyPatch.context() as patch:
        # pydicom 2 does not know this, and would not write it.
        patch.setitem(
            UID_dictionary, DEFLATED_FRAMES, ("Deflated Image Frame Compression", "Transfer Syntax", "", "", "")
        )
        dataset.save_as(case.path)
    return case.path


def reversed_frames(dataset):
    """Store the same frames from the last to the first, seen from the other side."""
    masks = dataset.pixel_array[::-1]
    dataset.PerFrameFunctionalGroupsSequence = list(reversed(dataset.PerFrameFunctionalGroupsSequence))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    plane, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
    cosines = np.array([float(value) for value in plane.ImageOrientationPatient])
    spacing = [float(value) for value in measures.PixelSpacing]
    width = (dataset.Columns - 1) * spacing[1] * cosines[:3]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        moved = np.array([float(value) for value in position.ImagePositionPatient]) + width
        position.ImagePositionPatient = [f"{value:.10g}" for value in moved]
    # The frames are mirrored along the rows. Then rows and columns are exchanged.
    plane.ImageOrientationPatient = [f"{value:.12g}" for value in (*cosines[3:], *-cosines[:3])]
    measures.PixelSpacing = spacing[::-1]
    masks = masks[:, :, ::-1].transpose(0, 2, 1)
    dataset.Rows, dataset.Columns = masks.shape[1:]
    dataset.PixelData = np.packbits(masks.ravel(), bitorder="little").tobytes()
    dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)


def test_seg_that_runs_the_other_way_is_read(case):
    array = case.random((0, 1, 2))
    np.testing.assert_array_equal(read_seg(edited(case, reversed_frames, array), case.grid).array, array)


def recoded(case, text, encoding, charset):
    """Put the bytes of a name into our file, under a character set that may be another one."""
    data = text.encode(encoding)
    data += b" " * (len(data) % 2)
    placeholder = "x" * len(data)

    def change(dataset):
        dataset.SegmentSequence[0].SegmentLabel = placeholder
        del dataset.PatientName, dataset.SpecificCharacterSet
        if charset:
            dataset.SpecificCharacterSet = charset

    path = edited(case, change, case.random((0, 1)))
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), data))
    return read_seg(path, case.grid).segments[0].name


@pytest.mark.parametrize("charset", [None, "ISO_IR 6", "ISO_IR 100", "ISO_IR 192", "ISO_IR 144", "GB18030"])
@pytest.mark.parametrize("text", ["Milz größe", "脾臓 1", "Liver"])
def test_names_that_are_utf8_are_read_as_such_whatever_the_character_set_says(case, text, charset):
    if charset == "GB18030" and text.startswith("Milz"):
        return  # two bytes may also be a Chinese letter
    assert recoded(case, text, "utf-8", charset) == text


@pytest.mark.parametrize("text", ["Milz größe", "脾臓", "печень"])
def test_a_name_that_dcmjs_read_as_latin_1_and_stored_again_is_read(case, text):
    twice = text.encode().decode("latin-1")
    assert recoded(case, twice, "utf-8", "ISO_IR 192") == text


@pytest.mark.parametrize(
    ("text", "encoding", "charset"),
    [
        ("Milz größe", "latin-1", "ISO_IR 100"),
        ("Milz größe", "latin-1", None),
        ("печень", "iso8859-5", "ISO_IR 144"),
        ("脾脏", "gb18030", "GB18030"),
        ("芦联通", "gbk", "GBK"),
    ],
)
def test_names_in_the_character_set_that_is_stated_are_read(case, text, encoding, charset):
    assert recoded(case, text, encoding, charset) == text


def packed(frames):
    return [np.packbits(frame.ravel(), bitorder="little").tobytes() for frame in frames]


def run_lengths(data):
    """Return the RLE of one segment, with runs and literals."""
    parts, position = [], 0
    while position < len(data):
        run = 1
        while run < 128 and data[position : position + 1] * (run + 1) == data[position : position + run + 1]:
            run += 1
        if run > 1:
            parts.append(bytes([257 - run]) + data[position : position + 1])
        else:
            parts.append(b"\0" + data[position : position + 1])
        position += run
    content = b"".join(parts)
    return struct.pack("<16I", 1, 64, *[0] * 14) + content + b"\x80" * (len(content) % 2)


def deflated(data):
    compressor = zlib.compressobj(wbits=-15)
    content = compressor.compress(data) + compressor.flush()
    return content + b"\0" * (len(content) % 2)


def compressed(case, array, syntax, change=lambda frames: frames):
    def compress(dataset):
        frames = packed(dataset.pixel_array)
        coded = [run_lengths(frame) if syntax == RLELossless else deflated(frame) for frame in frames]
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate(change(coded))
        dataset["PixelData"].is_undefined_length = True

    return edited(case, compress, array)


@pytest.mark.parametrize("syntax", [RLELossless, DEFLATED_FRAMES])
@pytest.mark.parametrize("shape", [(7, 10, 9), (3, 16, 16), (2, 1, 1), (4, 30, 70)])
def test_single_bits_that_are_compressed_frame_by_frame_are_read(tmp_path, shape, syntax):
    case = Case(tmp_path, shape, orientation=ORIENTATIONS["oblique"])
    array = case.random((0, 1, 2))
    array.flat[0], array[0, 0, -1] = 1, 2
    if shape[2] == 70:
        array[10:60, 5:25] = 1
    np.testing.assert_array_equal(read_seg(compressed(case, array, syntax), case.grid).array, array)


@pytest.mark.parametrize("syntax", [RLELossless, DEFLATED_FRAMES])
def test_compressed_frames_that_are_not_whole_are_refused(case, syntax):
    array = case.random((0, 1))
    for change in (lambda frames: frames[:-1], lambda frames: [*frames[:-1], frames[-1][: len(frames[-1]) // 4 * 2]]):
        with pytest.raises(LabelFileError, match=r"truncated|decoded|of 7 frames|damaged"):
            read_seg(compressed(case, array, syntax, change), case.grid)


@pytest.mark.parametrize("syntax", ["plain", RLELossless, DEFLATED_FRAMES])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(7, 10, 9), (3, 5, 5), (1, 1, 1)])
def test_label_maps_of_any_size_are_read(tmp_path, shape, bits, syntax):
    case = Case(tmp_path, shape)
    largest = 300 if bits == 16 else 200
    array = case.random((0, 1, 2)).astype(np.uint16)
    array[array == 2] = largest
    array.flat[0] = largest

    def change(dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
        dataset.SegmentationType = "LABELMAP"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        by_slice = {}
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.SegmentIdentificationSequence
            by_slice[str(frame.PlanePositionSequence[0].ImagePositionPatient)] = frame
        for item in dataset.SegmentSequence:
            item.SegmentNumber = int(item.SegmentDescription.rpartition(" ")[2])
            del item.SegmentDescription
        dataset.PerFrameFunctionalGroupsSequence = list(by_slice.values())
        places = [str(source.ImagePositionPatient) for source in case.sources()]
        frames = as_stack(array)[[places.index(position) for position in by_slice]].astype(f"<u{bits // 8}")
        dataset.NumberOfFrames = len(frames)
        data = frames.tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
        if syntax == DEFLATED_FRAMES:
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.PixelData = encapsulate([deflated(frame.tobytes()) for frame in frames])
            dataset["PixelData"].is_undefined_length = True
        elif syntax == RLELossless:
            dataset.compress(RLELossless, frames[0] if len(frames) == 1 else frames)

    label = read_seg(edited(case, change, array), case.grid)
    np.testing.assert_array_equal(label.array, array)
    assert {segment.value for segment in label.segments} == set(array[array > 0].tolist())


@pytest.mark.skipif(not CASES.is_dir(), reason="no real data here")
def test_a_name_that_dcmjs_wrote_without_character_set_is_read():
    grid = Grid.of_image(SHARED / "seg_dcmqi" / "liver_seg.nrrd")
    label = read_seg(CASES / "seg_written_by_dcmjs_utf8_no_charset.dcm", grid)
    assert [segment.name for segment in label.segments] == ["Milz größe"]


def test_deflated_seg_is_read(case):
    def deflate(dataset):
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    array = case.random()
    path = edited(case, deflate, array)
    np.testing.assert_array_equal(read_seg(path, case.grid).array, array)


def test_edited_seg_keeps_the_values_that_it_states(case):
    def rename(dataset):
        dataset.SegmentSequence[0].SegmentDescription = "drawn anew"

    array = case.random((0, 4, 7, 1))
    label = read_seg(edited(case, rename, array), case.grid)
    # The first segment had the value 1, which is also its number.
    np.testing.assert_array_equal(label.array, array)
    label = read_seg(edited(case, rename, case.random((0, 4, 1))), case.grid)
    assert [segment.value for segment in label.segments] == [1, 4]


def test_new_segment_whose_number_is_taken_gets_another_value(case):
    def rename(dataset):
        dataset.SegmentSequence[1].SegmentDescription = "new"

    array = case.random((0, 2, 9))
    label = read_seg(edited(case, rename, array), case.grid)
    assert [segment.value for segment in label.segments] == [2, 1]
    assert label.notes == ("segment 2 has the value 1: another one has 2",)
    np.testing.assert_array_equal(label.array == 1, array == 9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_seg_between_the_voxels_is_refused(case, axis):
    array = case.random()
    path = case.write(array)
    affine = case.grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] / 2
    shifted = Grid(case.grid.shape, affine)
    with pytest.raises(LabelGeometryError, match=r"0\.50 voxels off.*axes") as caught:
        read_seg(path, shifted)
    assert f"Image: {shifted}" in str(caught.value)
    assert "Frame: 9 x 10 x 1 voxels" in str(caught.value)


def test_seg_of_other_spacing_is_refused(case):
    def widen(dataset):
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.8]

    with pytest.raises(LabelGeometryError, match="does not lie on the grid"):
        read_seg(edited(case, widen), case.grid)


def test_seg_beyond_the_image_is_refused_only_where_it_holds_something(case):
    array = np.ones(case.grid.shape, np.uint8)
    path = case.write(array)
    smaller = Grid((9, 8, 7), case.grid.affine)
    with pytest.raises(LabelGeometryError, match=r"126 voxels.*outside"):
        read_seg(path, smaller)
    array[:, 8:] = 0
    label = read_seg(case.write(array), smaller)
    assert label.array.shape == (9, 8, 7)
    assert label.array.all()
    shorter = Grid((9, 10, 5), case.grid.affine)
    with pytest.raises(LabelGeometryError, match="144 voxels"):
        read_seg(case.path, shorter)


def remove(*keywords):
    def change(dataset):
        for keyword in keywords:
            delattr(dataset, keyword)

    return change


def forget_positions(dataset):
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def forget_segments(dataset):
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.SegmentIdentificationSequence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("PixelData"), "damaged"),
        (remove("SegmentSequence"), "no segment"),
        (remove("PerFrameFunctionalGroupsSequence"), "where in the patient"),
        (forget_positions, "where in the patient"),
        (forget_segments, "names no segment"),
        (lambda dataset: setattr(dataset, "NumberOfFrames", 3), "functional groups"),
        (lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:-4]), "truncated"),
        (lambda dataset: setattr(dataset, "SOPClassUID", pydicom.uid.CTImageStorage), "CT Image Storage"),
    ],
)
def test_damaged_seg_is_refused(case, change, message):
    with pytest.raises(LabelFileError, match=message):
        read_seg(edited(case, change), case.grid)


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(128) + b"DICM"])
def test_what_is_no_seg_is_refused(case, content):
    case.path.write_bytes(content)
    for read in (lambda: read_seg(case.path, case.grid), lambda: seg_references(content)):
        with pytest.raises(LabelFileError):
            read()
    with pytest.raises(LabelFileError, match="no such file"):
        read_seg(Path("absent.dcm"), case.grid)


def test_every_truncation_is_refused(case):
    data = case.write(case.random()).read_bytes()
    for length in range(0, len(data) - 1, 97):
        case.path.write_bytes(data[:length])
        with pytest.raises(LabelFileError):
            read_seg(case.path, case.grid)


def test_references_are_found_in_the_frames_if_nowhere_else(case):
    path = edited(case, lambda dataset: delattr(dataset.ReferencedSeriesSequence[0], "ReferencedInstanceSequence"))
    assert set(seg_references(path).instance_uids) == set(case.volume.sop_instance_uids)


# Real files of dcmqi


def nrrd(name):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(SHARED / "seg_dcmqi" / name))).T


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data here")
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("liver.dcm", ["liver_seg.nrrd"]),
        ("partial_overlaps.dcm", [f"partial_overlaps-{number}.nrrd" for number in (1, 2, 3)]),
        ("sparse-labelmap-noppv.dcm", ["sparse_labelmap_noppv_seg.nrrd"]),
        ("sparse-labelmap-ppv5.dcm", ["sparse_labelmap_noppv_seg.nrrd"]),
    ],
)
def test_seg_of_dcmqi_is_read(name, truth):
    grid = Grid.of_image(SHARED / "seg_dcmqi" / truth[0])
    label = read_seg(SHARED / "seg_dcmqi" / name, grid)
    np.testing.assert_array_equal(label.array, np.max([nrrd(part) for part in truth], axis=0))
    if "liver" in name:
        assert label.segments == (Segment(1, "Liver", (221, 130, 101)),)
    if "overlaps" in name:
        assert [segment.name for segment in label.segments] == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
        assert "several segments" in label.notes[0]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data here")
def test_seg_of_dcmqi_lies_on_the_series_that_it_was_drawn_on(tmp_path):
    volume = dicom_to_nifti(SHARED / "ct_3slices_for_seg", tmp_path / "ct.nii")
    grid = Grid.of_nifti(volume.path)
    path = SHARED / "seg_dcmqi" / "partial_overlaps.dcm"
    assert int(read_seg(path, grid).array.astype(bool).sum()) > 30000
    references = seg_references(path)
    assert references.series_uids == (volume.series_uid,)
    assert set(references.instance_uids) == set(volume.sop_instance_uids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data here")
@pytest.mark.parametrize(
    "folder",
    ["ct_3slices_for_seg", "ct_philips_axial5mm", "mr_siemens_sagittal", "mr_philips_enhanced_anat",
     "mr_philips_enhanced_dti_4d", "mr_ge_dti_4d_small", "mr_hitachi_small", "mr_sag4_jpegls"],
)  # fmt: skip
def test_labels_of_real_series_come_back(tmp_path, folder):
    files = sorted((SHARED / folder).iterdir())
    volume = dicom_to_nifti(files, tmp_path / "image.nii")
    grid = Grid.of_nifti(volume.path)
    array = np.random.default_rng(0).choice([0, 0, 0, 5, 6], grid.shape).astype(np.uint8)
    label = LabelMap(array, grid.affine)
    write_seg(label, files, tmp_path / "seg.dcm", description="x", algorithm_type="MANUAL")
    np.testing.assert_array_equal(read_seg(tmp_path / "seg.dcm", grid).array, array)
    references = seg_references(tmp_path / "seg.dcm")
    assert (references.study_uid, references.series_uids) == (volume.study_uid, (volume.series_uid,))
    assert set(references.instance_uids) == set(volume.sop_instance_uids)
    highdicom.seg.segread(tmp_path / "seg.dcm")


colours = st.tuples(*[st.integers(0, 255)] * 3)


@given(colour=colours)
def test_colours_come_back(colour):
    assert dicom_lab_to_rgb(rgb_to_dicom_lab(colour)) == colour
