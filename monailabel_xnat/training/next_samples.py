"""The images that annotators get next: a strategy chooses them, and they are claimed for one annotator."""

from __future__ import annotations

import heapq
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.config import Settings
from monailabel_xnat.disk import text_digest
from monailabel_xnat.images import Images
from monailabel_xnat.images.info import ImageInfos
from monailabel_xnat.labels import Labels
from monailabel_xnat.training.dataset import TRAINING_TAG

logger = logging.getLogger(__name__)

# How often a strategy is asked if others were quicker to claim its choice.
_TRIES = 10

# The images that are hidden from the strategy that is choosing in this thread.
_hidden: ContextVar[frozenset[str]] = ContextVar("images that others have claimed", default=frozenset())


class NextSamples:
    """Hands out images, so that two annotators on one project do not get the same image at the same time.

    Parameters
    ----------
    settings : Settings
        They say how long a claim lasts.
    catalog, images, labels, infos
        They know which images exist, which are no volumes, which are labelled, and when each was handed out or claimed.
    """

    def __init__(self, settings: Settings, catalog: Catalog, images: Images, labels: Labels, infos: ImageInfos) -> None:
        self._settings = settings
        self._catalog = catalog
        self._images = images
        self._labels = labels
        self._infos = infos
        # By default viewers send the same client id for all users. So claims contain the server as well: without it,
        # the users of two servers would look like one.
        self._server = uuid.uuid4().hex

    @property
    def hidden(self) -> frozenset[str]:
        """The images that others have claimed, while a strategy chooses in this thread; otherwise empty."""
        return _hidden.get()

    def hand_out(self, choose: Callable[[], Any], client: str) -> Any:
        """Return the image that a strategy chooses among those that nobody else has claimed, and claim it.

        If others have claimed all unlabelled images, the strategy gets only the one that was claimed first.

        Parameters
        ----------
        choose : callable
            Asks the strategy. It returns a mapping with the ``id`` of an image, or nothing.
        client : str
            The client that asks; "" if it is not known: then all such users of this server count as one.
        """
        if not self._settings.claim_time or self._settings.sends_nothing:
            return choose()
        owner = text_digest(f"{self._server} {client}")[:12]
        self._infos.load()
        chosen = None
        for _ in range(_TRIES):
            with _hiding(frozenset(self._infos.claims.of_others(owner))):
                chosen = choose()
            image = str(chosen.get("id", "")) if isinstance(chosen, dict) else ""
            scan = self._catalog.get(image)
            if not image:
                return self._claimed_first(choose, owner)
            if scan is None or self._infos.claim(scan, owner):
                return chosen
            logger.info("a next sample is chosen anew, for somebody else has just claimed it")
        return chosen

    def likely(self, scan: Scan, count: int) -> list[Scan]:
        """Return the unlabelled images that will most likely be handed out next: first those that never were.

        Parameters
        ----------
        scan : Scan
            The image that was just handed out; it is left out.
        count : int
            The number of images to return at most.
        """
        out = {*self._labels.images(TRAINING_TAG), *self._images.no_volumes(self._catalog.get), str(scan.image_id)}
        handed_out = self._infos.handed_out()
        left = [image for image in self._catalog.ids() if image not in out]
        chosen = heapq.nsmallest(count, (image for image in left if image not in handed_out))
        if len(chosen) < count:
            others = ((handed_out[image], image) for image in left if image in handed_out)
            chosen += [image for _, image in heapq.nsmallest(count - len(chosen), others)]
        return [found for found in map(self._catalog.get, chosen) if found]

    def _claimed_first(self, choose: Callable[[], Any], owner: str) -> Any:
        """Return the strategy's choice when all unlabelled images are claimed: it sees only the oldest claim."""
        claims = self._infos.claims.of_others(owner)
        done = {*self._labels.images(TRAINING_TAG), *self._images.no_volumes(self._catalog.get)}
        left = [image for image in claims if image not in done and self._catalog.get(image)]
        with _hiding(frozenset(claims) - {min(left, key=lambda image: claims[image])} if left else frozenset()):
            return choose() or None


@contextmanager
def _hiding(images: frozenset[str]) -> Iterator[None]:
    token = _hidden.set(images)
    try:
        yield
    finally:
        _hidden.reset(token)
