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
    # Each copy of an unrolled statement runs once where the statement runs in every turn.
    copies = {chain: (watch.counts[chain] - begun) / begun for chain, begun in watch.static.items()}

    def once(chain: Chain, count: float) -> float:
        for place in range(len(chain)):
            file, line = chain[place]
            for header in statements(watch.files[file])[line].around:
                count /= copies.get(((file, header), *chain[place + 1 :]), 1.0) or 1.0
        return count / units

    return Trips(
        {chain: once(chain, count) for chain, count in watch.counts.items() if chain not in copies},
        {chain: once(chain, count) for chain, count in watch.entries.items()},
        {name: count / units for name, count in watch.calls.items()},
    )


class Watch:
    """A tracer of the functions below a folder."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[Chain] = Counter()
        self.entries: Counter[Chain] = Counter()
        self.calls: Counter[str] = Counter()
        # How often loops are begun that the compiler unrolls.
        self.static: Counter[Chain] = Counter()
        self.files: dict[str, Path] = {}
        self._folder = f"{folder}/"
        self._codes: dict[CodeType, tuple[str, dict[int, Statement]] | None] = {}
        # Chains of the frames that run, the innermost last.
        self._running: list[_Frame] = []

    def trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        """Python's tracing function: one for each function that is entered."""
        code = frame.f_code
        if code not in self._codes:
            path = Path(code.co_filename)
            lines = statements(path) if code.co_filename.startswith(self._folder) else {}
            mine = code.co_firstlineno in lines and not code.co_name.startswith("<")
            self._codes[code] = (path.name, lines) if mine else None
            if mine:
                self.files[path.name] = path
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
        begun = before is None or now.first not in before.around
        if begun and now.kind in ("for", "while"):
            watch.entries[self.chain] += 1
        elif begun and now.kind == "static":
            watch.static[self.chain] += 1


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
