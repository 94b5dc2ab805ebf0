"""Walking over a file finds the same elements as pydicom."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from series_writer import SYNTAXES, SeriesWriter, random_stack

from monailabel_xnat.convert.dicom import elements
from monailabel_xnat.convert.dicom.file import read_dicom

SERIES = Path(__file__).parents[2].parent / "shared" / "dicom"

TEXTS = (0x00080016, 0x00080018, 0x00080060, 0x0020000E, 0x00280004, 0x0008103E)
DECIMALS = (0x00200013, 0x00200032, 0x00200037, 0x00280030, 0x00281052, 0x00281053)
INTEGERS = (0x00280010, 0x00280011, 0x00280100, 0x00280103)


def read(path: Path):
    with path.open("rb") as stream:
        return read_dicom(path, stream, frozenset((*TEXTS, *DECIMALS, *INTEGERS)))


def assert_as_pydicom(path: Path) -> None:
    expected = pydicom.dcmread(path, force=True)
    found = read(path)
    assert found is not None
    assert found.syntax == expected.file_meta.TransferSyntaxUID
    for tag in TEXTS:
        assert elements.text(found.elements, tag) == str(expected[tag].value if tag in expected else "")
    for tag in DECIMALS:
        value = expected[tag].value if tag in expected else None
        numbers = (
            None if value in (None, "") else tuple(map(float, [value] if not hasattr(value, "__len__") else value))
        )
        assert elements.decimals(found.elements, tag) == numbers
    for tag in INTEGERS:
        assert elements.integer(found.elements, tag) == (expected[tag].value if tag in expected else 0)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_before_the_pixels_are_passed_over(tmp_path, syntax, undefined):
    inner = Dataset()
    inner.ImagePositionPatient, inner.Rows = [9, 9, 9], 99
    outer = Dataset()
    outer.ReferencedImageSequence = Items([inner, inner])
    outer.PatientName = "inside"

    def nest(dataset, number):
        dataset.ReferencedStudySequence = Items([outer, Dataset()])
        dataset.SourceImageSequence = Items([])
        for holder in (dataset, outer):
            for element in holder:
                if element.VR == "SQ":
                    element.is_undefined_length = undefined
                    for item in element.value:
                        item.is_undefined_length_sequence_item = undefined
        block = dataset.private_block(0x0009, "made", create=True)
        block.add_new(1, "UN", b"\x00\x01\x02\x03")
        block.add_new(2, "OB", b"\x28\x00\x10\x00US\x02\x00")

    (path,) = SeriesWriter(tmp_path, syntax=syntax).write(random_stack((1, 32, 40)), change=nest)
    assert_as_pydicom(path)


def test_a_file_that_is_not_dicom_is_none(tmp_path):
    path = tmp_path / "page.dcm"
    path.write_text("<html>" + " " * 500)
    assert read(path) is None


@pytest.mark.skipif(not SERIES.is_dir(), reason="the public series are not here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(path.name for path in SERIES.glob("*_*")) or ["none"])
def test_real_files_are_read_as_pydicom_reads_them(name):
    paths = [path for path in sorted((SERIES / name).iterdir()) if path.suffix in ("", ".dcm")]
    for path in paths[:4]:
        assert_as_pydicom(path)
