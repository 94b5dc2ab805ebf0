"""How long it takes until an image can be read: our way compared with other ways, in one run, as ratios.

Each way is a process of its own, so that wall time, processor time and memory are only that way's. Imports and logins
are done before the clock starts. This needs curl and dcm2niix (Debian packages); a way without its program is left out.

    python benchmarks/images.py [--repeat 3] [--series "CT 512x512x200"] [--syntax plain] [--workers] [--line 1000]

With --line, the server is reached over a line of so many Mbit/s (line.py). This shows what a first image costs if the
server is on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from line import line
from series import SERIES, SYNTAXES, write_series
from served import served
from ways import WAYS

IMAGES = 20
Figures = dict[str, float]


def main() -> None:
    """Measure and print a table for each series and transfer syntax."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--series", choices=SERIES, action="append")
    arguments.add_argument("--syntax", choices=SYNTAXES, action="append")
    arguments.add_argument("--workers", action="store_true", help=f"only {IMAGES} images with 1, 2 and 4 workers")
    arguments.add_argument("--line", type=float, metavar="MBIT", help="only the series, over a line of so many Mbit/s")
    options = arguments.parse_args()
    for name in [] if options.workers else options.series or SERIES:
        for syntax in options.syntax or SYNTAXES:
            measure_series(name, syntax, options.repeat, options.line)
    if not options.line:
        measure_workers()


def measure_series(name: str, syntax: str, repeat: int, mbit: float | None = None) -> None:
    """Measure every way on one series. They take turns, so that a busy machine is busy for all."""
    figures: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_series(Path(scratch, "series"), name, syntax)
        with served(str(folder)) as login, line(login["url"], mbit) if mbit else nullcontext(login["url"]) as url:
            for _ in range(repeat):
                for way in WAYS:
                    found = measure(way, {**login, "url": url, "folder": str(folder)}, Path(scratch, "work"))
                    figures[way] += [found] if found else []
    over = f" over {mbit:g} Mbit/s" if mbit else ""
    print(f"\n{name}, {syntax}{over}: medians of {repeat}, load {os.getloadavg()[0]:.0f}\n")
    print(f"  {'':<28}{'wall s':>9}{'cpu s':>9}{'MB':>7}{'wall / ours':>13}")
    ours = statistics.median(one["wall"] for one in figures["ours"])
    for way, runs in figures.items():
        if runs:
            wall, cpu, peak = (statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak"))
            print(f"  {way:<28}{wall:>9.4f}{cpu:>9.3f}{peak:>7.0f}{wall / ours:>13.4f}", flush=True)


def measure(way: str, given: dict[str, str], work: Path) -> Figures | None:
    """Run one way in a process of its own. Return None if a program that it needs is absent, or if it fails."""
    if "dcm2niix" in way and shutil.which("dcm2niix") is None:
        return None
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    words = json.dumps({**given, "work": str(work)})
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ways.py")), way, words]
    environment = {**os.environ, "NETRC": os.devnull}
    run = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if run.returncode != 0:
        print(f"  {way} failed: {(run.stderr.strip().splitlines() or [''])[-1]}", flush=True)
        return None
    found: Figures = json.loads(run.stdout.rpartition("MEASURED")[2])
    return found


def measure_workers() -> None:
    """Fetch many images with 1, 2 and 4 workers."""
    print(f"\n{IMAGES} images, MR 256x256x160, plain\n")
    with tempfile.TemporaryDirectory() as scratch:
        series = range(IMAGES)
        folders = [write_series(Path(scratch, f"{n}"), "MR 256x256x160", "plain", f"BENCH{n:02d}") for n in series]
        with served(*map(str, folders)) as login:
            alone = 0.0
            for workers in (1, 2, 4):
                found = measure(str(workers), {**login, "folder": ""}, Path(scratch, "work"))
                if found:
                    alone = alone or found["wall"]
                    ratio = alone / found["wall"]
                    print(f"  {workers} workers: {found['wall']:.2f} s, {ratio:.2f} times as fast as one", flush=True)


if __name__ == "__main__":
    main()
