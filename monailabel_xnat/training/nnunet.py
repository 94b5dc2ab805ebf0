"""The text files of a training set in the layout of nnU-Net v2, as its documentation/dataset_format.md describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from monailabel_xnat.errors import SettingsError


def nnunet_texts(
    name: str, modality: str, labels: Mapping[str, int], training: Sequence[str], validation: Sequence[str]
) -> dict[str, str]:
    """Return the text files of a data set, by their paths below its folder.

    Parameters
    ----------
    name : str
        Name of the data set.
    modality : str
        The modality of all images, in DICOM's abbreviation. nnU-Net normalises CT differently from all others.
    labels : mapping
        Voxel value by name of structure: 1 to N.
    training, validation : sequence of str
        The names of the cases of each kind. The names of their files begin with these.

    Raises
    ------
    SettingsError
        If nnU-Net would not take these labels.
    """
    if sorted(labels.values()) != list(range(1, len(labels) + 1)):
        raise SettingsError(
            f"nnU-Net needs the values 1 to {len(labels)} for {len(labels)} structures, without a gap",
            hint="change the setting labels, such as spleen=1,liver=2",
        )
    found = {
        "name": name,
        "channel_names": {"0": modality},
        "labels": {"background": 0, **labels},
        "numTraining": len(training) + len(validation),
        "file_ending": ".nii.gz",
    }
    texts = {"dataset.json": as_json(found)}
    if validation:
        # nnU-Net reads this file from the folder of the preprocessed data set: the user must copy it there, as
        # examples/train_nnunet.md says.
        texts["splits_final.json"] = as_json([{"train": list(training), "val": list(validation)}])
    return texts


def as_json(content: Any) -> str:
    """Return JSON that people can read, too, with an end of line."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
