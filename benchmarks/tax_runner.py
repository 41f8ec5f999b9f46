"""From a problem to its rows: every model through the gate, then all of them by turns."""

from __future__ import annotations

import datetime
import functools
import platform
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from . import environment, gpu, memory, tax_gate, timing
from .tax_cases import BASE, METHODS, MODES, SLICING, Problem
from .tax_models import DeiT, Unavailable, Variant, images_for, model_of, variants
from .tax_rows import TIMES, Row
from .timing import LEAST, Budget, quantile

EAGER, COMPILED, GRAPH = MODES
Call = Callable[[], Tensor]


@dataclass
class Subject:
    """A model under test: its rows by mode, its logits and what the first call took once it is through the gate."""

    variant: Variant
    rows: dict[str, Row]
    logits: Tensor | None = None
    cold_ms: float | None = None
    # Kept for the graph, which holds what was compiled.
    compiled: Call | None = None


class TaxRunner:
    """Runs problems on one device.

    Attributes:
        red: how many rows were wrong or failed.
    """

    def __init__(self, device: torch.device, budget: Budget, allocator: str = memory.DEFAULT) -> None:
        self.device, self.budget = device, budget
        self.red = 0
        self._facts = {
            "run": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": environment.commit(),
            "library": environment.library_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": environment.version_of("triton"),
            "device": environment.device_name(device),
            "runs_on": device.type,
            "threads": torch.get_num_threads(),
            "load": environment.load(),
            "allocator": allocator,
        }
        self._watch = gpu.Stopwatch(device) if device.type == "cuda" else None

    def run(self, problem: Problem, modes: Sequence[str], methods: Sequence[str] = METHODS) -> list[Row]:
        """The rows of one problem: for each mode the base model, the sliced one, and the methods in order."""
        rows = {name: {mode: self._row(problem, mode, name) for mode in modes} for name in (BASE, SLICING, *methods)}
        ordered = [rows[name][mode] for mode in modes for name in rows]
        try:
            model = model_of(problem.model, self.device, problem.dtype)
        except Unavailable as error:
            _skip(ordered, str(error))
            return ordered
        images = images_for(model, problem.model, problem.batch)
        subjects = [Subject(one, rows[one.name]) for one in variants(model, problem, tuple(methods))]
        for subject in subjects:
            self._attempt(subject.rows.values(), functools.partial(self._gate, subject, model, images))
        self._attempt(rows[BASE].values(), functools.partial(self._tell_rounds, ordered, subjects[0], images, problem))
        passed = [subject for subject in subjects if subject.logits is not None]
        for mode in modes:
            self._time(mode, passed, images)
        self.red += sum(row.status.startswith(("wrong", "failed")) for row in ordered)
        # What was compiled for these shapes serves no other problem.
        torch.compiler.reset()
        return ordered

    def _row(self, problem: Problem, mode: str, method: str) -> Row:
        layers = problem.schedule.layers
        return Row(
            **self._facts, model=problem.model, schedule=problem.schedule.name, keep=problem.schedule.keep,
            layers="all" if layers is None else " ".join(map(str, layers)), tokens="",
            b=problem.batch, dtype=problem.dtype, mode=mode, method=method, status="failed: it never ran",
        )  # fmt: skip

    def _attempt(self, rows: Iterable[Row], step: Callable[[], Any]) -> Any:
        """What a step gives; where it raises, the rows say so and lose their times, and the run goes on."""
        try:
            return step()
        except Exception as error:
            # Told in full here, in the rows and by the exit code: one model's failure must not cost the others' rows.
            traceback.print_exc(file=sys.stderr)
            for row in rows:
                row.status = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                _without_times(row)
        return None

    def _gate(self, subject: Subject, model: DeiT, images: Tensor) -> None:
        """The first call, eagerly: what it takes, and whether the model does what it is to be timed for."""
        variant = subject.variant
        found: list[tuple[Tensor, str | None]] = []
        took = timing.wall_ms(lambda: found.append(tax_gate.first_call(variant, images)), self._wait)
        logits, wrong = found[0]
        if wrong is None and variant.name == "ward":
            wrong = tax_gate.changes_nothing(model, images)
        for row in subject.rows.values():
            row.tokens = " ".join(map(str, variant.tokens))
            row.status = row.status if wrong is None else f"wrong: {wrong}"
        if wrong is None:
            subject.logits, subject.cold_ms = logits, took

    def _tell_rounds(self, rows: Sequence[Row], base: Subject, images: Tensor, problem: Problem) -> None:
        """Says in all rows how many rounds Ward takes on the base model's tokens; without that base is not through."""
        logits, base.logits = base.logits, None
        if logits is not None:
            rounds = tax_gate.ward_rounds(base.variant.module, images, problem.schedule)
            for row in rows:
                row.ward_rounds = rounds
            base.logits = logits

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _time(self, mode: str, subjects: Sequence[Subject], images: Tensor) -> None:
        """Times the models in one mode by turns, those whose logits are right in it."""
        if mode != EAGER and self.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            _skip([subject.rows[mode] for subject in subjects], "no C++ compiler")
            return
        ready: dict[str, Call] = {}
        for subject in subjects:
            call = self._attempt([subject.rows[mode]], functools.partial(self._prepare, mode, subject, images))
            if call is not None:
                ready[subject.variant.name] = call
        lost = [name for name in (BASE, SLICING) if name not in ready]
        rows = {subject.variant.name: subject.rows[mode] for subject in subjects if subject.variant.name in ready}
        if lost:
            _skip(rows.values(), f"nothing to compare with: {lost[0]} could not be timed")
            return
        measure = self._watch.event_ms if self._watch else timing.wall_ms
        ms = dict(zip(ready, by_turns(list(ready.values()), self.budget, measure), strict=True))
        for name, row in rows.items():
            complete(row, ms[name], ms[SLICING], ms[BASE])

    def _prepare(self, mode: str, subject: Subject, images: Tensor) -> Call | None:
        """The call that is timed, warm and checked against the eager logits; None where it is wrong."""
        row = subject.rows[mode]
        call = self._call(mode, subject, images)
        row.cold_ms = subject.cold_ms
        if mode != EAGER:
            found: list[Tensor] = []
            row.cold_ms = timing.wall_ms(lambda: found.append(call()), self._wait)
            wrong = tax_gate.differs(found[0], subject.logits)
            if wrong is not None:
                row.status = f"wrong: {wrong}"
                _without_times(row)
                return None
        if mode != GRAPH:
            row.peak_mb = gpu.peak_mb(call, self.device) if self._watch else timing.peak_cpu_mb(call)
        return call

    def _call(self, mode: str, subject: Subject, images: Tensor) -> Call:
        module = subject.variant.module
        if mode == EAGER:
            return functools.partial(module, images)
        if subject.compiled is None:
            subject.compiled = functools.partial(compiled(module), images)
        return subject.compiled if mode == COMPILED else captured(subject.compiled, self.device)


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's call compiled for the shapes that it gets.

    Each has code of its own: torch keeps what it compiled by code object, and models that take turns in one would be
    searched through at every call, and be dropped beyond eight.
    """

    def call(images: Tensor) -> Tensor:
        return module(images)

    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def captured(call: Call, device: torch.device) -> Call:
    """The call as a CUDA graph: each replay gives the logits of the same images, launched as one."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = call()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def by_turns(
    calls: Sequence[Call], budget: Budget, measure: Callable[[Callable[[], object]], float]
) -> list[list[float]]:
    """Milliseconds of every call in whole rounds, in which each runs once, in a rotating order.

    What disturbs the machine for a while then disturbs all of a round, whose ratios hardly feel it.

    Args:
        budget: `repeats` rounds at most, and none more once all calls together have taken its seconds; the first LEAST
            rounds are made all the same.
    """
    ms: list[list[float]] = [[] for _ in calls]
    spent = 0.0
    for turn in range(budget.repeats):
        if turn >= LEAST and spent >= budget.seconds:
            break
        for place in range(len(calls)):
            which = (place + turn) % len(calls)
            ms[which].append(measure(calls[which]))
            spent += ms[which][-1] / 1e3
    return ms


def complete(row: Row, ms: Sequence[float], sliced: Sequence[float], base: Sequence[float]) -> None:
    """Fills a row from its model's times and those of the sliced and the base model in the same rounds."""
    taxes = [own / other - 1 for own, other in zip(ms, sliced, strict=True)]
    gains = [other / own for own, other in zip(ms, base, strict=True)]
    row.status, row.rounds = "ok", len(ms)
    row.p20_ms, row.p50_ms, row.p99_ms = (quantile(ms, share) for share in (0.2, 0.5, 0.99))
    if row.method != BASE:
        row.tax_p20, row.tax, row.tax_p80 = (quantile(taxes, share) for share in (0.2, 0.5, 0.8))
    row.speedup_p20, row.speedup, row.speedup_p80 = (quantile(gains, share) for share in (0.2, 0.5, 0.8))


def _skip(rows: Iterable[Row], why: str) -> None:
    for row in rows:
        row.status = f"skipped: {why}"
        _without_times(row)


def _without_times(row: Row) -> None:
    for name in TIMES:
        setattr(row, name, None)
