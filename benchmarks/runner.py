"""From a case to its rows: who can run, whether the answer is right, and only then what it costs."""

from __future__ import annotations

import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import environment, floors, gpu, rows, timing
from .cases import Case
from .context import Context
from .deadline import Until
from .errors import DeviceLost, in_words
from .gate import Gate, Verdict
from .inputs import Inputs, make_inputs
from .providers import Provider
from .rows import TIMES, Row
from .timing import Budget, Timed, quantile

# Different inputs are made so many times; further sets are copies, for it is their addresses that matter.
DISTINCT_SETS = 4


@dataclass
class Entry:
    """A provider in a case: its calls by input set, what has been found so far, its times."""

    provider: Provider
    row: Row
    calls: list
    timed: Timed
    on_gpu: bool
    graph_ms: list[float] = field(default_factory=list)


def blank_row(facts: dict[str, Any], kind: str, group: str, case: Case, provider: Provider) -> Row:
    """A row before anything has run.

    Args:
        facts: of `environment.facts`. kind: of device, "cpu" or "cuda".
    """
    version = environment.version_of(provider.package) if provider.package else ""
    return Row(
        **facts, package=f"{provider.package} {version}" if version else "",
        runs_on="cpu" if provider.on_cpu else kind, group=group, case=case.name,
        provider=provider.name, solves=provider.solves, method=case.method,
        init="" if case.method == "ward" else case.init,
        weighted=provider.weighted(case), tokens=case.tokens, dtype=case.dtype,
        b=case.b, n=case.n, d=case.d, k=case.k, iters=case.iters, status="failed: it never ran",
    )  # fmt: skip


class Runner:
    """Runs cases on one device.

    Attributes:
        red: how many rows were wrong or failed (memory that another package ran out of is not counted).
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
        self._facts = facts or environment.facts(device)
        self._watch = gpu.Stopwatch(device) if device.type == "cuda" else None
        self._bandwidth = gpu.bandwidth_gbs(device) if device.type == "cuda" else None
        self._load_libraries()

    def run(self, group: str, case: Case, providers: Sequence[Provider]) -> list[Row]:
        """The rows of one case, in the order of its providers that take such a method.

        Red rows are written at once, the others when all of the case's times are final.

        Raises:
            DeviceLost: in the hands of a provider, whose row has been written.
        """
        sets = self._input_sets(case)
        gate = Gate(sets[0])
        found, entries = [], []
        for provider in (provider for provider in providers if case.method in provider.methods):
            row = blank_row(self._facts, self.device.type, group, case, provider)
            found.append(row)
            self._context.progress(provider.name, "being asked")
            reason = provider.why_not(case, self.device)
            if reason is not None:
                row.status = f"skipped: {reason}"
                continue
            entry = self._attempt(row, "the first call", functools.partial(self._first, provider, row, sets, gate))
            if entry is not None:
                entries.append(entry)
        entries = [
            entry for entry in entries
            if self._attempt(entry.row, "memory and graph", functools.partial(self._extras, entry))
        ]  # fmt: skip
        if entries:
            self._time(entries, sets)
        self._write([row for row in found if row.status.startswith(("ok", "skipped"))])
        return found

    def _input_sets(self, case: Case) -> list[Inputs]:
        first = make_inputs(case, self.device)
        if self.device.type == "cpu":
            return [first]
        count = gpu.input_sets(self.device, first.x.numel() * first.x.element_size())
        distinct = [first, *(make_inputs(case, self.device, seed) for seed in range(1, min(count, DISTINCT_SETS)))]
        copies = [
            dataclasses.replace(distinct[i % len(distinct)], x=distinct[i % len(distinct)].x.clone())
            for i in range(len(distinct), count)
        ]
        return [*distinct, *copies]

    def _write(self, found: Sequence[Row]) -> None:
        self._context.ledger.add(found)
        self.red += sum(rows.red(row.provider, row.status) for row in found)

    def _attempt(self, row: Row, name: str, step: Callable[[], Any]) -> Any:
        """What a step gives; where it raises, the row says so, and the run goes on."""
        return self._context.attempt(row.provider, name, step, functools.partial(self._fail, row))

    def _fail(self, row: Row, error: Exception) -> None:
        """Writes a row without times that says what was raised.

        Raises:
            DeviceLost: nothing can run in this process any more.
        """
        for name in TIMES:
            setattr(row, name, None)
        if isinstance(error, torch.OutOfMemoryError):
            row.status = f"{rows.OUT_OF_MEMORY}, {str(error).splitlines()[0]}"
            self._write([row])
            return
        # Told in full here, in the row and by the exit code: one provider's failure must not cost the others' rows.
        traceback.print_exc(file=sys.stderr)
        row.status = f"failed: {in_words(error)}"
        self._write([row])
        if environment.is_lost(self.device):
            raise DeviceLost(f"{row.provider}, {row.case}: {row.status}") from error

    def _first(self, provider: Provider, row: Row, sets: list[Inputs], gate: Gate) -> Entry | None:
        """The first call, its time and the gate's word on its labels; an entry where they pass."""
        on_gpu = self.device.type == "cuda" and not provider.on_cpu
        # What runs on the CPU does not rotate: converting many sets would cost more than timing them.
        calls = [provider.prepare(inputs) for inputs in (sets if on_gpu else sets[:1])]
        found: list[torch.Tensor] = []
        cold = timing.wall_ms(lambda: found.append(calls[0]()), self._wait if on_gpu else None)
        verdict = self._judge(provider, row, gate, found[0])
        if verdict.wrong is not None:
            row.status = f"wrong: {verdict.wrong}"
            self._write([row])
            return None
        row.cold_ms = cold
        return Entry(provider, row, calls, Timed(lambda turn: calls[turn % len(calls)]()), on_gpu)

    def _judge(self, provider: Provider, row: Row, gate: Gate, label: torch.Tensor) -> Verdict:
        verdict = gate.check(
            label,
            weighted=provider.weighted(gate.case),
            same_path=provider.same_path,
            half_centres=provider.half_centres,
        )
        row.objective, row.objective_ratio = verdict.objective, verdict.ratio
        return verdict

    def _load_libraries(self) -> None:
        """Torch loads some for its first product, which is not to be in anyone's cold time."""
        ones = torch.ones(2, 2, device=self.device)
        ones.mm(ones)

    def _wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def _time(self, entries: list[Entry], sets: list[Inputs]) -> None:
        """Times the entries, warm by now, beside the floor, and completes their rows."""
        case = sets[0].case
        self._context.progress("")
        floor = Timed(lambda turn: floors.distance_product(sets[turn % len(sets)]))
        floor.call(0)
        for on_gpu in (False, True):
            group = [entry for entry in entries if entry.on_gpu is on_gpu]
            self._take_turns(group, [floor] if on_gpu is (self.device.type == "cuda") else [], on_gpu)
        product = quantile(floor.ms, 0.5)
        if self._watch is not None:
            calls = [functools.partial(floors.distance_product, inputs) for inputs in sets]
            product = quantile(self._watch.graph_ms(calls, self.budget), 0.5)
        for entry in entries:
            if entry.timed.ms:
                self._complete(entry, case, floors.products(case) * product)

    def _take_turns(self, entries: list[Entry], beside: list[Timed], on_gpu: bool) -> None:
        """Times entries by turns; without one that raises, which is left without times, the others begin again."""
        measure = self._watch.event_ms if on_gpu and self._watch else timing.settled_ms
        running: list[Entry] = []

        def measure_one(call: functools.partial) -> float:
            running[:] = [entry for entry in entries if entry.timed.call is call.func]
            self._context.progress(running[0].row.provider if running else "", "the repeats")
            return measure(call)

        while True:
            try:
                timing.alternate([*beside, *(entry.timed for entry in entries)], self.budget, measure_one)
            except Exception as error:
                if not running:
                    raise
                self._fail(running[0].row, error)
                for timed in (*beside, *(entry.timed for entry in entries)):
                    timed.ms.clear()
                entries.remove(running[0])
            else:
                self._context.progress("")
                return

    def _extras(self, entry: Entry) -> bool:
        """Peak memory, launches, and the captured graph; the calls warm up what is timed afterwards."""
        call, row = entry.calls[0], entry.row
        if not entry.on_gpu:
            row.peak_mb = timing.peak_cpu_mb(call)
            return True
        row.peak_mb = gpu.peak_mb(call, self.device)
        row.launches = gpu.count_launches(call, self.device)
        if not entry.provider.capturable:
            row.note = "no CUDA graph: it waits for the host"
            return True
        try:
            entry.graph_ms = self._watch.graph_ms(entry.calls, self.budget)
        except RuntimeError as error:
            if environment.is_lost(self.device):
                raise
            # Its calls were right without one, and are timed without one; the row says why.
            row.note = f"no CUDA graph: {str(error).strip().splitlines()[0][:200]}"
        return True

    def _complete(self, entry: Entry, case: Case, product_ms: float) -> None:
        row, ms = entry.row, entry.timed.ms
        row.status, row.repeats = "ok", len(ms)
        row.p20_ms, row.p50_ms, row.p99_ms = (quantile(ms, share) for share in (0.2, 0.5, 0.99))
        row.graph_p50_ms = quantile(entry.graph_ms, 0.5) if entry.graph_ms else None
        row.product_floor_ms = row.floor_ms = product_ms
        if self._bandwidth is not None:
            row.memory_floor_ms = floors.memory_floor_ms(case, self._bandwidth)
            row.floor_ms = max(product_ms, row.memory_floor_ms)
        row.over_floor = (row.graph_p50_ms or row.p50_ms) / row.floor_ms
