"""Which images an annotator is given next, as far as that can be told before."""

from __future__ import annotations

import heapq

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.images import Images
from monailabel_xnat.images.info import ImageInfos
from monailabel_xnat.labels import Labels
from monailabel_xnat.training.dataset import TRAINING_TAG


def likely_next(
    scan: Scan, count: int, catalog: Catalog, images: Images, labels: Labels, infos: ImageInfos
) -> list[Scan]:
    """Return the unlabelled images that come next most likely: those never handed out first.

    Parameters
    ----------
    scan : Scan
        The image that was just handed out, which is none of them.
    count : int
        How many.
    catalog, images, labels, infos
        What there is, what is no volume, what is labelled, and when each image was handed out.
    """
    out = {*labels.images(TRAINING_TAG), *images.no_volumes(catalog.get), str(scan.image_id)}
    handed_out = infos.handed_out()
    left = (image for image in catalog.ids() if image not in out)
    chosen = heapq.nsmallest(count, left, key=lambda image: (handed_out.get(image, 0.0), image))
    return [found for found in map(catalog.get, chosen) if found]
