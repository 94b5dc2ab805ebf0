"""Writes DICOM files with pixels of any kind: photometric interpretation, bits, sign, syntax, planes, frames."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pillow_jpls  # noqa: F401  (adds JPEG-LS to Pillow)
from pydicom.encaps import encapsulate
from pydicom.pixel_data_handlers.rle_handler import rle_encode_frame
from series_writer import AXIAL, SYNTAXES, SeriesWriter

ROWS, COLUMNS = 6, 8
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422")
UNCOMPRESSED = ("implicit", "explicit", "big endian", "deflated")
CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "RTDOSE": "1.2.840.10008.5.1.4.1.1.481.2",
}


@dataclass(frozen=True)
class Pixels:
    """The pixels of a file, and how they are stored."""

    modality: str = "OT"
    syntax: str = "explicit"
    allocated: int = 16
    stored: int = 16
    signed: bool = False
    photometric: str = "MONOCHROME2"
    planar: int = 0
    frames: int = 1
    slope: float | None = None
    intercept: float = 0.0

    def __str__(self) -> str:
        sign = "signed" if self.signed else "unsigned"
        scale = "" if self.slope is None else f" times {self.slope:g}"
        return (
            f"{self.modality} {self.syntax} {self.stored} of {self.allocated} {sign} {self.photometric} "
            f"planar {self.planar} frames {self.frames}{scale}"
        )

    @property
    def samples(self) -> int:
        return 3 if self.photometric in COLOURS else 1

    def random(self, seed: int = 0) -> np.ndarray:
        """Return random stored values (frames, rows, columns[, 3]) that include the extremes."""
        low, high = 0, (1 << self.stored) - 1
        if self.signed:
            low, high = -(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1
        if self.photometric == "PALETTE COLOR":
            high = min(high, 255)
        shape = (self.frames, ROWS, COLUMNS) + ((3,) if self.samples == 3 else ())
        values = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
        values.flat[0], values.flat[1] = low, high
        if self.photometric == "YBR_FULL_422":
            values[:, :, 1::2, 1:] = values[:, :, ::2, 1:]
        return values

    def write(self, folder: Path, values: np.ndarray, change: Any = None) -> Path:
        writer = SeriesWriter(folder)
        dataset = writer.header(0)
        dataset.SOPClassUID, dataset.Modality = CLASSES[self.modality], self.modality
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, self.samples
        dataset.PhotometricInterpretation = self.photometric
        if self.samples == 3:
            dataset.PlanarConfiguration = self.planar
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = self.allocated, self.stored, self.stored - 1
        dataset.PixelRepresentation = int(self.signed)
        dataset.PixelSpacing, dataset.ImagePositionPatient = [0.7, 0.9], [1, 2, 3]
        dataset.ImageOrientationPatient = list(AXIAL)
        if self.frames > 1:
            dataset.NumberOfFrames = self.frames
            dataset.GridFrameOffsetVector = [3 * number for number in range(self.frames)]
            dataset.FrameIncrementPointer = 0x3004000C
        if self.slope is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = str(self.slope), str(self.intercept)
        dataset.file_meta.TransferSyntaxUID = SYNTAXES[self.syntax]
        dataset.is_little_endian, dataset.is_implicit_VR = self.syntax != "big endian", self.syntax == "implicit"
        if self.photometric == "PALETTE COLOR":
            for colour, table in palette().items():
                setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
                data = table.astype(">u2" if self.syntax == "big endian" else "<u2").tobytes()
                setattr(dataset, f"{colour}PaletteColorLookupTableData", data)
        self._encode(dataset, values)
        if change:
            change(dataset)
        return writer.save(dataset, "a.dcm")

    def _encode(self, dataset: Any, values: np.ndarray) -> None:
        if self.allocated == 1:
            data = np.packbits(values.ravel().astype(np.uint8), bitorder="little").tobytes()
            dataset.PixelData = data + b"\0" * (len(data) % 2)
            dataset["PixelData"].VR = "OB" if self.syntax != "implicit" else "OW"
            return
        raw = values.astype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")
        if self.syntax == "RLE":
            dataset.PixelData = encapsulate([rle_encode_frame(frame) for frame in raw])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        elif self.syntax in UNCOMPRESSED:
            if self.photometric == "YBR_FULL_422":
                raw = np.stack([raw[:, :, ::2, 0], raw[:, :, 1::2, 0], raw[:, :, ::2, 1], raw[:, :, ::2, 2]], -1)
            elif self.samples == 3 and self.planar:
                raw = raw.transpose(0, 3, 1, 2)
            if self.syntax == "big endian":
                raw = raw.astype(raw.dtype.newbyteorder(">"))
            dataset.PixelData = raw.tobytes() + b"\0" * (raw.nbytes % 2)
            dataset["PixelData"].VR = "OB" if self.allocated == 8 and self.syntax != "implicit" else "OW"
        else:
            dataset.PixelData = encapsulate([_codestream(frame, self.syntax) for frame in raw])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True

    def truth(self, values: np.ndarray) -> np.ndarray:
        """Return the values of the image (columns, rows, ...), computed from the stored ones without any reader."""
        if self.photometric == "PALETTE COLOR":
            meant = np.stack([table[values] >> 8 for table in palette().values()], -1)
        elif self.photometric in ("YBR_FULL", "YBR_FULL_422"):
            meant = _rgb(values)
        elif self.photometric == "MONOCHROME1":
            meant = -1 - values if self.signed else (1 << self.stored) - 1 - values
        else:
            meant = values
        if self.slope is not None:
            meant = meant * self.slope + self.intercept
        return meant.transpose(2, 1, 0, *range(3, meant.ndim))


def palette() -> dict[str, np.ndarray]:
    tables = np.random.default_rng(5).integers(0, 65536, (3, 256))
    return dict(zip(("Red", "Green", "Blue"), tables, strict=True))


def _rgb(values: np.ndarray) -> np.ndarray:
    y, cb, cr = (values[..., sample].astype(float) for sample in range(3))
    red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    return np.clip(np.rint(np.stack([red, green, blue], -1)), 0, 255)


def _codestream(frame: np.ndarray, syntax: str) -> bytes:
    target = io.BytesIO()
    image = PIL.Image.fromarray(frame)
    if syntax == "JPEG-LS":
        image.save(target, format="JPEG-LS")
    else:
        image.save(target, format="JPEG2000", irreversible=False, no_jp2=True)
    return target.getvalue()
