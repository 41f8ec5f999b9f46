"""Problems of the pooling tax as a job of `benchmarks/execution.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..context import Context
from ..ledger import Ledger
from ..session import measuring_on
from ..timing import Budget
from .cases import BASE, SLICING, Problem
from .rows import Row
from .runner import Runner, blank_row


class Problems:
    """Problems one after the other.

    Args:
        work: problems, each with the modes that it is run in.
        methods: beside base and slicing.
        facts: of `environment.facts`, with `runs_on` and `allocator`.
    """

    def __init__(
        self,
        work: Sequence[tuple[Problem, list[str]]],
        methods: Sequence[str],
        device: torch.device,
        budget: Budget,
        facts: dict[str, Any],
        ledger: Ledger,
    ) -> None:
        self._work, self._methods, self._facts = work, methods, facts
        self._device, self._budget, self.ledger = device, budget, ledger
        self.titles = [problem.title for problem, _ in work]

    def blanks(self, unit: int) -> list[Row]:
        """A problem's rows before anything has run."""
        problem, modes = self._work[unit]
        return [
            blank_row(self._facts, problem, mode, name) for mode in modes for name in (BASE, SLICING, *self._methods)
        ]

    @contextmanager
    def measuring(self, context: Context) -> Iterator[Callable[[int], object]]:
        """A function that measures a problem, without the rows that are already written."""
        with measuring_on(self._device):
            runner = Runner(self._device, self._budget, self._facts, context)
            yield lambda unit: runner.run(*self._work[unit], self._methods)


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    name = f"  {row.mode:<10}  {row.method:<10}"
    if row.status != "ok":
        return f"{name}  {row.status}"
    tax = ""
    if row.tax is not None:
        tax = f"tax {100 * row.tax:+.1f} % ({100 * row.tax_p20:+.1f} to {100 * row.tax_p80:+.1f})"
    return f"{name}  {tax:<34}  {row.speedup:5.2f}x base  p50 {row.p50_ms:10.3f} ms  {row.rounds} rounds"
