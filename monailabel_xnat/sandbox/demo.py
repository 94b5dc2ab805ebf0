"""The demo project: CT sessions of made-up people as valid DICOM files, with the true label maps beside them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from monailabel_xnat.sandbox.phantom import LABELS, Phantom, add_noise

PROJECT = "DEMO"
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Karl", "Lea")
_AXIAL = np.eye(3)
_CORONAL = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).T
_SAGITTAL = np.array([[0, 1.0, 0], [0, 0, -1], [-1, 0, 0]]).T
_NOISE_HU = 22.0


@dataclass(frozen=True)
class DemoCase:
    """One CT series of the demo with its true label map.

    `labelled` cases come with the truth as their label. `held_out` cases are for the final test and get no label.
    The other cases wait to be annotated. `truth` is a NIfTI label map (uint8, values of `DemoData.labels`) on the
    grid that MONAI's ITKReader and SimpleITK return for the files in `dicom`.
    """

    subject: str
    session: str
    scan: str
    study_uid: str
    series_uid: str
    dicom: Path
    truth: Path
    labelled: bool
    held_out: bool
    oblique: bool


@dataclass(frozen=True)
class DemoData:
    """The demo project on disk; `dicom` is the folder to import."""

    project: str
    name: str
    description: str
    labels: dict[str, int]
    dicom: Path
    cases: tuple[DemoCase, ...]


@dataclass(frozen=True)
class _Grid:
    """The position of a stack of slices. The columns of `axes` are the directions of row, column and normal."""

    axes: NDArray[np.float64]
    spacing: NDArray[np.float64]
    shape: tuple[int, int, int]
    first: NDArray[np.float64]

    @staticmethod
    def around(
        centre: NDArray[np.float64],
        axes: NDArray[np.float64],
        spacing: tuple[float, float, float],
        shape: tuple[int, int, int],
    ) -> _Grid:
        """Return a grid around a centre. All values are rounded so that DICOM's decimal strings hold them exactly."""
        steps, directions = np.asarray(spacing), axes.round(10)
        half = directions @ (steps * (np.asarray(shape) - 1) / 2)
        return _Grid(directions, steps, shape, (centre - half).round(4))

    def position(self, slice_index: int) -> NDArray[np.float64]:
        """Return the position of the first voxel of a slice, mm, LPS."""
        normal: NDArray[np.float64] = self.axes[:, 2] * self.spacing[2] * slice_index
        return (self.first + normal).round(6)

    def points(self) -> NDArray[np.float64]:
        """Return the positions of all voxels: (slices, rows, columns, 3), mm, LPS."""
        k, j, i = np.indices(self.shape[::-1])
        steps = np.stack([i, j, k], axis=-1) * self.spacing
        points: NDArray[np.float64] = self.first + steps @ self.axes.T
        return points


def write_demo(folder: Path, sessions: int = 8, seed: int = 0) -> DemoData:
    """Write the demo project: DICOM files and true label maps. The same arguments write the same files.

    Each session has an axial CT series as scan 2. The first session also has a three-plane localizer as scan 1.
    The third session is tilted about one axis, and the last one about two. The first half of the sessions is
    labelled, and the last quarter is held out.

    Parameters
    ----------
    folder
        Where to write ``dicom/<subject>/<session>/<scan>/`` and ``truth/<session>.nii.gz``. It is made if missing.
    sessions
        The number of sessions, 1 to 99. Each session has a subject of its own.
    seed
        Another seed makes other people and other UIDs.

    Returns
    -------
    DemoData
        What was written, in the order of the sessions.

    Raises
    ------
    ValueError
        If `sessions` is out of range.
    """
    if not 1 <= sessions <= 99:
        raise ValueError(f"A demo has 1 to 99 sessions, not {sessions}.")
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    cases = tuple(_write_session(folder, index, sessions, seed) for index in range(sessions))
    return DemoData(
        project=PROJECT,
        name="Demo: abdominal CT",
        description="Made-up abdominal CT with known organs. No patient was ever near it.",
        labels=dict(LABELS),
        dicom=folder / "dicom",
        cases=cases,
    )


def _write_session(folder: Path, index: int, sessions: int, seed: int) -> DemoCase:
    """Write the series of one session, and the true label map of the main series."""
    person = _Person(index, seed)
    phantom = Phantom(person.body_seed)
    study = folder / "dicom" / person.subject / person.session
    if index == 0:
        _write_localizer(study / "1", person, phantom)
    grid, oblique = _main_grid(index, sessions, person)
    hu, labels = phantom.sample(grid.points())
    series = _Series(person, 2, "Abdomen CT axial 5mm", ["ORIGINAL", "PRIMARY", "AXIAL"])
    series.write(study / "2", [(grid, add_noise(hu, _NOISE_HU, person.body_seed))], head_first=index % 2 == 1)
    truth = folder / "truth" / f"{person.session}.nii.gz"
    _write_truth(truth, grid, labels)
    return DemoCase(
        subject=person.subject,
        session=person.session,
        scan="2",
        study_uid=person.study_uid,
        series_uid=series.uid,
        dicom=study / "2",
        truth=truth,
        labelled=index < (sessions + 1) // 2,
        held_out=sessions > 1 and index >= sessions - max(1, sessions // 4),
        oblique=oblique,
    )


def _main_grid(index: int, sessions: int, person: _Person) -> tuple[_Grid, bool]:
    """Return the grid of a session's main series: its field of view, voxel size and tilt."""
    random = np.random.default_rng([person.body_seed, 0x61])
    tilts = (0.0, 0.0)
    if index == 2:
        tilts = (14.0, 0.0)
    elif index == sessions - 1 and index:
        tilts = (9.0, -12.0)
    pixel = float(random.choice([3.8, 3.9, 4.0, 4.1]))
    thickness = float(random.choice([4.8, 5.0, 5.2]))
    centre = random.normal(0, 6, 3)
    axes = _turn(0, tilts[0]) @ _turn(2, tilts[1])
    return _Grid.around(centre, axes, (pixel, pixel, thickness), (96, 96, 40)), any(tilts)


def _turn(axis: int, degrees: float) -> NDArray[np.float64]:
    """Return the matrix of a rotation about one axis of the patient."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def _write_localizer(folder: Path, person: _Person, phantom: Phantom) -> None:
    """Write a few slices in each of the three planes as one series, which is not a volume."""
    stacks = []
    for number, axes in enumerate((_AXIAL, _CORONAL, _SAGITTAL)):
        grid = _Grid.around(np.zeros(3), axes, (6.0, 6.0, 30.0), (64, 64, 3))
        hu, _ = phantom.sample(grid.points())
        stacks.append((grid, add_noise(hu, _NOISE_HU, person.body_seed + number + 1)))
    _Series(person, 1, "Localizer 3 planes", ["ORIGINAL", "PRIMARY", "LOCALIZER"]).write(folder, stacks)


def _write_truth(path: Path, grid: _Grid, labels: NDArray[np.uint8]) -> None:
    """Write a label map (slices, rows, columns) as NIfTI on the grid of its series."""
    image: Any = SimpleITK.GetImageFromArray(labels)
    image.SetOrigin(grid.first.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.axes.ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)


class _Person:
    """One made-up subject with one study."""

    def __init__(self, index: int, seed: int) -> None:
        random = np.random.default_rng([seed, index])
        self.body_seed = int(random.integers(2**31))
        self.subject = f"{PROJECT}{index + 1:02d}"
        self.session = f"{self.subject}_CT1"
        self.name = f"Demo^{_NAMES[index % len(_NAMES)]}"
        self.sex = "FM"[index % 2]
        self.born = date(1950, 1, 1) + timedelta(days=int(random.integers(15000)))
        self.scanned = date(2024, 1, 8) + timedelta(days=7 * index)
        self._entropy = f"{PROJECT} {seed} {index}"
        self.study_uid = self.uid("study")
        self.frame_uid = self.uid("frame of reference")

    def uid(self, *what: object) -> UID:
        """Return a UID that is always the same for the same thing."""
        return generate_uid(entropy_srcs=[self._entropy, *(str(part) for part in what)])


class _Series:
    """One CT series, written file by file."""

    def __init__(self, person: _Person, number: int, description: str, image_type: list[str]) -> None:
        self.person, self.number, self.description, self.image_type = person, number, description, image_type
        self.uid = person.uid("series", number)

    def write(self, folder: Path, stacks: list[tuple[_Grid, NDArray[np.int16]]], head_first: bool = False) -> None:
        """Write stacks (slices, rows, columns), HU, one file for each slice; `head_first` numbers them downwards."""
        folder.mkdir(parents=True, exist_ok=True)
        slices = [(grid, index, pixels[index]) for grid, pixels in stacks for index in range(len(pixels))]
        for instance, (grid, index, pixels) in enumerate(slices[::-1] if head_first else slices, start=1):
            dataset = _new_file(self.person.uid("image", self.number, instance))
            _describe_patient_and_study(dataset, self.person)
            self._describe_series(dataset, instance)
            _describe_image(dataset, grid, index, pixels)
            dataset.save_as(folder / f"IM{instance:04d}.dcm")

    def _describe_series(self, dataset: Dataset, instance: int) -> None:
        """Fill the General Series, Equipment and Image modules (PS3.3 C.7.3.1, C.7.5.1, C.7.6.1)."""
        dataset.Modality = "CT"
        dataset.SeriesInstanceUID = self.uid
        dataset.SeriesNumber = self.number
        dataset.SeriesDescription = dataset.ProtocolName = self.description
        dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = dataset.StudyDate
        dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = f"10{self.number:02d}00"
        dataset.BodyPartExamined = "ABDOMEN"
        dataset.PatientPosition = "HFS"
        dataset.FrameOfReferenceUID = self.person.frame_uid
        dataset.PositionReferenceIndicator = ""
        dataset.Manufacturer = "monailabel_xnat"
        dataset.ManufacturerModelName = "Phantom"
        dataset.ImageType = self.image_type
        dataset.InstanceNumber = instance
        dataset.AcquisitionNumber = 1


def _new_file(instance_uid: UID) -> FileDataset:
    """Return the beginning of a CT Image Storage file (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["monailabel_xnat sandbox"])
    dataset = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta, is_implicit_VR=False, is_little_endian=True)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = instance_uid
    return dataset


def _describe_patient_and_study(dataset: Dataset, person: _Person) -> None:
    """Fill the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1).

    A real XNAT reads the comment with its default routing, to know where to file the session.
    """
    dataset.PatientID = person.subject
    dataset.PatientName = person.name
    dataset.PatientSex = person.sex
    dataset.PatientBirthDate = person.born.strftime("%Y%m%d")
    dataset.PatientComments = f"Project:{PROJECT} Subject:{person.subject} Session:{person.session}"
    dataset.StudyInstanceUID = person.study_uid
    dataset.StudyID = "1"
    dataset.StudyDate = person.scanned.strftime("%Y%m%d")
    dataset.StudyTime = "100000"
    dataset.StudyDescription = "Abdomen (generated phantom)"
    dataset.AccessionNumber = f"A{person.subject}"
    dataset.ReferringPhysicianName = ""


def _describe_image(dataset: Dataset, grid: _Grid, index: int, pixels: NDArray[np.int16]) -> None:
    """Fill the Image Plane, Image Pixel, CT Image and VOI LUT modules (PS3.3 C.7.6.2, C.7.6.3, C.8.2.1)."""
    dataset.ImagePositionPatient = [_decimal(value) for value in grid.position(index)]
    dataset.ImageOrientationPatient = [_decimal(value) for value in grid.axes[:, :2].T.ravel()]
    dataset.PixelSpacing = [_decimal(grid.spacing[1]), _decimal(grid.spacing[0])]
    dataset.SliceThickness = _decimal(grid.spacing[2])
    dataset.SpacingBetweenSlices = _decimal(grid.spacing[2])
    dataset.SliceLocation = _decimal(round(float(grid.position(index) @ grid.axes[:, 2]), 4))
    dataset.KVP = "120"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.BurnedInAnnotation = "NO"
    dataset.PixelData = (pixels + np.int16(1024)).astype("<u2").tobytes()


def _decimal(value: float) -> str:
    """Write a number as DS, which has room for 16 characters."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) > 1e-10 else "0"
