"""How long it takes to know what is in a project: our way compared with other ways, in one run, as ratios.

Each way is a process of its own, and so is the server. Imports, and nothing else, are done before the clock starts.
MONAI Label's built-in datastore and xnatpy's objects send requests for each session. Steps that they cannot finish in
time are left out.

    python benchmarks/catalog.py [--repeat 3] [--size 200x4] [--limit 120]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalogways import (
    EMPTY,
    FLAT_MEMORY,
    HELD_MEMORY,
    INFO,
    LABELED,
    LIST,
    MEMORY_WAYS,
    REFRESH,
    START,
    STATUS,
    UNLABELED,
    WAYS,
)
from served import Server, served_sessions

SIZES = {"200x4": (200, 4), "2000x4": (2000, 4), "20000x1": (20000, 1)}
_WARM = (LIST, STATUS, LABELED, UNLABELED, INFO)
_LARGEST = "20000x1"
Figures = dict[str, float]
# The medians, by step and then by way.
Table = dict[str, dict[str, Figures]]


def main() -> None:
    """Measure, and print a table for each size, and the aims."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--size", choices=SIZES, action="append")
    arguments.add_argument("--limit", type=float, default=120.0, help="seconds that a way may take at a size")
    options = arguments.parse_args()
    tables = {}
    for size in options.size or SIZES:
        tables[size] = measure_size(size, options.repeat, options.limit)
        show(size, tables[size], options.repeat)
    show_targets(tables)


def measure_size(size: str, repeat: int, limit: float) -> Table:
    """Measure every way at one size. They take turns, so that a busy machine is busy for all."""
    sessions, scans = SIZES[size]
    runs: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    with served_sessions(sessions, scans) as server:
        listing = _address_of_listing(server)
        too_slow = set()
        for _ in range(repeat):
            for way in WAYS:
                if way in too_slow:
                    continue
                for step, figures in _run(server, way, listing, limit):
                    runs[step][way].append(figures)
                if not runs[START][way]:
                    too_slow.add(way)
                    print(f"  {size}: {way} has not finished in {limit:.0f} s and is left out", flush=True)
        for way in MEMORY_WAYS:
            for step, figures in _run(server, way, listing, 10 * limit):
                runs[step][way].append({"bytes": figures["bytes"] / (sessions * scans if step == HELD_MEMORY else 1)})
    return {step: {way: _medians(found) for way, found in ways.items() if found} for step, ways in runs.items()}


def show(size: str, table: Table, repeat: int) -> None:
    """Print a table. Ratios are relative to our way."""
    print(f"\n{size} (sessions x scans): medians of {repeat}\n")
    print(f"  {'':<46}{'wall ms':>10}{'cpu ms':>9}{'MB':>7}{'requests':>10}{'kB':>9}{'wall / ours':>13}")
    for step, ways in table.items():
        for way, figures in ways.items():
            if "wall" in figures:
                ratio = figures["wall"] / ways["ours"]["wall"] if "ours" in ways else float("nan")
                print(
                    f"  {step:<22}{way:<24}{figures['wall'] * 1e3:>10.3f}{figures['cpu'] * 1e3:>9.2f}"
                    f"{figures['peak']:>7.1f}{figures['requests']:>10.0f}{figures['bytes'] / 1e3:>9.0f}{ratio:>13.2f}"
                )
    for way, figures in table[HELD_MEMORY].items():
        print(f"  memory held, {way}: {figures['bytes']:.0f} bytes a scan", end="")
        print(f"; growth over 10000 further calls: {table[FLAT_MEMORY][way]['bytes'] / 1e3:.0f} kB")
    sys.stdout.flush()


def show_targets(tables: dict[str, Table]) -> None:
    """Print which aims were reached in this run."""
    print("\nTo reach:")
    requests = {size: table[START]["ours"]["requests"] for size, table in tables.items()}
    _say(len(set(requests.values())) == 1, f"requests at the start, whatever the size: {requests}")
    for size, table in tables.items():
        cold = table[START]["ours"]["wall"]
        ratio = cold / table[START]["bare GET + json.loads"]["wall"]
        _say(ratio <= 1.5, f"{size}: cold within 1.5 times of a bare GET + json.loads: {ratio:.2f}")
        if size == "200x4" and "built-in" in table[START]:
            ratio = table[START]["built-in"]["wall"] / cold
            _say(ratio >= 20, f"{size}: cold at least 20 times faster than the built-in: {ratio:.1f}")
    if _LARGEST in tables:
        table = tables[_LARGEST]
        slowest = max(table[step]["ours"]["wall"] * 1e3 for step in _WARM)
        _say(slowest < 10, f"{_LARGEST}: warm calls under 10 ms: the slowest takes {slowest:.2f} ms")
        held = {way: round(figures["bytes"]) for way, figures in table[HELD_MEMORY].items()}
        _say(max(held.values()) < 1000, f"{_LARGEST}: memory under 1 kB a scan: {held}")
        more = table[START]["ours"]["wall"] - table[EMPTY]["ours"]["wall"]
        _say(more < 5, f"{_LARGEST}: started within a few seconds more than on an empty project: {more:.1f} s more")
        print(f"  (a renewal takes {table[REFRESH]['ours']['wall']:.1f} s, in the background)")


def _say(reached: bool, what: str) -> None:
    print(f"  {'reached' if reached else 'MISSED '}  {what}", flush=True)


def _medians(runs: list[Figures]) -> Figures:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _address_of_listing(server: Server) -> str:
    """Let our way ask once, and return the address of the largest answer."""
    program, _ = _started("ours", {**server.login, "listing": ""}, tempfile.mkdtemp())
    with program:
        assert program.stdout is not None
        program.stdout.readline()
        program.kill()
    return str(server.take_log()["largest"])


def _run(server: Server, way: str, listing: str, limit: float) -> Iterator[tuple[str, Figures]]:
    """Run a way in a process of its own, and return what each of its steps took, until its time is up."""
    with tempfile.TemporaryDirectory() as work:
        program, patience = _started(way, {**server.login, "listing": listing}, work, limit)
        with program:
            assert program.stdin is not None
            assert program.stdout is not None
            server.take_log()
            for line in program.stdout:
                log = server.take_log()
                said: dict[str, Any] = json.loads(line)
                step = said.pop("step")
                yield step, {"requests": log["requests"], "bytes": log["bytes"], **said}
                program.stdin.write("\n")
                program.stdin.flush()
        patience.cancel()


def _started(
    way: str, given: dict[str, str], work: str, limit: float = 600.0
) -> tuple[subprocess.Popen[str], threading.Timer]:
    script = str(Path(__file__).with_name("catalogways.py"))
    words = [sys.executable, "-W", "ignore", script, way, json.dumps({**given, "work": work})]
    environment = {**os.environ, "NETRC": os.devnull}
    program = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    patience = threading.Timer(limit, program.kill)
    patience.daemon = True
    patience.start()
    return program, patience


if __name__ == "__main__":
    main()
