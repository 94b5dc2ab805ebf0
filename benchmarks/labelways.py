"""The ways to save and to load a label that are measured. labels.py runs this as a process of its own.

A way is a function that prepares (imports, login, listing, the image) and returns the timed function. The label is
``label.nii.gz`` in the folder that is given, on the grid of the only image.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

from ways import Given, Timed, measure, run_program

LABEL = "label.nii.gz"
NAMES = "names.json"
_PATIENCE = 300.0


def save_ours(given: Given) -> Timed:
    """Save until `save_label` returns. Then the label is in XNAT and was read back; its SEG is made after that."""
    datastore, image = _ours(given)
    return lambda: datastore.save_label(image, _label(given), "final", _info(given))


def save_ours_with_seg(given: Given) -> Timed:
    """Save until XNAT also lists the SEG for the viewer. The tag is its own, so that it replaces no other SEG."""
    tag = f"bench{uuid.uuid4().hex[:8]}"
    datastore, image = _ours(given, roi_write=tag)
    session = _requests(given)
    address = f"{given.url}/data/experiments/{given.session}/assessors?format=json"

    def timed() -> None:
        datastore.save_label(image, _label(given), tag, _info(given))
        deadline = time.monotonic() + _PATIENCE
        while tag not in session.get(address).text:
            if time.monotonic() > deadline:
                raise TimeoutError("no SEG")
            time.sleep(0.02)

    return timed


def save_built_in(given: Given) -> Timed:
    """With a DICOM SEG, which it makes before it answers."""
    datastore, image = _built_in(given)
    return lambda: datastore.save_label(image, _label(given), "final", _info(given))


def save_built_in_without_seg(given: Given) -> Timed:
    """By a file name that does not say NIfTI, it stores the file and no more."""
    datastore, image = _built_in(given)
    plain = Path(given.work, "label.file")
    os.link(_label(given), plain)
    return lambda: datastore.save_label(image, str(plain), "final", _info(given))


def save_curl(given: Given) -> Timed:
    resource = f"{given.url}/data/experiments/{given.session}/scans/2/resources/CURL"
    address = f"{resource}/files/{uuid.uuid4().hex}.nii.gz?inbody=true"
    login = f"{given.user}:{given.password}"
    return lambda: run_program("curl", "-sf", "-u", login, "-T", _label(given), address)


def load_ours(given: Given) -> Timed:
    datastore, image = _ours(given)
    return lambda: _require(datastore.get_label_uri(image, "final"))


def load_ours_warm(given: Given) -> Timed:
    timed = load_ours(given)
    timed()
    return timed


def load_curl(given: Given) -> Timed:
    resource = f"{given.url}/data/experiments/{given.session}/scans/2/resources/MONAILABEL_final/files"
    rows = _requests(given).get(f"{resource}?format=json").json()["ResultSet"]["Result"]
    newest = max(row["Name"] for row in rows if row["Name"].endswith(".nii.gz"))
    login = f"{given.user}:{given.password}"
    return lambda: run_program("curl", "-sf", "-u", login, "-o", f"{given.work}/label.nii.gz", f"{resource}/{newest}")


SAVING = {
    "ours": save_ours,
    "ours, SEG in the viewer": save_ours_with_seg,
    "built-in, with SEG": save_built_in,
    "built-in, without SEG": save_built_in_without_seg,
    "curl PUT": save_curl,
}
LOADING = {
    "ours": load_ours,
    "ours, warm": load_ours_warm,
    "curl GET": load_curl,
}


def _ours(given: Given, **settings: Any) -> tuple[Any, str]:
    from monailabel_xnat import XNATDatastore

    # The SEG that the built-in datastore stores would be read as somebody's label.
    options = {"cache_path": given.work, "environ": {}, "roi_tag": "", **settings}
    datastore = XNATDatastore(given.url, given.user, given.password, "BENCH", **options)
    (image,) = datastore.list_images()
    datastore.get_image_uri(image)  # who saves a label has seen the image
    return datastore, image


def _built_in(given: Given) -> tuple[Any, str]:
    from monailabel.datastore.xnat import XNATDatastore

    datastore = XNATDatastore(given.url, given.user, given.password, "BENCH", "", given.work)
    (image,) = datastore.list_images()
    datastore.get_image_uri(image)
    return datastore, image


def _requests(given: Given) -> Any:
    import requests

    session = requests.Session()
    session.auth = (given.user, given.password)
    return session


def _label(given: Given) -> str:
    return str(Path(given.folder, LABEL))


def _info(given: Given) -> dict[str, Any]:
    return {"model": "bench", "params": {"label_names": json.loads(Path(given.folder, NAMES).read_text("utf-8"))}}


def _require(path: str) -> None:
    if not path:
        raise LookupError("there is no label")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    action, asked = sys.argv[1].split(" ", 1)
    chosen = (SAVING if action == "save" else LOADING)[asked]
    print("MEASURED" + json.dumps(measure(chosen, Given(**json.loads(sys.argv[2])))))
