"""An archive of scans over real HTTP, and their images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

# Writers and doubles from the tests of other parts.
sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("client", "convert")]

from archive_double import ArchiveDouble  # noqa: E402
from series_writer import SeriesWriter  # noqa: E402

from monailabel_xnat.catalog.scan import Resource, Scan  # noqa: E402
from monailabel_xnat.client.session import Session, quoted  # noqa: E402
from monailabel_xnat.config import Settings  # noqa: E402
from monailabel_xnat.ids import ImageId  # noqa: E402
from monailabel_xnat.images.images import Images  # noqa: E402


def make_scan(*resources: Resource, number: str = "1") -> Scan:
    """Make a scan as the listing shows it."""
    return Scan(
        image_id=ImageId("P", "XNAT_S00001", "XNAT_E00001", number),
        owner="P",
        subject_label="sub1",
        session_label="ses 1",
        session_type="xnat:ctSessionData",
        session_date="",
        type="CT",
        series_description="",
        quality="usable",
        modality="CT",
        series_uid="",
        study_uid="",
        frames=None,
        resources=resources,
    )


def fetch(settings, scan, start, paths):
    """Fetch an image in a process of its own, at the same moment as other processes."""
    session = Session(settings)
    images = Images(session, settings)
    start.wait()
    paths.put(images.path(scan))
    session.close()


class Bench:
    """One archive, one cache, and the calls of both that a test needs."""

    def __init__(self, archive: ArchiveDouble, folder: Path) -> None:
        self.archive = archive
        self.folder = folder
        self.opened: list[tuple[Session, Images]] = []

    def images(self, **values: object) -> Images:
        """Open images with other settings on the same cache."""
        given = {"server": self.archive.url, "username": "u", "password": "p", "cache_path": self.folder, **values}
        settings = Settings.load(given, {}, {})
        session = Session(settings)
        self.opened.append((session, Images(session, settings)))
        return self.opened[-1][1]

    def put(self, label: str, files: dict[str, bytes], number: str = "1", *, counted: bool = True) -> Scan:
        """Put a resource into the archive, and return its scan as it is listed then."""
        size = sum(len(content) for content in files.values())
        scan = make_scan(Resource(label, len(files) if counted else None, size if counted else None), number=number)
        self.archive.resources[scan.path + quoted("resources", label)] = files
        return scan

    def downloads(self) -> int:
        """How often the bytes of an image were requested."""
        return sum(1 for path in self.archive.asked if not path.endswith("/files"))

    def close(self) -> None:
        for session, images in self.opened:
            images.close()
            session.close()


def make_series(folder: Path, seed: int = 0, slices: int = 4) -> dict[str, bytes]:
    folder.mkdir()
    stack = np.random.default_rng(seed).integers(0, 1000, (slices, 12, 10)).astype(np.uint16)
    return {path.name: path.read_bytes() for path in SeriesWriter(folder).write(stack)}
