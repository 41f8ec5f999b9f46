"""Tests of a copy of the checkout, in which one mistake is planted at a time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .mutant import Mutant, planted

ROOT = Path(__file__).resolve().parents[2]
# This table's own test would see every mutant.
LEFT_OUT = "tests/tools/test_mutants.py"
# Exit codes of pytest, and a limit in seconds for the suites of one mutant.
PASSED, FAILED = 0, 1
LIMIT = 3600
# A line of pytest's summary about a test, without the test's parameters; a file that cannot be collected has no test.
FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py::[\w:]+)(.*)", re.MULTILINE)
# What a mutant fails with that no tests are needed for.
BROKEN = re.compile(r"\b(SyntaxError|NameError|UnboundLocalError|ImportError|ModuleNotFoundError)\b")


class Outcome(NamedTuple):
    """How a run of pytest ended: the first test that failed, None where all passed; and its seconds."""

    failed: str | None
    seconds: float


class NoVerdict(Exception):
    """Pytest ended in another way than by tests that pass or fail."""


def commit() -> str:
    """The commit that the tests run on, marked where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def copy_checkout(folder: Path) -> None:
    """Copies the tracked files as they are, and what is new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, folder / name
        if source.is_file() and name != LEFT_OUT:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


class Copy:
    """A copy of the checkout to run tests in."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.loops = folder / ".numba"
        copy_checkout(folder)
        found = self._python("-c", "import tpkernels; print(tpkernels.__file__)").stdout.strip()
        if not Path(found).is_relative_to(folder):
            raise NoVerdict(f"expected the copy's package in {folder}, got {found}")

    @contextmanager
    def with_mutant(self, mutant: Mutant) -> Iterator[None]:
        """The copy with the mistake in it.

        Raises:
            ValueError: the mistake cannot be planted.
        """
        path = self.folder / mutant.file
        before, stat = path.read_text(), path.stat()
        path.write_text(planted(mutant, before))
        # Compiled loops are stored by the state of their folder: the mutant's must not push out the sound ones.
        self.loops = self.folder / (f".numba-{mutant.name}" if "/cpu/" in mutant.file else ".numba")
        try:
            yield
        finally:
            path.write_text(before)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            self.loops = self.folder / ".numba"

    def test(self, arguments: Sequence[str], *, parallel: bool) -> Outcome:
        """Runs pytest, until the first failure.

        Args:
            parallel: on the workers, else in one process, whose start costs less.

        Raises:
            NoVerdict: neither passed nor failed tests.
        """
        began = time.monotonic()
        options = ["-q", "-p", "no:cacheprovider", "-n", str(self.workers if parallel else 0), "-x"]
        done = self._python("-m", "pytest", *options, *arguments)
        seconds = time.monotonic() - began
        if done.returncode == PASSED:
            return Outcome(None, seconds)
        failed = FAILURE.search(done.stdout)
        if done.returncode != FAILED or failed is None:
            raise NoVerdict(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-500:]}")
        if BROKEN.search(failed[2]):
            raise NoVerdict(f"expected code that runs, got {failed[1]}{failed[2]}")
        return Outcome(failed[1], seconds)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
        # CI: hypothesis draws the same in every run. COLUMNS: node ids are not cut.
        env |= {"PYTHONPATH": str(self.folder), "NUMBA_CACHE_DIR": str(self.loops), "CI": "1", "COLUMNS": "400"}
        env |= {"TRITON_INTERPRET": "1"} if arguments[:2] == ("-m", "pytest") else {}
        command = [sys.executable, *arguments]
        try:
            return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired as error:
            raise NoVerdict(f"expected an end within {LIMIT} seconds, got none of {' '.join(arguments)}") from error
