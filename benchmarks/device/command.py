"""`python -m benchmarks device`: all that a machine with a GPU can tell within minutes.

    python -m benchmarks device --prebuild cache.tar.xz  # without a GPU: compile what the steps need
    python -m benchmarks device --rehearse               # without a GPU: run every step's code
    python -m benchmarks device --output DIR --deadline 310 --prebuilt cache.tar.xz
    python -m benchmarks device --output DIR --deadline 310 --steps smoke,rows,tax --prebuilt cache.tar.xz

Every step is a process of its own with a limit; rows are on disk as soon as they are known (DIR/steps.jsonl,
DIR/*.csv), what is printed goes to DIR/log.txt, and the last thing printed here is a table of what was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path

from ..errors import Refusal, one_line_of
from . import rehearsal, summary
from .plan import FIRST, known, plan
from .supervisor import supervise

DEADLINE = 310.0
REHEARSAL_DEADLINE = 1800.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m benchmarks device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root.add_argument("--output", type=Path, help="folder for rows and log (with --rehearse: a temporary one)")
    root.add_argument("--deadline", type=float, metavar="SECONDS", help=f"end within (default: {DEADLINE:g})")
    root.add_argument(
        "--steps",
        type=lambda text: text.split(","),
        help=f"of {', '.join(known())}; in their order (default: {','.join(FIRST)})",
    )
    root.add_argument("--rehearse", action="store_true", help="every step here, on tiny sizes, in Triton's interpreter")
    root.add_argument(
        "--prebuild", type=Path, metavar="FILE", help="compile for sm_90 and pack the cache, without a GPU"
    )
    root.add_argument("--python", help="with --prebuild: a Python of the GPU machine's release (default: this one)")
    root.add_argument("--prebuilt", type=Path, metavar="FILE", help="a cache that --prebuild has packed")
    root.add_argument("--child", help=argparse.SUPPRESS)
    return root


def main(argv: list[str]) -> int:
    """Runs the command; 1 where a step was red, failed or left out, 2 where it cannot run."""
    options = parser().parse_args(argv)
    return one_line_of("benchmarks device", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    seconds = options.deadline or (REHEARSAL_DEADLINE if options.rehearse else DEADLINE)
    if not 0 < seconds < float("inf"):
        raise Refusal(f"--deadline: expected seconds above 0, got {options.deadline}")
    if options.prebuild is not None:
        from . import prebuild

        return prebuild.main(options.prebuild, options.python)
    if options.output is None and not options.rehearse:
        raise Refusal("--output: expected a folder for the rows, got none")
    if options.child is not None:
        from . import children

        return children.run(options.child, options.output, seconds)
    with nullcontext(options.output) if options.output else tempfile.TemporaryDirectory() as folder:
        return _supervised(options, Path(folder).absolute(), seconds)


def _supervised(options: argparse.Namespace, folder: Path, seconds: float) -> int:
    """Runs all steps, or those of --steps, then prints the table."""
    with tempfile.TemporaryDirectory() as scratch:
        told = dict
        steps = plan(options.steps)
        if options.rehearse:
            rehearsal.begin(Path(scratch) / "stand-ins")
            # The interpreter on a busy machine is no reason to kill a step.
            steps = [dataclasses.replace(step, limit=5 * step.limit) for step in plan(options.steps or list(known()))]
        elif options.prebuilt is not None:
            from . import cache

            told = cache.use(options.prebuilt, Path(scratch) / "triton")
        good = False
        try:
            good = supervise(steps, folder, seconds, told)
        finally:
            print(summary.text(folder), flush=True)
    return 0 if good else 1
