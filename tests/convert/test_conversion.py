"""Files that are converted while they arrive, in any order, from disk or memory, become the same as a folder."""

from __future__ import annotations

import random
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from series_writer import SYNTAXES, SeriesWriter, random_stack, rotated

from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.convert.dicom.conversion import Conversion
from monailabel_xnat.convert.dicom.headers import read_header
from monailabel_xnat.convert.dicom.series import choose_series
from monailabel_xnat.errors import ImageConversionError, NoImageError

STACK = random_stack((5, 33, 41), 0, 4095)
ARRIVALS = ("on the disk", "in memory")


def series(folder, **options):
    SeriesWriter(folder, orientation=rotated(10, 20, 30), **options).write(STACK)
    return shuffled(folder)


def shuffled(folder):
    paths = sorted(folder.iterdir())
    random.Random(1).shuffle(paths)
    return paths


def arrive(conversion, paths, arrival, spool):
    """Hand files over as a download does."""
    for path in paths:
        if arrival == "on the disk":
            conversion.add(path)
        else:
            conversion.take(spool / path.name, path.read_bytes())


def both(folder, tmp_path, arrival):
    """Convert a folder, and its files as they arrive. Return the bytes of both results."""
    expected = dicom_to_nifti(folder, tmp_path / "expected.nii").path
    with Conversion() as conversion:
        arrive(conversion, shuffled(folder), arrival, tmp_path / "spool")
        found = conversion.finish(tmp_path / "image.nii").path
    return expected.read_bytes(), found.read_bytes()


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_image_is_that_of_the_folder(tmp_path, syntax, arrival):
    series(tmp_path / "dicom", bits=16, syntax=syntax, intercept=-1024.0)
    expected, found = both(tmp_path / "dicom", tmp_path, arrival)
    assert found == expected


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_bits_above_bits_stored_are_read_as_simpleitk_does(tmp_path, arrival):
    def narrow(dataset, number):
        dataset.BitsStored, dataset.HighBit = 10, 9

    SeriesWriter(tmp_path / "dicom").write(STACK, change=narrow)
    expected, found = both(tmp_path / "dicom", tmp_path, arrival)
    assert found == expected


def test_plain_files_are_written_only_where_simpleitk_looks_at_them(tmp_path):
    paths = series(tmp_path / "dicom")
    with Conversion() as conversion:
        arrive(conversion, paths, "in memory", tmp_path / "spool")
        assert not (tmp_path / "spool").exists()
        conversion.finish(tmp_path / "image.nii")
    written = sorted((tmp_path / "spool").iterdir())
    assert [path.name for path in written] == [min(paths).name, max(paths).name]
    assert [path.read_bytes() for path in written] == [min(paths).read_bytes(), max(paths).read_bytes()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}


def test_a_file_that_comes_again_replaces_the_first(tmp_path):
    paths = series(tmp_path / "dicom")
    expected = dicom_to_nifti(tmp_path / "dicom", tmp_path / "expected.nii").path.read_bytes()
    with Conversion() as conversion:
        conversion.take(tmp_path / "spool" / paths[0].name, b"damaged")
        arrive(conversion, paths, "in memory", tmp_path / "spool")
        assert conversion.finish(tmp_path / "image.nii").path.read_bytes() == expected


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_of_several_damaged_files_the_first_by_name_is_reported_at_the_end(tmp_path, arrival):
    paths = series(tmp_path / "dicom")
    for path in sorted(paths)[1:3]:
        path.write_bytes(path.read_bytes()[:-20])
    with Conversion() as conversion:
        arrive(conversion, paths, arrival, tmp_path / "spool")
        with pytest.raises(ImageConversionError, match=f"{sorted(paths)[1].name} is truncated: .* of 2706 bytes"):
            conversion.finish(tmp_path / "image.nii")


@pytest.mark.parametrize("syntax", ["explicit", "JPEG-LS"])
def test_files_of_another_series_than_expected_can_still_be_asked_for(tmp_path, syntax):
    paths = series(tmp_path / "dicom", syntax=syntax)
    expected = dicom_to_nifti(tmp_path / "dicom", tmp_path / "expected.nii").path.read_bytes()
    with Conversion("the scan", series_uid="1.2.3") as conversion:
        arrive(conversion, paths, "in memory", tmp_path / "spool")
        with pytest.raises(NoImageError, match=r"no image of series 1\.2\.3"):
            conversion.finish(tmp_path / "image.nii", series_uid="1.2.3")
        assert conversion.finish(tmp_path / "image.nii").path.read_bytes() == expected


def test_no_image_at_all_names_the_place(tmp_path):
    with Conversion("resource DICOM") as conversion:
        conversion.take(tmp_path / "notes.txt", b"none of these is an image" * 9)
        with pytest.raises(NoImageError, match="no DICOM image in resource DICOM: found 1 x not DICOM"):
            conversion.finish(tmp_path / "image.nii")
    assert list(tmp_path.iterdir()) == []


def test_a_scan_of_many_slices_is_chosen_without_comparing_each_with_each(tmp_path):
    first = read_header(series(tmp_path / "dicom")[0])
    headers = [
        replace(first, path=Path(f"{number:04d}.dcm"), sop_instance_uid=f"1.2.{number}") for number in range(3000)
    ]
    begun = time.process_time()
    found = choose_series(headers, "the scan", first.series_uid, one_scan=True)
    assert len(found.images) == len(headers)
    assert not found.others
    assert time.process_time() - begun < 10.0  # comparing each file with each other one took minutes
