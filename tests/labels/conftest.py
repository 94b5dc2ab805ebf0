"""An archive with small images, and labels of datastores opened on it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from label_archive import AFFINE, SHAPE, Gate, Opened, fill
from viewer import PROJECT, Viewer

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.pace import Backoff
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.images import Images
from monailabel_xnat.labels import Labels, LabelStore
from monailabel_xnat.sandbox import Sandbox


@pytest.fixture(scope="session")
def archive() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(archive) -> Iterator[Sandbox]:
    yield archive
    archive.faults.clear()


@pytest.fixture
def project(archive) -> str:
    """A project that only this test uses."""
    project = f"P{secrets.token_hex(4)}"
    with requests.Session() as admin:
        admin.auth = (archive.username, archive.password)
        fill(archive.url, project, admin)
    return project


@pytest.fixture
def gate(sandbox) -> Iterator[Gate]:
    """A gate in front of the archive. open_labels goes through it if called with ``server=gate.url``."""
    gate = Gate(sandbox.url)
    yield gate
    gate.close()


@pytest.fixture
def open_labels(sandbox, project, gate, tmp_path):
    """Open labels as a datastore does. Each call sees what another process would, unless it shares the folder."""
    opened = []

    def open_labels(folder="mine", username="", password="", **settings) -> Opened:
        arguments = {
            "server": sandbox.url,
            "username": username or sandbox.username,
            "password": password or sandbox.users[username or sandbox.username],
            "project": project,
            "cache_path": tmp_path / folder,
            **settings,
        }
        loaded = Settings.load(arguments, environ={})
        session = Session(loaded, Backoff(first_pause=0.01))
        catalog = Catalog(session)
        images = Images(session, loaded)
        labels = Labels(session, catalog, images, loaded)
        store = LabelStore(session, catalog, images, loaded, labels)
        opened.append((store, session))
        return Opened(labels, store, catalog, session, loaded)

    yield open_labels
    gate.open()
    for store, session in opened:
        store.close()
        session.close()


@pytest.fixture
def draw(tmp_path):
    """Make a label file with some organ in every voxel of one slab. Each seed makes another file."""

    def draw(seed=0, name="label.nii.gz", shape=SHAPE, affine=AFFINE) -> Path:
        array = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
        path = tmp_path / name
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    return draw


@pytest.fixture
def viewer(xnat_sandbox, demo_dicom, tmp_path) -> Iterator[Viewer]:
    """A person at the viewer, who looks at the only image of a project."""
    series = demo_dicom.cases[1].dicom
    xnat_sandbox.import_dicom(series, PROJECT)
    given = {"server": xnat_sandbox.url, "username": xnat_sandbox.username, "password": xnat_sandbox.password}
    settings = Settings.load({**given, "project": PROJECT, "cache_path": tmp_path / "viewer"}, environ={})
    session = Session(settings)
    (scan,) = Catalog(session).scans()
    images = Images(session, settings)
    files = [path for path in sorted(series.rglob("*")) if path.is_file()]
    yield Viewer(session, scan, files, images.grid(scan), tmp_path)
    images.close()
    session.close()


@pytest.fixture
def open_datastore(viewer, open_xnat_datastore):
    """Open a datastore on the viewer's project. By default it stores no copies for the viewer."""

    def open_datastore(**settings):
        return open_xnat_datastore(**{"project": PROJECT, "roi_write": "", **settings})

    return open_datastore
