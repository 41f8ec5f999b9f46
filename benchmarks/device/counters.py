"""Hardware counters of one launch of each main kernel: whether issue, latency, barriers or memory bounds it."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator

import torch

import tpkernels

from .. import processes
from ..clustering.inputs import make_inputs
from ..clustering.providers import Library
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
# Seconds for a run.
LIMIT = 70.0
# Bytes that are kept of its report.
MOST_BYTES = 4 << 20


def tell(run: Run) -> None:
    """A row of counters for each kernel."""
    for names in RUNS:
        both = "+".join(names)
        sections = [word for section in SECTIONS for word in ("--section", section)]
        command = [
            "ncu", "--clock-control", "none", "--target-processes", "application-only", *sections,
            "-k", KERNELS, "-c", str(len(names)), "--csv", "--page", "details", "--print-details", "all",
            "--apply-rules", "no",
            sys.executable, "-m", "benchmarks", "device", "--child", f"once-{both}", "--output", str(run.folder),
        ]  # fmt: skip
        how, text = processes.run(command, os.environ, min(LIMIT, run.left()), MOST_BYTES)
        found = list(counters(text))
        for name, row in zip(names, found, strict=False):
            run.journal.tell(what=name, **row)
        if len(found) != len(names):
            said = f"{how}: {' '.join(text[-300:].split())}"
            run.journal.tell(what=both, red=f"expected {len(names)} profiled launches, got {len(found)}; {said}")


def counters(text: str) -> Iterator[dict[str, str]]:
    """The metrics of each launch, in order, from ncu's CSV; what is printed before it is left out.

    Two sections may have a metric of one name: the later one gets its section's name in front.
    """
    launches: dict[str, dict[str, str]] = {}
    lines = text.splitlines()
    first = next((place for place, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    for row in csv.DictReader(lines[first:]):
        name = row.get("Metric Name")
        if name:
            found = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0]})
            name = f"{row['Section Name']}: {name}" if name in found else name
            found[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
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
