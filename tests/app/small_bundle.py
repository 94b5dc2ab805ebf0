"""Writes a MONAI bundle like one from the Model Zoo, but so small that it learns and infers within seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CHANNELS = {"0": "background", "1": "spleen"}


def _loading(*keys: str) -> dict[str, Any]:
    transforms = [
        {"_target_": "LoadImaged", "keys": keys},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
        {"_target_": "ScaleIntensityd", "keys": "image"},
    ]
    return {"_target_": "Compose", "transforms": transforms}


_COMMON: dict[str, Any] = {
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "output_ext": ".nii.gz",
    "output_postfix": "seg",
    "device": "$torch.device('cpu')",
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": len(CHANNELS), "kernel_size": 1},
    "network": "$@network_def.to(@device)",
}
_INFERENCE: dict[str, Any] = {
    **_COMMON,
    "preprocessing": _loading("image"),
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}],
    },
}
_TRAINING: dict[str, Any] = {
    **_COMMON,
    "train": {
        "dataset": {"_target_": "Dataset", "data": [], "transform": _loading("image", "label")},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 1},
        "handlers": [
            {
                "_target_": "CheckpointSaver",
                "save_dir": "$@bundle_root + '/models'",
                "save_dict": {"model": "@network"},
                "save_final": True,
                "final_filename": "model.pt",
            }
        ],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": 1,
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "loss_function": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
            "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
            "train_handlers": "@train#handlers",
        },
    },
    "validate": {"dataset": {"_target_": "Dataset", "data": []}},
    "run": ["$@train#trainer.run()"],
}


def write_bundle(folder: Path) -> Path:
    """Write the bundle into a folder, with a model that labels bright voxels as the spleen."""
    size = {"spatial_shape": [16, 16, 16], "dtype": "float32"}
    metadata = {
        "version": "0.1.0",
        "description": "what is bright",
        "network_data_format": {
            "inputs": {"image": {"type": "image", "num_channels": 1, **size}},
            "outputs": {"pred": {"type": "image", "num_channels": len(CHANNELS), "channel_def": CHANNELS, **size}},
        },
    }
    for name, content in {"metadata": metadata, "inference": _INFERENCE, "train": _TRAINING}.items():
        file = folder / "configs" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    (folder / "models").mkdir()
    weights = {"weight": torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([0.0, -6.0])}
    torch.save(weights, folder / "models" / "model.pt")
    return folder
