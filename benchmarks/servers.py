"""How long MONAI Label's server takes to answer on many images in XNAT, beside the same app on a LocalDatastore.

Both servers run the app of the tests, which nobody changed and whose model takes next to no time, on the same images.
They are asked in turns, so that a busy machine is busy for both; processor time is that of the server's process. XNAT
(the sandbox of this package) is a process of its own.

    python benchmarks/servers.py [--images 5000] [--repeat 15]
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import psutil
import requests
from served import PROJECT, Server, served_images

TESTS = Path(__file__).parents[1] / "tests" / "app"
COMMAND = "import sys; from monailabel_xnat.cli.main import main; sys.exit(main())"
SHAPE = (64, 64, 32)
START, INFO, RANDOM, FIRST = "start, first /info/", "/info/", "next sample, random", "next sample, first"
INFER_NEW, INFER_AGAIN = "infer, another image", "infer, the same again"


@dataclass
class Running:
    """A MONAI Label server, and its images in an order of their own."""

    url: str
    process: psutil.Process
    started: float
    images: list[str]

    def ask(self, method: str, path: str, **query: str) -> requests.Response:
        """Send a request, which must be answered."""
        answer = requests.request(method, f"{self.url}{path}", params=query, json={}, timeout=600)
        answer.raise_for_status()
        return answer

    def infer(self, number: int) -> None:
        """Run the model on one of the images, and take the label."""
        self.ask("POST", "/infer/threshold", image=self.images[number], output="image")


def main() -> None:
    """Measure, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--images", type=int, default=5000)
    arguments.add_argument("--repeat", type=int, default=15)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        image = _write_image(folder)
        xnat = stack.enter_context(served_images(str(image), options.images))
        servers = {
            "XNAT": stack.enter_context(_on_xnat(folder, xnat)),
            "local": stack.enter_context(_on_folder(folder, image, options.images)),
        }
        show(measure(servers, options.repeat), options.images, options.repeat)
    print(f"\nload at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def measure(servers: Mapping[str, Running], repeat: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Return for each step and server the medians of the wall and processor time of a request, in seconds."""
    steps: dict[str, Callable[[Running, int], object]] = {
        INFO: lambda server, turn: server.ask("GET", "/info/"),
        RANDOM: lambda server, turn: server.ask("POST", "/activelearning/random"),
        FIRST: lambda server, turn: server.ask("POST", "/activelearning/first"),
        INFER_NEW: lambda server, turn: server.infer(turn),
        INFER_AGAIN: lambda server, turn: server.infer(0),
    }
    found: dict[str, dict[str, tuple[float, float]]] = {
        START: {name: (server.started, sum(server.process.cpu_times()[:2])) for name, server in servers.items()}
    }
    for step, ask in steps.items():
        runs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for turn in range(repeat + 1):
            for name, server in servers.items():
                before, started = server.process.cpu_times(), time.perf_counter()
                ask(server, turn)
                wall, after = time.perf_counter() - started, server.process.cpu_times()
                if turn:  # the first of each step loads what is used for the first time
                    runs[name].append((wall, sum(after[:2]) - sum(before[:2])))
        found[step] = {name: _medians(times) for name, times in runs.items()}
    return found


def show(found: Mapping[str, Mapping[str, tuple[float, float]]], images: int, repeat: int) -> None:
    """Print the table."""
    print(f"{images} images: medians of {repeat}, in milliseconds\n")
    print(f"  {'':<26}{'XNAT':>10}{'cpu':>8}{'local':>10}{'cpu':>8}{'XNAT / local':>14}")
    for step, ways in found.items():
        (ours, our_cpu), (local, local_cpu) = ways["XNAT"], ways["local"]
        figures = f"{ours * 1e3:>10.1f}{our_cpu * 1e3:>8.0f}{local * 1e3:>10.1f}{local_cpu * 1e3:>8.0f}"
        print(f"  {step:<26}{figures}{ours / local:>14.2f}")


def _medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)


def _write_image(folder: Path) -> Path:
    voxels = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
    image = folder / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), str(image))
    return image


def _on_xnat(folder: Path, xnat: Server) -> AbstractContextManager[Running]:
    login = {"MONAI_LABEL_XNAT_USERNAME": xnat.login["user"], "MONAI_LABEL_XNAT_PASSWORD": xnat.login["password"]}
    places = {"MONAI_LABEL_XNAT_CACHE_PATH": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data")}
    return _running(xnat.login["url"], {**login, **places}, folder, "--conf", "xnat_project", PROJECT)


def _on_folder(folder: Path, image: Path, count: int) -> AbstractContextManager[Running]:
    studies = folder / "images"
    studies.mkdir()
    for number in range(count):
        (studies / f"image{number:06}.nii.gz").hardlink_to(image)
    return _running(str(studies), {}, folder)


@contextmanager
def _running(studies: str, environment: Mapping[str, str], folder: Path, *options: str) -> Iterator[Running]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = tempfile.mkdtemp(dir=folder)  # MONAI Label writes into it
    shutil.copytree(TESTS / "small_app", app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    given = ["--app", app, "--studies", studies, "--host", "127.0.0.1", "--port", str(port)]
    words = [sys.executable, "-W", "ignore", "-c", COMMAND, "start_server", *given, *options]
    paths = (os.environ.get("PYTHONPATH"), str(TESTS / "torch_without_vision_ops"))
    everything = {
        **os.environ,
        "NETRC": os.devnull,
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **environment,
    }
    url, started = f"http://127.0.0.1:{port}", time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, env=everything, cwd=folder, stdout=quiet, stderr=quiet) as program:
        try:
            while True:
                if program.poll() is not None:
                    raise SystemExit(f"the server on {studies} did not start")
                try:
                    requests.get(f"{url}/info/", timeout=600).raise_for_status()
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            took = time.perf_counter() - started
            listed = requests.get(f"{url}/datastore/", params={"output": "all"}, timeout=600).json()["objects"]
            yield Running(url, psutil.Process(program.pid), took, sorted(listed))
        finally:
            program.terminate()


if __name__ == "__main__":
    main()
