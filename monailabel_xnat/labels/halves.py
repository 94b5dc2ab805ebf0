"""Label resources that may hold half a label: a description whose label is missing is no label."""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor, wait

from monailabel_xnat.catalog import Catalog, Scan
from monailabel_xnat.errors import XNATDatastoreError
from monailabel_xnat.labels.tags import tag_of
from monailabel_xnat.labels.versions import Versions

logger = logging.getLogger(__name__)

# Many of them must not hold up the start; until they are read, their images count as labelled.
_PATIENCE = 5.0


class Halves:
    """Looks into the label resources with an odd number of files, as soon as the catalog shows them.

    A label and its description are two files, so that there are few such resources. Whoever counts labels learns from
    :class:`~monailabel_xnat.labels.versions.Versions` what they hold.

    Parameters
    ----------
    catalog : Catalog
        Tells which images have changed.
    versions : Versions
        Lists the files, once for each change.
    connections : int
        How many are read at a time.
    """

    def __init__(self, catalog: Catalog, versions: Versions, connections: int) -> None:
        self._catalog = catalog
        self._versions = versions
        self._connections = connections
        catalog.subscribe(self.update)

    def update(self, images: Collection[str]) -> None:
        """Look into the resources of some images, by id; those that take long are read in the background."""
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
        except XNATDatastoreError as error:  # whoever asks for the label is told
            logger.debug("a label resource with an odd number of files could not be listed: %s", error)
