"""The table of odd series in docs/conversion.md: each row is a series that is written and converted here.

The columns "becomes" and "said" must agree with the result. If the table is no longer true, the test shows the right
one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from series_writer import AXIAL, CORONAL, SAGITTAL, SYNTAXES, SeriesWriter, random_stack, rotated
from test_mosaic import write as write_mosaic
from test_mosaic import write_grid

from monailabel_xnat.convert.dicom.conversion import Conversion
from monailabel_xnat.convert.dicom.series import list_files
from monailabel_xnat.errors import ImageConversionError, NoImageError

PAGE = Path(__file__).parents[2] / "docs" / "conversion.md"
HEAD = ("| series | becomes | said |", "|---|---|---|")
STACK = random_stack((6, 32, 40))
VOLUMES = random_stack((5, 4, 32, 40))
MOST_SHOWN = 160

Write = Callable[[Path], object]
"""Writes a series into a folder."""


def stack(change=None, count=6, **options) -> Write:
    return lambda folder: SeriesWriter(folder, **options).write(STACK[:count], change=change)


def setting(**values) -> Callable[[Dataset, int], None]:
    """Set elements, or delete those that are None. A callable returns the value for a slice."""

    def change(dataset, number):
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value(number) if callable(value) else value)

    return change


def at(*positions) -> Write:
    return stack(setting(ImagePositionPatient=lambda number: [0, 0, positions[number]]))


def volumes(setter=lambda t: {}, modality="MR", count=4) -> Write:
    """Write volumes that lie at the same positions."""

    def write(folder):
        writer = SeriesWriter(folder, modality=modality)
        for t, slices in enumerate(VOLUMES):
            change = setting(InstanceNumber=lambda k, t=t: t * 4 + k, **setter(t))
            writer.write(slices[: count if t == 2 else 4], names=f"{t}-{{}}.dcm".format, change=change)

    return write


def in_one_place(count, setter, modality="MR") -> Write:
    def write(folder):
        writer = SeriesWriter(folder, modality=modality)
        for t in range(count):
            writer.write_slice(STACK[t], 0, f"{t}.dcm", setting(**setter(t)))

    return write


def enhanced(**options) -> Write:
    return lambda folder: SeriesWriter(folder, modality="MR").write_enhanced(STACK, **options)


def diffusion(folder):
    def index(group, number):
        group.FrameContentSequence[0].DimensionIndexValues = [1, number % 3 + 1, number // 3 + 1]

    SeriesWriter(folder, modality="MR").write_enhanced(STACK, places=[0, 1, 2] * 2, change=index)


def several_enhanced(folder):
    writer = SeriesWriter(folder, modality="MR")
    for t, slices in enumerate(VOLUMES):
        alter(writer.write_enhanced(slices, name=f"{t}.dcm"), InstanceNumber=t + 1)


def dose(folder):
    writer = SeriesWriter(folder)
    dataset = writer.header(0)
    dataset.SOPClassUID, dataset.Modality, dataset.DoseGridScaling = "1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE", "0.0025"
    writer.set_pixels(dataset, STACK[:4])
    dataset.PixelSpacing, dataset.ImagePositionPatient = [2, 3], [1, 2, 3]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.GridFrameOffsetVector, dataset.FrameIncrementPointer = [0, 3, 6, 9], 0x3004000C
    writer.save(dataset, "dose.dcm")


def colour(folder):
    SeriesWriter(folder, modality="OT", bits=8).write(random_stack((3, 8, 8, 3), 0, 255))


def clip(folder):
    writer = SeriesWriter(folder, modality="US", bits=8)
    dataset = writer.header(0)
    writer.set_pixels(dataset, STACK[:4] % 256)
    writer.save(dataset, "clip.dcm")


def localizer(folder):
    for name, orientation in (("a", AXIAL), ("s", SAGITTAL), ("c", CORONAL)):
        writer = SeriesWriter(folder, modality="MR", orientation=orientation, series_uid="1.2.3")
        writer.write(STACK[:2], names=(name + "{}.dcm").format)


def another_size(folder):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    writer.write_slice(random_stack((9, 8)), 6, "scout.dcm")


def stored_twice(folder, *, altered=False):
    paths = SeriesWriter(folder).write(STACK)
    uid = pydicom.dcmread(paths[2]).SOPInstanceUID
    SeriesWriter(folder, series_uid=pydicom.dcmread(paths[2]).SeriesInstanceUID).write_slice(
        STACK[3 if altered else 2], 2, "copy.dcm", setting(SOPInstanceUID=uid)
    )


def sent_twice(folder, *, altered=False):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    writer.write_slice(STACK[0 if altered else 3], 3, "again.dcm")


def alter(path, **values):
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def other_objects(folder, *, images=True):
    writer = SeriesWriter(folder)
    if images:
        writer.write(STACK)
    for number, sop_class in enumerate(("88.33", "11.1", "88.59", "481.3")):
        dataset = writer.header(0)
        dataset.SOPClassUID, dataset.SeriesInstanceUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}", "1.2.9"
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        writer.save(dataset, f"other{number}.dcm")
    (folder / "catalog.xml").write_text("<cat:Catalog/>")


def floating_point(folder):
    writer = SeriesWriter(folder)
    writer.write(STACK)
    dataset = writer.header(9)
    writer.set_pixels(dataset, STACK[:1])
    del dataset.PixelData
    dataset.SOPClassUID, dataset.BitsAllocated = "1.2.840.10008.5.1.4.1.1.30", 32
    dataset.FloatPixelData = STACK[0].astype("<f4").tobytes()
    writer.save(dataset, "map.dcm")


def two_series(folder):
    for number in (1, 2):
        SeriesWriter(folder, series_uid=f"1.2.{number}").write(STACK, names=f"{number}-{{}}".format)


def truncated(folder):
    paths = SeriesWriter(folder).write(STACK)
    paths[2].write_bytes(paths[2].read_bytes()[:-100])


def undecodable(folder):
    paths = SeriesWriter(folder, syntax="JPEG 2000").write(STACK)
    data = bytearray(paths[1].read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start : start + 60] = bytes(60)
    paths[1].write_bytes(data)


def grid_of_united_imaging(folder):
    def change(dataset, number):
        dataset.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "9")

    SeriesWriter(folder, modality="MR").write(STACK[:1], change=change)


def series_for_each_slice(folder):
    SeriesWriter(folder).write(STACK, change=setting(SeriesInstanceUID=lambda number: f"1.2.{number + 1}"))


def part_of_a_stack(folder):
    SeriesWriter(folder).write(STACK, change=setting(SeriesInstanceUID=lambda number: f"1.2.{number // 3 + 1}"))


def mosaic_turned(folder):
    write_mosaic(folder, random_stack((1, 5, 6, 8)), orientation=rotated(10, 20, 30))


TILT = setting(ImagePositionPatient=lambda n: [0, n * 5 * np.tan(np.radians(15)), n * 5])

# The text of a row about the series, the series themselves, and the options of the conversion.
ROWS: tuple[tuple[str, tuple[Write, ...], dict[str, object]], ...] = (
    (
        "axial, sagittal, coronal, oblique; files in any order, without `.dcm`, in sub-folders",
        (
            *(stack(orientation=plane) for plane in (AXIAL, SAGITTAL, CORONAL, rotated(10, 20, 30))),
            lambda folder: SeriesWriter(folder).write(STACK, names=lambda n: f"{9 - n % 3}/{9 - n}"),
        ),
        {},
    ),
    (
        "any transfer syntax that SimpleITK decodes: raw, deflated, big endian, RLE, JPEG-LS, JPEG 2000",
        tuple(stack(syntax=name) for name in SYNTAXES),
        {},
    ),
    ("one slice", (stack(count=1),), {}),
    (
        "slice thickness, series date or series number varies, the positions are regular",
        tuple(
            stack(setting(**{keyword: value}))
            for keyword, value in (
                ("SliceThickness", lambda n: str(n % 2 + 1)),
                ("SeriesDate", lambda n: f"2026010{n + 1}"),
                ("SeriesNumber", lambda n: n),
            )
        ),
        {},
    ),
    (
        "positions rounded to a tenth of a millimetre: the spacing is the mean one, as in ITKReader",
        (stack(setting(ImagePositionPatient=lambda n: [0, 0, round(n * 0.67, 1)])),),
        {},
    ),
    (
        "negative Spacing Between Slices: the positions count, where ITKReader's third axis points the wrong way",
        (stack(setting(SpacingBetweenSlices="-2.5")),),
        {},
    ),
    ("enhanced multi-frame: frames by their positions", (enhanced(),), {}),
    ("RT dose: frames by their offsets", (dose,), {}),
    ("RGB", (colour,), {}),
    ("ultrasound clip: no position in the header", (clip,), {}),
    ("a secondary capture without Pixel Spacing", (stack(setting(PixelSpacing=None), modality="OT"),), {}),
    ("slices missing", (at(0, 2.5, 5, 10, 12.5, 15),), {}),
    ("slice spacing varies", (at(0, 2, 4.3, 6, 8.4, 10),), {}),
    ("gantry tilt", (stack(TILT),), {}),
    ('gantry tilt, with `gantry_tilt="stack"`', (stack(TILT),), {"gantry_tilt": "stack"}),
    ("slices shifted sideways", (stack(setting(ImagePositionPatient=lambda n: [3 * (n == 2), 0, n * 5])),), {}),
    ("localizer, several orientations", (localizer,), {}),
    ("pixel spacing differs", (stack(setting(PixelSpacing=lambda n: [0.5, 0.5] if n == 3 else [0.7, 0.9])),), {}),
    ("one slice of another size", (another_size,), {}),
    ("a file stored twice (same SOP Instance UID)", (stored_twice,), {}),
    ("the same, with other pixels", (lambda folder: stored_twice(folder, altered=True),), {}),
    ("a position twice, same pixels", (sent_twice,), {}),
    ("a position twice, other pixels", (lambda folder: sent_twice(folder, altered=True),), {}),
    ("each position equally often: by Instance Number where nothing else tells volumes apart", (volumes(),), {}),
    ("fMRI", (volumes(lambda t: {"TemporalPositionIdentifier": t + 1}),), {}),
    ("DWI", (volumes(lambda t: {"DiffusionBValue": 500.0 * t}),), {}),
    ("echoes", (volumes(lambda t: {"EchoTime": str(10 + t)}),), {}),
    ("a time series that breaks off", (volumes(count=3),), {}),
    ("cine at one position", (in_one_place(5, lambda t: {"TriggerTime": str(40 * t)}),), {}),
    (
        "several images at one position, which no time tells apart",
        (in_one_place(2, lambda t: {"InstanceNumber": t}, "CT"),),
        {},
    ),
    ("enhanced DWI in one file", (diffusion,), {}),
    ("several enhanced files, one volume each", (several_enhanced,), {}),
    (
        "Siemens mosaic",
        (lambda folder: write_mosaic(folder, random_stack((1, 5, 6, 8))), mosaic_turned),
        {},
    ),
    ("several Siemens mosaics", (lambda folder: write_mosaic(folder, random_stack((2, 5, 6, 8))),), {}),
    (
        "Siemens mosaic without Siemens' own header (CSA)",
        (stack(setting(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), modality="MR"),),
        {},
    ),
    (
        "Siemens mosaic without Spacing Between Slices",
        (lambda folder: write_mosaic(folder, random_stack((1, 5, 6, 8)), SpacingBetweenSlices=None),),
        {},
    ),
    ("grid of United Imaging", (lambda folder: write_grid(folder, random_stack((1, 5, 6, 8))),), {}),
    ("grid of United Imaging without the positions of its slices", (grid_of_united_imaging,), {}),
    ("SR, presentation state, key object, RT structures, a catalog beside the images", (other_objects,), {}),
    ("floating point pixel data (parametric maps) beside the images", (floating_point,), {}),
    ("only objects that are no images", (lambda folder: other_objects(folder, images=False),), {}),
    ("an empty folder", (lambda folder: folder.mkdir(),), {}),
    ("two series in one folder", (two_series,), {}),
    ("the same, with `series_uid`", (two_series,), {"series_uid": "1.2.2"}),
    ("a truncated file", (truncated,), {}),
    ("an image without pixel data", (stack(lambda dataset, n: n == 1 and delattr(dataset, "PixelData")),), {}),
    ("pixels that cannot be decoded", (undecodable,), {}),
    (
        "CT, MR or PET that does not say where it lies, one slice too",
        tuple(
            stack(setting(ImagePositionPatient=None), modality=kind, count=count)
            for kind in ("CT", "MR", "PT")
            for count in (6, 1)
        ),
        {},
    ),
    ("the same without a Pixel Spacing", (stack(setting(PixelSpacing=None)), stack(setting(PixelSpacing=[0, 1]))), {}),
    ("directions that are no unit vectors at right angles", (stack(orientation=(1, 0, 0, 0.2, 0.98, 0)),), {}),
    ("a High Bit that is not the last stored one", (stack(setting(BitsStored=12, HighBit=15)),), {}),
    ("a scan in XNAT whose images have a series UID each", (series_for_each_slice,), {"one_scan": True}),
    (
        "a scan in XNAT whose series is a part of a stack that another series continues",
        (part_of_a_stack,),
        {"one_scan": True, "series_uid": "1.2.1"},
    ),
)


def outcome(write: Write, folder: Path, options: dict[str, object]) -> tuple[str, str]:
    """Return what a series becomes, and the remarks or the error about it."""
    source = folder / "series"
    write(source)
    with Conversion("the folder", series_uid=options.get("series_uid")) as conversion:
        try:
            for path in list_files(source):
                conversion.add(path)
            volume = conversion.finish(folder / "image.nii", **options)
        except (ImageConversionError, NoImageError) as error:
            kind = "`NoImageError`" if isinstance(error, NoImageError) else "error"
            return kind if not (folder / "image.nii").exists() else "an error and a file", shortened(error.message)
    kind = "colour volume" if volume.shape[3:] == (3,) else {3: "volume", 4: "4-D"}[len(volume.shape)]
    warned = "with a warning: " if volume.warnings else ""
    return kind, warned + shortened("; ".join(volume.notes))


def shortened(text: str) -> str:
    """Return a text, shortened so that it fits into a table."""
    text = " ".join(text.partition(": ITK ERROR")[0].split()).replace("|", "/")
    text = re.sub(r"it has \d+ bytes", "it has ... bytes", text)  # UIDs differ in length
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN].rpartition(" ")[0] + " ..."


def table(folder: Path) -> str:
    lines = list(HEAD)
    for series, writers, options in ROWS:
        found = [outcome(write, Path(tempfile.mkdtemp(dir=folder)), options) for write in writers]
        assert len({becomes for becomes, _ in found}) == 1, (series, found)
        lines.append(f"| {series} | {found[0][0]} | {found[0][1]} |")
    return "\n".join(lines)


@pytest.mark.slow
def test_the_table_of_odd_series_is_what_becomes_of_them(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(HEAD[0])
    assert text[start : text.index("\n\n", start)] == table(tmp_path)
