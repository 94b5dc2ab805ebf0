"""A helper for the tests of ROI collections: a person at the viewer, who draws and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from monailabel_xnat.catalog import Scan
from monailabel_xnat.client.session import Session
from monailabel_xnat.convert import Grid, LabelMap, Segment, write_seg

PROJECT = "P"


class Viewer:
    """Draws on one image and saves as the XNAT-OHIF viewer does: with a PUT to the plugin.

    Parameters
    ----------
    session : Session
        The login of the person.
    scan : Scan
        The image.
    images : list of Path
        Its DICOM files.
    grid : Grid
        Its grid.
    folder : Path
        For scratch files.
    """

    def __init__(self, session: Session, scan: Scan, images: list[Path], grid: Grid, folder: Path) -> None:
        self.session = session
        self.scan = scan
        self.images = images
        self.grid = grid
        self.folder = folder

    def draw(self, **boxes: tuple[int, int]) -> tuple[Any, tuple[Segment, ...]]:
        """Return an array with one box for each name, from one corner index to another on all axes."""
        array = np.zeros(self.grid.shape, np.uint8)
        for value, (low, high) in enumerate(boxes.values(), 1):
            array[low:high, low:high, low:high] = value
        return array, tuple(Segment(value, name.replace("_", " ")) for value, name in enumerate(boxes, 1))

    def seg(self, name: str = "drawn", **boxes: tuple[int, int]) -> tuple[Any, bytes]:
        """Return an array of boxes, and a SEG of it."""
        array, segments = self.draw(**(boxes or {"liver": (3, 9)}))
        target = self.folder / "seg.dcm"
        write_seg(
            LabelMap(array, self.grid.affine, segments),
            self.images,
            target,
            description=name,
            algorithm_type="MANUAL",
        )
        return array, target.read_bytes()

    def save(self, label: str, name: str = "drawn", overwrite: bool = False, **boxes: tuple[int, int]) -> Any:
        """Save boxes as a SEG, and return the array."""
        array, segments = self.draw(**(boxes or {"liver": (3, 9)}))
        target = self.folder / f"{label}.dcm"
        drawn = LabelMap(array, self.grid.affine, segments)
        write_seg(drawn, self.images, target, description=name, algorithm_type="MANUAL")
        self.store(label, target.read_bytes(), overwrite=overwrite)
        return array

    def store(self, label: str, content: bytes, kind: str = "SEG", overwrite: bool = False) -> str:
        session, image = self.session, self.scan.image_id
        path = f"/xapi/roi/projects/{image.project}/sessions/{image.experiment}/collections/{label}"
        query = {"type": kind, "overwrite": str(overwrite).lower()}
        headers = {"Content-Type": "application/octet-stream"}
        return session.request("PUT", path, query=query, body=content, headers=headers).text


def only(datastore: Any) -> str:
    """Return the id of the only image."""
    (image,) = datastore.list_images()
    return str(image)


def own_label(viewer: Viewer, folder: Path, value: int = 1) -> str:
    """Return a label file as a client of MONAI Label sends it."""
    array, _ = viewer.draw(own=(1, 4))
    path = folder / f"own{value}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array * np.uint8(value), viewer.grid.affine), path)
    return str(path)
