"""Save some labels of one image in a process of its own, and print the names of their versions."""

from __future__ import annotations

import sys
from pathlib import Path

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.images import Images
from monailabel_xnat.labels import Labels, LabelStore


def main() -> None:
    server, username, password, project, folder, *sources = sys.argv[1:]
    given = {"server": server, "username": username, "password": password, "project": project, "cache_path": folder}
    settings = Settings.load(given, environ={})
    session = Session(settings)
    catalog = Catalog(session)
    images = Images(session, settings)
    store = LabelStore(session, catalog, images, settings, Labels(session, catalog, images, settings))
    for source in sources:
        scan = catalog.scan(f"{project}/s1/e1/1")
        sys.stdout.write(store.save(scan, "final", Path(source), {"source": source}).name + "\n")
    store.close()
    session.close()


if __name__ == "__main__":
    main()
