"""Cases of clustering as a job of `benchmarks/execution.py`, and a run over groups of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .. import execution, session
from ..context import Context
from ..errors import Refusal
from ..ledger import Ledger
from ..session import measuring_on
from ..timing import Budget
from . import cases
from .providers import providers_of
from .rows import TABLE, Row
from .runner import Runner, blank_row

REPEATS = {"cpu": 30, "cuda": 100}


class Cases:
    """Cases one after the other.

    Args:
        plan: (group, case, providers) of every case.
    """

    def __init__(
        self, plan: Sequence[tuple], device: torch.device, budget: Budget, facts: dict[str, Any], ledger: Ledger
    ) -> None:
        self._plan, self._device, self._budget, self._facts, self.ledger = plan, device, budget, facts, ledger
        self.titles = [f"{group}: {case.name}, {case.shape}, {case.dtype}" for group, case, _ in plan]

    def blanks(self, unit: int) -> list[Row]:
        """A case's rows before anything has run."""
        group, case, everyone = self._plan[unit]
        takers = [provider for provider in everyone if case.method in provider.methods]
        return [blank_row(self._facts, self._device.type, group, case, provider) for provider in takers]

    @contextmanager
    def measuring(self, context: Context) -> Iterator[Callable[[int], object]]:
        """A function that measures a case, without the rows that are already written."""
        with measuring_on(self._device):
            runner = Runner(self._device, self._budget, self._facts, context)

            def measure(unit: int) -> None:
                group, case, everyone = self._plan[unit]
                there = {row.provider for row in self.blanks(unit) if self.ledger.has(row)}
                runner.run(group, case, [provider for provider in everyone if provider.name not in there])

            yield measure


def measure(groups: Sequence[str], options: argparse.Namespace) -> int:
    """Runs the groups; how many rows were wrong or failed.

    Raises:
        Refusal: an unknown device, no case or provider left, a file of results of another make, or as
            `execution.execute`.
    """
    device = session.device_of(options)
    plan = _plan(groups, device.type, options)
    begun = session.begin(options, device, TABLE, REPEATS, line)
    job = Cases(plan, device, begun.budget, begun.facts, begun.ledger)
    return execution.execute(job, options, device.type, begun.facts)


def _plan(groups: Sequence[str], kind: str, options: argparse.Namespace) -> list[tuple]:
    """(group, case, providers) of every case; --case and --provider have to leave something in one group at least."""
    plan, complaints = [], []
    for group in groups:
        try:
            chosen = cases.select(group, kind, small=options.quick, only=options.case)
            everyone = providers_of(group, options.provider)
        except Refusal as error:
            complaints.append(error)
            continue
        plan += [(group, case, everyone) for case in chosen]
    if not plan:
        raise complaints[0]
    return plan


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    if row.status != "ok":
        return f"  {row.provider:<22}  {row.status}"
    parts = [f"p50 {row.p50_ms:9.3f} ms", f"p20 {row.p20_ms:9.3f}", f"p99 {row.p99_ms:9.3f}"]
    if row.graph_p50_ms is not None:
        parts.append(f"graph {row.graph_p50_ms:8.4f}")
    parts += [f"cold {row.cold_ms:8.0f}", f"{row.over_floor:7.2f}x floor", f"{row.peak_mb:8.1f} MB"]
    if row.launches is not None:
        parts.append(f"{row.launches} launches")
    parts.append(f"objective {row.objective_ratio:.4f}")
    if row.note:
        parts.append(row.note)
    return "  ".join([f"  {row.provider:<22}", *parts])
