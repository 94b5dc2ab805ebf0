from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset

from monailabel_xnat.sandbox.dicom import (
    read_series,
    scan_ids,
    scan_xsi_type,
    session_xsi_type,
    xnat_label,
)

REAL = Path(__file__).parents[2].parent / "shared" / "dicom"


def write(path: Path, preamble: bool = True, **elements) -> str:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if preamble else uid.ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", uid.CTImageStorage)
    meta.MediaStorageSOPInstanceUID = elements.get("SOPInstanceUID", uid.generate_uid())
    dataset = FileDataset(str(path), {}, file_meta=meta if preamble else None, preamble=b"\0" * 128)
    dataset.is_little_endian = True
    dataset.is_implicit_VR = not preamble
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "PatientID": "PAT1",
        "Modality": "CT",
        "SeriesNumber": 2,
    }
    for name, value in {**values, **elements}.items():
        if value is not None:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    if preamble:
        dataset.save_as(path, write_like_original=False)
    else:
        dataset.preamble = None
        pydicom.dcmwrite(path, dataset, write_like_original=True)
    return str(meta.MediaStorageSOPInstanceUID)


def series_of(folder: Path, **elements):
    write(folder / "only", **elements)
    (series,) = read_series(folder)
    return series


def test_files_of_one_series_are_merged_across_folders_in_acquisition_order(tmp_path):
    tenth = write(tmp_path / "a" / "x", InstanceNumber=10)
    second = write(tmp_path / "b" / "deep" / "IM.1", InstanceNumber=2)
    first = write(tmp_path / "b" / "deep" / "no extension", InstanceNumber=1)
    (series,) = read_series(tmp_path)
    assert [file.sop_instance_uid for file in series.files] == [first, second, tenth]
    assert [file.instance_number for file in series.files] == ["1", "2", "10"]
    assert series.frames == 3
    assert series.files[0].path == tmp_path / "b" / "deep" / "no extension"


def test_second_file_with_a_sop_instance_uid_is_dropped(tmp_path):
    write(tmp_path / "a", SOPInstanceUID="1.9.1")
    write(tmp_path / "b", SOPInstanceUID="1.9.1", SeriesInstanceUID="1.2.3.5")
    (series,) = read_series(tmp_path)
    assert [file.path.name for file in series.files] == ["a"]


def test_files_that_are_not_dicom_are_skipped_and_counted(tmp_path, caplog):
    write(tmp_path / "good")
    (tmp_path / "empty").touch()
    (tmp_path / "notes.txt").write_text("no DICOM here")
    (tmp_path / "zeros").write_bytes(b"\0" * 5000)
    (tmp_path / "looks_bare").write_bytes(b"\x08\x00" + b"\xff" * 400)
    (tmp_path / "cut").write_bytes((tmp_path / "good").read_bytes()[:150])
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with caplog.at_level("INFO"):
        (series,) = read_series(tmp_path)
    assert [file.path.name for file in series.files] == ["good"]
    assert "not a DICOM file" in caplog.text
    assert "good" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_block_the_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "image")
    assert len(read_series(tmp_path)) == 1


def test_dicomdir_is_skipped(tmp_path):
    write(tmp_path / "image")
    write(tmp_path / "DICOMDIR", SOPClassUID=uid.MediaStorageDirectoryStorage)
    (series,) = read_series(tmp_path)
    assert len(series.files) == 1


def test_file_without_preamble_is_read(tmp_path):
    write(tmp_path / "bare", preamble=False, SeriesDescription="old scanner")
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    (series,) = read_series(tmp_path)
    assert series.series_description == "old scanner"


def test_big_endian_and_deflated_files_are_read(tmp_path):
    for name, syntax in (("big", uid.ExplicitVRBigEndian), ("flat", uid.DeflatedExplicitVRLittleEndian)):
        write(tmp_path / name, SeriesDescription="AX")
        dataset = pydicom.dcmread(tmp_path / name)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.is_little_endian = syntax.is_little_endian
        dataset.save_as(tmp_path / name, write_like_original=False)
    (series,) = read_series(tmp_path)
    assert len(series.files) == 2
    assert series.series_description == "AX"


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.filterwarnings("error")
def test_damaged_files_never_stop_the_import(tmp_path, data):
    whole = tmp_path / "whole"
    if not whole.exists():
        write(whole, InstanceNumber=1, NumberOfFrames=2, PatientName="A^B", StudyDate="20240101")
        write(tmp_path / "damaged", SOPInstanceUID="1.2.3.9", SeriesDescription="AX", InstanceNumber=2)
        (tmp_path / "pristine").write_bytes((tmp_path / "damaged").read_bytes())
    damaged = bytearray((tmp_path / "pristine").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    found = {file.path.name for series in read_series(tmp_path) for file in series.files}
    assert "whole" in found


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_file_without_hierarchy_uids_is_skipped(tmp_path, missing):
    write(tmp_path / "file", **{missing: None})
    assert read_series(tmp_path) == []


def test_missing_texts_are_empty(tmp_path):
    series = series_of(tmp_path, PatientID=None, Modality=None, SeriesNumber=None)
    assert series.patient_id == series.patient_name == series.series_number == series.modality == ""
    assert series.study_date == series.study_time == series.files[0].instance_number == ""
    assert series.frames == 1


def test_text_is_taken_from_the_first_file_that_has_it(tmp_path):
    write(tmp_path / "1", InstanceNumber=1)
    write(tmp_path / "2", InstanceNumber=2, SeriesDescription="AX", StudyDate="20240131")
    (series,) = read_series(tmp_path)
    assert (series.series_description, series.study_date) == ("AX", "2024-01-31")


@pytest.mark.filterwarnings("ignore")
def test_values_that_break_their_vr_do_not_stop_the_import(tmp_path):
    write(tmp_path / "file", SeriesDescription="AX", StudyID="x" * 16, NumberOfFrames=5, InstanceNumber=7)
    data = (tmp_path / "file").read_bytes()
    frames = data.index(b"\x28\x00\x08\x00IS") + 8
    data = data[:frames] + b"??" + data[frames + 2 :]
    number = data.index(b"\x20\x00\x13\x00IS") + 8
    data = data[:number] + b"A " + data[number + 2 :]
    (tmp_path / "file").write_bytes(data)
    (series,) = read_series(tmp_path)
    assert series.frames == 1
    assert series.files[0].instance_number == "A"
    assert series.series_description == "AX"


def test_empty_value_of_an_unknown_vr_is_no_text(tmp_path):
    write(tmp_path / "file", AccessionNumber="", SeriesDescription="AX")
    data = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(data.replace(b"\x08\x00\x50\x00SH", b"\x08\x00\x50\x00S{"))
    (series,) = read_series(tmp_path)
    assert (series.accession_number, series.series_description) == ("", "AX")


def test_names_in_other_scripts_are_decoded(tmp_path):
    series = series_of(tmp_path, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Jörg")
    assert series.patient_name == "Müller^Jörg"


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20240229", "235959.123456", ("2024-02-29", "23:59:59")),
        ("2024.02.29", "23:59:59", ("2024-02-29", "23:59:59")),
        ("20240229", "0930", ("2024-02-29", "09:30:00")),
        ("20230229", "24", ("", "")),
        ("2024131", "9:30", ("", "")),
        ("unknown", "noon", ("", "")),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_dates_and_times_are_iso(tmp_path, date, time, expected):
    series = series_of(tmp_path, StudyDate=date, StudyTime=time)
    assert (series.study_date, series.study_time) == expected


def test_order_does_not_depend_on_where_files_lie(tmp_path):
    for folder, names in (("one", "abc"), ("two", "cba")):
        for name, number in zip(names, (10, 9, 1), strict=True):
            write(
                tmp_path / folder / name,
                SeriesNumber=number,
                SeriesInstanceUID=f"1.2.{number}",
                SOPInstanceUID=f"1.2.{number}.1",
            )
    one, two = ([series.series_number for series in read_series(tmp_path / folder)] for folder in ("one", "two"))
    assert one == two == ["1", "9", "10"]


def test_same_series_uid_of_two_patients_stays_apart(tmp_path):
    write(tmp_path / "a", PatientID="A")
    write(tmp_path / "b", PatientID="B")
    assert [series.patient_id for series in read_series(tmp_path)] == ["A", "B"]


def test_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        read_series(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("sop_class", "modality", "scan_type"),
    [
        (uid.CTImageStorage, "CT", "xnat:ctScanData"),
        (uid.EnhancedMRImageStorage, "MR", "xnat:mrScanData"),
        (uid.PositronEmissionTomographyImageStorage, "PT", "xnat:petScanData"),
        (uid.SecondaryCaptureImageStorage, "MR", "xnat:scScanData"),
        (uid.SegmentationStorage, "SEG", "xnat:segScanData"),
        (uid.EnhancedSRStorage, "SR", "xnat:srScanData"),
        (uid.RTStructureSetStorage, "RTSTRUCT", "xnat:rtImageScanData"),
        (uid.VLWholeSlideMicroscopyImageStorage, "SM", "xnat:smScanData"),
        ("1.2.3.4.5", "CT", "xnat:otherDicomScanData"),
    ],
)
def test_scan_type_follows_the_sop_class(tmp_path, sop_class, modality, scan_type):
    assert scan_xsi_type(series_of(tmp_path, SOPClassUID=sop_class, Modality=modality)) == scan_type


def test_scan_type_of_a_mixed_series_is_the_strongest(tmp_path):
    write(tmp_path / "1", SOPClassUID=uid.SecondaryCaptureImageStorage, InstanceNumber=1)
    write(tmp_path / "2", SOPClassUID=uid.CTImageStorage, InstanceNumber=2)
    (series,) = read_series(tmp_path)
    assert scan_xsi_type(series) == "xnat:ctScanData"
    assert [file.sop_class_uid for file in series.files] == [
        uid.SecondaryCaptureImageStorage,
        uid.CTImageStorage,
    ]


@pytest.mark.parametrize(
    ("contents", "session_type"),
    [
        ([("CT", uid.CTImageStorage)], "xnat:ctSessionData"),
        ([("CT", uid.CTImageStorage), ("SR", uid.EnhancedSRStorage)], "xnat:ctSessionData"),
        (
            [("CT", uid.CTImageStorage), ("PT", uid.PositronEmissionTomographyImageStorage)],
            "xnat:petSessionData",
        ),
        (
            [("MR", uid.MRImageStorage), ("PT", uid.PositronEmissionTomographyImageStorage)],
            "xnat:petmrSessionData",
        ),
        ([("MR", uid.SecondaryCaptureImageStorage)], "xnat:mrSessionData"),
        ([("OT", uid.SecondaryCaptureImageStorage)], "xnat:otherDicomSessionData"),
        ([("RF", uid.XRayRadiofluoroscopicImageStorage)], "xnat:rfSessionData"),
        ([("SEG", uid.SegmentationStorage)], "xnat:otherDicomSessionData"),
        ([("DX", uid.DigitalXRayImageStorageForPresentation)], "xnat:dxSessionData"),
        ([], "xnat:otherDicomSessionData"),
    ],
)
def test_session_type_follows_the_strongest_series(tmp_path, contents, session_type):
    for number, (modality, sop_class) in enumerate(contents):
        write(
            tmp_path / str(number),
            Modality=modality,
            SOPClassUID=sop_class,
            SeriesInstanceUID=f"1.2.3.{number}",
        )
    assert session_xsi_type(read_series(tmp_path)) == session_type


def test_scan_ids_are_series_numbers_made_unique(tmp_path):
    numbers = {"1.1": "1", "1.2": "4", "1.3": "4", "1.4": None, "1.5": "+5"}
    for series_uid, number in numbers.items():
        write(tmp_path / series_uid, SeriesInstanceUID=series_uid, SeriesNumber=number)
    assert scan_ids(read_series(tmp_path)) == {
        "1.1": "1",
        "1.2": "4-CT1",
        "1.3": "4-CT2",
        "1.4": "1_4",
        "1.5": "_5",
    }


@given(st.text())
def test_label_is_legal_and_stable(text):
    label = xnat_label(text)
    assert all(char.isascii() and (char.isalnum() or char in "_.-") for char in label)
    assert label.strip(".") or not label
    assert xnat_label(label) == label


def test_label_keeps_all_valid_characters():
    assert xnat_label(" DOE^JOHN/2.5-a_ü ") == "DOE_JOHN_2.5-a__"
    assert xnat_label("..") == "__"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real DICOM series here")
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("ct_ge_tilt_varspacing", [("xnat:ctScanData", 12, 12)]),
        ("ct_philips_axial5mm", [("xnat:ctScanData", 8, 8)]),
        ("mr_ge_fmri_4d", [("xnat:mrScanData", 150, 150)]),
        ("mr_localizer_TSC_16px", [("xnat:mrScanData", n, n) for n in (3, 3, 1)]),
        ("mr_philips_enhanced_dti_4d", [("xnat:mrScanData", 1, 32)]),
        ("mr_sag4_jpegls", [("xnat:mrScanData", 4, 4)]),
        ("nonimage", [("xnat:srScanData", 1, 1), ("xnat:rtImageScanData", 1, 1)]),
        ("rgb_4slices_j2k", [("xnat:scScanData", 4, 4)]),
    ],
)
def test_real_series_are_filed(folder, expected):
    found = read_series(REAL / folder)
    assert [(scan_xsi_type(s), len(s.files), s.frames) for s in found] == expected


@pytest.mark.skipif(not REAL.is_dir(), reason="no real DICOM series here")
def test_every_real_dicom_file_is_read_or_a_duplicate():
    folders = [folder for folder in sorted(REAL.iterdir()) if folder.is_dir()]
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".nrrd"]
        uids = {pydicom.dcmread(path, stop_before_pixels=True, force=True).SOPInstanceUID for path in files}
        read = [file.sop_instance_uid for series in read_series(folder) for file in series.files]
        assert sorted(read) == sorted(uids)
