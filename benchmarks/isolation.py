"""A worker process that may be lost: an illegal access on a GPU ends a process, and some kernels never return.

The worker notes its progress (`benchmarks/progress.py`) and writes its rows itself; when it is lost, the subject that
ran is recorded as failed, and another worker goes on without it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from . import processes, progress
from .progress import Place

COMMAND = (sys.executable, "-m", "benchmarks")
# Exit code of a worker whose device is lost.
LOST = 86
POLL_SECONDS = 0.2
# Until the first case, while torch and the packages are loaded, perhaps from a cold disk; after the last one.
START_SECONDS, END_SECONDS = 180.0, 30.0


def supervise(command: Callable[[Path], list[str]], limit: float, lost: Callable[[Place, str], bool]) -> None:
    """Runs a worker, and others after it, until one comes to its end.

    Args:
        command: of a worker that notes its progress in this file.
        limit: seconds that one step of one subject may take.
        lost: called with the place and the manner of each loss; returns whether another worker goes on.
    """
    with TemporaryDirectory() as folder, processes.ends_when_told():
        path = Path(folder) / "progress"
        while True:
            # Else a loss before the first note would be put down to the last worker's place.
            path.write_bytes(b"")
            how = _watch(command(path), path, limit)
            place = progress.read(path)
            if place.ended or not lost(place, how):
                return


def _watch(command: list[str], path: Path, limit: float) -> str:
    """Waits for a worker, which is killed when a step takes too long; how it ended."""
    sys.stdout.flush()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        count, since = 0, time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                return _how(process.wait(POLL_SECONDS))
            place = progress.read(path)
            if place.count != count:
                count, since = place.count, time.monotonic()
            allowed = END_SECONDS if place.ended else limit if place.unit >= 0 else max(limit, START_SECONDS)
            if time.monotonic() - since > allowed:
                return f"killed after {allowed:g} s"
    finally:
        processes.kill_group(process)
        process.wait()


def _how(code: int) -> str:
    if code == LOST:
        return "lost the device"
    return f"process killed by {signal.Signals(-code).name}" if code < 0 else f"process ended with exit code {code}"


def end_lost() -> None:
    """Ends a worker whose device is lost, without what would wait for the device."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(LOST)
