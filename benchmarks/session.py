"""One run over groups of cases: prints rows as they come and appends them to the device's file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from . import cases, environment, memory, rows
from .errors import Refusal
from .providers import providers_of
from .rows import Row
from .runner import Runner
from .timing import Budget

REPEATS = {"cpu": 30, "cuda": 100}
QUICK_REPEATS = 3
# Processes that already run on the average; one may be the shell's last command.
BUSY = 0.5


def wants_compile(asked: bool | None, device: str | None) -> bool:
    """Whether `all` begins with the compile gate: as asked, else where there is a GPU, since it takes minutes."""
    return environment.find_device(device).type == "cuda" if asked is None else asked


def results_path(folder: Path, device: torch.device, quick: bool) -> Path:
    """The device's file; quick runs have their own, for their times are of other cases."""
    return folder / f"{environment.slug(environment.device_name(device))}{'-quick' if quick else ''}.csv"


def measure(groups: Sequence[str], options: argparse.Namespace) -> int:
    """Runs the groups; how many rows were wrong or failed.

    Raises:
        Refusal: an unknown device, no case or provider left, or a file of results of another make.
    """
    device = environment.find_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = results_path(options.output, device, options.quick)
    if path.exists() and path.stat().st_size:
        # Before the work, not after it.
        rows.check(path)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS[device.type])
    runner = Runner(device, Budget(repeats, options.budget))
    kept = memory.keep_memory() if options.keep_memory else memory.DEFAULT
    print(f"{environment.device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {kept}")
    load = environment.load()
    if load > BUSY:
        print(f"The machine is busy (load {load:.1f}): times on the CPU will be of that, too.")
    begin = time.perf_counter()
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for group, case, everyone in _plan(groups, device.type, options):
            print(f"\n{group}: {case.name}, {case.shape}, {case.dtype}")
            found = runner.run(group, case, everyone)
            for row in found:
                print(line(row), flush=True)
            rows.append(path, found)
    minutes = (time.perf_counter() - begin) / 60
    print(f"\n{minutes:.1f} minutes; rows in {path}" + (f"; {runner.red} wrong or failed" if runner.red else ""))
    return runner.red


def _plan(groups: Sequence[str], kind: str, options: argparse.Namespace) -> list[tuple]:
    """(group, case, providers) of every case; --case and --provider have to leave something in one group at least."""
    plan, complaints = [], []
    for group in groups:
        try:
            chosen = cases.select(group, kind, small=options.quick, only=options.case)
            everyone = providers_of(group, options.provider)
        except Refusal as error:
            complaints.append(error)
            continue
        plan += [(group, case, everyone) for case in chosen]
    if not plan:
        raise complaints[0]
    return plan


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    if row.status != "ok":
        return f"  {row.provider:<22}  {row.status}"
    parts = [f"p50 {row.p50_ms:9.3f} ms", f"p20 {row.p20_ms:9.3f}", f"p99 {row.p99_ms:9.3f}"]
    if row.graph_p50_ms is not None:
        parts.append(f"graph {row.graph_p50_ms:8.4f}")
    parts += [f"cold {row.cold_ms:8.0f}", f"{row.over_floor:7.2f}x floor", f"{row.peak_mb:8.1f} MB"]
    if row.launches is not None:
        parts.append(f"{row.launches} launches")
    parts.append(f"objective {row.objective_ratio:.4f}")
    if row.note:
        parts.append(row.note)
    return "  ".join([f"  {row.provider:<22}", *parts])
