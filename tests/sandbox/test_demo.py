from __future__ import annotations

import filecmp
from datetime import date

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import uid

from monailabel_xnat.sandbox.demo import write_demo
from monailabel_xnat.sandbox.dicom import read_series, scan_xsi_type, session_xsi_type, xnat_label
from monailabel_xnat.sandbox.phantom import LABELS, Phantom, add_noise

# The CT Image IOD requires these: types 1 and 2 of the modules that PS3.3 A.3 makes mandatory.
CT_ATTRIBUTES = """
PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime ReferringPhysicianName
StudyID AccessionNumber Modality SeriesInstanceUID SeriesNumber PatientPosition FrameOfReferenceUID
PositionReferenceIndicator Manufacturer InstanceNumber PixelSpacing ImageOrientationPatient
ImagePositionPatient SliceThickness SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated
BitsStored HighBit PixelRepresentation PixelData ImageType RescaleIntercept RescaleSlope KVP
AcquisitionNumber SOPClassUID SOPInstanceUID WindowCenter WindowWidth
"""
MAY_BE_EMPTY = {"ReferringPhysicianName", "PositionReferenceIndicator"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), sessions=4)


def read_volume(folder):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_cases_are_split_into_labelled_waiting_and_held_out(tmp_path):
    demo = write_demo(tmp_path)
    assert [case.labelled for case in demo.cases] == [True] * 4 + [False] * 4
    assert [case.held_out for case in demo.cases] == [False] * 6 + [True] * 2
    assert [case.oblique for case in demo.cases].count(True) == 2
    assert len({case.session for case in demo.cases}) == 8
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 10e6


def test_truth_lies_on_the_grid_of_the_series(demo):
    for case in demo.cases:
        image, truth = read_volume(case.dicom), SimpleITK.ReadImage(str(case.truth))
        assert image.GetSize() == truth.GetSize()
        np.testing.assert_allclose(truth.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(truth.GetSpacing(), image.GetSpacing(), atol=1e-5)
        np.testing.assert_allclose(truth.GetDirection(), image.GetDirection(), atol=1e-6)


def test_organs_look_like_organs_where_the_truth_says(demo):
    expected = {"liver": (80, 135), "spleen": (90, 155), "kidneys": (130, 200)}
    for case in demo.cases:
        hu = SimpleITK.GetArrayFromImage(read_volume(case.dicom))
        truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.truth)))
        assert set(np.unique(truth)) == {0, *LABELS.values()}
        for organ, (low, high) in expected.items():
            assert low < np.median(hu[truth == LABELS[organ]]) < high, (case.session, organ)


def test_liver_is_right_spleen_is_left_and_lungs_are_up(demo):
    for case in demo.cases:
        truth = SimpleITK.ReadImage(str(case.truth))
        shape = SimpleITK.LabelShapeStatisticsImageFilter()
        shape.Execute(truth)
        liver, spleen, kidneys = (shape.GetCentroid(LABELS[o]) for o in ("liver", "spleen", "kidneys"))
        assert liver[0] < 0 < spleen[0]
        assert kidneys[2] < liver[2]
        assert kidneys[1] > liver[1]


def test_some_series_are_oblique_and_one_is_oblique_about_two_axes(demo):
    directions = {case.session: np.array(read_volume(case.dicom).GetDirection()) for case in demo.cases}
    tilted = [not np.allclose(np.abs(direction).round(), np.abs(direction)) for direction in directions.values()]
    assert tilted == [case.oblique for case in demo.cases] == [False, False, True, True]
    assert np.count_nonzero(np.abs(directions[demo.cases[3].session]) < 1e-6) <= 1


def test_files_are_filed_as_the_cases_say(demo):
    found = {series.series_uid: series for series in read_series(demo.dicom)}
    assert len(found) == 5
    for case in demo.cases:
        series = found[case.series_uid]
        assert (series.patient_id, series.study_uid) == (case.subject, case.study_uid)
        assert (series.series_number, series.frames) == (case.scan, 40)
        assert scan_xsi_type(series) == "xnat:ctScanData"
        assert xnat_label(case.session) == case.session
    assert session_xsi_type(found.values()) == "xnat:ctSessionData"


def test_first_session_has_a_localizer_in_three_planes(demo):
    (localizer,) = (series for series in read_series(demo.dicom) if series.series_number == "1")
    assert localizer.patient_id == demo.cases[0].subject
    datasets = [pydicom.dcmread(file.path) for file in localizer.files]
    normals = {tuple(np.cross(*np.reshape(ds.ImageOrientationPatient, (2, 3))).round(6)) for ds in datasets}
    assert len(datasets) == 9
    assert len(normals) == 3


def test_every_file_is_complete_ct(demo):
    uids = set()
    for path in demo.dicom.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        present = {name for name in CT_ATTRIBUTES.split() if name in dataset}
        assert sorted(set(CT_ATTRIBUTES.split()) - present) == []
        assert {name for name in present if dataset[name].is_empty} <= MAY_BE_EMPTY
        assert dataset.SOPClassUID == uid.CTImageStorage
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert all(uid.UID(value).is_valid for value in (dataset.SOPInstanceUID, dataset.StudyInstanceUID))
        assert len(dataset.PixelData) == 2 * dataset.Rows * dataset.Columns
        date.fromisoformat(f"{dataset.StudyDate[:4]}-{dataset.StudyDate[4:6]}-{dataset.StudyDate[6:]}")
        uids.add(dataset.SOPInstanceUID)
    assert len(uids) == 4 * 40 + 9


def test_decimal_strings_keep_the_standard(demo, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for case in demo.cases:
        dataset = pydicom.dcmread(next(case.dicom.iterdir()))
        for element in dataset:
            assert element.value is not None
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceLocation"):
            values = dataset[name].value
            for value in values if isinstance(values, pydicom.multival.MultiValue) else [values]:
                assert len(str(value)) <= 16


def test_instances_are_numbered_up_or_down(demo):
    def climbs(case):
        datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(case.dicom.iterdir())]
        heights = [dataset.ImagePositionPatient[2] for dataset in datasets]
        assert [dataset.InstanceNumber for dataset in datasets] == list(range(1, 41))
        return heights == sorted(heights)

    assert [climbs(case) for case in demo.cases] == [True, False, True, False]


def test_same_seed_writes_the_same_bytes_and_another_other_people(tmp_path):
    first, again = (write_demo(tmp_path / name, sessions=1, seed=3) for name in ("first", "again"))
    other = write_demo(tmp_path / "other", sessions=1, seed=4)
    names = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    match, mismatch, errors = filecmp.cmpfiles(tmp_path / "first", tmp_path / "again", names, shallow=False)
    assert (len(match), mismatch, errors) == (len(names), [], [])
    assert first.cases[0].study_uid == again.cases[0].study_uid != other.cases[0].study_uid


@pytest.mark.parametrize("sessions", [0, 100, -1])
def test_number_of_sessions_is_checked(tmp_path, sessions):
    with pytest.raises(ValueError, match=f"not {sessions}"):
        write_demo(tmp_path / "demo", sessions=sessions)
    assert not (tmp_path / "demo").exists()


def test_phantom_is_the_same_body_on_every_grid():
    points = np.random.default_rng(0).uniform(-90, 90, (500, 3))
    hu, labels = Phantom(1).sample(points)
    again, same = Phantom(1).sample(points.reshape(5, 10, 10, 3))
    assert again.shape == same.shape == (5, 10, 10)
    np.testing.assert_array_equal(labels, same.ravel())
    np.testing.assert_allclose(hu, again.ravel(), atol=1e-3)
    assert (labels != Phantom(2).sample(points)[1]).any()


def test_phantom_is_air_far_away():
    hu, labels = Phantom(0).sample(np.array([[400.0, 0, 0], [0, -300.0, 0]]))
    assert hu.tolist() == [-1000, -1000]
    assert not labels.any()


def test_noise_has_the_strength_asked_for_and_stays_in_range():
    flat = np.full((10, 64, 64), 40, np.float32)
    noisy = add_noise(flat, 20, seed=1)
    assert noisy.dtype == np.int16
    assert 19 < noisy.std() < 21
    assert abs(noisy.mean() - 40) < 1
    assert add_noise(flat - 2000, 20, seed=1).min() == -1024
