"""Files that real viewers saved, the masks that were painted, and how each viewer stores its files in XNAT."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import requests

SHARED = Path(__file__).parents[2].parent / "shared"
CASES = SHARED / "cases" / "viewers"
PLASTIC = SHARED / "dicom" / "ct_philips_axial5mm"


class Person:
    """A person at a viewer, with a login.

    Parameters
    ----------
    sandbox : Sandbox
        The site.
    project : str
        The project of the person.
    login : str
        The name of the user; the administrator if empty.
    """

    def __init__(self, sandbox: Any, project: str, login: str = "") -> None:
        self.url = sandbox.url
        self.project = project
        self.http = requests.Session()
        name = login or sandbox.username
        self.http.auth = (name, sandbox.users[name])

    def sessions(self) -> list[dict[str, str]]:
        answer = self.http.get(f"{self.url}/data/projects/{self.project}/experiments?columns=ID,label&format=json")
        return list(answer.json()["ResultSet"]["Result"])

    def session(self) -> str:
        (row,) = self.sessions()
        return row["ID"]

    def put(self, path: str, body: bytes = b"", kind: str = "application/dicom", **query: str) -> None:
        answer = self.http.put(self.url + path, data=body, params=query, headers={"Content-Type": kind})
        answer.raise_for_status()

    def store_collection(self, label: str, kind: str, content: bytes, session: str = "") -> None:
        """Store a collection as the XNAT-OHIF viewer does."""
        path = f"/xapi/roi/projects/{self.project}/sessions/{session or self.session()}/collections/{label}"
        self.put(path, content, "application/octet-stream", type=kind, overwrite="false")

    def store_scan(self, scan: str, kind: str, content: bytes, name: str, session: str = "") -> str:
        """Store a scan as XNAT Workstation does, and return its path."""
        session = session or self.session()
        path = f"/data/experiments/{session}/scans/{scan}"
        xsi = {"SEG": "xnat:segScanData", "RTSTRUCT": "xnat:rtImageScanData"}[kind]
        self.put(path, xsiType=xsi, **{f"{xsi}/type": kind, f"{xsi}/series_description": name})
        self.store_file(path, kind, content)
        pulled = self.http.put(self.url + path, params={"pullDataFromHeaders": "true"})
        assert pulled.status_code in (200, 500)  # XNAT fails if it cannot read the headers, but the scan exists then
        return path

    def store_file(self, path: str, kind: str, content: bytes) -> None:
        if kind == "SEG":
            self.put(f"{path}/resources/DICOM/files/segmentation.dcm", content, format="DICOM", content="SEG")
        else:
            place = f"{path}/resources/secondary/files/rtstruct.dcm"
            self.put(place, content, format="DICOM", content="secondary", label="secondary")

    def overwrite_scan(self, path: str, kind: str, content: bytes) -> None:
        """Overwrite a scan as XNAT Workstation does: the scan and the names of its files stay."""
        resource = "DICOM" if kind == "SEG" else "secondary"
        self.http.delete(f"{self.url}{path}/resources/{resource}/files").raise_for_status()
        self.store_file(path, kind, content)


def painted(name: str, image: str, dicom: Path) -> Any:
    """Return what was painted, on the grid of an image (NIfTI) that was made of DICOM files."""
    truth = json.loads((CASES / f"{name}_truth.json").read_text())
    pictures = np.frombuffer(gzip.decompress((CASES / f"{name}_truth.raw.gz").read_bytes()), np.uint8)
    pictures = pictures.reshape(truth["n"], truth["rows"], truth["columns"])
    volume = nibabel.load(image)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in dicom.rglob("*") if path.is_file()]
    places = {header.SOPInstanceUID: header.ImagePositionPatient for header in headers}
    expected = np.zeros(volume.shape, np.uint8)
    for picture, uid in zip(pictures, truth["sops"], strict=True):
        x, y, z = places[uid]
        voxel = np.linalg.inv(volume.affine) @ (-x, -y, z, 1)
        expected[:, :, round(voxel[2])] = picture.T
    return expected
