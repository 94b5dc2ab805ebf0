"""What a training set was made of, so that it can be made again: which label versions, whose, when, which bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel_xnat.errors import CacheError

FORMAT_VERSION = 1
# Of the label's description, what tells whose and which it is; "info" has where a ROI collection came from.
_PROVENANCE = ("saved_at", "saved_by", "source", "segments", "info")
_BLOCK = 1 << 20


def describe_case(
    image_id: str, image: Path, image_digest: str, label: Path, version: str, tag: str, description: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe one pair of a training set.

    Parameters
    ----------
    image_id : str
        Canonical id.
    image, label : Path
        The files given out.
    image_digest : str
        ``SHA256:<hex>`` of the image, or "" where it is not known and must be read.
    version : str
        Name of the label's version, for ``<image id>@<version>``.
    tag : str
        Its tag.
    description : mapping
        Its description as stored in XNAT.
    """
    digest = image_digest.partition(":")[2] or _sha256(image)
    provenance = {key: description[key] for key in _PROVENANCE if description.get(key)}
    stored = {"tag": tag, "version": version, "file": label.name, "sha256": _sha256(label)}
    return {"image_id": image_id, "image": {"file": image.name, "sha256": digest}, "label": {**stored, **provenance}}


def make_manifest(
    server: str, user: str, cases: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Make the manifest of a training set: its cases, what was left out and why, who made it and when (UTC)."""
    made_at = datetime.now(timezone.utc).isoformat()
    head = {"format_version": FORMAT_VERSION, "server": server, "made_at": made_at, "made_by": user}
    return {**head, "cases": list(cases), "left_out": dict(left_out)}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Keep a manifest on this machine, where only this user can read it; the same cases are kept once.

    Raises
    ------
    CacheError
        If it cannot be written.
    """
    cases = json.dumps([manifest["cases"], manifest["left_out"]], sort_keys=True).encode()
    path = folder / f"{hashlib.sha256(cases).hexdigest()[:16]}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            part.touch(mode=0o600)
            part.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            part.replace(path)
    except OSError as error:
        raise CacheError(
            f"cannot write the manifest of the training set to {folder}: {error.strerror}",
            hint="free some space, or choose another folder with the setting cache_path",
        ) from error
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()
