"""Save a label again and again, in a process that dies one step later each time.

A step is everything that touches the disk or the network, as Python's audit events report it. The script prints the
number of steps of a complete save.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.images import Images
from monailabel_xnat.labels import Labels, LabelStore

DIED = 17
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "http.client.send", "shutil.rmtree")


def die_at(last: int) -> None:
    """End this process at one step, as a power cut would."""
    steps = iter(range(last + 1))

    def count(event: str, args: object) -> None:
        if event in STEPS and next(steps) == last:
            os._exit(DIED)

    sys.addaudithook(count)


def save(server: str, username: str, password: str, project: str, folder: Path, source: Path, step: int) -> None:
    given = {"server": server, "username": username, "password": password, "project": project}
    settings = Settings.load({**given, "cache_path": folder / f"crash{step}"}, environ={})
    session = Session(settings)
    catalog = Catalog(session)
    images = Images(session, settings)
    store = LabelStore(session, catalog, images, settings, Labels(session, catalog, images, settings))
    scan = catalog.scan(f"{project}/s1/e1/1")
    images.path(scan)
    die_at(step)
    store.save(scan, f"t{step}", source, {})


def main() -> None:
    server, username, password, project, folder, source = sys.argv[1:]
    step = 0
    while True:
        child = os.fork()
        if child == 0:
            save(server, username, password, project, Path(folder), Path(source), step)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        if status != DIED:
            sys.exit(f"the save failed at step {step}")
        step += 1
    sys.stdout.write(str(step))


if __name__ == "__main__":
    main()
