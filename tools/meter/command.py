"""The meter: warp-instructions of a sample in compiled code, for GPUs that need not be there.

    python -m benchmarks compile --cost [--targets sm_90,gfx942] [--operations ward,attention] [--csv FILE]

prints a row for each operation and target: instructions in thousands, by part, over all launches. The unit is a warp of
eight for a sample: what all warps of a program issue, divided by 8 (attention: by its own warps, for a head of a
sample). `alone`: thousands of cycles that a warp takes for a sample if no other delays it, and what it waits for
(NVIDIA). docs/kernels.md tells what the meter does not see.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.compile_gate.launches import Launch, configuration

from . import parts
from .devices import DEVICES
from .interpreted import interpreted
from .meter import Cost, cost, planned, row
from .operations import OPERATIONS, SAMPLES
from .trips import Trips

WORKERS = 2
RESOURCES = {
    "operation": 14, "target": 7, "num_warps": 9, "registers": 9, "spilled": 7, "shared": 7, "fit_registers": 13,
    "fit_shared": 10, "fit_threads": 11, "exact": 6, "microseconds": 12, "total": 8, "alone": 6,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compile", description=__doc__)
    parser.add_argument("--cost", action="store_true", help="count instructions, which is what this command does")
    parser.add_argument("--targets", default=",".join(DEVICES), help=f"of {', '.join(DEVICES)}; all by default")
    parser.add_argument(
        "--operations", default=",".join(OPERATIONS), help=f"of {', '.join(OPERATIONS)}; all by default"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, help="whose counts are averaged (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args(argv)
    targets, operations = given.targets.split(","), given.operations.split(",")
    for option, names, known in (("--targets", targets, DEVICES), ("--operations", operations, OPERATIONS)):
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"{option}: expected names of {', '.join(known)}, got {', '.join(unknown)}")
    most = min(OPERATIONS[name].call.shape[0] for name in operations)
    if not 1 <= given.samples <= most:
        parser.error(f"--samples: expected 1 to {most}, got {given.samples}")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET: expected to be unset where kernels are compiled, got 1")

    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    tasks = [(name, target, planned(name, target)) for target in targets for name in operations]
    print(_line({name: name for name in RESOURCES}))
    # Each thread waits for an interpreter in a process of its own; targets with the same launches share one.
    with ThreadPoolExecutor(given.workers) as pool:
        counted: dict[str, Future[Trips]] = {}
        for name, target, made in tasks:
            if _alike(name, made) not in counted:
                counted[_alike(name, made)] = pool.submit(interpreted, name, target, given.samples)
        for name, target, made in tasks:
            found = cost(name, target, made, counted[_alike(name, made)].result())
            rows.append(row(found))
            print("\n".join(_lines(found)), flush=True)
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows)} rows, {time.perf_counter() - began:.0f} s")
    return 0


def _alike(name: str, made: list[Launch]) -> str:
    """Equal for targets whose launches of an operation have the same constants."""
    return repr((name, [configuration(launch) for launch in made]))


def _lines(found: Cost) -> list[str]:
    """Resources and the total, then the parts, then what is in doubt."""
    lines = [_line(row(found))]
    split = [f"{part} {found.parts[part] / 1e3:.1f}" for part in parts.ORDER if part in found.parts]
    lines.append(f"    {', '.join(split)}")
    if found.cycles:
        spent = [f"{kind} {cycles / 1e3:.1f}" for kind, cycles in found.cycles.items()]
        lines.append(f"    alone: {', '.join(spent)}")
    for one in found.launches:
        lines.append(f"    {one.kernel}: {one.size} instructions, {one.rare} of them where no warp comes")
        lines += [f"    {one.kernel}: {doubt}" for doubt in one.doubts]
    return lines


def _line(cells: dict[str, Any]) -> str:
    thousands = {name: cells[name] for name in ("total", "alone")}
    made = {**cells, **{k: v if isinstance(v, str) else f"{v / 1e3:.1f}" for k, v in thousands.items()}}
    return " ".join(str(made[name])[:width].ljust(width) for name, width in RESOURCES.items()).rstrip()
