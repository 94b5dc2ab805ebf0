"""One image in the cache: what vouches for it, and how to tell that it is as it was made."""

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
    """One image in the cache, whole.

    Parameters
    ----------
    path : Path
        The file, or folder of files; a link, where it lies in a mounted archive.
    form : str
        What was asked for: ``nii``, ``nii.gz`` or ``dicom``.
    image_id : str
        Whose image it is.
    fingerprint : str
        Digest of names, sizes and digests of the files in XNAT that it was made from.
    seen : str
        The resource as the listing showed it when the fingerprint was last compared.
    size : int
        Bytes on this disk.
    sha256 : str
        Digest of the file; for a folder of the names and contents of all files. Empty for a link.
    compared : float
        When the fingerprint was last compared with what XNAT lists: seconds since 1970.
    origin : str
        The folder of a mounted archive that it was made from; empty if the files were downloaded.
    origin_state : str
        What differs when the files there do.
    note : str
        What is doubtful about the image; empty for nothing.
    others : sequence of affines
        Where other programs may put its voxels, as lists of numbers: voxel index to RAS, mm.
    shear : sequence of float
        Of a stack from a tilted gantry, by how much (RAS, mm) each slice truly lies further sideways; else empty.
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
        """The file that says that this entry is whole."""
        return record_of(self.path)

    @property
    def sources(self) -> Path:
        """The file that says which DICOM images its slices were made of; earlier versions wrote none."""
        return self.path.parents[1] / SOURCES_FOLDER / self.path.name

    @property
    def last_use(self) -> float:
        """When the image was last asked for, as far as noted: seconds since 1970."""
        try:
            return self.record.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def checksum(self) -> str | None:
        """``SHA256:<hex>`` of the file; None for a folder, and for a link."""
        return f"SHA256:{self.sha256}" if self.sha256 and not self.path.is_dir() else None

    def facts(self) -> dict[str, Any]:
        """Return all fields but the path."""
        return {key: value for key, value in asdict(self).items() if key != "path"}

    def is_intact(self) -> bool:
        """Read the image and tell whether it is as it was made."""
        try:
            return self.path.exists() and (not self.sha256 or digest_of(self.path) == self.sha256)
        except OSError:
            return False


_FACTS = frozenset(field.name for field in fields(CachedImage)) - {"path"}


def record_of(path: Path) -> Path:
    """Return where the record of an image lies."""
    return path.with_name(path.name + RECORD_SUFFIX)


def write_record(entry: CachedImage) -> None:
    """Write an entry's record, whole or not at all."""
    write_whole(entry.record, json.dumps({"version": _RECORD_VERSION, **entry.facts()}).encode(), durable=True)


def read_record(record: Path) -> CachedImage | None:
    """Read a record; None if it is damaged, of another version, or its image is gone."""
    path = record.with_name(record.name[: -len(RECORD_SUFFIX)])
    try:
        facts = json.loads(record.read_bytes())
        if facts.pop("version") != _RECORD_VERSION or not path.exists():
            return None
        for name in ("others", "shear"):
            facts[name] = tuple(facts.get(name, ()))  # JSON has lists only
        # What a later version of this library notes as well is none the worse.
        return CachedImage(path=path, **{key: facts[key] for key in facts.keys() & _FACTS})
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def paths_in(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing if it cannot be read, for another process may have just removed it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def records_in(folder: Path) -> list[Path]:
    """Return the records in an image's folder."""
    return [path for path in paths_in(folder) if path.name.endswith(RECORD_SUFFIX)]


def seal(made: Path) -> tuple[int, str]:
    """Flush a file or folder to the disk; return its size there and its digest.

    A link leads to somebody else's files: they are neither touched, nor read as a whole, nor counted.
    """
    if made.is_symlink():
        return 0, ""
    # Several at a time: the disk takes a journal's worth of files at once, and hundreds in turn for seconds.
    files = files_of(made)
    try:
        with ThreadPoolExecutor(_SYNCED_AT_A_TIME) as pool:
            sizes = pool.map(_sync_file, files)
            digest = digest_of(made)
    except RuntimeError:  # Python is ending and starts no more threads; what is under way is still brought to its end
        return sum(map(_sync_file, files)), digest_of(made)
    return sum(sizes), digest


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder that of its files' names and digests, in order."""
    if not path.is_dir():
        return file_digest(path)
    return text_digest("\n".join(f"{file_digest(file)} {file.relative_to(path).as_posix()}" for file in files_of(path)))


def files_of(path: Path) -> list[Path]:
    """Return the files of a folder, or the file itself."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; one that is gone is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def packed(folder: Path) -> BinaryIO:
    """Return a zip of a folder as a temporary file, opened for reading, that goes when it is closed."""
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
