"""Headers read with facts learnt from earlier files are the same as headers of files that are read alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from series_writer import SYNTAXES, SeriesWriter, random_stack, rotated

from monailabel_xnat.convert.dicom.alike import HeaderReader
from monailabel_xnat.convert.dicom.headers import read_header
from monailabel_xnat.errors import ImageConversionError

SHARED = Path(__file__).parents[2].parent / "shared"


def outcome(read, path, content):
    """Return the header or the error that a reader returns for a file, and the content that it keeps."""
    try:
        header = read(path, content)
    except ImageConversionError as error:
        return type(error), str(error)
    return header, getattr(header, "held", None)


def assert_as_alone(paths, *, from_disk=False):
    reader = HeaderReader()
    for path in paths:
        content = None if from_disk else path.read_bytes()
        assert outcome(reader.read, path, content) == outcome(read_header, path, content)


def vary(dataset, number):
    """Change a header as scanners do: its values, their lengths, its elements and sequences."""
    dataset.AcquisitionTime = f"1015{number % 60:02d}" + (".25" if number % 3 else "")
    dataset.ImageComments = "1" * (number % 7)
    dataset.SliceLocation = str(number * 1.5)
    dataset.RescaleSlope = str(1 + number % 2)
    if number % 4 == 1:
        dataset.TriggerTime = str(number)
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.2." + "3" * (number % 5 + 1)
    dataset.SourceImageSequence = Items([inner] * (number % 3))
    dataset["SourceImageSequence"].is_undefined_length = True
    block = dataset.private_block(0x0009, "made", create=True)
    block.add_new(1, "OB", bytes(number % 6 * 2))
    if number == 17:
        dataset.Modality, dataset.PixelSpacing = "MR", [0.5, 0.5]


@pytest.mark.parametrize("from_disk", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_headers_that_differ_as_those_of_scanners(tmp_path, syntax, from_disk):
    writer = SeriesWriter(tmp_path, orientation=rotated(10, 20, 30), syntax=syntax, intercept=-1024.0)
    assert_as_alone(writer.write(random_stack((24, 16, 20), 0, 4095), change=vary), from_disk=from_disk)


def test_files_of_two_series_and_what_is_no_image_may_be_mixed(tmp_path):
    one = SeriesWriter(tmp_path / "one").write(random_stack((6, 16, 20)))
    other = SeriesWriter(tmp_path / "other", modality="MR", bits=8).write(random_stack((6, 16, 20), 0, 255))
    page = tmp_path / "page.dcm"
    page.write_bytes(b"")
    assert_as_alone([path for pair in zip(one, other, strict=True) for path in (*pair, page)], from_disk=True)


@pytest.fixture(scope="module", params=["implicit", "explicit", "JPEG-LS"])
def learnt(request, tmp_path_factory):
    """Return a reader that has learnt a series, and one file of it."""
    folder = tmp_path_factory.mktemp("series")
    paths = SeriesWriter(folder, syntax=request.param).write(random_stack((8, 4, 4)), change=vary)
    reader = HeaderReader()
    for path in paths:
        reader.read(path, path.read_bytes())
    return reader, paths[5]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_as_if_it_came_alone(learnt, data):
    reader, path = learnt
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    assert outcome(reader.read, path, bytes(content)) == outcome(read_header, path, bytes(content))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the public series are not here")
@pytest.mark.filterwarnings("ignore")
def test_real_series():
    folders = {
        path.parent for part in ("dicom", "cases/dicom") for path in (SHARED / part).rglob("*") if path.is_file()
    }
    for folder in sorted(folders):
        assert_as_alone(sorted(path for path in folder.iterdir() if path.is_file()), from_disk=True)
