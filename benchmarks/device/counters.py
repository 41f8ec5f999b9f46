"""Hardware counters of one launch of each main kernel: whether issue, latency, barriers or memory bounds it."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator

import torch

import tpkernels

from ..inputs import make_inputs
from ..providers import Library
from . import processes
from .attention import qkv_of
from .children import Run
from .problems import TIMED_HEADS, case_of, device

SECTIONS = (
    "SpeedOfLight", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats",
    "InstructionStats",
)  # fmt: skip
# Ward by itself, so that a profiler that fails costs one of two runs.
RUNS = (("ward",), ("kmedoids", "kmeans", "attention"))
KERNELS = "regex:^(resident_kernel|attend_rows_kernel)$"
LIMIT = 70.0
# Of its report.
MOST_BYTES = 4 << 20


def tell(run: Run) -> None:
    """A row of counters for each kernel."""
    for names in RUNS:
        both = "+".join(names)
        sections = [word for section in SECTIONS for word in ("--section", section)]
        command = [
            "ncu", "--clock-control", "none", *sections, "-k", KERNELS, "-c", str(len(names)),
            "--csv", "--page", "details",
            sys.executable, "-m", "benchmarks", "device", "--child", f"once-{both}", "--output", str(run.folder),
        ]  # fmt: skip
        how, text = processes.run(command, os.environ, LIMIT, MOST_BYTES)
        found = list(counters(text))
        for name, row in zip(names, found, strict=False):
            run.journal.tell(what=name, **row)
        if len(found) != len(names):
            said = f"{how}: {' '.join(text[-300:].split())}"
            run.journal.tell(what=both, red=f"expected {len(names)} profiled launches, got {len(found)}; {said}")


def counters(text: str) -> Iterator[dict[str, str]]:
    """The metrics of each launch, in order, from ncu's CSV; what else it prints is left out."""
    launches: dict[str, dict[str, str]] = {}
    lines = [line for line in text.splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        if row.get("Metric Name"):
            found = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0]})
            found[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    yield from launches.values()


def once(run: Run) -> None:
    """One launch of each kernel, which the profiler replays."""
    for name in run.part.split("+"):
        if name == "attention":
            tpkernels.attention(*qkv_of(TIMED_HEADS[0], 0), backend="triton", need_significance=True)
        else:
            Library("triton").clusters(make_inputs(case_of(name), device()))
    if device().type == "cuda":
        torch.cuda.synchronize()
