"""Several workers on one project of 50,000 scans: what a start costs each of them, and what they do together.

Each worker is a process of its own with a cache of its own, as on machines of their own; so is the server. All of them
begin each step in the same moment. A step is: open the datastore and list the images; list them anew; fetch small
images, each worker its own; save a label of each of these.

    python benchmarks/scale.py [--sessions 50000] [--workers 1 2 4] [--images 20]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from served import PROJECT, Server, served_sessions
from ways import memory_of, processor_time

STEPS = ("start, list_images", "refresh", "get_image_uri", "save_label")
SHAPE = (64, 64, 32)


def main() -> None:
    """Measure with each number of workers and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sessions", type=int, default=50_000, help="sessions, of one scan each")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments.add_argument("--images", type=int, default=20, help="images and labels for each worker")
    options = arguments.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with served_sessions(options.sessions, 1) as server:
        images = put_images(server, sum(options.workers) * options.images)
        print(f"\n{options.sessions} scans, {options.images} images of {SHAPE} for each worker\n")
        print(
            f"  {'workers':<9}{'step':<20}{'wall s':>8}{'cpu s each':>12}{'MB each':>9}{'requests':>10}{'a second':>10}"
        )
        for workers in options.workers:
            shares = [[next(images) for _ in range(options.images)] for _ in range(workers)]
            for step, found in measure(server, shares):
                show(workers, step, found, options.images if step in STEPS[2:] else 0)
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


def measure(server: Server, shares: list[list[str]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Run each step in all workers at once; the wall time is until the last one is done."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        running = [
            stack.enter_context(worker(server, share, f"{folder}/{number}")) for number, share in enumerate(shares)
        ]
        for program in running:
            program.stdout.readline()  # it has imported everything
        server.take_log()
        for step in STEPS:
            started = time.perf_counter()
            for program in running:
                program.stdin.write("go\n")
                program.stdin.flush()
            said = [json.loads(program.stdout.readline()) for program in running]
            wall = time.perf_counter() - started
            each = {key: sum(found[key] for found in said) / len(said) for key in ("cpu", "peak")}
            yield step, {"wall": wall, "requests": server.take_log()["requests"], **each}


def show(workers: int, step: str, found: dict[str, float], images: int) -> None:
    """Print a line of the table."""
    rate = f"{workers * images / found['wall']:>10.1f}" if images else ""
    print(
        f"  {workers:<9}{step:<20}{found['wall']:>8.2f}{found['cpu']:>12.2f}{found['peak']:>9.0f}"
        f"{found['requests']:>10.0f}{rate}",
        flush=True,
    )


def put_images(server: Server, count: int) -> Iterator[str]:
    """File small images as scans of one session, and give their SeriesInstanceUIDs, which are ids of images too."""
    import nibabel
    import numpy as np
    import requests

    content = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)).to_bytes()
    headers = {"Content-Type": "application/octet-stream"}
    with requests.Session() as admin:
        admin.auth = (server.login["user"], server.login["password"])
        subject = f"{server.login['url']}/data/projects/{PROJECT}/subjects/real"
        session = f"{subject}/experiments/real"
        for path in (subject, f"{session}?xsiType=xnat:ctSessionData"):
            admin.put(path).raise_for_status()
        for number in range(1, count + 1):
            query = {"xsiType": "xnat:ctScanData", "UID": f"1.2.3.{number}"}
            admin.put(f"{session}/scans/{number}", params=query).raise_for_status()
            file = f"{session}/scans/{number}/resources/NIFTI/files/image.nii"
            admin.put(file, data=content, headers=headers).raise_for_status()
    return iter([f"1.2.3.{number}" for number in range(1, count + 1)])


@contextmanager
def worker(server: Server, images: list[str], folder: str) -> Iterator[Any]:
    """Start a worker."""
    given = json.dumps({**server.login, "images": images, "folder": folder})
    words = [sys.executable, "-W", "ignore", __file__, "--as-worker", given]
    environment = {**os.environ, "NETRC": os.devnull}
    program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with program:
        yield program
        assert program.stdin is not None
        program.stdin.close()


def work(given: dict[str, Any]) -> None:
    """Do each step when told so, and say what it took."""
    import nibabel
    import numpy as np
    import SimpleITK  # noqa: F401 - paid before the clock starts

    from monailabel_xnat import XNATDatastore

    folder = Path(given["folder"])
    folder.mkdir()
    label = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)), label)
    info = {"label_info": [{"name": "organ", "idx": 1}]}
    opened: list[Any] = []

    def start() -> None:
        login = given["url"], given["user"], given["password"], PROJECT
        opened.append(XNATDatastore(*login, cache_path=folder / "cache", environ={}, max_age=3600))
        opened[0].list_images()

    def fetch() -> None:
        for image in given["images"]:
            opened[0].get_image_uri(image)

    def save() -> None:
        for image in given["images"]:
            opened[0].save_label(image, str(label), "final", info)

    print("ready", flush=True)
    for step in (start, lambda: opened[0].refresh(), fetch, save):
        sys.stdin.readline()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before, cpu = memory_of("VmRSS"), processor_time()
        step()
        print(json.dumps({"cpu": processor_time() - cpu, "peak": memory_of("VmHWM") - before}), flush=True)
    opened[0].close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-worker"]:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        work(json.loads(sys.argv[2]))
    else:
        main()
