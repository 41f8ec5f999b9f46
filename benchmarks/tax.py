"""`python -m benchmarks tax`: what pooling costs beside cutting tokens, and from which batch on it pays.

    pooling tax = time of the pooled model / time of the same model whose tokens are cut to the same counts - 1

DeiT-Ti, S and B with random weights on smooth random images, and the small trained model on its own; pooling after
every block's attention at keep 0.9, and at blocks 4, 7 and 10 at keep 0.7. Each problem's models run by turns in one
process: the unpooled one, the one that slices, and one for each method; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from . import environment, memory, tax_report, tax_rows
from .errors import Refusal
from .session import BUSY, results_path
from .tax_cases import BATCHES, METHODS, MODELS, SCHEDULES, modes, problems
from .tax_rows import Row
from .tax_runner import TaxRunner
from .timing import Budget

RESULTS = environment.ROOT / "benchmarks" / "results" / "tax"
DOCUMENT = environment.ROOT / "docs" / "benchmarks.md"
REPEATS = {"cpu": 20, "cuda": 100}
QUICK_REPEATS = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m benchmarks tax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ", ".join(f"{', '.join(map(str, batches))} on {kind}" for kind, batches in BATCHES.items())
    root.add_argument("--device", help="cpu, cuda or cuda:<index> (default: the first GPU, else the CPU)")
    root.add_argument("--model", nargs="+", help=f"of {', '.join(MODELS)} (default: all)")
    root.add_argument("--schedule", nargs="+", choices=SCHEDULES, help="every block, or three (default: both)")
    root.add_argument("--batch", nargs="+", type=int, help=f"images in a batch (default: {sizes})")
    root.add_argument("--method", nargs="+", choices=METHODS, help="beside base and slicing (default: all)")
    root.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="also under torch.compile, and at batch 1 on a GPU as a CUDA graph; a minute or so for each model that "
        "is compiled (default: yes, with --quick no)",
    )
    root.add_argument("--quick", action="store_true", help="a tiny model, to see within seconds that all of it runs")
    root.add_argument("--repeats", type=int, help="rounds at most (default: 20, on CUDA 100)")
    root.add_argument(
        "--budget", type=float, default=60.0, help="seconds for the rounds of one problem in one mode (default: 60)"
    )
    root.add_argument("--threads", type=int, help="threads on the CPU (default: torch's)")
    root.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True, help=memory.HELP)
    root.add_argument("--output", type=Path, default=RESULTS, help="folder for the CSV (default: %(default)s)")
    root.add_argument("--report", action="store_true", help="measure nothing; tables of what the folder holds")
    root.add_argument(
        "--document",
        type=Path,
        help="where --report puts its tables (default: docs/benchmarks.md; with --quick nowhere)",
    )
    return root


def main(argv: list[str]) -> int:
    """Runs the command; 1 where a model was wrong or failed, 2 where it cannot run."""
    options = parser().parse_args(argv)
    try:
        _check(options)
        red = 0 if options.report else _measure(options)
        _report(options)
    except Refusal as error:
        print(f"benchmarks tax: {error}", file=sys.stderr)
        return 2
    return 1 if red else 0


def _check(options: argparse.Namespace) -> None:
    for name in ("repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise Refusal(f"--{name}: expected at least 1, got {value}")
    for batch in options.batch or ():
        if batch < 1:
            raise Refusal(f"--batch: expected at least 1, got {batch}")
    if not 0 < options.budget < float("inf"):
        raise Refusal(f"--budget: expected seconds above 0, got {options.budget}")


def _measure(options: argparse.Namespace) -> int:
    """Runs the problems; how many rows were wrong or failed."""
    device = environment.find_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    plan = problems(
        device.type,
        small=options.quick,
        models=options.model,
        schedules=options.schedule,
        batches=options.batch,
    )
    path = results_path(options.output, device, options.quick)
    if path.exists() and path.stat().st_size:
        # Before the work, not after it.
        tax_rows.check(path)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS[device.type])
    allocator = memory.keep_memory() if options.keep_memory else memory.DEFAULT
    runner = TaxRunner(device, Budget(repeats, options.budget), allocator)
    with_compiled = not options.quick if options.compile is None else options.compile
    print(f"{environment.device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    load = environment.load()
    if load > BUSY:
        print(f"The machine is busy (load {load:.1f}): times on the CPU will be of that, too.")
    begin = time.perf_counter()
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for problem in plan:
            print(f"\n{problem.title}", flush=True)
            ways = modes(device.type, problem.batch, with_compiled)
            found = runner.run(problem, ways, list(dict.fromkeys(options.method or METHODS)))
            for row in found:
                print(line(row), flush=True)
            tax_rows.append(path, found)
    minutes = (time.perf_counter() - begin) / 60
    print(f"\n{minutes:.1f} minutes; rows in {path}" + (f"; {runner.red} wrong or failed" if runner.red else ""))
    return runner.red


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    name = f"  {row.mode:<10}  {row.method:<10}"
    if row.status != "ok":
        return f"{name}  {row.status}"
    tax = ""
    if row.tax is not None:
        tax = f"tax {100 * row.tax:+.1f} % ({100 * row.tax_p20:+.1f} to {100 * row.tax_p80:+.1f})"
    return f"{name}  {tax:<34}  {row.speedup:5.2f}x base  p50 {row.p50_ms:10.3f} ms  {row.rounds} rounds"


def _report(options: argparse.Namespace) -> None:
    document = None
    if options.report:
        document = options.document or (None if options.quick else DOCUMENT)
    print(tax_report.write(options.output, document, options.quick))
