"""The RTSTRUCT that the OHIF viewer's plugin makes of an AIM document, beside it (AimConversionHelper)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from monailabel_xnat.sandbox.dicom.series import without_warnings
from monailabel_xnat.sandbox.roi.references import named, read_content, root_of, value_of

_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_IMAGE_TAGS = (*_GEOMETRY, "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")
_PATIENT_TAGS = ("StudyInstanceUID", "StudyDate", "StudyTime", "PatientName", "PatientID", "PatientBirthDate")


def as_rtstruct(aim: bytes, files: Mapping[str, Path]) -> bytes:
    """Return an AIM document as RTSTRUCT: every annotation a ROI, every polyline in it a closed planar contour.

    The plugin takes the points of AIM for multiples of the pixel spacing, counted from the centre of the first pixel
    (``DicomUtils.imageCoordToPatientCoord3D``), while the viewer has that centre at (0.5, 0.5): the contours lie half a
    pixel off, here as there. Markups of other shapes, and those on images without a place in the patient, are left out.

    Parameters
    ----------
    aim
        The document, which `read_content` has accepted.
    files
        The archived images that it refers to, by SOP instance UID.
    """
    root = ElementTree.fromstring(aim)  # noqa: S314 - read_content refuses a document type
    with without_warnings():
        images = {
            uid: pydicom.dcmread(path, specific_tags=[*_IMAGE_TAGS, *_PATIENT_TAGS]) for uid, path in files.items()
        }
        dataset = _structure_set(read_content("AIM", aim).name, images)
        for number, annotation in enumerate(named(root, "ImageAnnotation"), 1):
            _add_roi(dataset, number, annotation, images)
        target = io.BytesIO()
        dataset.save_as(target, write_like_original=False)
    return target.getvalue()


def _structure_set(name: str, images: Mapping[str, Dataset]) -> Dataset:
    first = next(iter(images.values()))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, True
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), "RTSTRUCT"
    dataset.SeriesDescription = dataset.StructureSetLabel = name
    for keyword in _PATIENT_TAGS:
        if keyword in first:
            setattr(dataset, keyword, first[keyword].value)
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(first, images.values())]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    return dataset


def _frame_of_reference(first: Dataset, images: Iterable[Dataset]) -> Dataset:
    of_series: dict[str, list[Dataset]] = {}
    for image in images:
        of_series.setdefault(str(image.SeriesInstanceUID), []).append(_reference(image))
    series = []
    for uid, references in of_series.items():
        series.append(Dataset())
        series[-1].SeriesInstanceUID, series[-1].ContourImageSequence = uid, references
    study, frame = Dataset(), Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as PS3.3 C.8.8.5 asks
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = first.StudyInstanceUID, series
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.get("FrameOfReferenceUID", ""), [study]
    return frame


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return reference


def _add_roi(dataset: Dataset, number: int, annotation: ElementTree.Element, images: Mapping[str, Dataset]) -> None:
    roi, contours, observation = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, value_of(annotation, "name"), ""
    roi.ReferencedFrameOfReferenceUID = dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    contours.ReferencedROINumber, contours.ContourSequence = number, []
    for markup in named(annotation, "MarkupEntity"):
        image = images.get(root_of(markup, "imageReferenceUid"))
        points = _points(markup)
        if points and image is not None and all(keyword in image for keyword in _GEOMETRY):
            contour = Dataset()
            contour.ContourImageSequence, contour.ContourGeometricType = [_reference(image)], "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.10g}" for point in points for value in _in_patient(image, *point)]
            contours.ContourSequence.append(contour)
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
    dataset.StructureSetROISequence.append(roi)
    dataset.ROIContourSequence.append(contours)
    dataset.RTROIObservationsSequence.append(observation)


def _points(markup: ElementTree.Element) -> list[tuple[float, float]]:
    """Return the corners of a polyline, each once; none for another shape."""
    if not any(value.endswith("TwoDimensionPolyline") for key, value in markup.items() if key.endswith("type")):
        return []
    found = [
        (float(value_of(point, "x")), float(value_of(point, "y")))
        for point in named(markup, "TwoDimensionSpatialCoordinate")
    ]
    return found[:-1] if len(found) > 1 and found[0] == found[-1] else found


def _in_patient(image: Dataset, x: float, y: float) -> Sequence[float]:
    """Return the place of a point of an image, in mm, LPS."""
    row, column = image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:]
    down, right = image.PixelSpacing
    return [
        float(start) + x * float(right) * float(along) + y * float(down) * float(across)
        for start, along, across in zip(image.ImagePositionPatient, row, column)
    ]
