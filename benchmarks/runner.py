"""What every runner does: rows that are written, steps that may raise, subjects that take turns."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from . import environment, gpu
from .context import Context
from .deadline import Until
from .errors import DeviceLost, in_words
from .rows import Row
from .timing import Budget

Call = Callable[[], object]
Measure = Callable[[Call], float]
Found = TypeVar("Found")


class Subject(Protocol):
    """What takes turns: `rows` record a call that raises, and `owns` tells its calls from others."""

    rows: Sequence[Row]

    def owns(self, call: Call) -> bool:
        """Whether a call that is measured is this subject's."""


class Runner:
    """Runs cases or problems on one device; a subclass says what these are.

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
        self._facts = facts or self._own_facts(device)
        self._watch = gpu.Stopwatch(device) if device.type == "cuda" else None

    @staticmethod
    def _own_facts(device: torch.device) -> dict[str, Any]:
        """What rows share by default."""
        return environment.facts(device)

    def _write(self, rows: Sequence[Row]) -> None:
        self._context.ledger.add(rows)
        self.red += sum(row.red(row.subject, row.status) for row in rows)

    def _attempt(self, rows: Sequence[Row], name: str, step: Callable[[], Any]) -> Any:
        """Returns what a step of one subject returns; where it raises, its rows record it, and the run goes on."""
        return self._context.attempt(rows[0].subject, name, step, functools.partial(self._fail, rows))

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """Writes a subject's rows without times, with the error as their status.

        Raises:
            DeviceLost: nothing can run in this process any more.
        """
        status = self._status_of(error)
        for row in rows:
            row.status = status
            row.drop_times()
        self._write(rows)
        if environment.is_lost(self.device):
            raise DeviceLost(f"{rows[0].title}: {status}") from error

    def _status_of(self, error: Exception) -> str:
        """The status of rows for an error, which is printed in full: other subjects still get their rows."""
        traceback.print_exception(error, file=sys.stderr)
        return f"failed: {in_words(error)}"

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _take_turns(
        self, subjects: list[Subject], measure: Measure, step: str, rounds: Callable[[Measure], Found]
    ) -> Found:
        """The result of rounds in which no subject raises.

        A subject that raises is written as failed and leaves `subjects`, and the others begin again.

        Args:
            measure: milliseconds of one call.
            step: what the run's progress calls a repeat.
            rounds: measures the calls of the subjects that are left, and perhaps others, by the function that it gets.
        """
        running: list[Subject] = []

        def measure_one(call: Call) -> float:
            running[:] = [one for one in subjects if one.owns(call)]
            self._context.progress(running[0].rows[0].subject if running else "", step)
            return measure(call)

        while True:
            try:
                found = rounds(measure_one)
            except Exception as error:
                if not running:
                    raise
                self._fail(running[0].rows, error)
                subjects[:] = [one for one in subjects if one is not running[0]]
            else:
                self._context.progress("")
                return found
