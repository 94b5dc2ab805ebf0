"""Series to measure with: made up, as large as real ones, uncompressed or compressed without loss."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_jpls  # noqa: F401 - registers JPEG-LS with Pillow
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    generate_uid,
)

SERIES = {
    "CT 512x512x200": ("CT", (512, 512, 200), 0.8, 1.5),
    "MR 256x256x160": ("MR", (256, 256, 160), 1.0, 1.0),
}
SYNTAXES = {"plain": ExplicitVRLittleEndian, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}


def write_series(folder: Path, name: str, syntax: str, patient: str = "BENCH") -> Path:
    """Write one series of files; the voxels look enough like anatomy to compress as scans do."""
    modality, (columns, rows, slices), spacing, distance = SERIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    volume = _anatomy(columns, rows, slices)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(slices):
        dataset = _file(SYNTAXES[syntax], CTImageStorage if modality == "CT" else MRImageStorage)
        dataset.update({})
        dataset.PatientID = dataset.PatientName = patient
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20260131", "101500", modality
        dataset.SeriesNumber, dataset.InstanceNumber = 2, index + 1
        dataset.SeriesDescription = f"{name} {syntax}"
        dataset.ImagePositionPatient = [-100.0, -100.0, distance * index]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing, spacing], distance
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        if modality == "CT":
            dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
        _set_pixels(dataset, volume[index], syntax)
        dataset.save_as(folder / f"slice{index:04d}.dcm", write_like_original=False)
    return folder


def _anatomy(columns: int, rows: int, slices: int) -> NDArray[np.uint16]:
    random = np.random.default_rng(0)
    z, y, x = np.ogrid[-1 : 1 : slices * 1j, -1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    organ = (x - 0.2) ** 2 + (y + 0.1) ** 2 + (z / 1.5) ** 2 < 0.15
    volume = np.where(body, 1030, 24) + np.where(organ, 60, 0) + 20 * np.sin(9 * x) * np.cos(7 * y) * body
    return np.clip(volume + random.normal(0, 8, (slices, rows, columns)) * body, 0, 4095).astype(np.uint16)


def _set_pixels(dataset: FileDataset, pixels: NDArray[np.uint16], syntax: str) -> None:
    encoders: dict[str, Callable[[NDArray[np.uint16]], bytes]] = {"JPEG-LS": _jpeg_ls, "JPEG 2000": _jpeg_2000}
    if syntax == "plain":
        dataset.PixelData = pixels.tobytes()
        return
    dataset.PixelData = encapsulate([encoders[syntax](pixels)])
    dataset["PixelData"].is_undefined_length = True


def _jpeg_ls(pixels: NDArray[np.uint16]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG-LS", near_lossless=0)
    return stream.getvalue()


def _jpeg_2000(pixels: NDArray[np.uint16]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


def _file(syntax: UID, sop_class: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    return dataset
