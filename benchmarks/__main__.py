"""`python -m benchmarks`: kernels, scaling, peers, sweep, large, plots, report, all; compile, autotune, tax and device
are passed on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import execution, memory, rehearsal
from .errors import one_line_of

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
GROUPS = ("kernels", "scaling", "peers")
# Groups that `all` leaves out.
CLOSER = ("sweep", "large")
PASSED_ON = {
    "compile": "build every kernel for every target, without a GPU; --cost counts instructions",
    "autotune": "measure configurations here",
    "tax": "pooled models beside sliced ones; no part of all, for it takes hours",
    "device": "all that a machine with a GPU can tell in minutes: checks, times, counters",
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", help="cpu, cuda or cuda:<index> (default: the first GPU, else the CPU)")
    common.add_argument("--output", type=Path, default=RESULTS, help="folder for CSV and PNG (default: %(default)s)")
    common.add_argument("--quick", action="store_true", help="tiny cases, to see within seconds that all of it runs")
    common.add_argument("--repeats", type=int, help="times that each call is timed at most (default: 30, on CUDA 100)")
    common.add_argument("--budget", type=float, default=2.0, help="seconds a provider may spend on one case's repeats")
    common.add_argument("--threads", type=int, help="threads of every library on the CPU (default: theirs)")
    common.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True, help=memory.HELP)
    common.add_argument("--case", help="only cases whose name or shape contains this text")
    common.add_argument("--provider", help="only providers whose name contains this text")
    execution.add_options(common)
    common.add_argument(
        "--document", type=Path, help="where report puts its tables (default: docs/benchmarks.md; with --quick nowhere)"
    )
    helps = {
        "kernels": "images of tokens in batches: this library's backends and PyTorch's own means",
        "scaling": "large samples: time per iteration and memory as N and B grow",
        "peers": "other packages on the same inputs",
        "sweep": "the main cases, and what runs the same compiled kernels; no part of all",
        "large": "samples of several launches; no part of all",
        "plots": "draw the results as PNG",
        "report": "the results as tables, into the document between their markers, and what the README says of GPUs",
        "all": "kernels, scaling, peers, plots, report; before them compile where there is a GPU",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, parents=[common], help=text)
        if name == "all":
            command.add_argument(
                "--compile", action=argparse.BooleanOptionalAction, help="run the compile gate first (default: on CUDA)"
            )
    for name, text in PASSED_ON.items():
        commands.add_parser(name, add_help=False, help=f"{text} (has arguments of its own)")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 1 where a result was wrong or failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Without it torch's profiler, which counts memory and launches, prints a line at each start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    if argv and argv[0] in PASSED_ON:
        return _pass_on(argv[0], argv[1:])
    options = parser().parse_args(argv)
    # Workers are started with the same arguments.
    options.argv = argv
    _check(options)
    # Libraries read these when they are first imported, so everything else is imported later.
    if options.threads is not None:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    return one_line_of("benchmarks", lambda: _run(options))


def _pass_on(command: str, arguments: list[str]) -> int:
    if command == "compile" and "--cost" in arguments:
        from tools.meter import command as tool
    elif command == "compile":
        from tools.compile_gate import command as tool
    elif command == "autotune":
        from tools.autotune import command as tool
    elif command == "tax":
        from .tax import command as tool
    else:
        from .device import command as tool
    return tool.main(arguments) or 0


def _check(options: argparse.Namespace) -> None:
    for name in ("repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SystemExit(f"benchmarks: --{name}: expected at least 1, got {value}")
    if options.budget <= 0:
        raise SystemExit(f"benchmarks: --budget: expected seconds above 0, got {options.budget}")


def _run(options: argparse.Namespace) -> int:
    execution.check_options(options)
    status = 0
    groups = GROUPS if options.command == "all" else (options.command,)
    if options.command in ("all", *GROUPS, *CLOSER):
        from . import session
        from .clustering import job

        if options.command == "all" and not options.worker and session.wants_compile(options.compile, options.device):
            status = _pass_on("compile", [])
        red = job.measure(groups, options)
        if options.worker:
            return 0
        status = max(status, 1 if red else 0)
    if options.command in ("all", "plots"):
        from .clustering import plots

        for path in plots.draw(options.output, options.quick):
            print(f"drawn: {path}")
    if options.command in ("all", "report"):
        from . import readme, reports
        from .clustering import report as clustering
        from .device import attention_report
        from .tax import report as tax

        document = options.document or (None if options.quick else DOCUMENT)
        print(reports.write((clustering, attention_report, tax), options.output, document, options.quick))
        if document == DOCUMENT:
            print(readme.write(options.output, README))
    return status


if __name__ == "__main__":
    with rehearsal.quickened():
        raise SystemExit(main())
