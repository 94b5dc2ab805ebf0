"""Finding out which file of a resource is the image, and which ending its name should have."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.errors import ImageError, NoImageError, name_some

# Endings of the formats that MONAI reads, best first.
_WHOLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Endings of headers whose voxels are in another file, and the ending of one file with both.
_SPLIT = {".mhd": ".mha", ".nhdr": ".nrrd", ".hdr": ".nii", ".hdr.gz": ".nii"}
# Endings that stand for the same format, as far as the content shows it.
_SAME = {".jpeg": ".jpg", ".tiff": ".tif", ".mhd": ".mha", ".nhdr": ".nrrd"}
_GZIP = b"\x1f\x8b"
_MAGIC = (
    (b"NRRD", ".nrrd"),
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
)
_HEAD = 400
_FILE_RESOURCES = ("NIFTI", "NRRD", "MHA", "MHD", "PNG", "JPEG", "JPG", "TIFF", "TIF")
# Words in the names of files and folders that were made from an image. A label map must not be taken for an image.
_DERIVED_WORDS = ("seg", "segmentation", "mask", "label", "labelmap", "roi")
_DERIVED = frozenset(word + end for word in _DERIVED_WORDS for end in ("", "s"))
# Files that macOS keeps beside each file on disks of other systems, and in zips.
_OF_MACOS = ("._",)
_FOLDER_OF_MACOS = "__MACOSX"
_NAMED_IN_ERRORS = 5
# The line in MetaImage and NRRD headers that names the file with the voxels.
_DATA_FILE = re.compile(rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_LONGEST_HEADER = 1 << 16
_HERE = b"LOCAL"


def holds_dicom(label: str, files: Sequence[RemoteFile]) -> bool:
    """Return whether a resource is a DICOM series, by its label, or else by the names of its files."""
    if label.upper() in ("DICOM", "SECONDARY"):
        return True
    return label.upper() not in _FILE_RESOURCES and not any(ending(file.path) for file in files)


def usual_ending(label: str, converted: str) -> str:
    """Return how the name of a resource's image will probably end, before its files are known.

    Parameters
    ----------
    label : str
        Label of the resource.
    converted : str
        The ending of a converted DICOM series.
    """
    kind = label.upper()
    known = {"NIFTI": ".nii.gz", "JPEG": ".jpg", "MHD": ".mha"}
    return known.get(kind, f".{kind.lower()}") if kind in _FILE_RESOURCES else converted


def ending(path: str) -> str:
    """Return the ending of an image file's name, in lower case; "" if the name is not that of an image."""
    name = path.lower()
    folders = PurePosixPath(path).parts
    if not folders or folders[-1].startswith(_OF_MACOS) or _FOLDER_OF_MACOS in folders:
        return ""
    return next((end for end in (*_WHOLE, *_SPLIT) if name.endswith(end)), "")


def true_ending(path: Path) -> str:
    """Return the ending that a file's name should have by its content; "" if the content does not show it.

    Readers choose the format by the name: no reader opens a gzip file that ends in ``.nii``. A header whose voxels are
    in another file gets the same ending as a whole file (``.nrrd``, ``.mha``). ``.dcm`` stands for DICOM.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(_GZIP):
        try:
            with gzip.open(path) as unpacked:
                return ".nii.gz" if _is_nifti(unpacked.read(_HEAD)) else ""
        except (OSError, EOFError, zlib.error):
            return ""
    if _is_nifti(head):
        return ".nii"
    if head[128:132] == b"DICM":
        return ".dcm"
    if head.startswith(b"ObjectType") or re.match(rb"(?:\w+ *=[^\n]*\n)*NDims *=", head):
        return ".mha"
    return next((end for magic, end in _MAGIC if head.startswith(magic)), "")


def right_ending_if_wrong(path: Path, name: str) -> str:
    """Return the ending that a file should have, if the ending of its name is wrong; "" if it is right or unclear."""
    true, named = true_ending(path), ending(name)
    return "" if true == _SAME.get(named, named) else true


def joined_ending(path: str) -> str:
    """Return the ending for one file with header and voxels, given the path of a header; "" for any other file."""
    return _SPLIT.get(ending(path), "")


def image_file(files: Sequence[RemoteFile], place: str) -> RemoteFile:
    """Return the one file that is the image.

    Parameters
    ----------
    files : sequence of RemoteFile
        All files of the resource.
    place : str
        The names of the resource and the scan, for the errors.

    Raises
    ------
    NoImageError
        If none of the files is an image.
    ImageError
        If several files are images, and it is not clear which one is meant.
    """
    images = [file for file in files if ending(file.path)]
    if not images:
        raise NoImageError(
            f"{place} holds no image: {_named(files)}",
            hint=f"names of image files end in {', '.join((*_WHOLE, *_SPLIT))}",
        )
    plain = [file for file in images if not _is_derived(file.path)] or images
    # It is the same image in two formats, or under two names.
    same_image = len({_stem(file.path) for file in plain}) == 1 or len({file.md5 or file.path for file in plain}) == 1
    if not same_image:
        raise ImageError(
            f"{place} holds several images: {_named(plain)}",
            hint="leave one of them in that resource, or name another one with the setting image_resource",
        )
    endings = (*_WHOLE, *_SPLIT)
    return min(plain, key=lambda file: endings.index(ending(file.path)))


def check_data_file(header: Path, names: Sequence[str]) -> None:
    """Refuse a header that takes its voxels from a file outside its resource.

    With such a header, its author could read files of this machine.

    Parameters
    ----------
    header : Path
        A MetaImage or NRRD file.
    names : sequence of str
        Names of the files beside it that it may point to.

    Raises
    ------
    ImageError
        If it names another file.
    """
    with header.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER).partition(b"\n\n")[0]
    for found in _DATA_FILE.findall(head):
        if found.upper() != _HERE and found.decode("utf-8", "replace") not in names:
            shown = found.decode("utf-8", "replace")
            raise ImageError(
                f"{header.name} takes its voxels from {shown!r}, which is no file beside it",
                hint="store the image in one file, .mha, .nrrd or .nii.gz",
            )


def _is_nifti(head: bytes) -> bool:
    """Return whether a file starts like NIfTI-1 or NIfTI-2 with the voxels in the same file."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def _is_derived(path: str) -> bool:
    return not _DERIVED.isdisjoint(re.split(r"[^a-z]+", path.lower()))


def _stem(path: str) -> str:
    return path[: -len(ending(path))]


def _named(files: Sequence[RemoteFile]) -> str:
    return name_some(sorted(file.path for file in files), _NAMED_IN_ERRORS) or "no files"
