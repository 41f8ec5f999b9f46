"""From a case to its rows: which providers can run, whether their labels are right, and only then their times."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import environment, gpu, runner, timing
from ..timing import Timed, quantile
from . import floors
from .cases import Case
from .gate import Gate, Verdict
from .inputs import Inputs, input_sets
from .providers import Provider
from .rows import OUT_OF_MEMORY, Row


@dataclass
class Entry:
    """A provider in a case: its calls by input set, what has been found so far, its times."""

    provider: Provider
    row: Row
    calls: list
    timed: Timed
    on_gpu: bool
    graph_ms: list[float] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """The row that records a call that raises."""
        return [self.row]

    def owns(self, call: functools.partial) -> bool:
        """Whether a call that is measured is one of these."""
        return self.timed.call is call.func


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


class Runner(runner.Runner):
    """Runs cases on one device; `red` leaves out memory that another package ran out of."""

    def __init__(self, device: torch.device, *given: Any) -> None:
        super().__init__(device, *given)
        self._bandwidth = gpu.bandwidth_gbs(device) if device.type == "cuda" else None
        self._load_libraries()

    def run(self, group: str, case: Case, providers: Sequence[Provider]) -> list[Row]:
        """The rows of one case, in the order of its providers that take such a method.

        Red rows are written at once, the others when all of the case's times are final.

        Raises:
            DeviceLost: while a provider ran, whose row has been written.
        """
        sets = input_sets(case, self.device)
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
            entry = self._attempt([row], "the first call", functools.partial(self._first, provider, row, sets, gate))
            if entry is not None:
                entries.append(entry)
        entries = [
            entry for entry in entries
            if self._attempt(entry.rows, "memory and graph", functools.partial(self._extras, entry))
        ]  # fmt: skip
        if entries:
            self._time(entries, sets)
        self._write([row for row in found if row.status.startswith(("ok", "skipped"))])
        return found

    def _status_of(self, error: Exception) -> str:
        if isinstance(error, torch.OutOfMemoryError):
            return f"{OUT_OF_MEMORY}, {str(error).splitlines()[0]}"
        return super()._status_of(error)

    def _first(self, provider: Provider, row: Row, sets: list[Inputs], gate: Gate) -> Entry | None:
        """Makes the first call, timed, with the gate's verdict on its labels; returns an entry where they pass."""
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
            half_centers=provider.half_centers,
        )
        row.objective, row.objective_ratio = verdict.objective, verdict.ratio
        return verdict

    def _load_libraries(self) -> None:
        """Loads the libraries of torch's first product, so that no provider's cold time includes that."""
        ones = torch.ones(2, 2, device=self.device)
        ones.mm(ones)

    def _time(self, entries: list[Entry], sets: list[Inputs]) -> None:
        """Times the entries, warm by now, beside the floor, and completes their rows."""
        case = sets[0].case
        self._context.progress("")
        floor = Timed(lambda turn: floors.distance_product(sets[turn % len(sets)]))
        floor.call(0)
        left = []
        for on_gpu in (False, True):
            group = [entry for entry in entries if entry.on_gpu is on_gpu]
            self._time_beside([floor] if on_gpu is (self.device.type == "cuda") else [], group, on_gpu)
            left += group
        product = quantile(floor.ms, 0.5)
        if self._watch is not None:
            calls = [functools.partial(floors.distance_product, inputs) for inputs in sets]
            product = quantile(self._watch.graph_ms(calls, self.budget), 0.5)
        for entry in left:
            self._complete(entry, case, floors.products(case) * product)

    def _time_beside(self, beside: list[Timed], entries: list[Entry], on_gpu: bool) -> None:
        """Times entries and other calls by turns; entries that raise leave the list."""

        def rounds(measure: runner.Measure) -> None:
            timed = [*beside, *(entry.timed for entry in entries)]
            for one in timed:
                one.ms.clear()
            timing.alternate(timed, self.budget, measure)

        measure = self._watch.event_ms if on_gpu and self._watch else timing.settled_ms
        self._take_turns(entries, measure, "the repeats", rounds)

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
