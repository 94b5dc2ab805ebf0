"""Which labels each image has (in XNAT, in the outbox, and from other programs), and how many images have a label."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from monailabel_xnat.background import renewed_in_children
from monailabel_xnat.catalog import Catalog, Resource, Scan
from monailabel_xnat.errors import ServerError, UnknownLabelError, XNATDatastoreError
from monailabel_xnat.labels.entry import WaitingLabel
from monailabel_xnat.labels.outbox import Outbox
from monailabel_xnat.labels.resources import BUILT_IN_RESOURCE, StoredVersions
from monailabel_xnat.labels.tags import is_tag, resource_of, tag_of
from monailabel_xnat.labels.version import LabelVersion

logger = logging.getLogger(__name__)


DRAFT_TAG = "original"
"""MONAI Label's tag for labels that a model drew. Labels of MONAI Label's built-in datastore count as such."""
_BUILT_IN_FILES = "*.nii.gz"


class Index:
    """Finds labels.

    Parameters
    ----------
    versions : StoredVersions
        Lists the labels in XNAT.
    outbox : Outbox
        Holds the labels that wait.
    others : sequence of tuple
        Tag, resource and file pattern for labels of other programs.
    """

    def __init__(self, versions: StoredVersions, outbox: Outbox, others: Sequence[tuple[str, str, str]] = ()) -> None:
        self._versions = versions
        self._outbox = outbox
        self._others = (*others, (DRAFT_TAG, BUILT_IN_RESOURCE, _BUILT_IN_FILES))
        self._others_in: dict[str, list[tuple[str, str]]] = {}
        for tag, resource, pattern in self._others:
            self._others_in.setdefault(resource, []).append((tag, pattern))

    def tags(self, scan: Scan) -> list[str]:
        """Return the tags of the labels that an image has, waiting labels included; makes no request."""
        tags = set(self.tags_in_xnat(scan))
        tags.update(entry.tag for entry in self._outbox.of(scan.image_id))
        return sorted(tags)

    def tags_in_xnat(self, scan: Scan) -> list[str]:
        """Return the tags of the labels that an image has in XNAT; makes no request."""
        tags = set()
        for resource in scan.resources:
            ours = tag_of(resource.label)
            if ours and self._is_filled(scan, resource):
                tags.add(ours)
            for tag, pattern in self._others_in.get(resource.label, ()):
                if self._is_filled(scan, resource, pattern):
                    tags.add(tag)
        return sorted(tags) if tags else []

    def all(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """Return the versions of a label, newest first, also those that wait or are hidden; [] if there are none.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        if not is_tag(tag):
            return []
        label = resource_of(tag)
        stored = self._versions.of(scan, label) if scan.resource(label) else []
        if all(version.is_hidden for version in stored):
            stored = [*stored, *self.foreign(scan, tag)]
        names = {version.name for version in stored}
        pending = [version for version in self._pending(scan, tag) if version.name not in names]
        # Labels of other programs have no time in their names: they count as the oldest.
        return sorted([*stored, *pending], key=lambda known: known.name if known.saved_at else "", reverse=True)

    def find(self, scan: Scan, tag: str, version: str | None = None) -> LabelVersion:
        """Return a version of a label; without a name the current one. A hidden version is found only by its name.

        Raises
        ------
        UnknownLabelError
            If there is no such label or version.
        ServerError
            If XNAT fails.
        """
        try:
            versions = self.all(scan, tag)
        except ServerError:
            versions = self._pending(scan, tag)  # while XNAT does not answer, waiting labels are the newest ones
            if not versions:
                raise
        shown = [candidate for candidate in versions if not candidate.is_hidden]
        wanted = versions if version else shown
        found = next((candidate for candidate in wanted if version in (None, candidate.name)), None)
        if found is None and version and versions:
            raise UnknownLabelError(
                f"image {str(scan.image_id)!r} has no version {version} of the label with tag {tag!r}",
                hint=f"it has the versions {', '.join(known.name for known in versions)}",
            )
        if found is None:
            raise UnknownLabelError(
                f"image {str(scan.image_id)!r} has no label with tag {tag!r}",
                hint=f"it has labels with the tags {', '.join(self.tags(scan)) or 'none'}",
            )
        return found

    def resource(self, scan: Scan, tag: str) -> str:
        """Return the name (XNAT's "label") of the scan resource that holds a label; makes no request.

        Raises
        ------
        UnknownLabelError
            If there is no such resource.
        """
        labels = [resource_of(tag)] if is_tag(tag) else []
        labels += [resource for label_tag, resource, _ in self._others if label_tag == tag]
        for label in labels:
            if scan.resource(label):
                return label
        raise UnknownLabelError(
            f"image {str(scan.image_id)!r} has no label with tag {tag!r} in XNAT",
            hint=f"it has labels with the tags {', '.join(self.tags(scan)) or 'none'}; refresh() shows what is new",
        )

    def compare_anew(self, scans: Iterable[Scan] | None = None) -> None:
        """Mark labels of other programs, on some images or all (None), so that they are listed again when next used."""
        if scans is None:
            self._versions.compare_anew()
            return
        for scan in scans:
            for _, resource, pattern in self._others:
                if scan.resource(resource):
                    self._versions.compare_anew((scan.image_id, resource, pattern))

    def entry(self, scan: Scan, tag: str, version: str) -> WaitingLabel | None:
        """Return a version that waits in the outbox; None if it is not there."""
        return next((entry for entry in self._outbox.of(scan.image_id, tag) if entry.version == version), None)

    def foreign(self, scan: Scan, tag: str) -> list[LabelVersion]:
        """Return the labels of other programs with a tag, newest first.

        They are files in the resources that the settings name, or of MONAI Label's built-in datastore.

        Raises
        ------
        ServerError
            If XNAT fails.
        """
        for label_tag, resource, pattern in self._others:
            if label_tag == tag and scan.resource(resource):
                found = self._versions.of(scan, resource, pattern)
                if found:
                    return found
        return []

    def _pending(self, scan: Scan, tag: str) -> list[LabelVersion]:
        return [LabelVersion(entry.version, entry.suffix) for entry in self._outbox.of(scan.image_id, tag)]

    def _is_filled(self, scan: Scan, resource: Resource, pattern: str = "") -> bool:
        """Return whether a resource holds labels. Until its files have been listed, it counts as if it held one."""
        known = self._versions.known(scan, resource.label, pattern)
        return known is None or any(not version.is_hidden for version in known)


class LabelCounts:
    """Counts the images with labels in XNAT.

    Parameters
    ----------
    catalog : Catalog
        Calls `update` with the images that have changed.
    tags : callable
        Returns the tags of the labels that an image has, without a request.
    drawn : callable
        Returns how many drawings count as labels of an image.
    """

    def __init__(self, catalog: Catalog, tags: Callable[[Scan], Sequence[str]], drawn: Callable[[Scan], int]) -> None:
        self._catalog = catalog
        self._tags_of = tags
        self._drawn_on = drawn
        self._lock = renewed_in_children(self, "_lock", threading.Lock)
        self._tags: dict[str, tuple[str, ...]] = {}
        self._images: dict[str, set[str]] = {}
        self._drawn: dict[str, int] = {}
        self._all_drawn = 0
        catalog.subscribe(self.update)

    @property
    def drawn(self) -> int:
        """How many drawings count as labels."""
        return self._all_drawn

    def update(self, images: Collection[str]) -> None:
        """Count some images, given by their ids, again."""
        drawn_before = self._all_drawn
        with self._lock:
            for image in images:
                # Take what the catalog knows now: several threads may report changes at the same time.
                scan = self._catalog.get(image)
                tags = tuple(self._tags_of(scan)) if scan else ()
                if tags != self._tags.get(image, ()):
                    self._put_tags(image, tags)
                drawn = self._drawn_on(scan) if scan and scan.drawings else 0
                if drawn != self._drawn.get(image, 0):
                    self._put_drawn(image, drawn)
        if self._all_drawn and not drawn_before:
            logger.info("%d drawings saved in viewers count as labels (settings roi_tag, roi_label)", self._all_drawn)

    def counts(self) -> dict[str, int]:
        """Return how many images have a label, by tag."""
        with self._lock:
            return {tag: len(images) for tag, images in self._images.items() if images}

    def images(self, tag: str) -> set[str]:
        """Return the ids of the images that have a label with a tag."""
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


# Seconds to wait for the reads, so that many of them do not delay the start. Until then their images count as labelled.
_PATIENCE = 5.0


class HalfLabels:
    """Lists the label resources with an odd number of files, as soon as the catalog shows them.

    A label and its description are two files, so there are few such resources: labels that are hidden, or incomplete.
    :class:`~monailabel_xnat.labels.resources.StoredVersions` passes the result on, so that labels are counted again.

    Parameters
    ----------
    catalog : Catalog
        Calls `update` with the images that have changed.
    versions : StoredVersions
        Lists the files, once for each change.
    connections : int
        How many resources are listed at the same time.
    """

    def __init__(self, catalog: Catalog, versions: StoredVersions, connections: int) -> None:
        self._catalog = catalog
        self._versions = versions
        self._connections = connections
        catalog.subscribe(self.update)

    def update(self, images: Collection[str]) -> None:
        """List the label resources with an odd number of files of some images, given by their ids.

        After five seconds this goes on in the background.
        """
        found = [
            (scan, resource.label)
            for scan in filter(None, map(self._catalog.get, images))
            for resource in scan.resources
            if (resource.file_count or 0) % 2 and tag_of(resource.label)
            if self._versions.known(scan, resource.label) is None
        ]
        if not found:
            return
        pool = ThreadPoolExecutor(min(self._connections, len(found)), thread_name_prefix="xnat-halves")
        reads = [pool.submit(self._read, *item) for item in found]
        pool.shutdown(wait=False)
        wait(reads, _PATIENCE)

    def _read(self, scan: Scan, resource: str) -> None:
        try:
            self._versions.of(scan, resource)
        except XNATDatastoreError as error:  # a caller who asks for the label gets the error
            logger.debug("a label resource with an odd number of files could not be listed: %s", error)
