"""Helpers for the tests of labels: an archive with small images, and labels opened on it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import nibabel
import numpy as np
import requests

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.session import Session, quoted
from monailabel_xnat.config import Settings
from monailabel_xnat.labels import Labels, LabelStore

SHAPE = (7, 6, 5)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.0, 0, 40], [0, 0, 3.0, -50], [0, 0, 0, 1]])


class Opened(NamedTuple):
    """The labels of one datastore, and the objects that they use."""

    labels: Labels
    store: LabelStore
    catalog: Catalog
    session: Session
    settings: Settings

    @property
    def scan(self) -> Scan:
        return self.catalog.scan(f"{self.settings.project[0]}/s1/e1/1")


def fill(url: str, project_id: str, admin: requests.Session) -> None:
    """Make a project with one subject, one session and two scans with an image."""
    project = f"{url}/data/projects/{project_id}"
    session = f"{project}/subjects/s1/experiments/e1"
    paths = [project, f"{project}/subjects/s1", f"{session}?xsiType=xnat:ctSessionData&date=2026-01-01"]
    paths += [f"{session}/scans/{scan}?xsiType=xnat:ctScanData&xnat:ctScanData/type=CT" for scan in (1, 2)]
    for path in paths:
        admin.put(path).raise_for_status()
    image = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), AFFINE).to_bytes()
    for scan in (1, 2):
        file = f"{session}/scans/{scan}/resources/NIFTI/files/image.nii"
        headers = {"Content-Type": "application/octet-stream"}
        admin.put(file, data=image, headers=headers).raise_for_status()


def voxels(path: Path) -> Any:
    return np.asarray(nibabel.load(path).dataobj)


def stored(opened: Opened, tag: str = "final") -> list[str]:
    """Return the names of the files of a label, as XNAT lists them."""
    path = opened.scan.path + quoted("resources", f"MONAILABEL_{tag}")
    return sorted(file.path for file in list_files(opened.session, path))


class Gate:
    """A gate in front of a server. While it is shut, connections are cut, as by a server that has gone away."""

    def __init__(self, url: str) -> None:
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._open = True
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def shut(self) -> None:
        self._open = False
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        self.shut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._open:
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                self._sockets |= {client, server}
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        self._sockets.discard(source)
        source.close()
