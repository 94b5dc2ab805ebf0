"""Use MONAI Label's built-in XNATDatastore, unmodified, on the server named on the command line, and print JSON."""

from __future__ import annotations

import json
import sys

from monailabel.datastore.xnat import XNATDatastore


def main(url: str, user: str, password: str, project: str, cache: str, label: str) -> None:
    datastore = XNATDatastore(url, user, password, project, cache_path=cache)
    images = datastore.list_images()
    found = {"images": images, "status": datastore.status()}
    if images:
        found["folder"] = datastore.get_image_uri(images[0])
        found["zip"] = len(datastore.get_image(images[0]).read())
        found["info"] = datastore.get_image_info(images[0])
    if images and label:
        info = {"model": "liver", "params": {"label_names": ["liver"]}}
        found["saved"] = datastore.save_label(images[0], label, "final", info)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
