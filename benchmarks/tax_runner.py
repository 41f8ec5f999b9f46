"""From a problem to its rows: every model through the gate, then all of them by turns."""

from __future__ import annotations

import functools
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import environment, gpu, memory, tax_gate, timing
from .context import Context
from .deadline import Until
from .errors import DeviceLost, in_words
from .tax_calls import Call, captured, compiled
from .tax_cases import BASE, METHODS, MODES, SLICING, Problem
from .tax_models import DeiT, Unavailable, Variant, images_for, model_of, variants
from .tax_rows import TIMES, Row, red
from .timing import LEAST, Budget, quantile

EAGER, COMPILED, GRAPH = MODES


@dataclass
class Subject:
    """A model under test: its rows by mode, its logits and what the first call took once it is through the gate."""

    variant: Variant
    rows: dict[str, Row]
    logits: Tensor | None = None
    cold_ms: float | None = None
    # Kept for the graph, which holds what was compiled.
    compiled: Call | None = None


def blank_row(facts: dict[str, Any], problem: Problem, mode: str, method: str) -> Row:
    """A row before anything has run; facts: of `environment.facts`, with `runs_on` and `allocator`."""
    layers = problem.schedule.layers
    return Row(
        **facts, model=problem.model, schedule=problem.schedule.name, keep=problem.schedule.keep,
        layers="all" if layers is None else " ".join(map(str, layers)), tokens="",
        b=problem.batch, dtype=problem.dtype, mode=mode, method=method, status="failed: it never ran",
    )  # fmt: skip


class TaxRunner:
    """Runs problems on one device.

    Attributes:
        red: how many rows were wrong or failed.
    """

    def __init__(
        self,
        device: torch.device,
        budget: Budget,
        facts: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        self._context = context or Context()
        self.device, self.budget = device, Until(budget, self._context.deadline)
        self.red = 0
        plain = {"runs_on": device.type, "allocator": memory.DEFAULT}
        self._facts = facts or {**environment.facts(device), **plain}
        self._watch = gpu.Stopwatch(device) if device.type == "cuda" else None

    def run(self, problem: Problem, modes: Sequence[str], methods: Sequence[str] = METHODS) -> list[Row]:
        """The rows of one problem: for each mode the base model, the sliced one, and the methods in order.

        Without those that are in the ledger, whose models are left out. Red rows are written at once, a mode's others
        when its times are final.

        Raises:
            DeviceLost: in the hands of a model, whose row has been written.
        """
        rows = {name: self._rows(problem, modes, name) for name in (BASE, SLICING, *methods)}
        ordered = [rows[name][mode] for mode in modes for name in rows if mode in rows[name]]
        try:
            model = model_of(problem.model, self.device, problem.dtype)
        except Unavailable as error:
            _skip(ordered, str(error))
            self._write(ordered)
            return ordered
        images = images_for(model, problem.model, problem.batch)
        subjects = [Subject(one, rows[one.name]) for one in variants(model, problem, tuple(methods))]
        for subject in subjects:
            if subject.rows:
                step = functools.partial(self._gate, subject, model, images)
                self._attempt(list(subject.rows.values()), "the first call", step)
            if subject.logits is not None and subject.variant.name == BASE:
                step = functools.partial(self._tell_rounds, ordered, subject, images, problem)
                self._attempt(list(subject.rows.values()), "counting Ward's rounds", step)
        passed = [subject for subject in subjects if subject.logits is not None]
        for mode in modes:
            if self._context.deadline.over:
                break
            self._time(mode, [subject for subject in passed if mode in subject.rows], images)
        # What was compiled for these shapes serves no other problem.
        torch.compiler.reset()
        return ordered

    def _rows(self, problem: Problem, modes: Sequence[str], method: str) -> dict[str, Row]:
        """By mode, those that the ledger lacks."""
        blanks = {mode: blank_row(self._facts, problem, mode, method) for mode in modes}
        return {mode: row for mode, row in blanks.items() if not self._context.ledger.has(row)}

    def _write(self, rows: Sequence[Row]) -> None:
        self._context.ledger.add(rows)
        self.red += sum(red(row.method, row.status) for row in rows)

    def _attempt(self, rows: Sequence[Row], name: str, step: Callable[[], Any]) -> Any:
        """What a step of one model gives; where it raises, its rows say so, and the run goes on."""
        return self._context.attempt(rows[0].method, name, step, functools.partial(self._fail, rows))

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """Writes a model's rows without times, which say what was raised.

        Raises:
            DeviceLost: nothing can run in this process any more.
        """
        # Told in full here, in the rows and by the exit code: one model's failure must not cost the others' rows.
        traceback.print_exc(file=sys.stderr)
        for row in rows:
            row.status = f"failed: {in_words(error)}"
            _without_times(row)
        self._write(rows)
        if environment.is_lost(self.device):
            raise DeviceLost(f"{rows[0].method}, {rows[0].model}: {rows[0].status}") from error

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
        else:
            self._write(list(subject.rows.values()))

    def _tell_rounds(self, rows: Sequence[Row], base: Subject, images: Tensor, problem: Problem) -> None:
        """Says in all rows how many rounds Ward takes on the base model's tokens; without that base is not through."""
        logits, base.logits = base.logits, None
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
            rows = [subject.rows[mode] for subject in subjects]
            _skip(rows, "no C++ compiler")
            self._write(rows)
            return
        ready: dict[str, Call] = {}
        for subject in subjects:
            step = functools.partial(self._prepare, mode, subject, images)
            call = self._attempt([subject.rows[mode]], f"the first call, {mode}", step)
            if call is not None:
                ready[subject.variant.name] = call
        rows = {subject.variant.name: subject.rows[mode] for subject in subjects}
        ms = self._take_turns(mode, ready, rows)
        left = {name: rows[name] for name in ready}
        for name, times in ms.items():
            complete(left[name], times, ms[SLICING], ms[BASE])
        if not ms:
            (lost, *_) = (name for name in (BASE, SLICING) if name not in ready)
            _skip(left.values(), f"nothing to compare with: {lost} could not be timed")
        self._write(list(left.values()))

    def _take_turns(self, mode: str, ready: dict[str, Call], rows: dict[str, Row]) -> dict[str, list[float]]:
        """Milliseconds by name; a call that raises leaves `ready`, and the others begin again.

        None at all where base or slicing is not there, which the others are compared with.
        """
        measure = self._watch.event_ms if self._watch else timing.wall_ms
        running: list[str] = []

        def measure_one(call: Call) -> float:
            running[:] = [name for name, one in ready.items() if one is call]
            self._context.progress(running[0], f"the repeats, {mode}")
            return measure(call)

        while BASE in ready and SLICING in ready:
            try:
                ms = by_turns(list(ready.values()), self.budget, measure_one)
            except Exception as error:
                del ready[running[0]]
                self._fail([rows[running[0]]], error)
            else:
                self._context.progress("")
                return dict(zip(ready, ms, strict=True))
        return {}

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
                self._write([row])
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
