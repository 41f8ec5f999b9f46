"""Candidates of the main cases' configurations, each method's in a process of its own: one that hangs costs itself.

A row of a method that ran out of time holds what was tried until then.
"""

from __future__ import annotations

import os
import sys

from tools.autotune.command import METHODS

from .. import processes
from ..rehearsal import rehearsing
from .children import Run
from .problems import TINY_VIT, VIT

# Lines in the journal: what was tried, one by one, then the table.
LINES = 32


def tell(run: Run) -> None:
    """A row for each method: the tail of its table. Configurations are kept in the run's folder."""
    _, n, d, k = TINY_VIT if rehearsing() else VIT
    small = ["--device", "cpu", "--b", "2", "--repeats", "2"] if rehearsing() else ["--repeats", "15"]
    for place, method in enumerate(METHODS):
        command = [
            sys.executable, "-m", "benchmarks", "autotune", "--n", str(n), "--k", str(k), "--d", str(d),
            "--method", method, "--budget", "0.2", *small,
        ]  # fmt: skip
        # Time that one method leaves is shared by the others.
        limit = run.left() / (len(METHODS) - place)
        env = {**os.environ, "TPKERNELS_CACHE": str(run.folder)}
        how, text = processes.run(command, env, limit)
        print(text, flush=True)
        red = "" if how == "ok" else f"{how}: {' '.join(text[-200:].split())}"
        run.journal.tell(what=method, told=text.splitlines()[-LINES:], red=red)
