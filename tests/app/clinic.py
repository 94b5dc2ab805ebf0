"""A MONAI Label server with a small app, on an archive with a few small CT series, for tests of clients."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests
import SimpleITK
from label_server import environment, label_server
from series_writer import SeriesWriter

from monailabel_xnat.sandbox import Sandbox

APP = Path(__file__).parent / "small_app"
PROJECT, CLOSED = "CLINIC", "CLOSED"
SHAPE = (6, 10, 9)
"""The numbers of slices, rows and columns of each series."""


@dataclass
class Clinic:
    """The server, the archive behind it, and calls to it."""

    url: str
    sandbox: Sandbox
    app: Path
    closed: str
    log: Path
    web: requests.Session = field(default_factory=requests.Session)

    def call(self, method: str, path: str, **options) -> requests.Response:
        return self.web.request(method, f"{self.url}{path}", **{"timeout": 120, **options})

    def get(self, path: str, **query) -> requests.Response:
        return self.call("GET", path, params=query)

    def json(self, path: str, **query):
        answer = self.get(path, **query)
        answer.raise_for_status()
        return answer.json()

    @property
    def objects(self) -> dict:
        return self.json("/datastore/", output="all")["objects"]

    @property
    def images(self) -> list[str]:
        return sorted(self.objects)

    def image(self, number: int = 0) -> str:
        return self.images[number]

    def save_label(self, image: str, label: Path, tag: str = "", name: str = "", **info) -> requests.Response:
        query = {"image": image, **({"tag": tag} if tag else {})}
        with label.open("rb") as stream:
            files = {"label": (name or label.name, stream)}
            return self.call("PUT", "/datastore/label", params=query, data={"params": json.dumps(info)}, files=files)

    def finished(self, task: str) -> dict:
        """Wait for a background task (train, batch/infer, scoring), and return what the server says about it."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            answer = self.get(f"/{task}/" if "/" not in task else f"/{task}", all="true")
            if answer.ok and answer.json()[-1]["status"] not in ("SUBMITTED", "RUNNING"):
                return answer.json()[-1]
            time.sleep(0.5)
        raise AssertionError(f"{task} did not end")


@contextlib.contextmanager
def clinic(
    folder: Path, login: str = "member", series: int = 3, options: tuple[str, ...] = (), **conf
) -> Iterator[Clinic]:
    """Serve a project of some series, beside another project that the server was not started for."""
    app = folder / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    with Sandbox() as sandbox:
        for number in range(series):
            _import_series(sandbox, folder / f"case{number}", number, PROJECT)
        _import_series(sandbox, folder / "closed", 99, CLOSED)
        environ = {
            **environment(sandbox, folder),
            "MONAI_LABEL_XNAT_USERNAME": login,
            "MONAI_LABEL_XNAT_PASSWORD": sandbox.users[login],
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        }
        settings = {"xnat_project": PROJECT, "xnat_max_age": "1", "xnat_prefetch": "0", **conf}
        with label_server(app, sandbox.url, settings, environ, *options) as url:
            yield Clinic(url, sandbox, app, _id_of(sandbox, CLOSED), app.parent / "app.log")


def _import_series(sandbox: Sandbox, folder: Path, seed: int, project: str) -> None:
    series = SeriesWriter(folder, spacing=(1.0, 1.0), step=2.0)
    slices = np.random.default_rng(seed).integers(0, 40, SHAPE).astype(np.int16)
    slices[1:4, 2:6, 3:7] += 100
    series.write(slices)
    sandbox.import_dicom(series.folder, project)


def _id_of(sandbox: Sandbox, project: str) -> str:
    login = (sandbox.username, sandbox.password)
    query = {"columns": "ID,xnat:imagesessiondata/subject_id", "xsiType": "xnat:imageSessionData", "format": "json"}
    answer = requests.get(f"{sandbox.url}/data/projects/{project}/experiments", params=query, auth=login, timeout=60)
    (row,) = answer.json()["ResultSet"]["Result"]
    scans = requests.get(
        f"{sandbox.url}/data/experiments/{row['ID']}/scans", params={"format": "json"}, auth=login, timeout=60
    )
    scan = scans.json()["ResultSet"]["Result"][0]["ID"]
    return f"{project}/{row['xnat:imagesessiondata/subject_id']}/{row['ID']}/{scan}"


def read_voxels(content: bytes, folder: Path, suffix: str = ".nii.gz") -> np.ndarray:
    """Return the voxels (slices, rows, columns) of a volume that was downloaded."""
    file = folder / f"downloaded{suffix}"
    file.write_bytes(content)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def drawn_on(content: bytes, folder: Path, seed: int = 0, suffix: str = ".nii.gz") -> Path:
    """Draw on a volume that was downloaded, and return a file with the label values 0 and 1 on its grid."""
    source = folder / "source.nii.gz"
    source.write_bytes(content)
    image = SimpleITK.ReadImage(str(source))
    array = np.random.default_rng(seed).integers(0, 2, image.GetSize()[::-1]).astype(np.uint8)
    label = SimpleITK.GetImageFromArray(array)
    label.CopyInformation(image)
    SimpleITK.WriteImage(label, str(folder / f"drawn{seed}{suffix}"))
    return folder / f"drawn{seed}{suffix}"
