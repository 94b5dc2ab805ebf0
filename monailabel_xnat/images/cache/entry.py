"""One image in the cache: its record, and how to find out whether the image has changed since it was made."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, BinaryIO

from monailabel_xnat.disk import file_digest, flush, text_digest, write_whole

RECORD_SUFFIX = ".json"
SOURCES_FOLDER = ".sources"
_RECORD_VERSION = 1
_SYNCED_AT_A_TIME = 16


@dataclass(frozen=True)
class CachedImage:
    """One complete image in the cache.

    Parameters
    ----------
    path : Path
        The file, or the folder of files; a link if it is in a mounted archive.
    form : str
        The form that was asked for: ``nii``, ``nii.gz`` or ``dicom``.
    image_id : str
        The id of the image.
    fingerprint : str
        Digest of the names, sizes and MD5s of the files in XNAT that it was made from, and of how it was made.
    seen : str
        The resource as the listing showed it when the fingerprint was last compared.
    size : int
        How many bytes it takes on this disk.
    sha256 : str
        Digest of the file, or of the names and contents of all files in a folder. Empty for a link.
    compared : float
        When the fingerprint was last compared with XNAT's list of files, in seconds since 1970.
    origin : str
        The folder of a mounted archive that it was made from; empty if the files were downloaded.
    origin_state : str
        The state of the files there, which differs after a change; see `state_of`.
    note : str
        What is doubtful about the image; empty if nothing is.
    others : sequence of affines
        Affines (4, 4) as lists of numbers, voxel index to RAS, mm, that other programs may read from the original file.
    shear : sequence of float
        For a stack from a tilted gantry: how much further sideways (RAS, mm) each slice truly lies than the slice
        before; else empty.
    """

    path: Path
    form: str
    image_id: str
    fingerprint: str
    seen: str
    size: int
    sha256: str
    compared: float = 0.0
    origin: str = ""
    origin_state: str = ""
    note: str = ""
    others: Sequence[Sequence[Sequence[float]]] = ()
    shear: Sequence[float] = ()

    @property
    def key(self) -> str:
        """The name of the image's folder."""
        return self.path.parent.name

    @property
    def record(self) -> Path:
        """The file that proves that this entry is complete."""
        return record_of(self.path)

    @property
    def sources(self) -> Path:
        """The file that says which DICOM images its slices were made of; earlier releases did not write it."""
        return self.path.parents[1] / SOURCES_FOLDER / self.path.name

    @property
    def last_use(self) -> float:
        """When the image was last used, in seconds since 1970; it may be half a minute too early."""
        try:
            return self.record.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def checksum(self) -> str | None:
        """``SHA256:<hex>`` of the file; None for a folder or a link."""
        return f"SHA256:{self.sha256}" if self.sha256 and not self.path.is_dir() else None

    def facts(self) -> dict[str, Any]:
        """Return all fields except for the path."""
        return {key: value for key, value in asdict(self).items() if key != "path"}

    def is_intact(self) -> bool:
        """Read the image, and return whether it is still as it was made."""
        try:
            return self.path.exists() and (not self.sha256 or digest_of(self.path) == self.sha256)
        except OSError:
            return False


_FACTS = frozenset(field.name for field in fields(CachedImage)) - {"path"}


def record_of(path: Path) -> Path:
    """Return the path of the record of an image."""
    return path.with_name(path.name + RECORD_SUFFIX)


def write_record(entry: CachedImage) -> None:
    """Write the record of an entry, in one step."""
    write_whole(entry.record, json.dumps({"version": _RECORD_VERSION, **entry.facts()}).encode(), durable=True)


def read_record(record: Path) -> CachedImage | None:
    """Return the entry in a record; None if the record is damaged or of another version, or the image is gone."""
    path = record.with_name(record.name[: -len(RECORD_SUFFIX)])
    try:
        facts = json.loads(record.read_bytes())
        if facts.pop("version") != _RECORD_VERSION or not path.exists():
            return None
        for name in ("others", "shear"):
            facts[name] = tuple(facts.get(name, ()))  # JSON has lists only
        # Facts that only a later release of this package writes are ignored.
        return CachedImage(path=path, **{key: facts[key] for key in facts.keys() & _FACTS})
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def paths_in(folder: Path) -> list[Path]:
    """Return the paths in a folder; [] if it cannot be read, because another process may have just removed it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def records_in(folder: Path) -> list[Path]:
    """Return the records in an image's folder."""
    return [path for path in paths_in(folder) if path.name.endswith(RECORD_SUFFIX)]


def seal(made: Path, digest: str = "") -> tuple[int, str]:
    """Flush a file or folder to the disk, and return its size in bytes and its digest, which may be known already.

    For a link they are 0 and "". It leads to files of somebody else, which are neither changed nor read here.
    """
    if made.is_symlink():
        return 0, ""
    # Flush several files at a time: the disk writes many of them together, but hundreds one by one take seconds.
    files = files_of(made)
    try:
        with ThreadPoolExecutor(_SYNCED_AT_A_TIME) as pool:
            sizes = pool.map(_sync_file, files)
            digest = digest or digest_of(made)
    except RuntimeError:  # Python is ending and starts no threads any more, but this image is still completed
        return sum(map(_sync_file, files)), digest or digest_of(made)
    return sum(sizes), digest


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file; for a folder, of the names and digests of its files, in order."""
    if not path.is_dir():
        return file_digest(path)
    return text_digest("\n".join(f"{file_digest(file)} {file.relative_to(path).as_posix()}" for file in files_of(path)))


def files_of(path: Path) -> list[Path]:
    """Return the files in a folder, sorted; for a file, the file itself."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder. A file that does not exist is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def packed(folder: Path) -> BinaryIO:
    """Return a zip of a folder as an open temporary file, which is removed when it is closed."""
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - handed out open
    with zipfile.ZipFile(file, "w") as archive:
        for path in files_of(folder):
            archive.write(path, path.relative_to(folder).as_posix())
    file.seek(0)
    return file  # type: ignore[return-value]


def _sync_file(path: Path) -> int:
    path.chmod(0o600)
    flush(path)
    return path.stat().st_size
