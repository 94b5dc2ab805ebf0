"""What training and inference agree on: the labels, the network, and how a scan is prepared for it."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from monai.networks.nets import UNet
from monai.transforms import (
    EnsureChannelFirstd,
    LoadImaged,
    MapTransform,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

LABELS = {"liver": 1, "spleen": 2, "kidneys": 3}
"""Voxel value of each organ in a label map; 0 is background."""

SPACING = (4.0, 4.0, 4.0)
"""Voxel size the network works at, mm: coarse enough to see a whole abdomen and to train without a GPU."""

PATCH = (96, 96, 48)
"""Voxels the network sees at once (x, y, z), multiples of 8 for its three halvings."""

HU_WINDOW = (-160.0, 240.0)
"""CT numbers that are spread over 0..1: soft tissue; air and bone end at the rims."""


def build_network(seed: int = 0) -> UNet:
    """Make the untrained network: scaled CT in, one channel for background and each label out.

    Parameters
    ----------
    seed
        Start of the random weights, so that every process begins with the same network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=len(LABELS) + 1,
            channels=(16, 32, 64, 128),
            strides=(2, 2, 2),
            num_res_units=1,
        )


def load_transforms(keys: list[Hashable]) -> list[MapTransform]:
    """Read volumes into arrays (1, x, y, z); the reader knows NIfTI files, NRRD files and DICOM folders."""
    return [LoadImaged(keys, reader="ITKReader"), EnsureChannelFirstd(keys)]


def network_grid_transforms(keys: list[Hashable], modes: list[str]) -> list[MapTransform]:
    """Transform volumes to the orientation, voxel size and intensity the network is trained on.

    Parameters
    ----------
    keys
        Names of the volumes; only ``image`` has its intensities scaled.
    modes
        Interpolation for each of them: ``bilinear`` for images, ``nearest`` for label maps.
    """
    low, high = HU_WINDOW
    return [
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=SPACING, mode=modes),
        ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
    ]
