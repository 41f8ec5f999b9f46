"""Runs the steps one after the other, each within its time, and records how each ended.

A step that fails, hangs, floods its output or loses the device costs its own time alone. The device is whole again for
the next one: an illegal access ends the process that made it, not the device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from .. import processes
from ..processes import Process
from . import journal
from .journal import SUPERVISOR, Journal
from .plan import Step

LOG = "log.txt"


def supervise(steps: Sequence[Step], folder: Path, deadline: float, told: Callable[[], dict] = dict) -> bool:
    """Runs steps until a deadline, in seconds from here; whether all of them ran and none was red.

    Each leaves a row of the supervisor: seconds, how its commands ended, rows that it wrote; or why it was skipped.

    Args:
        folder: of the run; what commands print goes to `log.txt` there.
        told: called after each step; returns more of its row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes.adopt_orphans()
    with processes.ends_when_told():
        return _in_turn(steps, folder, time.monotonic() + deadline, told)


def _in_turn(steps: Sequence[Step], folder: Path, end: float, told: Callable[[], dict]) -> bool:
    own, good = _Own(folder, SUPERVISOR), True
    for step in steps:
        left = end - time.monotonic()
        if left < step.expected:
            own.tell(what=step.name, skipped=f"{left:.0f} s left, it should take {step.expected:.0f} s")
            good = False
            continue
        before = journal.count(folder)
        began = time.monotonic()
        ended = _run(step, folder, min(step.limit, left))
        rows = journal.count(folder) - before
        row = {"what": step.name, "seconds": round(time.monotonic() - began, 1), "ended": ended, "rows": rows, **told()}
        bad = sorted({how for how in ended if how != "ok"})
        # A step without a row has found nothing, however it ended.
        bad += [] if rows else ["no row"]
        own.tell(**row, red="; ".join(bad))
        good = good and not bad
    return good


class _Own(Journal):
    def tell(self, *, red: str = "", **row: object) -> None:
        # A row that cannot be written has been printed: a full disk ends no run.
        with suppress(OSError):
            super().tell(red=red, **row)


def _run(step: Step, folder: Path, seconds: float) -> list[str]:
    """Runs the step's commands side by side for `seconds` at most; returns how they ended."""
    until = time.monotonic() + seconds
    commands = step.commands(folder, seconds)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    if len(commands) > 1:
        # They share the cores.
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(commands))))
    going: list[Process] = []
    try:
        going = [Process(command, env) for command in commands]
        return [process.wait(until) for process in going]
    finally:
        stuck = processes.end_all()
        with suppress(OSError), (folder / LOG).open("ab") as log:
            log.write(f"\n==== {step.name}\n".encode())
            for process in going:
                log.write(process.output())
            if stuck:
                log.write(f"still there: processes {stuck}\n".encode())
