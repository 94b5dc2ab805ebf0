"""Folders of DICOM files as training images: proven to lie on the grid of their labels, and known by a digest."""

from __future__ import annotations

from pathlib import Path

from monailabel_xnat.catalog.listing import Scan
from monailabel_xnat.catalog.memory import Memory
from monailabel_xnat.errors import ImageConversionError
from monailabel_xnat.images import Images
from monailabel_xnat.images.cache.entry import digest_of

_KIND = "DICOM folder"


class SeriesFolders:
    """Checks folders of DICOM files, each once.

    Parameters
    ----------
    images : Images
        Give the grids of the images.
    memory : Memory
        Keeps what was found.
    """

    def __init__(self, images: Images, memory: Memory) -> None:
        self._images = images
        self._memory = memory

    def digest(self, scan: Scan, folder: Path) -> str:
        """Return ``SHA256:<hex>`` of a folder, after it was proven to be read on the grid of its image.

        Raises
        ------
        ImageConversionError
            If MONAI's ITKReader reads the folder on another grid than that of the image.
        ImageError, ServerError, CacheError
            If the grid of the image cannot be had.
        """
        # The folder has another name as soon as its files have changed.
        known = self._memory.get(_KIND, str(scan.image_id), folder.name)
        if isinstance(known, str) and known:
            return known
        # It brings SimpleITK and ITK, which take a while to load.
        from monailabel_xnat.convert.dicom.seriesfolder import require_grid_in_folder

        try:
            require_grid_in_folder(folder, self._images.grid(scan))
        except ImageConversionError as error:
            raise ImageConversionError(f"scan {scan.image_id}: {error.message}", hint=error.hint) from None
        digest = f"SHA256:{digest_of(folder)}"
        self._memory.put(_KIND, str(scan.image_id), folder.name, digest)
        return digest
