"""What a ROI collection says about itself, and the RTSTRUCT that the OHIF viewer's plugin makes of an AIM document."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage, generate_uid

from monailabel_xnat.sandbox.dicom.series import iso_date, iso_time, without_warnings
from monailabel_xnat.sandbox.http.messages import parsed_xml

_SOP_CLASSES = {"SEG": SegmentationStorage, "RTSTRUCT": RTStructureSetStorage}


@dataclass(frozen=True)
class Roi:
    """One region: a segment, a contour or an annotation."""

    name: str
    uid: str
    geometric_type: str


@dataclass
class RoiContent:
    """What was read from a collection.

    Parameters
    ----------
    studies
        UIDs of the studies that the collection refers to.
    series
        UIDs of the SOP instances that it refers to, by series UID. The empty UID holds those of an unnamed series.
    uid, name, date, time
        SOP instance UID (or the similar UID of another format), name, ``YYYY-MM-DD``, ``HH:MM:SS``; empty where the
        collection has none.
    rois
        The regions.
    """

    studies: set[str] = field(default_factory=set)
    series: dict[str, set[str]] = field(default_factory=dict)
    uid: str = ""
    name: str = ""
    date: str = ""
    time: str = ""
    rois: list[Roi] = field(default_factory=list)

    def refer(self, series: str, instances: Iterable[str]) -> None:
        """Note references to instances of a series."""
        self.series.setdefault(series, set()).update(instances)


def read_content(kind: str, content: bytes) -> RoiContent:
    """Read a collection.

    Parameters
    ----------
    kind
        ``SEG``, ``RTSTRUCT``, ``AIM`` (XML), ``MEAS`` (JSON), or ``NIFTI``, which refers to nothing.

    Raises
    ------
    ValueError
        If the content is not of this kind.
    HTTPError
        422 if it is to be XML and is not.
    """
    if kind in _SOP_CLASSES:
        with without_warnings():
            dataset = _dataset(kind, content)
            return _segmentation(dataset) if kind == "SEG" else _structure_set(dataset)
    readers = {"AIM": _aim, "MEAS": _measurements}
    return readers[kind](content) if kind in readers else RoiContent()


def _dataset(kind: str, content: bytes) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        sop_class = dataset.SOPClassUID
    except (InvalidDicomError, AttributeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"not a DICOM object: {error}") from error
    if sop_class != _SOP_CLASSES[kind]:
        raise ValueError(f"not a {kind}: SOP class {sop_class}")
    return dataset


def _segmentation(dataset: pydicom.Dataset) -> RoiContent:
    found = _described(dataset, "ContentDate", "ContentTime")
    found.studies.add(str(dataset.get("StudyInstanceUID", "")))
    _common_references(dataset, found)
    for other in dataset.get("StudiesContainingOtherReferencedInstancesSequence", ()):
        found.studies.add(str(other.get("StudyInstanceUID", "")))
        _common_references(other, found)
    groups = [*dataset.get("SharedFunctionalGroupsSequence", ()), *dataset.get("PerFrameFunctionalGroupsSequence", ())]
    for group in groups:
        for derivation in group.get("DerivationImageSequence", ()):
            found.refer("", _instances(derivation.get("SourceImageSequence", ())))
    for segment in dataset.get("SegmentSequence", ()):
        number = str(segment.get("SegmentNumber", ""))
        uid = str(segment.get("TrackingUID", "")) or f"{found.uid}.{number}"
        found.rois.append(Roi(str(segment.get("SegmentLabel", "")), uid, "SEGMENTATION"))
    return found


def _structure_set(dataset: pydicom.Dataset) -> RoiContent:
    found = _described(dataset, "StructureSetDate", "StructureSetTime")
    for frame in dataset.get("ReferencedFrameOfReferenceSequence", ()):
        for study in frame.get("RTReferencedStudySequence", ()):
            found.studies.add(str(study.get("ReferencedSOPInstanceUID", "")))
            for series in study.get("RTReferencedSeriesSequence", ()):
                images = series.get("ContourImageSequence", ())
                found.refer(str(series.get("SeriesInstanceUID", "")), _instances(images))
    kinds: dict[str, str] = {}
    for roi in dataset.get("ROIContourSequence", ()):
        for contour in roi.get("ContourSequence", ()):
            found.refer("", _instances(contour.get("ContourImageSequence", ())))
            kinds[str(roi.get("ReferencedROINumber", ""))] = str(contour.get("ContourGeometricType", ""))
    for roi in dataset.get("StructureSetROISequence", ()):
        number = str(roi.get("ROINumber", ""))
        found.rois.append(Roi(str(roi.get("ROIName", "")), f"{found.uid}.{number}", kinds.get(number, "")))
    return found


def _described(dataset: pydicom.Dataset, date: str, time: str) -> RoiContent:
    return RoiContent(
        uid=str(dataset.get("SOPInstanceUID", "")),
        name=str(dataset.get("SeriesDescription", "") or ""),
        date=iso_date(str(dataset.get(date, "") or "")),
        time=iso_time(str(dataset.get(time, "") or "")),
    )


def _common_references(dataset: pydicom.Dataset, found: RoiContent) -> None:
    """Read the Common Instance Reference module (PS3.3 C.12.2)."""
    for series in dataset.get("ReferencedSeriesSequence", ()):
        found.refer(str(series.get("SeriesInstanceUID", "")), _instances(series.get("ReferencedInstanceSequence", ())))


def _instances(items: Iterable[pydicom.Dataset]) -> Iterator[str]:
    return (str(item.ReferencedSOPInstanceUID) for item in items if "ReferencedSOPInstanceUID" in item)


def _aim(content: bytes) -> RoiContent:
    """Read AIM 4: an ImageAnnotationCollection, with studies, series and images nested in each other."""
    root = parsed_xml(content, 422)
    found = RoiContent(uid=root_of(root, "uniqueIdentifier"), name=value_of(root, "name"))
    for study in named(root, "imageStudy"):
        found.studies.add(root_of(study, "instanceUid"))
        for series in named(study, "imageSeries"):
            images = (root_of(image, "sopInstanceUid") for image in named(series, "Image"))
            found.refer(root_of(series, "instanceUid"), filter(None, images))
    for annotation in named(root, "ImageAnnotation"):
        name = value_of(annotation, "name")
        found.name = found.name or name
        kinds = [kind for item in named(annotation, "MarkupEntity") for key, kind in item.items() if "type" in key]
        found.rois.append(Roi(name, root_of(annotation, "uniqueIdentifier"), kinds[0] if kinds else ""))
    return found


def named(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Return the descendants that have a name, in any namespace."""
    return (item for item in element.iter() if item.tag.rpartition("}")[2] == name and item is not element)


def root_of(element: ElementTree.Element, name: str) -> str:
    """Return the attribute ``root`` of a child, in which AIM writes UIDs."""
    return value_of(element, name, "root")


def value_of(element: ElementTree.Element, name: str, attribute: str = "value") -> str:
    """Return the attribute ``value`` of a child, in which AIM writes everything but UIDs."""
    found = (item.get(attribute, "") for item in element if item.tag.rpartition("}")[2] == name)
    return next(found, "")


def _measurements(content: bytes) -> RoiContent:
    """Read a measurement collection of the OHIF viewer."""
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ValueError(f"not a measurement document: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("not a measurement document: no object")
    found = RoiContent(uid=str(document.get("uuid") or ""), name=str(document.get("name") or ""))
    for item in _objects(document):
        if item.get("StudyInstanceUID"):
            found.studies.add(str(item["StudyInstanceUID"]))
        if item.get("SeriesInstanceUID"):
            images = item.get("imageCollection") or ()
            found.refer(
                str(item["SeriesInstanceUID"]),
                (str(image["SOPInstanceUID"]) for image in images if image.get("SOPInstanceUID")),
            )
    for item in document.get("imageMeasurements") or ():
        found.rois.append(
            Roi(str(item.get("name") or ""), str(item.get("uuid") or ""), str(item.get("toolType") or ""))
        )
    return found


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_IMAGE_TAGS = (*_GEOMETRY, "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")
_PATIENT_TAGS = ("StudyInstanceUID", "StudyDate", "StudyTime", "PatientName", "PatientID", "PatientBirthDate")


def as_rtstruct(aim: bytes, files: Mapping[str, Path]) -> bytes:
    """Return an AIM document as RTSTRUCT. Every annotation becomes a ROI, every polyline in it a closed planar contour.

    The plugin reads the points of AIM as multiples of the pixel spacing, counted from the centre of the first pixel
    (``DicomUtils.imageCoordToPatientCoord3D``), but in the viewer that centre is at (0.5, 0.5). So the contours are
    half a pixel off, in XNAT as here. Markups of other shapes, and those on images without a place in the patient,
    are left out.

    Parameters
    ----------
    aim
        The document, which `read_content` has accepted.
    files
        The archived images that it refers to, by SOP instance UID.
    """
    root = parsed_xml(aim)
    with without_warnings():
        images = {
            uid: pydicom.dcmread(path, specific_tags=[*_IMAGE_TAGS, *_PATIENT_TAGS]) for uid, path in files.items()
        }
        dataset = _empty_structure_set(read_content("AIM", aim).name, images)
        for number, annotation in enumerate(named(root, "ImageAnnotation"), 1):
            _add_roi(dataset, number, annotation, images)
        target = io.BytesIO()
        dataset.save_as(target, write_like_original=False)
    return target.getvalue()


def _empty_structure_set(name: str, images: Mapping[str, Dataset]) -> Dataset:
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
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as PS3.3 C.8.8.5 requires
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
    """Return the corners of a polyline, each once, or an empty list for another shape."""
    if not any(value.endswith("TwoDimensionPolyline") for key, value in markup.items() if key.endswith("type")):
        return []
    found = [
        (float(value_of(point, "x")), float(value_of(point, "y")))
        for point in named(markup, "TwoDimensionSpatialCoordinate")
    ]
    return found[:-1] if len(found) > 1 and found[0] == found[-1] else found


def _in_patient(image: Dataset, x: float, y: float) -> Sequence[float]:
    """Return the position of a point of an image, in mm, LPS."""
    row, column = image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:]
    down, right = image.PixelSpacing
    return [
        float(start) + x * float(right) * float(along) + y * float(down) * float(across)
        for start, along, across in zip(image.ImagePositionPatient, row, column, strict=True)
    ]
