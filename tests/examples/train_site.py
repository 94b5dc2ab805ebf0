"""A small XNAT to train on: bright balls in noise, on grids that differ from that of a network."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np

from monailabel_xnat import XNATDatastore

PROJECT = "BALLS"
SHAPE = (32, 16, 32)
# Index axes run to the left, upwards and to the back; voxels are 1, 2 and 1 mm.
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 0, -1, 10], [0, 2, 0, -30], [0, 0, 0, 1]])
LABELLED = ("ann_1", "ann_2", "ben_1", "cleo_1", "cleo_2", "dan_1")
UNLABELLED = "eva_1"


def ball(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, and the ball in it as uint8."""
    random = np.random.default_rng(number)
    centre = np.array([12, 7, 12]) + random.integers(0, 6, 3)
    distances = (np.indices(SHAPE).T - centre) * np.diag(np.abs(np.diag([1.0, 2.0, 1.0])))
    truth = (np.linalg.norm(distances, axis=-1).T < 8).astype(np.uint8)
    return (100 * truth + random.normal(0, 10, SHAPE)).astype(np.int16), truth


def fill(sandbox, folder: Path) -> dict[str, np.ndarray]:
    """Add images of five subjects, label those of four, and return the true masks by image id."""
    sandbox.archive.create_project(PROJECT)
    truths = {}
    login = {"username": sandbox.username, "password": sandbox.password}
    cache = folder / "filling"
    with XNATDatastore(sandbox.url, project=PROJECT, cache_path=cache, environ={}, roi_write=[], **login) as datastore:
        for number, name in enumerate((*LABELLED, UNLABELLED)):
            paths = []
            for kind, voxels in zip(("image", "label"), ball(number), strict=True):
                paths.append(folder / f"{kind}.nii.gz")
                nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), paths[-1])
            image = datastore.add_image(f"{PROJECT}/{name.split('_')[0]}/{name}/1", str(paths[0]), {})
            truths[image] = ball(number)[1]
            if name in LABELLED:
                datastore.save_label(image, str(paths[1]), "final", {"label_info": [{"name": "ball", "idx": 1}]})
    return truths


def environment(sandbox, cache: Path) -> dict[str, str]:
    """Return the environment variables of a user who trains on this XNAT, with one thread for each process."""
    return {
        **os.environ,
        "MONAI_LABEL_XNAT_SERVER": sandbox.url,
        "MONAI_LABEL_XNAT_USERNAME": sandbox.username,
        "MONAI_LABEL_XNAT_PASSWORD": sandbox.password,
        "MONAI_LABEL_XNAT_CACHE_PATH": str(cache),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }
