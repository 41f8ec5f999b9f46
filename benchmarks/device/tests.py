"""`pytest -m gpu` as a step: a row for each failure at once, one with the counts at the end.

This module is also the plugin of that pytest that writes the rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ..environment import ROOT
from ..rehearsal import rehearsing
from .children import Run
from .journal import Journal

FOLDER = "TPKERNELS_DEVICE_FOLDER"
WORKERS = 16
# Characters of a failure's text.
MOST_LETTERS = 300


def tell(run: Run) -> None:
    """Runs the tests; the plugin writes their rows."""
    chosen = ["-m", "gpu", "tests"]
    if rehearsing():
        chosen = ["-m", "interpreter", "-k", "four_launches_where", "tests/ops/gpu/test_resident.py"]
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    plugin = ["-p", "benchmarks.device.tests", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, *workers, *chosen]
    env = {**os.environ, FOLDER: str(run.folder)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    if subprocess.run(command, env=env, cwd=ROOT).returncode:
        run.journal.red = True


class _Told:
    """Reports of one pytest; xdist's workers report to the process that started them."""

    def __init__(self, folder: Path) -> None:
        self._journal, self._counts = Journal(folder, "tests"), Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._counts[report.outcome] += 1
        if report.failed:
            words = " ".join(str(report.longreprtext).split())
            self._journal.tell(what=f"{report.nodeid} ({report.when})", red=words[-MOST_LETTERS:])

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        code = int(exitstatus)
        self._journal.tell(what="pytest", **self._counts, red=f"exit code {code}" if code else "")


def pytest_configure(config: Any) -> None:
    """Pytest's hook: registers the plugin in the process that starts the others, where FOLDER is set."""
    if FOLDER in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Told(Path(os.environ[FOLDER])))
