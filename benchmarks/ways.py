"""The ways to an image that are measured. images.py runs this as a process of its own.

A way is a function that prepares (imports, login, listing) and returns the function that is then timed.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

Timed = Callable[[], object]


@dataclass(frozen=True)
class Given:
    """What a way needs to know."""

    url: str
    user: str
    password: str
    session: str
    folder: str
    work: str


def ours(given: Given) -> Timed:
    import SimpleITK  # noqa: F401 - paid before the clock starts

    import monailabel_xnat.convert.dicom.conversion  # noqa: F401 - likewise
    from monailabel_xnat import XNATDatastore

    datastore = XNATDatastore(given.url, given.user, given.password, "BENCH", cache_path=given.work, environ={})
    image = datastore.list_images()[0]
    return lambda: datastore.get_image_uri(image)


def ours_warm(given: Given) -> Timed:
    timed = ours(given)
    timed()
    return timed


def curl(given: Given) -> Timed:
    address = f"{given.url}/data/experiments/{given.session}/scans/2/resources/DICOM/files?format=zip"
    login = f"{given.user}:{given.password}"
    return lambda: run_program("curl", "-s", "-u", login, "-o", f"{given.work}/scan.zip", address)


def curl_and_dcm2niix(given: Given) -> Timed:
    download = curl(given)

    def timed() -> None:
        download()
        zipfile.ZipFile(f"{given.work}/scan.zip").extractall(f"{given.work}/dicom")
        run_program("dcm2niix", "-b", "n", "-z", "n", "-d", "9", "-o", given.work, f"{given.work}/dicom")

    return timed


def built_in_and_loadimage(given: Given) -> Timed:
    from monai.transforms import LoadImage
    from monailabel.datastore.xnat import XNATDatastore

    datastore = XNATDatastore(given.url, given.user, given.password, "BENCH", "", given.work)
    image = datastore.list_images()[0]
    load = LoadImage(reader="ITKReader")
    return lambda: load(datastore.get_image_uri(image))


def xnatpy_and_simpleitk(given: Given) -> Timed:
    import SimpleITK as sitk  # noqa: N813 - as everybody calls it
    import xnat

    connection = xnat.connect(given.url, user=given.user, password=given.password)
    dicom = connection.projects["BENCH"].experiments[0].scans[0].resources["DICOM"]

    def timed() -> None:
        dicom.download_dir(given.work, verbose=False)
        folder = next(str(path.parent) for path in Path(given.work).rglob("*.dcm"))
        sitk.WriteImage(
            sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder)), f"{given.work}/image.nii"
        )

    return timed


def bare_simpleitk(given: Given) -> Timed:
    import SimpleITK as sitk  # noqa: N813 - as everybody calls it

    return lambda: sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(given.folder))


WAYS = {
    "ours": ours,
    "ours, warm": ours_warm,
    "(a) curl": curl,
    "(b) curl + dcm2niix": curl_and_dcm2niix,
    "(c) built-in + LoadImage": built_in_and_loadimage,
    "(d) xnatpy + SimpleITK": xnatpy_and_simpleitk,
    "bare SimpleITK read": bare_simpleitk,
}


def many(given: Given, workers: int) -> Timed:
    """Fetch all images of the project, several at a time."""
    from monailabel_xnat import XNATDatastore

    cache = Path(given.work, str(workers))
    datastore = XNATDatastore(given.url, given.user, given.password, "BENCH", cache_path=cache, environ={})
    images = datastore.list_images()
    return lambda: datastore.prefetch(images, workers=workers)


def measure(way: Callable[[Given], Timed], given: Given) -> dict[str, float]:
    """Run one way, and return wall and processor seconds, and the peak growth of memory in MB."""
    timed = way(given)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far, of imports, is forgotten
    before, cpu, started = memory_of("VmRSS"), processor_time(), time.perf_counter()
    timed()
    wall = time.perf_counter() - started
    return {"wall": wall, "cpu": processor_time() - cpu, "peak": max(memory_of("VmHWM") - before, *_programs)}


# Peaks of the programs that were run, in MB.
_programs = [0.0]


def memory_of(field: str, process: int | str = "self") -> float:
    """Read a field of a process's status in MB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def processor_time() -> float:
    """Return the processor time of this process and of the programs it ran, in seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_program(*words: str) -> None:
    """Run a program, and note its memory."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            _programs.append(memory_of("VmHWM", process.pid))
            time.sleep(0.005)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words[0])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    asked = sys.argv[1]
    chosen = partial(many, workers=int(asked)) if asked.isdigit() else WAYS[asked]
    print("MEASURED" + json.dumps(measure(chosen, Given(**json.loads(sys.argv[2])))))
