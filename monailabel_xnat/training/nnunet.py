"""The text files of a training set in the layout of nnU-Net v2, as its documentation/dataset_format.md describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel_xnat.convert.itk import simpleitk
from monailabel_xnat.errors import SettingsError

# Names of labels to which nnU-Net gives a meaning of its own: voxels without a structure, and voxels that it must not
# learn from.
_TAKEN_NAMES = ("background", "ignore")
_SPATIAL_DIMENSIONS = 3


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
    taken = [name for name in _TAKEN_NAMES if name in labels]
    if taken:
        raise SettingsError(
            f"a structure has the name {taken[0]!r}, which does not mean a structure in nnU-Net",
            hint="name the structures to train on in the setting labels, such as spleen=1,liver=2",
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


def why_unfit(image: Path) -> str:
    """Return why nnU-Net cannot train on an image file; an empty text if it can.

    nnU-Net takes one volume with one value for each voxel, and reads it with SimpleITK. It takes the volumes of a 4-D
    image, and the colours of a colour image, for channels, of which its plan has one.
    """
    reader = simpleitk().ImageFileReader()
    reader.SetFileName(str(image))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        return f"SimpleITK cannot read the image, and nnU-Net reads with it: {str(error).splitlines()[-1].strip()}"
    channels = reader.GetNumberOfComponents()
    for size in reader.GetSize()[_SPATIAL_DIMENSIONS:]:
        channels *= size
    return f"nnU-Net trains on one volume, and this image has {channels}" if channels > 1 else ""


def as_json(content: Any) -> str:
    """Return JSON that people can read, too, with an end of line."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
