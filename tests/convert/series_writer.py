"""Writes DICOM series of known voxels and known geometry."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pillow_jpls  # noqa: F401  (adds JPEG-LS to Pillow)
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG-LS": JPEGLSLossless,
}

CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
    "OT": SecondaryCaptureImageStorage,
    "US": UltrasoundMultiFrameImageStorage,
}


def rotated(*degrees: float) -> tuple[float, ...]:
    """Return the direction cosines of the axial plane, turned about x, y and z, and rounded as by a scanner."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        step = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return tuple(float(f"{value:.10f}") for value in (*turn[:, 0], *turn[:, 1]))


def random_stack(shape: Sequence[int], low: int = 0, high: int = 1000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, size=tuple(shape))


@dataclass
class SeriesWriter:
    """One series. Slices are (rows, columns) arrays of stored values, and each one is written to a file."""

    folder: Path
    modality: str = "CT"
    orientation: Sequence[float] = AXIAL
    origin: Sequence[float] = (-100.5, -80.25, 30.125)
    spacing: Sequence[float] = (0.7, 0.9)
    step: float = 2.5
    bits: int = 16
    bits_stored: int = 0
    signed: bool = False
    photometric: str = "MONOCHROME2"
    syntax: str = "explicit"
    slope: float | None = 1.0
    intercept: float | None = 0.0
    series_uid: str = field(default_factory=generate_uid)
    study_uid: str = field(default_factory=generate_uid)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    def position(self, number: float) -> list[float]:
        return [float(value) for value in np.add(self.origin, number * self.step * self.normal)]

    def write(
        self,
        stack: np.ndarray,
        names: Callable[[int], str] = "{:04d}.dcm".format,
        change: Callable[[Dataset, int], None] | None = None,
    ) -> list[Path]:
        """Write each slice of a stack (slices, rows, columns[, 3]). ``change`` may change a slice's dataset."""
        return [self.write_slice(pixels, number, names(number), change) for number, pixels in enumerate(stack)]

    def write_slice(
        self,
        pixels: np.ndarray,
        number: int,
        name: str,
        change: Callable[[Dataset, int], None] | None = None,
    ) -> Path:
        dataset = self.header(number)
        dataset.PixelSpacing = list(self.spacing)
        dataset.ImagePositionPatient = [f"{value:.10g}" for value in self.position(number)]
        dataset.ImageOrientationPatient = [f"{value:.12g}" for value in self.orientation]
        if self.slope is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = str(self.slope), str(self.intercept)
        self.set_pixels(dataset, pixels[np.newaxis])
        if change:
            change(dataset, number)
        return self.save(dataset, name)

    def header(self, number: int) -> FileDataset:
        dataset = FileDataset("", Dataset(), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        dataset.SOPClassUID = CLASSES[self.modality]
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study_uid, self.series_uid
        dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = self.modality, "made", 1
        dataset.SliceThickness = str(self.step)
        dataset.InstanceNumber = number + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        return dataset

    def set_pixels(self, dataset: Dataset, frames: np.ndarray) -> None:
        """Set the pixel module from (frames, rows, columns[, 3]) stored values."""
        dataset.Rows, dataset.Columns = frames.shape[1:3]
        dataset.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
        dataset.PhotometricInterpretation = "RGB" if frames.ndim == 4 else self.photometric
        if frames.ndim == 4:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = self.bits
        dataset.BitsStored = self.bits_stored or self.bits
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(self.signed)
        if len(frames) > 1:
            dataset.NumberOfFrames = len(frames)
        kind = np.dtype(f"{'i' if self.signed else 'u'}{self.bits // 8}")
        self._encode(dataset, frames.astype(kind))

    def _encode(self, dataset: Dataset, frames: np.ndarray) -> None:
        syntax = SYNTAXES[self.syntax]
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.is_little_endian = self.syntax != "big endian"
        dataset.is_implicit_VR = self.syntax == "implicit"
        dataset["PixelData"] = _pixel_element(_padded(frames.tobytes()), frames.dtype.itemsize)
        if self.syntax == "big endian":
            dataset["PixelData"] = _pixel_element(frames.astype(frames.dtype.newbyteorder(">")).tobytes(), 2)
        elif self.syntax == "RLE":
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.compress(RLELossless, frames.squeeze() if frames.shape[0] == 1 else frames)
        elif self.syntax in ("JPEG 2000", "JPEG-LS"):
            dataset["PixelData"] = _pixel_element(encapsulate([_codestream(f, self.syntax) for f in frames]), 1)
            dataset["PixelData"].is_undefined_length = True

    def save(self, dataset: FileDataset, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path, write_like_original=False)
        return path

    def write_enhanced(
        self,
        stack: np.ndarray,
        name: str = "enhanced.dcm",
        places: Sequence[float] | None = None,
        change: Callable[[Dataset, int], None] | None = None,
        scaling: Sequence[tuple[float, float]] | None = None,
    ) -> Path:
        """Write an enhanced MR object. Frame n is at ``places[n]`` steps. ``change`` may change its group."""
        dataset = self.header(0)
        dataset.SOPClassUID = EnhancedMRImageStorage
        self.set_pixels(dataset, stack)
        dataset.NumberOfFrames = len(stack)
        shared = Dataset()
        shared.PlaneOrientationSequence = _item(ImageOrientationPatient=list(self.orientation))
        shared.PixelMeasuresSequence = _item(PixelSpacing=list(self.spacing), SliceThickness=self.step)
        dataset.SharedFunctionalGroupsSequence = Items([shared])
        groups = []
        for number in range(len(stack)):
            group = Dataset()
            position = self.position(places[number] if places is not None else number)
            group.PlanePositionSequence = _item(ImagePositionPatient=[f"{value:.10g}" for value in position])
            slope, intercept = scaling[number] if scaling else (self.slope, self.intercept)
            group.PixelValueTransformationSequence = _item(
                RescaleSlope=str(slope), RescaleIntercept=str(intercept), RescaleType="US"
            )
            group.FrameContentSequence = _item(StackID="1", InStackPositionNumber=number + 1)
            if change:
                change(group, number)
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = Items(groups)
        return self.save(dataset, name)


def _item(**elements: Any) -> Items:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Items([dataset])


def _pixel_element(data: bytes, itemsize: int) -> Any:
    dataset = Dataset()
    dataset.add_new("PixelData", "OW" if itemsize == 2 else "OB", data)
    return dataset["PixelData"]


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def _codestream(frame: np.ndarray, syntax: str) -> bytes:
    target = io.BytesIO()
    image = PIL.Image.fromarray(frame)
    if syntax == "JPEG-LS":
        image.save(target, format="JPEG-LS")
    else:
        image.save(target, format="JPEG2000", irreversible=False, no_jp2=True)
    return target.getvalue()
