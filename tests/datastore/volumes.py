"""A torch dataset on a datastore, in a module of its own, so that other processes can import it."""

from __future__ import annotations

import nibabel
import numpy as np
import torch.utils.data


class Volumes(torch.utils.data.Dataset):
    """The mean of each image."""

    def __init__(self, datastore, images) -> None:
        self.datastore = datastore
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        path = self.datastore.get_image_uri(self.images[index])
        if not path:
            refuse(self.datastore, self.images[index])
        return float(np.asarray(nibabel.load(path).dataobj).mean())


def refuse(datastore, image):
    """Request something that cannot be done."""
    datastore.update_image_info(image, {})
