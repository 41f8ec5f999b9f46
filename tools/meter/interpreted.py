"""Counts of an operation in Triton's interpreter, in a process of its own: a variable, read when kernels are imported,
turns it on.

    TRITON_INTERPRET=1 python -m tools.meter.interpreted ward sm_90 8

prints them as JSON, for an operation as a target runs it and the mean of so many samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .chains import Chain
from .trips import Trips


def main(argv: list[str]) -> int:
    """Prints the counts of an operation on a target: names and the number of samples are the arguments."""
    import importlib

    from tools.quick_interpreter import quickened

    from .operations import run

    name, target, samples = argv
    with quickened(importlib.import_module("triton.runtime.interpreter")):
        found = run(name, target, int(samples))
    json.dump(plain(found), sys.stdout)
    return 0


def interpreted(name: str, target: str, samples: int) -> Trips:
    """`main` in a process of its own."""
    command = [sys.executable, "-m", "tools.meter.interpreted", name, target, str(samples)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return restored(json.loads(done.stdout))


def plain(found: Trips) -> list[Any]:
    """Counts as JSON has them."""
    return [list(one.items()) for one in found]


def restored(rows: list[Any]) -> Trips:
    """What `plain` was given."""
    counts, entries, calls = rows
    return Trips(_chains(counts), _chains(entries), dict(calls))


def _chains(rows: list[Any]) -> dict[Chain, float]:
    return {tuple((file, line) for file, line in chain): count for chain, count in rows}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
