"""What a step's own process runs, and its arguments."""

from __future__ import annotations

import faulthandler
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from ..errors import in_words
from .journal import Journal

# Seconds before the kill: at which a process prints its stack, and in which it ends and records what it has begun.
DUMP, NOTICE = 3.0, 5.0
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
    """journal: for rows; folder: of the run; end: when the process is killed, of `time.monotonic`; part: of the step,
    or ""."""

    journal: Journal
    folder: Path
    end: float
    part: str

    def left(self) -> float:
        """Seconds that a command may take, so that time is left to record its result; 1 at least."""
        return max(1.0, self.end - NOTICE - time.monotonic())


def run(name: str, folder: Path, seconds: float) -> int:
    """Runs a step, or a part of it ("smoke-ward"); 1 where a row was red or something raised."""
    step, _, part = name.partition("-")
    where = BODIES.get(name) or BODIES[step]
    journal = _Watched(folder, name if step == "time" else step)
    faulthandler.dump_traceback_later(max(1.0, seconds - DUMP), exit=False)
    given = Run(journal, folder, time.monotonic() + seconds, part)
    try:
        module, function = where.split(".")
        getattr(importlib.import_module(f".{module}", __package__), function)(given)
    except Exception as error:
        # Whatever a kernel or a tool raises is the step's result, in full in the log.
        traceback.print_exc(file=sys.stderr)
        journal.tell(what=name, red=in_words(error))
    return int(journal.red)


class _Watched(Journal):
    """Notes whether a row was red."""

    red = False

    def tell(self, *, red: str = "", **row: object) -> None:
        self.red = self.red or bool(red)
        super().tell(red=red, **row)
