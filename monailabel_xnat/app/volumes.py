"""Code that keeps scans which are no volume out of batch inference and out of the planners of MONAI Label."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from monailabel_xnat.datastore import XNATDatastore
from monailabel_xnat.errors import ImageError

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore

logger = logging.getLogger(__name__)

# BatchInferTask of MONAI Label 0.8.5 adds this key to the request of each image
# (monailabel/interfaces/tasks/batch_infer.py).
_BATCH_KEY = "_image_id"
_PLANNER = ("monailabel.utils.others.planner", "HeuristicPlanner")
# A planner needs a sample of some images. The search for more ends after this many scans that are no volume.
_LONGEST_SEARCH = 20


def is_one_of_a_batch(request: Mapping[str, Any]) -> bool:
    """Return whether a batch inference has made this request for an inference."""
    return _BATCH_KEY in request


def without_others(task: Any) -> Any:
    """Return the task of a batch inference, changed so that it leaves out scans which are known to be no volume.

    Scans that a request names by their ids are not left out.
    """
    choose = getattr(task, "get_images", None)
    if choose is None:
        return task

    def get_images(request: Mapping[str, Any], datastore: Datastore) -> Any:
        images = choose(request, datastore)
        if not isinstance(datastore, XNATDatastore) or not isinstance(request.get("images", ""), str):
            return images
        known = set(datastore.get_labeled_images()).union(datastore.get_unlabeled_images())
        return [image for image in images if image in known]

    task.get_images = get_images
    return task


def spare_planners(app: object) -> None:
    """Change the planners of an app so that they use only images that can be read.

    MONAI Label's HeuristicPlanner reads a sample of all images when the app starts. Without this change, a scan that is
    no volume would make the start fail.
    """
    module, name = _PLANNER
    kind: Any = getattr(sys.modules.get(module), name, ())  # an app with a planner has loaded this module
    for planner in vars(app).values():
        if isinstance(planner, kind):
            planner.run = _run_on_volumes(planner, planner.run)


def _run_on_volumes(planner: Any, run: Any) -> Any:
    def run_on_volumes(datastore: Datastore) -> Any:
        if not isinstance(datastore, XNATDatastore):
            return run(datastore)
        return run(_Sample(datastore, planner.max_samples))

    return run_on_volumes


class _Sample:
    """Some images of a datastore, all of which can be read, with the methods of a datastore that a planner uses."""

    def __init__(self, datastore: XNATDatastore, size: int) -> None:
        self._paths: dict[str, str] = {}
        images = datastore.list_images()
        left_out = 0
        for image in random.sample(images, len(images)):
            if len(self._paths) >= size or left_out >= _LONGEST_SEARCH:
                break
            try:
                self._paths[image] = datastore.get_image_uri(image)
            except ImageError as error:
                left_out += 1
                logger.info("left out of the planner's sample: %s", error)

    def list_images(self) -> list[str]:
        """Return the ids of the images."""
        return list(self._paths)

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image."""
        return self._paths[image_id]
