"""Processes that end when their time is over, with all that they began, and whose output fills no disk."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Bytes that are kept of what a process prints, from its beginning and from its end.
HEAD_BYTES, TAIL_BYTES = 96 << 10, 32 << 10
# The longest wait for a killed process: one that does not end then hangs in the driver.
END_SECONDS = 10.0
POLL_SECONDS = 0.02
# <sys/prctl.h> of Linux.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> None:
    """Makes processes whose parents end children of this one, so that all can be found and killed; on Linux."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Has this process killed when the one that started it ends, however it does; on Linux."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


@contextmanager
def ends_when_told() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that what it began is ended with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process that leads a session of its own, with what it has started there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class Process:
    """One command in a session of its own; what it prints is kept, without the middle where that is long.

    Args:
        command: program and arguments. env: the environment. head: bytes that are kept from the beginning.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], head: int = HEAD_BYTES) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(env),
            start_new_session=True,
        )  # fmt: skip
        self._output = _Output(self._process.stdout, head)

    def wait(self, until: float) -> str:
        """Waits until a time of `time.monotonic`, then kills; how it ended: "ok", or in words.

        What it left running is killed too, since it would disturb the next command.
        """
        how = "over its time"
        with suppress(subprocess.TimeoutExpired):
            how = _how(self._process.wait(max(0.0, until - time.monotonic())))
        kill_group(self._process)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "killed, and would not end: the device may be stuck"
        return how

    def output(self) -> bytes:
        """What it printed; complete once it has ended."""
        self._output.join(1.0)
        return self._output.text()


def run(command: Sequence[str], env: Mapping[str, str], seconds: float, head: int = HEAD_BYTES) -> tuple[str, str]:
    """How a command ended within so many seconds, and what it printed, errors too; as `Process`.

    Raises:
        OSError: there is no such program.
    """
    process = Process(command, env, head)
    how = process.wait(time.monotonic() + seconds)
    return how, process.output().decode(errors="replace")


def _how(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "ok" if code == 0 else f"exit code {code}"


class _Output(threading.Thread):
    """Reads a pipe to its end, and keeps the beginning and the end of it."""

    def __init__(self, pipe: BinaryIO, most: int) -> None:
        super().__init__(daemon=True)
        self._pipe, self._most, self._size = pipe, most, 0
        self._head, self._tail = bytearray(), bytearray()
        self.start()

    def run(self) -> None:
        while piece := os.read(self._pipe.fileno(), 1 << 16):
            self._size += len(piece)
            room = self._most - len(self._head)
            self._head += piece[:room]
            self._tail = (self._tail + piece[room:])[-TAIL_BYTES:]

    def text(self) -> bytes:
        left_out = self._size - len(self._head) - len(self._tail)
        middle = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
        return bytes(self._head) + middle + bytes(self._tail)


def end_all() -> list[int]:
    """Kills every process that this one or its children began; returns those that did not end."""
    deadline = time.monotonic() + END_SECONDS
    while found := descendants(os.getpid()):
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)
    return []


def descendants(pid: int) -> list[int]:
    """The processes below one, from Linux's /proc; elsewhere []."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        # The name, in parentheses, may hold anything; one that has just ended is no file any more.
        with suppress(OSError):
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found
