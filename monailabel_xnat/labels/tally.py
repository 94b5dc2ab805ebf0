"""Which images have labels with which tags, kept up with every change, so that counting them costs nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence

from monailabel_xnat.catalog import Catalog, Scan

logger = logging.getLogger(__name__)


class Tally:
    """Counts of labels in XNAT.

    Parameters
    ----------
    catalog : Catalog
        Tells which images have changed.
    tags : callable
        Gives the tags that an image has labels with, without asking XNAT.
    drawn : callable
        Gives how many ROI collections that people drew count as labels of an image.
    """

    def __init__(self, catalog: Catalog, tags: Callable[[Scan], Sequence[str]], drawn: Callable[[Scan], int]) -> None:
        self._catalog = catalog
        self._tags_of = tags
        self._drawn_on = drawn
        self._lock = threading.Lock()
        self._tags: dict[str, tuple[str, ...]] = {}
        self._images: dict[str, set[str]] = {}
        self._drawn: dict[str, int] = {}
        self._all_drawn = 0
        catalog.subscribe(self.update)

    @property
    def drawn(self) -> int:
        """How many ROI collections count as labels."""
        return self._all_drawn

    def update(self, images: Collection[str]) -> None:
        """Look at some images again, by id."""
        drawn_before = self._all_drawn
        with self._lock:
            for image in images:
                # What the catalog knows now, whoever was told of a change first.
                scan = self._catalog.get(image)
                tags = tuple(self._tags_of(scan)) if scan else ()
                if tags != self._tags.get(image, ()):
                    self._put_tags(image, tags)
                drawn = self._drawn_on(scan) if scan and scan.collections else 0
                if drawn != self._drawn.get(image, 0):
                    self._put_drawn(image, drawn)
        if self._all_drawn and not drawn_before:
            logger.info("%d drawings saved in viewers count as labels (settings roi_tag, roi_label)", self._all_drawn)

    def counts(self) -> dict[str, int]:
        """Count the images that have a label, by tag."""
        with self._lock:
            return {tag: len(images) for tag, images in self._images.items() if images}

    def images(self, tag: str) -> set[str]:
        """Give the ids of the images that have a label with a tag."""
        with self._lock:
            return set(self._images.get(tag, ()))

    def _put_tags(self, image: str, tags: tuple[str, ...]) -> None:
        for tag in self._tags.pop(image, ()):
            self._images[tag].discard(image)
        for tag in tags:
            self._images.setdefault(tag, set()).add(image)
        if tags:
            self._tags[image] = tags

    def _put_drawn(self, image: str, drawn: int) -> None:
        self._all_drawn += drawn - self._drawn.pop(image, 0)
        if drawn:
            self._drawn[image] = drawn
