"""`python -m benchmarks tax`: what pooling costs beside cutting tokens, and from which batch on it pays.

    pooling tax = time of the pooled model / time of the same model whose tokens are cut to the same counts - 1

DeiT-Ti, S and B with random weights on smooth random images, and the small trained model on its own; pooling after
every block's attention at keep 0.9, and at blocks 4, 7 and 10 at keep 0.7. Each problem's models run by turns in one
process: the unpooled one, the one that slices, and one for each method; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import environment, execution, memory, reports, results, session
from ..errors import Refusal, one_line_of
from . import report
from .cases import BATCHES, METHODS, MODELS, SCHEDULES, modes, problems
from .job import Problems, line
from .rows import TABLE

RESULTS = environment.ROOT / "benchmarks" / "results"
DOCUMENT = environment.ROOT / "docs" / "benchmarks.md"
REPEATS = {"cpu": 20, "cuda": 100}


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
    execution.add_options(root)
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
    # Workers are started with the same arguments.
    options.argv = ["tax", *argv]
    return one_line_of("benchmarks tax", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    _check(options)
    red = 0 if options.report else _measure(options)
    # A deadline may have left nothing to report, which is an error for --report alone.
    there = results.files(options.output, options.quick, report.KIND)
    if options.report or (there and options.worker is None):
        _report(options)
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
    execution.check_options(options)


def _measure(options: argparse.Namespace) -> int:
    """Runs the problems; how many rows were wrong or failed. Refusal as `execution.execute`."""
    device = session.device_of(options)
    plan = problems(
        device.type,
        small=options.quick,
        models=options.model,
        schedules=options.schedule,
        batches=options.batch,
    )
    begun = session.begin(options, device, TABLE, REPEATS, line)
    facts = {**begun.facts, "runs_on": device.type, "allocator": begun.allocator}
    with_compiled = not options.quick if options.compile is None else options.compile
    work = [(problem, modes(device.type, problem.batch, with_compiled)) for problem in plan]
    methods = list(dict.fromkeys(options.method or METHODS))
    job = Problems(work, methods, device, begun.budget, facts, begun.ledger)
    return execution.execute(job, options, device.type, facts)


def _report(options: argparse.Namespace) -> None:
    document = None
    if options.report:
        document = options.document or (None if options.quick else DOCUMENT)
    print(reports.write([report], options.output, document, options.quick))
