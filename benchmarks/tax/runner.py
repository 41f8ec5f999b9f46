"""From a problem to its rows: every model through the gate, then all of them by turns."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import environment, gpu, memory, runner, timing
from ..runner import Measure
from ..timing import LEAST, Budget, quantile
from . import gate
from .calls import Call, captured, compiled
from .cases import BASE, METHODS, MODES, SLICING, Problem
from .models import DeiT, Unavailable, Variant, images_for, model_of, variants
from .rows import Row

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


@dataclass(frozen=True)
class Ready:
    """A model's call that takes turns in one mode, and its row there."""

    name: str
    rows: list[Row]
    call: Call

    def owns(self, call: Call) -> bool:
        """Whether a call that is measured is this one."""
        return self.call is call


def blank_row(facts: dict[str, Any], problem: Problem, mode: str, method: str) -> Row:
    """A row before anything has run; facts: of `environment.facts`, with `runs_on` and `allocator`."""
    layers = problem.schedule.layers
    return Row(
        **facts, model=problem.model, schedule=problem.schedule.name, keep=problem.schedule.keep,
        layers="all" if layers is None else " ".join(map(str, layers)), tokens="",
        b=problem.batch, dtype=problem.dtype, mode=mode, method=method, status="failed: it never ran",
    )  # fmt: skip


class Runner(runner.Runner):
    """Runs problems on one device."""

    @staticmethod
    def _own_facts(device: torch.device) -> dict[str, Any]:
        return {**environment.facts(device), "runs_on": device.type, "allocator": memory.DEFAULT}

    def run(self, problem: Problem, modes: Sequence[str], methods: Sequence[str] = METHODS) -> list[Row]:
        """The rows of one problem: for each mode the base model, the sliced one, and the methods in order.

        Without those that are in the ledger, whose models are left out. Red rows are written at once, a mode's others
        when its times are final.

        Raises:
            DeviceLost: while a model ran, whose row has been written.
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
        # Code compiled for these shapes is of no use to another problem.
        torch.compiler.reset()
        return ordered

    def _rows(self, problem: Problem, modes: Sequence[str], method: str) -> dict[str, Row]:
        """The rows by mode that the ledger lacks."""
        blanks = {mode: blank_row(self._facts, problem, mode, method) for mode in modes}
        return {mode: row for mode, row in blanks.items() if not self._context.ledger.has(row)}

    def _gate(self, subject: Subject, model: DeiT, images: Tensor) -> None:
        """Makes the first call, eagerly: records its time, and checks the model's tokens and logits."""
        variant = subject.variant
        found: list[tuple[Tensor, str | None]] = []
        took = timing.wall_ms(lambda: found.append(gate.first_call(variant, images)), self._wait)
        logits, wrong = found[0]
        if wrong is None and variant.name == "ward":
            wrong = gate.changes_nothing(model, images)
        for row in subject.rows.values():
            row.tokens = " ".join(map(str, variant.tokens))
            row.status = row.status if wrong is None else f"wrong: {wrong}"
        if wrong is None:
            subject.logits, subject.cold_ms = logits, took
        else:
            self._write(list(subject.rows.values()))

    def _tell_rounds(self, rows: Sequence[Row], base: Subject, images: Tensor, problem: Problem) -> None:
        """Records Ward's rounds on the base model's tokens in all rows; where that raises, base fails the gate."""
        logits, base.logits = base.logits, None
        rounds = gate.ward_rounds(base.variant.module, images, problem.schedule)
        for row in rows:
            row.ward_rounds = rounds
        base.logits = logits

    def _time(self, mode: str, subjects: Sequence[Subject], images: Tensor) -> None:
        """Times the models in one mode by turns, those whose logits are right in it."""
        if mode != EAGER and self.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            rows = [subject.rows[mode] for subject in subjects]
            _skip(rows, "no C++ compiler")
            self._write(rows)
            return
        ready = []
        for subject in subjects:
            rows = [subject.rows[mode]]
            step = functools.partial(self._prepare, mode, subject, images)
            call = self._attempt(rows, f"the first call, {mode}", step)
            if call is not None:
                ready.append(Ready(subject.variant.name, rows, call))
        measure = self._watch.event_ms if self._watch else timing.wall_ms
        rounds = functools.partial(self._rounds, ready)
        ms = self._take_turns(ready, measure, f"the repeats, {mode}", rounds)
        left = {one.name: one.rows[0] for one in ready}
        for name, times in ms.items():
            complete(left[name], times, ms[SLICING], ms[BASE])
        if not ms:
            (lost, *_) = (name for name in (BASE, SLICING) if name not in left)
            _skip(left.values(), f"nothing to compare with: {lost} could not be timed")
        self._write(list(left.values()))

    def _rounds(self, ready: Sequence[Ready], measure: Measure) -> dict[str, list[float]]:
        """Milliseconds by name; none where base or slicing failed, which the others are compared with."""
        names = [one.name for one in ready]
        if BASE not in names or SLICING not in names:
            return {}
        return dict(zip(names, by_turns([one.call for one in ready], self.budget, measure), strict=True))

    def _prepare(self, mode: str, subject: Subject, images: Tensor) -> Call | None:
        """The call that is timed, warm and checked against the eager logits; None where it is wrong."""
        row = subject.rows[mode]
        call = self._call(mode, subject, images)
        row.cold_ms = subject.cold_ms
        if mode != EAGER:
            found: list[Tensor] = []
            row.cold_ms = timing.wall_ms(lambda: found.append(call()), self._wait)
            wrong = gate.differs(found[0], subject.logits)
            if wrong is not None:
                row.status = f"wrong: {wrong}"
                row.drop_times()
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

    What disturbs the machine for a while then disturbs all of a round, and hardly changes its ratios.

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
        row.drop_times()
