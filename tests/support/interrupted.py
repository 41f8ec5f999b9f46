"""Runs of `python -m tpkernels.retrieval pool` that end at every single file operation, and what is found then.

A program of its own, since it forks: its argument is a JSON list of `[FOLDER, WAY, IN, OUT, OPTION...]`, IN and OUT in
that folder. It prints a JSON list with an entry for every run of each.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.indexes import content
from tpkernels.retrieval.command import main
from tpkernels.retrieval.index import job

# Of what Python tells its audit hooks, all that can change a folder.
CHANGES = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}
# Runs that are killed at a random moment; and more than have to be killed at all their operations.
TIMES, MOST = 20, 1000


def child(arguments: list[str], before: Callable[[], object]) -> int:
    """The exit status of the command in a process of its own, negative where a signal ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            before()
            status = main(["pool", *arguments])
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_operation(folder: Path, number: int) -> Callable[[], None]:
    """Kills the process before its operation of this number in the folder."""

    def before() -> None:
        left = number

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CHANGES and str(arguments[0]).startswith(str(folder)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return before


def at_size(size: int) -> Callable[[], None]:
    """Lets no file grow beyond a size, as if the disk were full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def at_time(seconds: float) -> Callable[[], None]:
    """Kills the process after some time, whatever it is doing."""

    # A signal without a handler ends the process at once.
    return lambda: signal.setitimer(signal.ITIMER_REAL, seconds)


def clear(paths: set[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def runs(folder: Path, way: str, arguments: list[str]) -> list[dict[str, Any]]:
    """Every way to end, until a run comes through; each is followed by the same command."""
    source, target = (folder / name for name in arguments[:2])
    command = [str(source), str(target), *arguments[2:]]
    old = content(target) if target.exists() else None
    aside = folder.with_name("old")
    if old is not None:
        os.rename(target, aside)
    # In this process, so that those it forks find everything loaded.
    assert main(["pool", *command, "--quiet"]) == 0
    whole = content(target)
    # How long there is for a kill; the shorter of two, since other programs may hold one up.
    took = float("inf")
    for _ in range(2):
        clear({target})
        began = time.monotonic()
        assert child([*command, "--quiet"], lambda: None) == 0
        took = min(took, time.monotonic() - began)
    found: list[dict[str, Any]] = []
    draw = random.Random(0)

    def seen() -> str:
        if not target.exists():
            return "nothing"
        return {whole: "whole", old: "old"}.get(content(target), "other")

    for number in range(MOST):
        clear(set(folder.iterdir()) - {source})
        if old is not None:
            shutil.copytree(aside, target) if aside.is_dir() else shutil.copy(aside, target)
        ends = {
            "operations": at_operation(folder, number),
            "some operations": at_operation(folder, number * 6),
            "sizes": at_size(len(whole) * number // 10),
            "times": at_time(draw.uniform(0.001, took)),
        }
        status = child([*command, "--quiet"], ends[way])
        entry = {"status": status, "seen": seen()}
        if status == 0 and way == "times" and number < TIMES:
            continue
        if status == 0 or (way == "times" and number == TIMES):
            return found
        entry["again"] = child([*command, "--quiet"], lambda: None)
        entry["then"] = seen()
        entry["left"] = sorted(path.name for path in folder.iterdir())
        found.append(entry)
    raise RuntimeError("no run came through")


if __name__ == "__main__":
    torch.set_num_threads(1)
    job.COMMIT_SECONDS = 0.0
    # A killed process loses nothing that it has written, and waiting for the disk takes most of the time.
    os.fsync = lambda file: None
    wanted = json.loads(sys.argv[1])
    print(json.dumps([runs(Path(folder), way, arguments) for folder, way, *arguments in wanted]))
