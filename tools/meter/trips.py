"""How often each statement of a kernel runs for a sample, by call path: what runs in Triton's interpreter is Python."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from .chains import Chain
from .sources import Statement, statements


class Trips(NamedTuple):
    """counts: executions of a statement (of a loop's header, its evaluations); entries: how often a loop is begun;
    calls: programs of a kernel by its name. All by unit: sample, or sample and head."""

    counts: dict[Chain, float]
    entries: dict[Chain, float]
    calls: dict[str, float]


def trips(call: Callable[[], Any], folder: Path, units: int) -> Trips:
    """Counts the statements that a call executes in files below a folder."""
    with watched(folder) as watch:
        call()
    return Trips(
        *({key: value / units for key, value in found.items()} for found in (watch.counts, watch.entries, watch.calls))
    )


class Watch:
    """A tracer of the functions below a folder."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[Chain] = Counter()
        self.entries: Counter[Chain] = Counter()
        self.calls: Counter[str] = Counter()
        self._folder = f"{folder}/"
        self._codes: dict[CodeType, tuple[str, dict[int, Statement]] | None] = {}
        # Chains of the frames that run, the innermost last.
        self._running: list[_Frame] = []

    def trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        """Python's tracing function: one for each function that is entered."""
        code = frame.f_code
        if code not in self._codes:
            mine = code.co_filename.startswith(self._folder) and not code.co_name.startswith("<")
            path = Path(code.co_filename)
            self._codes[code] = (path.name, statements(path)) if mine else None
        found = self._codes[code]
        if found is None:
            return None
        outer = self._running[-1].chain if self._running else ()
        if not outer:
            self.calls[code.co_name] += 1
        here = _Frame(*found, outer)
        self._running.append(here)

        def local(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            if event == "line":
                here.step(frame.f_lineno, self)
            elif event == "return":
                self._running.pop()
            return local

        return local


class _Frame:
    """A running function: its file, and the chain of its statement."""

    def __init__(self, file: str, lines: dict[int, Statement], outer: Chain) -> None:
        self.file, self.lines, self.outer = file, lines, outer
        self.chain: Chain = outer
        self.last: Statement | None = None

    def step(self, line: int, watch: Watch) -> None:
        now = self.lines.get(line)
        # Lines of one statement count once; a call returns to the line that it left.
        if now is None or now == self.last:
            return
        before, self.last = self.last, now
        self.chain = ((self.file, now.first), *self.outer)
        watch.counts[self.chain] += 1
        if now.kind in ("for", "while") and (before is None or now.first not in before.around):
            watch.entries[self.chain] += 1


@contextmanager
def watched(folder: Path) -> Iterator[Watch]:
    """Traces all that runs."""
    watch = Watch(folder)
    old = sys.gettrace()
    sys.settrace(watch.trace)
    try:
        yield watch
    finally:
        sys.settrace(old)
