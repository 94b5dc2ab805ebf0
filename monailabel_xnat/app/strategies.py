"""MONAI Label's strategies that look at what is stored with each image, for projects of many images.

MONAI Label 0.8.5 asks the datastore for everything about each unlabelled image to read one or two numbers of it, and
its ``Epistemic`` writes numbers with as many digits as there are images into its log, which Python refuses from about
4,300 images on. Here the datastore is asked once for these numbers, and the choice is the same. What an app's own
strategies choose is left to them.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.random import Random

if TYPE_CHECKING:
    from monailabel_xnat.datastore import XNATDatastore

logger = logging.getLogger(__name__)

Choice = Callable[[Mapping[str, Any], "XNATDatastore"], "dict[str, Any] | None"]


def quick_choice(strategy: Any) -> Choice | None:
    """Return what chooses as a strategy of MONAI Label does and asks the datastore once; None for any other strategy.

    Parameters
    ----------
    strategy : Strategy
        A strategy of an app. One that is derived from MONAI Label's counts as long as it chooses as that one does.
    """
    choose = type(strategy).__call__
    if choose is Random.__call__:
        return choose_at_random
    if choose is Epistemic.__call__:
        return lambda request, datastore: choose_by_score(request, datastore, strategy.key, strategy.reset)
    return None


def choose_at_random(request: Mapping[str, Any], datastore: XNATDatastore) -> dict[str, Any] | None:
    """Choose an unlabelled image, the more likely the longer ago the strategy of the request has handed it out.

    Returns
    -------
    dict or None
        ``id`` and ``weight`` (seconds since it was handed out; since 1970 for one that never was); None if there is
        no unlabelled image.
    """
    images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
    if not images:
        return None
    strategy = request.get("strategy") or "random"  # as MONAILabelApp.next_sample names it
    times = _numbers(datastore, images, "strategy", strategy, "ts")
    now = int(time.time())
    # The clock of another server may be ahead, and an image handed out this very second has no weight.
    weights = [max(now - times[image], 0) if image in times else now for image in images]
    place = random.choices(range(len(images)), weights if any(weights) else None)[0]  # noqa: S311 - no secret
    logger.info("%s: chose %s of %d images", strategy, images[place], len(images))
    return {"id": images[place], "weight": weights[place]}


def choose_by_score(
    request: Mapping[str, Any], datastore: XNATDatastore, key: str, reset: float
) -> dict[str, Any] | None:
    """Choose the unlabelled image of the highest score among those that were handed out the longest ago.

    Parameters
    ----------
    request : mapping
        Names the strategy.
    datastore : XNATDatastore
        Where scores and hand-outs are stored.
    key : str
        What the score of an image is stored as in its info; without one it is 0.
    reset : float
        After so many seconds an image counts as never handed out.

    Returns
    -------
    dict or None
        ``id``, and as ``epistemic_entropy`` the ``score`` and ``ts`` (seconds since it was handed out, at most
        ``reset``); None if there is no unlabelled image.
    """
    images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
    if not images:
        return None
    times = _numbers(datastore, images, "strategy", request["strategy"], "ts")
    scores = _numbers(datastore, images, key)
    now = int(time.time())
    ranks = [(min(now - times.get(image, 0), reset), scores.get(image, 0)) for image in images]
    place = max(range(len(images)), key=ranks.__getitem__)
    chosen, (age, score) = images[place], ranks[place]
    found = {"score": score, "ts": age}
    logger.info("%s: chose %s of %d images: %s", request["strategy"], chosen, len(images), found)
    return {"id": chosen, "epistemic_entropy": found}


def _numbers(datastore: XNATDatastore, images: list[str], *keys: str) -> dict[str, float]:
    """Return a number that is stored with images, of those that have one."""
    values = datastore.info_values(images, *keys)
    return {image: value for image, value in values.items() if isinstance(value, (int, float))}
