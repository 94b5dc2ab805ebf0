"""A site on which people have worked: labels of given users and days, stored as docs/labels.md describes."""

from __future__ import annotations

import gzip
import hashlib
import json
from datetime import datetime, timezone

import nibabel
import numpy as np

from monailabel_xnat.ids import ImageId

BINARY = {"Content-Type": "application/octet-stream"}


def add_image(admin, url, project, name, array, affine, **fields):
    """Store an image as the only scan of a session of a subject of its own, and return its id."""
    subject = f"{url}/data/projects/{project}/subjects/{name}_DOE_JANE"
    admin.put(f"{url}/data/projects/{project}").raise_for_status()
    admin.put(subject).raise_for_status()
    session = f"{subject}/experiments/{name}"
    admin.put(f"{session}?xsiType=xnat:ctSessionData").raise_for_status()
    scan = f"{session}/scans/1"
    admin.put(scan, params={"xsiType": "xnat:ctScanData", **fields}).raise_for_status()
    content = nibabel.Nifti1Image(array, affine).to_bytes()
    admin.put(f"{scan}/resources/NIFTI/files/image.nii", data=content, headers=BINARY).raise_for_status()
    found = admin.get(f"{url}/data/projects/{project}/experiments?format=json&columns=ID,label,subject_ID").json()
    row = next(row for row in found["ResultSet"]["Result"] if row["label"] == name)
    return f"{project}/{row['subject_ID']}/{row['ID']}/1"


def add_label(admin, url, image, tag, user, day, array, affine, names, model="", description=None, hidden=False):
    """Store a version of a label, saved by a user at noon of a day.

    Parameters
    ----------
    names : dict
        Name of each value.
    description : bytes or None
        The bytes to store in place of its description.
    hidden : bool
        Whether it was removed by a user who may not delete.
    """
    found = ImageId.parse(image)
    saved = datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=timezone.utc)
    content = gzip.compress(nibabel.Nifti1Image(array.astype(np.uint8), affine).to_bytes(), mtime=0)
    digest = hashlib.sha256(content).hexdigest()
    facts = {
        "format_version": 1,
        "image_id": image,
        "tag": tag,
        "saved_at": saved.isoformat(timespec="microseconds"),
        "saved_by": user,
        "source": {"model": model} if model else {},
        "segments": [
            {"value": value, "name": name, "colour": None, "voxels": int((array == value).sum())}
            for value, name in names.items()
        ],
        "geometry": {"shape": list(array.shape), "affine": affine.tolist(), "orientation": "LPS"},
        "sha256": digest,
        "notes": [],
        "info": {},
    }
    resource = f"{url}/data/experiments/{found.experiment}/scans/{found.scan}/resources/MONAILABEL_{tag}/files"
    name = f"{saved:%Y%m%dT%H%M%S%fZ}-{digest[:12]}"
    files = {".nii.gz": content, ".json": description or json.dumps(facts).encode()}
    if hidden:
        files[".hidden.json"] = b"{}"
    for suffix, stored in files.items():
        admin.put(f"{resource}/{name}{suffix}", data=stored, headers=BINARY).raise_for_status()
