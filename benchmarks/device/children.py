"""What a step's own process runs, and what it is handed."""

from __future__ import annotations

import faulthandler
import importlib
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from .journal import Journal

# Before it is killed a process says where it was.
NOTICE = 3.0
# Function of this package by the name of what runs: each process imports what it needs and no more.
BODIES = {
    "env": "facts.tell",
    "smoke-attention": "smoke.attention",
    "smoke-means": "smoke.means",
    "smoke-pool": "smoke.pool",
    "smoke": "smoke.cases",
    "time-attention": "attention.time",
    "ncu": "counters.tell",
    "once": "counters.once",
    "sanitize": "sanitize.tell",
    "launches": "sanitize.launches",
    "tune": "tune.tell",
    "tests": "tests.tell",
}


class Run(NamedTuple):
    """journal: for rows; folder: of the run; seconds: after which the process is killed; part: of the step, or ""."""

    journal: Journal
    folder: Path
    seconds: float
    part: str


def run(name: str, folder: Path, seconds: float) -> int:
    """Runs a step, or a part of it ("smoke-ward"); 1 where a row was red or something raised."""
    step, _, part = name.partition("-")
    where = BODIES.get(name) or BODIES[step]
    journal = _Watched(folder, name if step == "time" else step)
    faulthandler.dump_traceback_later(max(1.0, seconds - NOTICE), exit=False)
    try:
        module, function = where.split(".")
        getattr(importlib.import_module(f".{module}", __package__), function)(Run(journal, folder, seconds, part))
    except Exception as error:
        # Whatever a kernel or a tool raises is the step's result, told in full in the log.
        traceback.print_exc(file=sys.stderr)
        journal.tell(what=name, red=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return int(journal.red)


class _Watched(Journal):
    """Notes whether a row was red."""

    red = False

    def tell(self, **row: object) -> None:
        self.red = self.red or "red" in row
        super().tell(**row)
