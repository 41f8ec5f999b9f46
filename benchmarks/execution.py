"""One run from its first case to its last: in this process, or in workers that may be lost."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from . import isolation, processes
from .context import Context
from .deadline import Deadline
from .errors import DeviceLost, Refusal
from .ledger import Ledger
from .progress import Place, Progress

LIMIT = 300.0


class Job(Protocol):
    """What a run is made of: units, which are cases or problems, each with a row for every subject in it."""

    ledger: Ledger
    titles: Sequence[str]

    def blanks(self, unit: int) -> list[Any]:
        """The unit's rows before anything has run; a row has a `subject` and a `part` of the unit."""

    def measuring(self, context: Context) -> AbstractContextManager[Callable[[int], object]]:
        """A function that measures a unit, in the process that does: the parent of workers does not use the device."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `execution` reads."""
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="begin nothing when so many seconds have passed since the process began, and end the repeats then",
    )
    parser.add_argument(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="measure in a worker process, and go on in another where one is lost (default: on CUDA)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help="kill a worker in which one step (a first call, memory and graph, a repeat) takes longer "
        "(default: %(default)g)",
    )
    # A worker's progress, and the run's beginning and load, which its rows share with other workers'.
    parser.add_argument("--worker", nargs=3, metavar=("PROGRESS", "RUN", "LOAD"), help=argparse.SUPPRESS)


def check_options(options: argparse.Namespace) -> None:
    """Raises Refusal where a number is out of range."""
    for name in ("deadline", "limit"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise Refusal(f"--{name}: expected seconds above 0, got {value}")


def shared_facts(options: argparse.Namespace) -> dict[str, Any]:
    """What a worker's rows share with those of the other workers of its run."""
    if options.worker is None:
        return {}
    return {"run": options.worker[1], "load": float(options.worker[2])}


def execute(job: Job, options: argparse.Namespace, kind: str, facts: dict[str, Any]) -> int:
    """Measures all units; how many rows were wrong or failed.

    Args:
        options: of `add_options`, with the arguments themselves as `argv`.
        kind: of device, "cpu" or "cuda".

    Raises:
        Refusal: a worker was lost before it measured anything.
    """
    deadline = Deadline(options.deadline)
    if options.worker is not None:
        _work_for_parent(job, Path(options.worker[0]), deadline)
        return 0
    begin = time.perf_counter()
    isolated = kind == "cuda" and os.name == "posix" if options.isolate is None else options.isolate
    if isolated:
        _in_workers(job, options, deadline, facts)
    else:
        try:
            _work(job, Context(job.ledger, Progress(), deadline))
        except DeviceLost as error:
            print(f"The device is lost: {error}")
    missing = _missing(job)
    if missing:
        print(f"\nNot measured{', the time was over' * deadline.over}: {'; '.join(missing)}")
    minutes, red = (time.perf_counter() - begin) / 60, job.ledger.red
    print(f"\n{minutes:.1f} minutes; rows in {job.ledger.path}" + (f"; {red} wrong or failed" if red else ""))
    return red


def _open(job: Job, unit: int) -> list[Any]:
    return [row for row in job.blanks(unit) if not job.ledger.has(row)]


def _missing(job: Job) -> list[str]:
    """The units that lack rows; of units that have some, the parts that lack them."""
    found = []
    for unit, title in enumerate(job.titles):
        parts = list(dict.fromkeys(row.part for row in _open(job, unit)))
        whole = len(parts) == len({row.part for row in job.blanks(unit)})
        found += [title] if parts and whole else [f"{title}, {part}" for part in parts]
    return found


def _work(job: Job, context: Context) -> None:
    with job.measuring(context) as measure:
        for unit, title in enumerate(job.titles):
            if context.deadline.over:
                break
            if _open(job, unit):
                print(f"\n{title}", flush=True)
                context.progress.begin(unit)
                measure(unit)


def _work_for_parent(job: Job, path: Path, deadline: Deadline) -> None:
    processes.end_with_parent()
    job.ledger.load()
    progress = Progress(path)
    try:
        _work(job, Context(job.ledger, progress, deadline))
    except DeviceLost:
        isolation.end_lost()
    progress.end()


def _in_workers(job: Job, options: argparse.Namespace, deadline: Deadline, facts: dict[str, Any]) -> None:
    def command(path: Path) -> list[str]:
        given = [*isolation.COMMAND, *options.argv, "--worker", str(path), facts["run"], str(facts["load"])]
        # Of several --deadline the last one counts.
        return given if options.deadline is None else [*given, "--deadline", f"{max(deadline.left(), 1e-3):.3f}"]

    def lost(place: Place, how: str) -> bool:
        before = len(job.ledger)
        job.ledger.load()
        if place.unit >= 0:
            _blame(job, place, how)
        if len(job.ledger) == before:
            # Another worker would be lost in the same place.
            raise Refusal(f"--isolate: a worker was lost before it measured anything, {how}; nothing more was measured")
        return not deadline.over

    if not deadline.over:
        isolation.supervise(command, options.limit, lost)
        job.ledger.load()


def _blame(job: Job, place: Place, how: str) -> None:
    """Writes failed rows for the subject that ran when a worker was lost; where none did, for all without a row."""
    rows = [row for row in _open(job, place.unit) if place.subject in ("", row.subject)]
    where = f" in {place.step}" if place.step else "" if place.subject else " while nobody ran"
    for row in rows:
        row.status = f"failed: {how}{where}"
    job.ledger.add(rows)
