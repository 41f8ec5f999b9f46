"""The context of a run: the ledger of its rows, its progress, and its deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .deadline import Deadline
from .ledger import Ledger
from .progress import Progress


@dataclass(frozen=True)
class Context:
    """Without arguments rows are written to no file, and there is no deadline."""

    ledger: Ledger = field(default_factory=Ledger)
    progress: Progress = field(default_factory=Progress)
    deadline: Deadline = field(default_factory=Deadline)

    def attempt(self, subject: str, name: str, step: Callable[[], Any], failed: Callable[[Exception], None]) -> Any:
        """Returns what a step of a subject returns; where it raises, calls `failed`, and the run goes on."""
        self.progress(subject, name)
        found = None
        try:
            found = step()
        except Exception as error:
            failed(error)
        self.progress("")
        return found
