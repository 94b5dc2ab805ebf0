"""The header of a DICOM SEG: patient, study, segments, and references to the images that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds

from monailabel_xnat import __version__
from monailabel_xnat.convert.dicom.frames import Frame
from monailabel_xnat.convert.dicom.headers import ImageHeader
from monailabel_xnat.convert.dicom.objects import decoded, encodings_of
from monailabel_xnat.convert.geometry import Floats, Plane
from monailabel_xnat.convert.labelmap import Segment
from monailabel_xnat.convert.seg.segments import (
    code,
    described_segment,
    items,
    one_line,
)

SEG_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"


# Patient and study are copied from the images. These elements must be present, even if empty (PS3.3 C.7.1.1, C.7.2.1).
_REQUIRED = (
    0x00080020,  # Study Date
    0x00080030,  # Study Time
    0x00080050,  # Accession Number
    0x00080090,  # Referring Physician's Name
    0x00100010,  # Patient's Name
    0x00100020,  # Patient ID
    0x00100030,  # Patient's Birth Date
    0x00100040,  # Patient's Sex
    0x0020000D,  # Study Instance UID
    0x00200010,  # Study ID
    0x00201040,  # Position Reference Indicator
)
_OPTIONAL = (
    0x00081030,  # Study Description
    0x00100021,  # Issuer of Patient ID
    0x00101010,  # Patient's Age
    0x00120062,  # Patient Identity Removed
    0x00120063,  # De-identification Method
)
_CHARACTER_SET = 0x00080005
_FRAME_OF_REFERENCE = 0x00200052
_TEXT = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_SERIES_NUMBER_OFFSET = 1000


def seg_header(
    image: ImageHeader,
    plane: Plane,
    step: float,
    segments: Sequence[Segment],
    *,
    description: str,
    algorithm_type: str,
    algorithm_name: str,
    instance_uid: str,
) -> Dataset:
    """Return the elements of a binary SEG that describe all frames, without the references to images.

    Parameters
    ----------
    image : ImageHeader
        One of the images; patient, study and frame of reference are read from its file.
    plane : Plane
        The place of one image; its orientation and its pixel spacing are the same for all.
    step : float
        Distance between neighbouring slices, mm.
    segments : sequence of Segment
        The segments in the order of their numbers, which start at 1.
    description, algorithm_type, algorithm_name, instance_uid : str
        As for `write_seg`.

    Returns
    -------
    Dataset
        The elements; the number of frames, the references and the frames themselves are still missing.
    """
    dataset = _of_patient_and_study(image.path, instance_uid)
    dataset.SOPClassUID = SEG_CLASS
    dataset.SOPInstanceUID = instance_uid
    dataset.Modality = "SEG"
    dataset.SeriesInstanceUID = derived_uid(instance_uid, "series")
    number = image.series_number if image.series_number.isdecimal() else "0"
    dataset.SeriesNumber = str(min(int(number), 10**8) + _SERIES_NUMBER_OFFSET)
    dataset.InstanceNumber = "1"
    dataset.SeriesDescription = one_line(description)
    dataset.ContentLabel = "SEGMENTATION"
    dataset.ContentDescription = one_line(description)
    dataset.ContentCreatorName = ""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    _set_equipment_and_time(dataset)
    _set_pixel_module(dataset, image)
    _set_dimensions(dataset, instance_uid)
    algorithm = {"SegmentAlgorithmType": algorithm_type}
    if algorithm_type != "MANUAL":
        algorithm["SegmentAlgorithmName"] = one_line(algorithm_name) or "unnamed"
    dataset.SegmentSequence = Items(described_segment(n, one, algorithm) for n, one in enumerate(segments, start=1))
    shared = Dataset()
    shared.PlaneOrientationSequence = items(ImageOrientationPatient=_decimals(plane.orientation))
    # Some readers take the distance of the slices from one of these elements, some from the other.
    thickness = format_number_as_ds(step)
    shared.PixelMeasuresSequence = items(
        PixelSpacing=_decimals(plane.spacing), SliceThickness=thickness, SpacingBetweenSlices=thickness
    )
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.SpecificCharacterSet = _character_set(dataset)
    return dataset


def referenced_series(frames: Iterable[Frame], headers: Mapping[Path, ImageHeader]) -> Items:
    """Return the Referenced Series Sequence with its one item, which lists each image once (DICOM PS3.3 C.12.4)."""
    images = [headers[path] for path in dict.fromkeys(frame.path for frame in frames)]
    references = Items(items(**_reference(image))[0] for image in images)
    return items(SeriesInstanceUID=images[0].series_uid, ReferencedInstanceSequence=references)


def derivation(frame: Frame, image: ImageHeader) -> Items:
    """Return the Derivation Image Sequence with its one item: the image frame that a mask was drawn on."""
    reference = _reference(image)
    if len(image.frames) > 1:
        reference["ReferencedFrameNumber"] = str(frame.index + 1)
    source = items(
        **reference,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=code("121322", "DCM", "Source image for image processing operation"),
    )
    return items(SourceImageSequence=source, DerivationCodeSequence=code("113076", "DCM", "Segmentation"))


def plane_position(plane: Plane) -> Items:
    """Return the Plane Position Sequence with its one item: the centre of the first pixel, LPS, mm."""
    return items(ImagePositionPatient=_decimals(plane.position))


def derived_uid(instance_uid: str, purpose: str) -> str:
    """Return a further UID for an object. For the same two arguments it is always the same UID."""
    return str(generate_uid(entropy_srcs=[instance_uid, purpose]))


def _of_patient_and_study(path: Path, instance_uid: str) -> Dataset:
    """Return a dataset with the patient, the study and the frame of reference of an image file."""
    wanted = [_CHARACTER_SET, _FRAME_OF_REFERENCE, *_REQUIRED, *_OPTIONAL]
    source = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted, force=True)
    encodings = encodings_of(source)
    dataset = Dataset()
    for tag in (*_REQUIRED, *_OPTIONAL):
        value = decoded(source, tag, encodings)
        if value or tag in _REQUIRED:
            # Copied without validation: it is not our task to correct what the images say about the patient.
            dataset.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    uid = decoded(source, _FRAME_OF_REFERENCE, encodings) or derived_uid(instance_uid, "frame of reference")
    dataset.add(DataElement(_FRAME_OF_REFERENCE, "UI", uid, validation_mode=IGNORE))
    return dataset


def _character_set(dataset: Dataset) -> str:
    """Return the character set of a dataset: Latin-1 if it can hold all text, else UTF-8.

    Latin-1 comes first because dcmjs reads names within sequences as Latin-1.
    """
    text = "".join(str(element.value) for element in dataset.iterall() if element.VR in _TEXT)
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return "ISO_IR 192"
    return "ISO_IR 100"


def _set_equipment_and_time(dataset: Dataset) -> None:
    dataset.Manufacturer = "monailabel_xnat"
    dataset.ManufacturerModelName = "monailabel_xnat"
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = __version__
    now = datetime.now()
    for name in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{name}Date", now.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", now.strftime("%H%M%S"))


def _set_pixel_module(dataset: Dataset, image: ImageHeader) -> None:
    dataset.Rows, dataset.Columns = image.rows, image.columns
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelRepresentation = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.LossyImageCompression = "00"
    dataset.SegmentationType = "BINARY"
    dataset.SegmentsOverlap = "NO"


def _set_dimensions(dataset: Dataset, instance_uid: str) -> None:
    """Write the dimensions of the frames: the segment, then the position (DICOM PS3.3 C.7.6.17)."""
    organization = derived_uid(instance_uid, "dimensions")
    dataset.DimensionOrganizationSequence = items(DimensionOrganizationUID=organization)
    pointers = (
        ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        ("ImagePositionPatient", "PlanePositionSequence"),
    )
    indices = []
    for element, group in pointers:
        index = Dataset()
        index.DimensionOrganizationUID = organization
        index.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(element)
        index.FunctionalGroupPointer = pydicom.datadict.tag_for_keyword(group)
        index.DimensionDescriptionLabel = element
        indices.append(index)
    dataset.DimensionIndexSequence = Items(indices)


def _reference(image: ImageHeader) -> dict[str, Any]:
    return {"ReferencedSOPClassUID": image.sop_class, "ReferencedSOPInstanceUID": image.sop_instance_uid}


def _decimals(values: Sequence[float] | Floats) -> list[str]:
    # Adding 0.0 makes a negative zero positive.
    return [format_number_as_ds(float(value) + 0.0) for value in np.asarray(values)]
