"""Inference: a scan in, a label map on the scan's own voxel grid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CastToTyped,
    CopyItemsd,
    EnsureTyped,
    ResampleToMatchd,
    SqueezeDimd,
)
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask

from lib.network import LABELS, PATCH, load_transforms, network_grid_transforms


class OrganInference(BasicInferTask):
    """Segment the organs with the newest trained weights, or with an untrained network before there are any.

    Parameters
    ----------
    model_file
        Weights, published by training. It need not exist yet; when it changes it is read again.
    network
        The network the weights belong to.
    """

    def __init__(self, model_file: Path, network: torch.nn.Module) -> None:
        super().__init__(
            path=str(model_file),
            network=network,
            type=InferType.SEGMENTATION,
            labels=LABELS,
            dimension=3,
            description="Liver, spleen and kidneys in CT",
        )

    def pre_transforms(self, data: dict[str, Any] | None = None) -> list[Callable]:
        """Load the scan, keep its grid for later, and bring it to the network's grid."""
        return [
            *load_transforms(["image"]),
            CopyItemsd("image", names="scan"),
            *network_grid_transforms(["image"], ["bilinear"]),
            EnsureTyped("image"),
        ]

    def inferer(self, data: dict[str, Any] | None = None) -> Inferer:
        """Slide the patch size of the training over scans of any size."""
        return SlidingWindowInferer(roi_size=PATCH, overlap=0.25, mode="gaussian")

    def post_transforms(self, data: dict[str, Any] | None = None) -> list[Callable]:
        """Resample the probabilities back to the scan's grid and give each voxel its likeliest label.

        Resampling probabilities instead of labels keeps the borders smooth when the scan is finer than
        the network's grid.
        """
        return [
            EnsureTyped("pred", device="cpu"),
            Activationsd("pred", softmax=True),
            ResampleToMatchd("pred", key_dst="scan", mode="bilinear", padding_mode="border"),
            AsDiscreted("pred", argmax=True),
            SqueezeDimd("pred", dim=0),
            CastToTyped("pred", dtype=torch.uint8),
        ]
