"""A project with one image, in an archive that tests write to as an administrator does."""

from __future__ import annotations

import nibabel
import numpy as np
import requests

AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])
SHAPE = (6, 5, 4)


def nifti(value: int, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, kind: str = "int16") -> bytes:
    """Return a file of one value."""
    return nibabel.Nifti1Image(np.full(shape, value, kind), affine).to_bytes()


def value_of(path: str) -> int:
    return int(np.asarray(nibabel.load(path).dataobj).max())


class Site:
    """A project with one image, written to as an administrator does."""

    def __init__(self, sandbox) -> None:
        self.sandbox = sandbox
        self._admin = requests.Session()
        self._admin.auth = (sandbox.username, sandbox.password)
        self._scan = "projects/P/subjects/s1/experiments/e1/scans/1"
        self._send("projects/P")
        self._send("projects/P/subjects/s1")
        self._send("projects/P/subjects/s1/experiments/e1?xsiType=xnat:ctSessionData")
        self._send(f"{self._scan}?xsiType=xnat:ctScanData&xnat:ctScanData/type=CT")

    def put(self, resource: str, name: str, content: bytes) -> None:
        self._send(f"{self._scan}/resources/{resource}/files/{name}?overwrite=true", content)

    def asked_for_files(self) -> int:
        return sum(1 for request in self.sandbox.requests if request.path.endswith("/files"))

    def _send(self, path: str, content: bytes | None = None) -> None:
        headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
        self._admin.put(f"{self.sandbox.url}/data/{path}", data=content, headers=headers).raise_for_status()
