"""How long saving and loading a label takes: our way compared with other ways, in one run, as ratios.

Each way is a process of its own. Imports, logins and fetching the image are done before the clock starts. This needs
curl. MONAI Label's built-in datastore makes its DICOM SEG with the program itkimage2segimage. If that is absent, a
script with pydicom-seg replaces it, and if that is absent, too, the way is left out. It cannot load labels at all.

    python benchmarks/labels.py [--repeat 3] [--segments 1] [--segments 20]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from labelways import LABEL, LOADING, NAMES, SAVING
from series import SERIES, write_series
from served import served

IMAGE = "CT 512x512x200"
CONVERTER = "itkimage2segimage"
_STAND_IN = Path(__file__).parents[1] / "tests" / "sandbox" / "segimage.py"
Figures = dict[str, float]


def main() -> None:
    """Measure and print two tables for each number of segments."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--segments", type=int, action="append")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        series = write_series(Path(scratch, "series"), IMAGE, "plain")
        stand_in = stand_in_for_converter(Path(scratch, "bin"))
        for count in options.segments or (1, 20):
            label = write_label(Path(scratch, f"label{count}"), count)
            with served(str(series)) as login:
                measure_label(label, login, options.repeat, stand_in)


def measure_label(folder: Path, login: dict[str, str], repeat: int, stand_in: str | None) -> None:
    """Measure every way with one label. They take turns, so that a busy machine is busy for all."""
    segments = len(json.loads((folder / NAMES).read_text("utf-8")))
    print(f"\n{IMAGE}, {segments} segments, {(folder / LABEL).stat().st_size / 1e6:.1f} MB: medians of {repeat}")
    for action, ways in (("save", SAVING), ("load", LOADING)):
        figures: dict[str, list[Figures]] = {way: [] for way in ways}
        for _ in range(repeat):
            for way in ways:
                if way == "built-in, with SEG" and stand_in is None:
                    continue
                found = measure(f"{action} {way}", {**login, "folder": str(folder)}, folder / "work", stand_in)
                figures[way] += [found] if found else []
        show(action, figures)
    print("  left out: the built-in datastore cannot load labels (get_label_uri is not implemented)")
    if stand_in is None:
        print(f"  left out: saving with the built-in datastore's SEG, for {CONVERTER} and pydicom-seg are absent")
    elif stand_in:
        print(
            f"  the built-in datastore's SEG was made by pydicom-seg in place of {CONVERTER}; its memory is not in MB"
        )


def show(action: str, figures: dict[str, list[Figures]]) -> None:
    """Print a table. Ratios are relative to our way."""
    print(f"\n  {action:<28}{'wall s':>9}{'cpu s':>9}{'MB':>7}{'wall / ours':>13}")
    ours = statistics.median(one["wall"] for one in figures["ours"])
    for way, runs in figures.items():
        if runs:
            wall, cpu, peak = (statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak"))
            print(f"  {way:<28}{wall:>9.4f}{cpu:>9.3f}{peak:>7.0f}{wall / ours:>13.4f}", flush=True)


def measure(way: str, given: dict[str, str], work: Path, stand_in: str | None) -> Figures | None:
    """Run one way in a process of its own. Return None if it fails."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("labelways.py")), way]
    path = os.pathsep.join(filter(None, (stand_in, os.environ["PATH"])))
    environment = {**os.environ, "NETRC": os.devnull, "PATH": path}
    words = json.dumps({**given, "work": str(work)})
    run = subprocess.run([*program, words], capture_output=True, text=True, check=False, env=environment)
    if run.returncode != 0:
        print(f"  {way} failed: {(run.stderr.strip().splitlines() or [''])[-1]}", flush=True)
        return None
    found: Figures = json.loads(run.stdout.rpartition("MEASURED")[2].splitlines()[0])
    return found


def stand_in_for_converter(folder: Path) -> str | None:
    """Return the folder of a stand-in for the built-in converter; "" if that is there itself, None if neither is."""
    if shutil.which(CONVERTER):
        return ""
    if importlib.util.find_spec("pydicom_seg") is None or not _STAND_IN.exists():
        return None
    folder.mkdir()
    script = folder / CONVERTER
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{_STAND_IN}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return str(folder)


def write_label(folder: Path, segments: int) -> Path:
    """Write a label of round organs, side by side, on the grid of the image (RAS, mm)."""
    folder.mkdir()
    _, shape, spacing, distance = SERIES[IMAGE]
    array = np.zeros(shape, np.uint8)
    columns = int(np.ceil(np.sqrt(segments)))
    size = shape[0] // (columns + 1)
    i, j, k = np.ogrid[:size, :size, : shape[2]]
    middle = (size - 1) / 2
    organ = ((i - middle) ** 2 + (j - middle) ** 2) / middle**2 + (k / shape[2] - 0.5) ** 2 / 0.2 < 1
    for value in range(1, segments + 1):
        row, column = divmod(value - 1, columns)
        first, second = size // 2 + row * size, size // 2 + column * size
        array[first : first + size, second : second + size][organ] = value
    affine = np.diag([-spacing, -spacing, distance, 1.0])
    affine[:3, 3] = (100, 100, 0)
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / LABEL)
    (folder / NAMES).write_text(json.dumps([f"organ {value}" for value in range(1, segments + 1)]), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
