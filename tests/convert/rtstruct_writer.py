"""Writes RT structure sets of known contours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid


@dataclass
class Roi:
    """Contours are corner lists (n, 3), LPS, mm."""

    number: int
    name: str
    contours: Sequence[np.ndarray] = ()
    colour: Sequence[int] | None = (255, 0, 0)
    kinds: Sequence[str] = ()


@dataclass
class StructureSetWriter:
    study_uid: str = "1.2.3"
    series_uid: str = "1.2.4"
    instance_uids: Sequence[str] = field(default_factory=lambda: ["1.2.5", "1.2.6"])

    def write(self, path: Path, rois: Sequence[Roi]) -> Path:
        dataset = FileDataset("", Dataset(), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.Modality = "RTSTRUCT"
        dataset.StudyInstanceUID = generate_uid()
        dataset.ReferencedFrameOfReferenceSequence = self._references()
        dataset.StructureSetROISequence = Items([_item(ROINumber=roi.number, ROIName=roi.name) for roi in rois])
        dataset.ROIContourSequence = Items([_roi_contours(roi) for roi in rois])
        dataset.save_as(path, write_like_original=False)
        return path

    def _references(self) -> Items:
        images = Items([_item(ReferencedSOPInstanceUID=uid) for uid in self.instance_uids])
        series = _item(SeriesInstanceUID=self.series_uid, ContourImageSequence=images)
        study = _item(ReferencedSOPInstanceUID=self.study_uid, RTReferencedSeriesSequence=Items([series]))
        return Items([_item(FrameOfReferenceUID="1.2.7", RTReferencedStudySequence=Items([study]))])


def _roi_contours(roi: Roi) -> Dataset:
    item = _item(ReferencedROINumber=roi.number)
    if roi.colour is not None:
        item.ROIDisplayColor = list(roi.colour)
    kinds = roi.kinds or ["CLOSED_PLANAR"] * len(roi.contours)
    item.ContourSequence = Items(
        [
            _item(
                ContourGeometricType=kind,
                NumberOfContourPoints=len(corners),
                ContourData=[f"{value:.8g}" for value in np.ravel(corners)],
            )
            for kind, corners in zip(kinds, roi.contours, strict=True)
        ]
    )
    return item


def _item(**elements) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
