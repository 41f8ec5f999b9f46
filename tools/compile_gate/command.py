"""The compile gate: every kernel in every configuration that ships, for GPUs that need not be there.

    python -m benchmarks compile [--targets sm_90,gfx942] [--kernels resident_kernel] [--json FILE] [--ttgir FOLDER]

prints a row each: registers a thread, spilled bytes, shared memory, tensor-core instructions, seconds. It ends with 1
on a compile error, on shared memory over the target's limit, and on spills in a default configuration. With --cost
`tools/meter` counts instructions instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from .gate import WORKERS, chosen, compiled
from .targets import TARGETS

COLUMNS = {
    "kernel": 24, "case": 62, "target": 10, "num_warps": 9, "registers": 9, "spilled": 7, "shared": 7, "fits": 8,
    "tensor_cores": 12, "seconds": 7,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the command; 0 where every row passes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compile", description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--kernels", default="", help="names of kernels, with commas; all by default")
    parser.add_argument("--json", type=Path, help="file for the rows, one JSON object a line")
    parser.add_argument("--ttgir", type=Path, help="folder for the TTGIR of each row")
    parser.add_argument("--calls", default="", help="pattern for the names of calls; all by default")
    parser.add_argument("--smoke", action="store_true", help="only the few calls that the race test reads")
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args(argv)
    names = given.targets.split(",")
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"--targets: expected names of {', '.join(TARGETS)}, got {', '.join(unknown)}")

    began = time.perf_counter()
    kernels = [name for name in given.kernels.split(",") if name]
    rows = []
    print(_line({name: name for name in COLUMNS}))
    for row in compiled(names, kernels, chosen(given.calls, given.smoke), given.ttgir, given.workers):
        rows.append(row)
        print(_line(row), flush=True)
        for fault in row["faults"]:
            print(f"    {fault}", flush=True)
    if given.json is not None:
        given.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults = sum(bool(row["faults"]) for row in rows)
    compiles = sum(row["same_as"] is None for row in rows)
    print(f"{len(rows)} rows, {compiles} compiled, {faults} with faults, {time.perf_counter() - began:.0f} s")
    if not rows:
        print(f"nothing to compile: no launch of {given.kernels!r}", file=sys.stderr)
    return int(bool(faults) or not rows)


def _line(row: dict[str, Any]) -> str:
    cells = []
    for name, width in COLUMNS.items():
        value = row.get(name, "-")
        value = (
            f"{value:.1f}" if isinstance(value, float) else "+".join(value) if isinstance(value, list) else str(value)
        )
        cells.append(value[:width].ljust(width))
    return " ".join(cells).rstrip()
