"""Training: the final labels in, better weights out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    EnsureTyped,
    RandAffined,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)
from monailabel.tasks.train.basic_train import BasicTrainTask, Context

from lib.network import LABELS, PATCH, load_transforms, network_grid_transforms

IMAGE_AND_LABEL = ["image", "label"]


class OrganTraining(BasicTrainTask):
    """Train the network on every image that has a final label, and publish the best weights.

    A second training goes on from the weights of the first.

    Parameters
    ----------
    model_dir
        Folder for checkpoints, event files and statistics.
    model_file
        Where the best weights go while training is under way: the file that inference reads.
    network
        The network to train.
    """

    def __init__(self, model_dir: Path, model_file: Path, network: torch.nn.Module) -> None:
        self._network = network
        super().__init__(
            model_dir=str(model_dir / "organs"),
            publish_path=str(model_file),
            description="Train on the final labels in the datastore",
            labels=LABELS,
            amp=torch.cuda.is_available(),
            tracking=None,
            # Defaults that a client may change per request. Few cases make a training set here, so none is
            # held back to choose the best epoch; with a few dozen cases set val_split to 0.2.
            config={
                "max_epochs": 40,
                "val_split": 0.0,
                "train_batch_size": 1,
                "dataset": "CacheDataset",
                "dataloader": "DataLoader",
                "multi_gpu": False,
                "tracking": ["None", "mlflow"],
            },
        )

    def network(self, context: Context) -> torch.nn.Module:
        """Return the network to train."""
        return self._network

    def optimizer(self, context: Context) -> torch.optim.Optimizer:
        """Return the optimizer of the network's weights."""
        return torch.optim.AdamW(context.network.parameters(), lr=2e-3, weight_decay=1e-4)

    def loss_function(self, context: Context) -> torch.nn.Module:
        """Return Dice, to which small organs count as much as large ones, plus the smoother cross entropy."""
        return DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, squared_pred=True)

    def lr_scheduler_handler(self, context: Context) -> None:
        """Keep the learning rate: runs are short."""

    def train_pre_transforms(self, context: Context) -> list[Callable]:
        """Load and prepare, once and cached, then vary a little each time a case is seen.

        No mirroring: it is the side of the body that tells the liver from the spleen.
        """
        return [
            *self.val_pre_transforms(context),
            SpatialPadd(IMAGE_AND_LABEL, spatial_size=PATCH),
            RandSpatialCropd(IMAGE_AND_LABEL, roi_size=PATCH, random_size=False),
            RandAffined(
                IMAGE_AND_LABEL,
                prob=0.5,
                rotate_range=(0.1, 0.1, 0.2),
                translate_range=(4, 4, 4),
                scale_range=(0.1, 0.1, 0.1),
                mode=["bilinear", "nearest"],
                padding_mode="zeros",
            ),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.05, prob=0.5),
            RandGaussianNoised("image", std=0.03, prob=0.3),
        ]

    def val_pre_transforms(self, context: Context) -> list[Callable]:
        """Load image and label and bring both to the network's grid."""
        return [
            *load_transforms(IMAGE_AND_LABEL),
            *network_grid_transforms(IMAGE_AND_LABEL, ["bilinear", "nearest"]),
            EnsureTyped(IMAGE_AND_LABEL),
        ]

    def train_post_transforms(self, context: Context) -> list[Callable]:
        """Turn network output and label map into one channel per label, for the Dice of each epoch."""
        channels = len(LABELS) + 1
        return [
            Activationsd("pred", softmax=True),
            AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=channels),
        ]

    def val_inferer(self, context: Context) -> Inferer:
        """Validate as inference does: slide over the whole scan."""
        return SlidingWindowInferer(roi_size=PATCH, overlap=0.25, mode="gaussian")
